# SPDX-License-Identifier: Apache-2.0
"""Is a dataset sound? Named checks over a v2.1 or v3.0 folder, each with what it found wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.verification import frame_checks, meta_checks, stats_checks
from vla_edge.lerobot_data.verification.opened import Opened, open_parts


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


@dataclass(frozen=True, slots=True)
class CheckResult:
    """problems is empty when the check passed; None when it could not run (`needs` says for want of what)."""

    name: str
    problems: tuple[str, ...] | None
    needs: str = ""
    untidy: bool = False

    @property
    def verdict(self) -> str:
        if self.problems is None:
            return "not run"
        return ("untidy" if self.untidy else "failed") if self.problems else "passed"


@dataclass(frozen=True, slots=True)
class Report:
    root: Path
    version: str | None
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Every check ran, and none found what breaks training."""
        return all(check.verdict in ("passed", "untidy") for check in self.checks)

    @property
    def first_problem(self) -> str:
        found = (check for check in self.checks if check.problems and not check.untidy)
        return next((f"{check.name}: {check.problems[0]}" for check in found if check.problems), "none")

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": str(self.root),
            "version": self.version,
            "passed": self.passed,
            "checks": [
                {
                    "name": check.name,
                    "result": check.verdict,
                    "problems": list(check.problems or ()),
                    "needs": check.needs,
                }
                for check in self.checks
            ],
        }


def verify_dataset(root: Path, tolerance_s: float = TOLERANCE_S) -> Report:
    """Run all checks. Reads every table once, the times of all video packets, and decodes the ends of every episode's
    videos. tolerance_s: how far times may be from where the rate puts them.

    Raises DatasetError only when `root` is no folder at all; anything else wrong is in the report.
    """
    if not root.is_dir():
        raise DatasetError(f"dataset {root} does not exist; give the folder that holds meta/info.json")
    opened = open_parts(root, tolerance_s)
    results = []
    for check in CHECKS:
        missing = [part for part in check.needs if getattr(opened, part) is None]
        if missing:
            results.append(CheckResult(check.name, None, f"{' and '.join(missing)} could not be read"))
        else:
            results.append(CheckResult(check.name, _problems(check, opened), untidy=check.untidy))
    return Report(root, opened.info.version if opened.info else None, tuple(results))


def _problems(check: Check, opened: Opened) -> tuple[str, ...]:
    try:
        return tuple(check.run(opened))
    except DatasetError as error:
        return (str(error),)
