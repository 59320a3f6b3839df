"""Task text to token ids, with the policy's own tokenizer file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_edge.errors import CheckpointError
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
