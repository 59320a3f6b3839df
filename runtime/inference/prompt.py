# SPDX-License-Identifier: Apache-2.0
"""The task text as token ids (docs/policy.md), with the `tokenizers` package alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_edge.bundle import Bundle, TokenizerSpec
from vla_edge.errors import BundleError, ObservationError


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids int64 [max_length] with padding, mask float32 [max_length] (1 a token, 0 padding), truncated: tokens cut."""

    task: str
    ids: NDArray[np.int64]
    mask: NDArray[np.float32]
    truncated: int


class PromptEncoder:
    """Task text → Prompt with the tokenizer of one bundle. A task over the length limit is refused, because a cut
    instruction is another instruction; `allow_truncation` cuts it as LeRobot does, on the tokenizer's side. A policy
    that takes no text gets no ids."""

    def __init__(self, bundle: Bundle, allow_truncation: bool = False) -> None:
        self._spec = bundle.manifest.tokenizer
        self._allow_truncation = allow_truncation
        if not self._spec.file:
            return
        try:
            self._tokenizer = Tokenizer.from_buffer(bytes(bundle.read(self._spec.file)))
        except ValueError as error:
            raise BundleError(
                f"{bundle.path / self._spec.file}: not a tokenizer ({error}); export the bundle again"
            ) from None
        if not 0 <= self._spec.pad_id < self._tokenizer.get_vocab_size():
            raise BundleError(
                f"{bundle.path}: manifest: tokenizer.pad_id {self._spec.pad_id} is not in {self._spec.file}; export "
                "the bundle again"
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, task: str) -> Prompt:
        """ObservationError for a task that is no text or, without `allow_truncation`, too long. An empty task is one
        that LeRobot's policies know from data recorded without a text."""
        spec = self._spec
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in task):
            raise ObservationError(
                f"the task {task!r:.80} holds half of a surrogate pair, which is no text; encode it again as UTF-8"
            )
        if not spec.file:
            return Prompt(task, np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
        text = task if task.endswith("\n") or not spec.append_newline else task + "\n"
        tokens = self._tokenizer.encode(text).ids
        excess = max(0, len(tokens) - spec.max_length)
        if excess and not self._allow_truncation:
            raise ObservationError(
                f"the task is too long: {len(tokens)} tokens, the policy takes at most {spec.max_length}; "
                "shorten it, or allow truncation"
            )
        if excess:
            tokens = tokens[excess:] if spec.truncation_side == "left" else tokens[: spec.max_length]
        ids, mask = _padded(tokens, spec)
        return Prompt(task, ids, mask, excess)


def _padded(tokens: list[int], spec: TokenizerSpec) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Padding to the graph's static length. "longest" pads nothing in LeRobot at batch 1: there the added rows are the
    graph's own, always behind the text and masked."""
    ids = np.full(spec.max_length, spec.pad_id, np.int64)
    mask = np.zeros(spec.max_length, np.float32)
    at_end = spec.padding == "max_length" and spec.padding_side == "left"
    start = spec.max_length - len(tokens) if at_end else 0
    ids[start : start + len(tokens)] = tokens
    mask[start : start + len(tokens)] = 1
    return ids, mask
