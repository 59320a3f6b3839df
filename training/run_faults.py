"""What to do when a run stops by itself: lack of memory, numbers that are not finite."""

from __future__ import annotations

import torch

from vla_edge.errors import TrainingError
from vla_edge.training.run_config import TrainConfig

NOT_FINITE = "not finite"
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def fault_advice(error: BaseException, config: TrainConfig, last_good: str) -> TrainingError | None:
    """The one line for a person, or None when the error is of another kind and should be shown as it is."""
    if isinstance(error, TrainingError) and str(error).startswith(NOT_FINITE):
        return TrainingError(
            f"{error}; lower the learning rate (now {config.optimizer.lr:g}) or raise the warm-up, and check the "
            "data set's statistics "
            f"with `vla-data verify`; last good checkpoint: {last_good}"
        )
    if _is_memory(error):
        return TrainingError(
            f"out of memory with batch {config.batch_size} × {config.accumulation} in {config.precision}; use a "
            "smaller batch with more "
            f"accumulation, bf16, or a smaller image size (resize_imgs_with_padding); last good checkpoint: {last_good}"
        )
    return None


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)
