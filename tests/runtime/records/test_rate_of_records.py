# SPDX-License-Identifier: Apache-2.0
"""Records of control at another rate than the data's: replayed bit for bit, exported at the data's rate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.control.inference_rig import PATIENT, Control

from vla_edge.contract import Chunk, ChunkKind
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.run_folder import open_run_folder
from vla_edge.runtime.inference.input_record import Entry, pack
from vla_edge.runtime.records.episodes import export_episodes

core = pytest.importorskip("vla_edge._core")

ACTION_NS, DIGEST, ROWS = 33_333_333, "ef" * 32, 40
SCALE, OFFSET = 4096 / 360, 2048.0
CAMERA = "observation.images.front"


@contextlib.contextmanager
def loop(root: Path, period_ns: int, blend_actions: int = 0, joints: int = 6) -> Iterator[Any]:
    """The C loop on an arm without a bus; its run folder."""
    control = Control(
        open_run_folder(root),
        DIGEST,
        1e9 / period_ns,
        blend_actions=blend_actions,
        action_ns=ACTION_NS,
        joints=joints,
        **PATIENT,
    )
    try:
        yield control.folder
    finally:
        control.stop()


def wait(folder: Any, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status for which `what` holds."""
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        told = core.StateReader(folder.state).read() if folder.state.exists() else None
        if told is not None and what(told):
            return dict(told)
        time.sleep(0.002)
    raise AssertionError("not within two minutes")


@pytest.mark.parametrize(
    ("period_ns", "blend", "joints"),
    [
        (11_111_111, 0, 6),
        (11_111_111, 3, 6),
        (20_000_000, 0, 6),
        (66_666_667, 2, 6),
        (11_111_111, 3, 1),
        (20_000_000, 0, 16),
    ],
)
def test_a_record_of_interpolated_actions_is_replayed_bit_for_bit(
    tmp_path: Path, period_ns: int, blend: int, joints: int
) -> None:
    """R22: five chunks over each other, then the end of the last one."""
    with loop(tmp_path, period_ns, blend, joints) as folder:
        told = wait(folder, lambda told: told["state"] == "planning" and told["reading_tick"] >= 0)
        ring, sequence = core.RingWriter(folder.ring), 0
        ring.announce(p99_ns=10_000_000, plan_then_move=False)
        while told["chunks"]["taken"] < 5:  # one that a busy machine brings late is refused, and another follows
            sequence += 1
            due_s = told["reading_tick"] * period_ns / 1e9 + np.arange(ROWS) * ACTION_NS / 1e9
            actions = (sequence + 10 * np.sin(3 * due_s)).astype(np.float32)[:, None].repeat(joints, 1)
            ring.write(Chunk(ChunkKind.MOVING, 7, DIGEST, sequence, told["reading_tick"], told["reading_ns"], actions))
            seen, tick = sequence, told["tick"]
            told = wait(
                folder,
                lambda told: sum(told["chunks"].values()) >= seen and told["tick"] > tick + 3,  # noqa: B023
            )
        wait(folder, lambda told: told["state"] == "hold")
    reader = open_record(folder.record)
    header, again, ticks = reader.header(), reader.replay(), list(ticks_of(reader))
    assert (header["version"], header["guard_version"], header["action_ns"]) == (5, 2, ACTION_NS)
    assert header["joints"] == tuple(f"axis_{i}" for i in range(joints)) == ticks[0]["joints"]
    assert len(ticks[-1]["goals"]) == joints and folder.record.stat().st_size == core.record_bytes(1 << 13, joints)
    assert again["differing"] == 0 and again["chunks"] >= 5 and again["ticks"] == len(ticks) > 10
    # What was due lies on the line between two actions of the chunk, at the tick's nominal time.
    chunks = {
        cell[1]["observation_sequence"]: cell[1]
        for cell in map(reader.cell, range(*reader.range()))
        if cell is not None and cell[0] == "chunk"
    }
    checked = 0
    for tick in ticks:
        if not tick["due"] or blend:
            continue
        chunk = chunks[tick["action_sequence"]]
        rows = np.frombuffer(chunk["actions"], np.float32).reshape(ROWS, joints)
        place = (tick["tick"] - chunk["observation_tick"]) * period_ns / ACTION_NS
        expected = np.interp(min(place, ROWS - 1), np.arange(ROWS), rows[:, 0])
        assert abs(tick["action"][0] - expected) < 1e-4 and tick["action_index"] == int(min(place, ROWS - 1) + 1e-6)
        checked += 1
    assert blend or checked > 5


class Recorded:
    """A reader of ticks that were made up. position = 10 a tick, goals = 10 a tick + 5."""

    def __init__(self, period_ns: int, numbers: list[int], unwritten: tuple[int, ...] = ()) -> None:
        self._period_ns = period_ns
        self._cells = [("tick", self._tick(number, number not in unwritten)) for number in numbers]

    def _tick(self, number: int, write: bool) -> dict[str, Any]:
        now_ns = 10**9 + number * self._period_ns
        joints = {"position": (10 * number,) * 6, "goals": (10 * number + 5,) * 6}
        return {
            "tick": number, "now_ns": now_ns, "reading_ns": now_ns + 1_000_000, "state": "moving", "latched": False,
            "due": True, "write": write, "command": 0, **joints,
        }  # fmt: skip

    def header(self) -> dict[str, Any]:
        names = tuple(f"axis_{i}" for i in range(6))
        return {
            "period_ns": self._period_ns,
            "action_ns": ACTION_NS,
            "joints": names,
            "arm": "koch",
            "maps": ((1.0, 0.0),) * 6,
        }

    def range(self) -> tuple[int, int]:
        return 0, len(self._cells)

    def cell(self, index: int) -> Any:
        return self._cells[index]


def pictures(path: Path) -> Path:
    """A record of inputs: one picture at the start, for the task."""
    picture = np.zeros((48, 64, 3), np.uint8)
    head = {"kind": "inference", "sequence": 1, "task": "reach", "captured_ns": {CAMERA: 10**9}}
    path.write_bytes(pack(Entry(head, {f"picture/{CAMERA}": picture})))
    return path


@pytest.mark.parametrize(
    ("period_ns", "numbers", "unwritten", "rows"),
    [
        (11_111_111, range(91), (), np.arange(31) * 3.0),  # 90 Hz: every third tick
        (33_333_333, range(31), (), np.arange(31) * 1.0),  # the data's rate: every tick
        (22_222_222, range(46), (), np.arange(31) * 1.5),  # 45 Hz: a tick, then half way between two
        (66_666_667, range(16), (), np.arange(31) * 0.5),  # 15 Hz: one in between
        (11_111_111, [k for k in range(91) if k not in (30, 31, 32)], (), np.arange(31) * 3.0),  # missed ticks
        (11_111_111, range(91), (9, 10), np.arange(31) * 3.0),  # ticks that wrote nothing
    ],
)
def test_episodes_have_the_datas_rate_whatever_control_had(
    tmp_path: Path, period_ns: int, numbers: Any, unwritten: tuple[int, ...], rows: np.ndarray
) -> None:
    reader = Recorded(period_ns, list(numbers), unwritten)
    made = export_episodes(reader, pictures(tmp_path / "inputs"), tmp_path / "data", picture_age_s=5.0)
    assert (made.episodes, made.left_out) == (1, len(unwritten))
    with open_dataset(tmp_path / "data") as dataset:
        assert dataset.fps == 30 and len(dataset) == len(rows)
        np.testing.assert_allclose(dataset.column("observation.state")[:, 0], rows * 10, atol=1e-3)
        np.testing.assert_allclose(dataset.column("action")[:, 5], rows * 10 + 5, atol=1e-3)


def test_a_gap_of_more_than_three_rows_begins_another_episode(tmp_path: Path) -> None:
    numbers = [k for k in range(91) if not 30 <= k < 40]
    made = export_episodes(Recorded(11_111_111, numbers), pictures(tmp_path / "inputs"), tmp_path / "a", 5.0)
    assert made.episodes == 2 and made.frames == 10 + 17
    silent = Recorded(11_111_111, list(range(91)), tuple(range(30, 40)))
    assert export_episodes(silent, pictures(tmp_path / "more"), tmp_path / "b", 5.0).episodes == 2
