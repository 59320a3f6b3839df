# SPDX-License-Identifier: Apache-2.0
"""The checks of `vla-data verify` by name, in the order they are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vla_edge.lerobot_data.verification import frame_checks, meta_checks, stats_checks
from vla_edge.lerobot_data.verification.opened import Opened


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, the parts of `Opened` it cannot do without, and what it does. untidy: what it finds does not
    keep the data from being read and trained on."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[Opened], Sequence[str]]
    untidy: bool = False


_META = ("info", "episodes")
_FRAMES = ("info", "episodes", "frames")
_STATS = ("info", "episodes", "stats", "episode_stats")

CHECKS = (
    Check("folders", (), meta_checks.folders),
    Check("meta files", (), meta_checks.meta_files),
    Check("metadata", (), meta_checks.metadata),
    Check("version", (), meta_checks.version),
    Check("features", ("info",), meta_checks.features),
    Check("counts", (*_FRAMES, "tasks"), meta_checks.counts),
    Check("sample", (), frame_checks.sample),
    Check("statistics", (*_STATS, "frames"), stats_checks.statistics),
    Check("indices", _FRAMES, frame_checks.indices),
    Check("episode files", _FRAMES, frame_checks.files_of_episodes),
    Check("timestamps", _FRAMES, frame_checks.timestamps),
    Check("video ends", _META, frame_checks.video_ends),
    Check("task indices", (*_FRAMES, "tasks"), frame_checks.task_indices),
    Check("tidy rows", _META, frame_checks.rows_of_episodes, untidy=True),
    Check("tidy info", ("info",), meta_checks.untidy_info, untidy=True),
    Check("tidy statistics", (*_STATS, "frames"), stats_checks.untidy_statistics, untidy=True),
    Check("statistics finite", _STATS, stats_checks.statistics_finite),
)
