# SPDX-License-Identifier: Apache-2.0
"""Task text to token ids, with the policy's own tokenizer file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor

from vla_edge.errors import CheckpointError
from vla_edge.policies.checkpoint_folder import read_json
from vla_edge.policies.tokenizer_settings import TokenizerSettings


class TaskTokenizer:
    """Tokenises tasks as the checkpoint's processors say."""

    def __init__(self, settings: TokenizerSettings) -> None:
        self.settings = settings
        file = settings.folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{file}: no tokenizer ({error}); copy the checkpoint again") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_length, direction=settings.truncation_side)

    def read_otherwise(self, tasks: Sequence[str]) -> list[str]:
        """A sentence for each of `tasks` that transformers 5 (LeRobot 0.6) makes other ids of. Of a tokenizer
        whose class is GPT2Tokenizer it takes the vocabulary, and splits words as GPT-2 does, whatever tokenizer.json
        says; here, as in transformers 4, tokenizer.json says it."""
        folder = self.settings.folder
        details = read_json(folder / "tokenizer_config.json")
        if details.get("tokenizer_class") not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
            return []
        other = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(details.get("add_prefix_space")))
        other.no_truncation()
        own = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        own.no_truncation()
        return [
            f"the task {task[:60]!r} becomes other tokens in transformers 5 (LeRobot 0.6), which splits words "
            "otherwise for the class GPT2Tokenizer; a policy trained there needs the tokenizer as it was saved there: "
            "give that folder with --vlm"
            for task in tasks
            if own.encode(task).ids != other.encode(task).ids
        ]

    def encode(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids int64 [B, T] and mask bool [B, T]; T is max_length, or the longest task's tokens."""
        rows = []
        for task in tasks:
            text = task if task.endswith("\n") or not self.settings.append_newline else f"{task}\n"
            rows.append(self._tokenizer.encode(text).ids)
        length = self.settings.max_length if self.settings.padding == "max_length" else max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.settings.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            place = slice(0, len(row)) if self.settings.padding_side == "right" else slice(length - len(row), length)
            ids[index, place] = torch.tensor(row)
            mask[index, place] = True
        return ids, mask
