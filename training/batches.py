# SPDX-License-Identifier: Apache-2.0
"""The stream of training batches of one process, in the sampler's order from any state on."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from vla_edge.errors import VlaEdgeError
from vla_edge.training.sampler import QuotaSampler, SamplerState
from vla_edge.training.training_frames import Mix, collate

LONGEST_WAIT_S = 600
"""Without a batch for so long, loader processes are taken to hang: torch raises RuntimeError."""
MOST_WORKERS = 4
Picks = list[tuple[int, int, int]]


class _Order:
    """The picks of every batch from `state` on, endless. The global batch is dealt to the processes in turn."""

    def __init__(self, sampler: QuotaSampler, state: SamplerState, rank: int, processes: int) -> None:
        self._sampler, self._state, self._rank, self._processes = sampler, state, rank, processes

    def __iter__(self) -> Iterator[Picks]:
        state = self._state
        while True:
            draw = self._sampler.draw(state)
            picks = draw.picks[self._rank :: self._processes]
            yield [(source, frame, state.batches) for source, frame in picks]
            state = draw.after


def batches(
    mix: Mix, policy: Any, sampler: QuotaSampler, state: SamplerState, place: tuple[int, int], workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches from `state` on for process `place` = (rank, processes); endless.

    `sampler.batch_size` frames make one batch of all processes together. The
    loader's own generator keeps it from touching torch's global random state.
    """
    loader: DataLoader = DataLoader(
        mix,
        batch_sampler=_Order(sampler, state, *place),
        num_workers=workers,
        collate_fn=partial(collate, policy=policy) if workers == 0 else _as_list,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,  # a forked decoder may wait for ever for its threads
        timeout=LONGEST_WAIT_S if workers else 0,
        worker_init_fn=end_with_parent,
    )
    for item in loader:
        for sample in item if workers else ():
            if isinstance(sample, VlaEdgeError):
                raise sample
        yield item if workers == 0 else collate(item, policy)


def usual_workers(frames: int, frame_bytes: int, cache_mb: int) -> int:
    """Loader processes where nobody says how many: 4 or as many as there are CPUs, and none where nothing is decoded
    all along, because tokens are kept (`frame_bytes` 0) or all decoded pictures fit into `cache_mb`."""
    if frames * frame_bytes <= cache_mb * 2**20:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def end_with_parent(_: int) -> None:
    """In a loader process: end within two seconds of the trainer's death. One that was killed (lack of memory) cannot
    tell its loaders, and a loader that waits for someone to take its frames would wait, with its memory, for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:  # which it never is where the trainer died before this process was up
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_list(samples: list) -> list:
    """Workers decode only: the policy is not copied to them."""
    return samples
