# SPDX-License-Identifier: Apache-2.0
"""Episodes of a flight record as a LeRobot v3.0 dataset, with the actions that were sent to the servos.

`action` is the goal that left for the bus after the guard, not what the policy wished; `observation.state` is the joint
reading; both in joint units, at the rate of the data that the policy was trained on: where control ticked at another
rate, rows are what lies on the line between two ticks. A picture is the newest one taken before the reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import Command
from vla_edge.ensembling import ON_A_ROW
from vla_edge.errors import RecordError
from vla_edge.runtime.control.flight_record import ticks_of
from vla_edge.runtime.inference.input_record import PICTURE, Entry, read_inputs

if TYPE_CHECKING:
    from vla_edge.lerobot_data.writer import DatasetWriter

_GAP_ROWS = 3
"""Rows: where ticks that wrote goals stand further apart, an episode ends, and nothing is made up between them."""


@dataclass(frozen=True, slots=True)
class Exported:
    """left_out: ticks within the episodes that wrote no goal. stale: rows without a picture that was new enough; an
    episode ends before them and another begins behind. oldest_picture_s: the greatest age of a picture in its row."""

    episodes: int
    frames: int
    left_out: int
    stale: int
    oldest_picture_s: float


def export_episodes(reader: Any, inputs: Path, target: Path, picture_age_s: float) -> Exported:
    """RecordError: no episode, no picture, or no picture that was new enough."""
    # A report, which reads spans only, works where no dataset can be written.
    from vla_edge.lerobot_data.layout import Feature
    from vla_edge.lerobot_data.writer import DatasetWriter

    header = reader.header()
    row_ticks = header["action_ns"] / header["period_ns"]
    spans = episodes_of(ticks_of(reader), gap_ticks(row_ticks))
    if not spans:
        raise RecordError(
            "the flight record holds no tick in which a chunk moved the arm; there is no episode to export"
        )
    scale, offset = np.array(header["maps"]).T
    album = _Album(inputs)
    joints = list(header["joints"])
    features = {
        "observation.state": Feature("float32", (len(joints),), joints),
        "action": Feature("float32", (len(joints),), joints),
        **{name: Feature("video", shape, ["height", "width", "channels"]) for name, shape in album.shapes.items()},
    }
    left_out, stale, oldest_ns, limit_ns = 0, 0, 0.0, picture_age_s * 1e9
    with DatasetWriter(
        target, round(1e9 / header["action_ns"], 6), features, robot_type=f"{header['arm']}_follower"
    ) as writer:
        for span in spans:
            written = [tick for tick in span if tick["write"]]
            left_out += len(span) - len(written)
            for part in _without_gaps(written, gap_ticks(row_ticks)):
                for at in _rows(part, row_ticks):
                    pictures, age_ns = album.at(at["reading_ns"])
                    if age_ns > limit_ns:
                        stale += 1
                        _save(writer)  # rows of an episode stand one period apart
                        continue
                    oldest_ns = max(oldest_ns, age_ns)
                    state, action = ((at[name] - offset) / scale for name in ("position", "goals"))
                    row = {"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}
                    writer.add_frame({**row, **pictures}, task=album.task)
                _save(writer)
        frames, episodes = writer.frames, writer.episodes
        if not frames:
            raise RecordError(
                f"none of {stale} ticks has a picture newer than {picture_age_s} s; record with --record-fps, or "
                "give a "
                "larger --picture-age"
            )
    return Exported(episodes, frames, left_out, stale, oldest_ns / 1e9)


def _save(writer: DatasetWriter) -> None:
    if writer.pending_frames:
        writer.save_episode()


def gap_ticks(row_ticks: float) -> int:
    """Ticks without a goal that may lie between two with one; row_ticks: ticks from row to row."""
    return max(_GAP_ROWS, round(_GAP_ROWS * row_ticks))


def _without_gaps(ticks: Sequence[Mapping[str, Any]], gap: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    start = 0
    for index in range(1, len(ticks) + 1):
        if index == len(ticks) or ticks[index]["tick"] - ticks[index - 1]["tick"] > gap + 1:
            yield ticks[start:index]
            start = index


def _rows(ticks: Sequence[Mapping[str, Any]], row_ticks: float) -> Iterator[dict[str, Any]]:
    """Readings, goals and the time of the reading every row_ticks ticks from the first on, by linear interpolation."""
    if not ticks:
        return
    number = np.array([tick["tick"] for tick in ticks], np.float64)
    count = int((number[-1] - number[0]) / row_ticks + ON_A_ROW) + 1
    wanted = number[0] + row_ticks * np.arange(count)
    times = np.array([tick["reading_ns"] - ticks[0]["reading_ns"] for tick in ticks], np.float64)
    read = np.interp(wanted, number, times)
    joints = {
        name: np.stack([np.interp(wanted, number, column) for column in np.array([tick[name] for tick in ticks]).T], 1)
        for name in ("position", "goals")
    }
    for index in range(count):
        found = {name: values[index] for name, values in joints.items()}
        yield {"reading_ns": ticks[0]["reading_ns"] + round(float(read[index])), **found}


@dataclass
class Trial:
    """One episode of a run. redone: the person marked it to be done again (`r`). fault: it ended in one."""

    ticks: list[Mapping[str, Any]]
    redone: bool = False
    fault: bool = False

    def facts(self) -> dict[str, Any]:
        """What `vla-train compare --trials` reads: a trial that nobody marked and no fault ended has succeeded."""
        seconds = (self.ticks[-1]["now_ns"] - self.ticks[0]["now_ns"]) / 1e9
        return {"seconds": seconds, "succeeded": not (self.redone or self.fault), "stepped_in": self.redone}


def episodes_of(ticks: Iterable[Mapping[str, Any]], gap: int = _GAP_ROWS) -> list[list[Mapping[str, Any]]]:
    """The ticks of every trial that the person did not want to do again. gap: ticks that may be missing within one."""
    return [trial.ticks for trial in trials_of(ticks, gap) if not trial.redone]


def trials_of(ticks: Iterable[Mapping[str, Any]], gap: int = _GAP_ROWS) -> list[Trial]:
    """From the first tick that an action moved to the last before the arm was disarmed, parked, latched or in fault."""
    trials: list[Trial] = []
    span: list[Mapping[str, Any]] = []
    for tick in ticks:
        ends = tick["state"] in ("disarmed", "parking", "fault") or tick["latched"]
        torn = bool(span) and tick["tick"] - span[-1]["tick"] > gap + 1
        if ends or torn:
            trials += [Trial(moved, fault=tick["state"] == "fault") for moved in _trimmed(span)]
            span = []
        if tick["command"] == Command.REDO:
            for trial in [trial for trial in trials if not trial.redone][-1:]:
                trial.redone = True
        if not ends and (span or tick["due"]):
            span.append(tick)
    return trials + [Trial(moved) for moved in _trimmed(span)]


def _trimmed(span: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Without the hold behind the last action; nothing without an action."""
    last = max((index for index, tick in enumerate(span) if tick["due"] and tick["write"]), default=-1)
    return [span[: last + 1]] if last >= 0 else []


class _Album:
    """The recorded pictures, read once from front to back as ticks advance."""

    def __init__(self, inputs: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.task = ""
        inferred = False
        for entry in read_inputs(inputs):
            inferred |= "task" in entry.head
            self.task = self.task or entry.head.get("task", "")
            self.shapes |= {name: array.shape for name, array in _pictures(entry).items() if name not in self.shapes}
        if not self.shapes:
            raise RecordError(f"{inputs}: no picture in it; give the file of --record-inputs")
        if not self.task:
            why = "no inference in it, so the task is unknown; give the whole file"
            if inferred:
                why = "the run had no --task, which a dataset needs; give one, also for a policy that reads none"
            raise RecordError(f"{inputs}: {why}")
        self._entries = read_inputs(inputs)
        self._ahead: Entry | None = next(self._entries, None)
        self._newest: dict[str, tuple[int, NDArray[np.uint8]]] = {}

    def at(self, time_ns: int) -> tuple[dict[str, NDArray[np.uint8]], float]:
        """Each camera's newest picture at `time_ns`, and the age of the oldest of them in ns (inf: one has none)."""
        while self._ahead is not None and _date(self._ahead) <= time_ns:
            self._take(self._ahead)
            self._ahead = next(self._entries, None)
        if len(self._newest) < len(self.shapes):
            return {}, float("inf")
        return {name: image for name, (_, image) in self._newest.items()}, time_ns - min(
            taken for taken, _ in self._newest.values()
        )

    def _take(self, entry: Entry) -> None:
        self.task = entry.head.get("task", self.task)
        for name, image in _pictures(entry).items():
            taken = entry.head["captured_ns"] if entry.head["kind"] == "picture" else entry.head["captured_ns"][name]
            if name not in self._newest or taken > self._newest[name][0]:
                self._newest[name] = (taken, np.array(image))


def _pictures(entry: Entry) -> dict[str, NDArray[np.uint8]]:
    if entry.head.get("audit"):
        return {}
    return {name.removeprefix(PICTURE): array for name, array in entry.arrays.items() if name.startswith(PICTURE)}


def _date(entry: Entry) -> int:
    """From when on an entry's pictures are known; entries without one come at once."""
    captured = entry.head.get("captured_ns", 0)
    return int(max(captured.values(), default=0)) if isinstance(captured, dict) else int(captured)
