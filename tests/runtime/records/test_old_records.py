# SPDX-License-Identifier: Apache-2.0
"""Flight records of earlier builds: read, and their goals computed again by the guard that they name."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from pathlib import Path

import pytest

from vla_edge.bundle import MANIFEST, open_bundle
from vla_edge.errors import ControlError
from vla_edge.robot.arm_description import load_arm
from vla_edge.runtime.control.flight_record import chunks_of, open_record, ticks_of
from vla_edge.runtime.inference.input_record import read_inputs
from vla_edge.runtime.records.replay_inputs import replay_inputs

pytest.importorskip("vla_edge._core")

OLD = Path(__file__).resolve().parents[2] / "data" / "records" / "flight_35ebfe7.record.gz"
"""260 ticks at 50 Hz on an arm without a bus: smooth and wild chunks, a hold, arming, parking."""
NEWER = OLD.with_name("flight_666d6ba.record.gz")
"""Version 3: 271 ticks at 50 Hz, chunks blended over 3 ticks, a hold, a latched one, parking, an episode done again."""
SIX = OLD.with_name("flight_4733e22.record.gz")
"""Version 4: 109 ticks at 90 Hz between actions at 30 a second, smooth and wild chunks over each other, a hold."""
ONE_PORT = OLD.with_name("flight_88b8df7.record.gz")
"""Version 5 before joints parked by turns: 142 ticks at 90 Hz, smooth and wild chunks, a hold, arming, parking."""
INPUTS = OLD.with_name("inputs_35ebfe7.record.gz")
"""Four inferences of examples/reach-cube behind a gate whose limits are called guard_mean and guard_worst."""
TICK = 1
HEADER, CELL = 4096, 256


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "flight.record"
    path.write_bytes(gzip.decompress(OLD.read_bytes()))
    return path


def test_a_record_of_version_2_is_read(record: Path) -> None:
    reader = open_record(record)
    ticks = list(ticks_of(reader))
    assert reader.header()["version"] == 2 and reader.header()["period_ns"] == 20_000_000
    assert reader.header()["guard_version"] == 1 and reader.header()["action_ns"] == 20_000_000
    assert len(ticks) == 260 and [tick["tick"] for tick in ticks] == list(range(260))
    assert set(Counter(tick["state"] for tick in ticks)) >= {"planning", "moving", "hold", "parking"}
    assert len(chunks_of(reader)) == 26 and all(tick["finding"] == 0 for tick in ticks)


def test_its_goals_are_the_same_byte_for_byte(record: Path) -> None:
    told = open_record(record).replay()
    assert told == {
        "ticks": 260, "chunks": 26, "damaged": 0, "differing": 0, "first_tick": 0, "differing_at": -1,
    }  # fmt: skip


def test_a_record_of_version_3_is_read_and_its_goals_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "flight.record"
    path.write_bytes(gzip.decompress(NEWER.read_bytes()))
    reader = open_record(path)
    header, ticks = reader.header(), list(ticks_of(reader))
    # Whole counts, and one action each tick.
    assert (header["version"], header["guard_version"], header["action_ns"]) == (3, 1, header["period_ns"])
    assert len(ticks) == 271 and {"planning", "moving", "hold", "parking"} <= {tick["state"] for tick in ticks}
    assert len(chunks_of(reader)) == 19
    assert reader.replay() == {
        "ticks": 271, "chunks": 19, "damaged": 0, "differing": 0, "first_tick": 0, "differing_at": -1,
    }  # fmt: skip


def test_a_record_of_version_4_is_read_and_its_goals_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "flight.record"
    path.write_bytes(gzip.decompress(SIX.read_bytes()))
    reader = open_record(path)
    header, ticks = reader.header(), list(ticks_of(reader))
    assert (header["version"], header["guard_version"], header["action_ns"]) == (4, 2, 33_333_333)
    assert header["arm"] == "koch" and header["joints"] == load_arm("koch").joint_names == ticks[0]["joints"]
    assert len(ticks) == 109 and {"planning", "moving", "hold"} <= {tick["state"] for tick in ticks}
    assert len(chunks_of(reader)) == 12 and {len(tick["goals"]) for tick in ticks} == {6}
    assert reader.replay() == {
        "ticks": 109, "chunks": 12, "damaged": 0, "differing": 0, "first_tick": 0, "differing_at": -1,
    }  # fmt: skip


def test_a_record_from_before_joints_parked_by_turns_is_read_and_its_goals_are_the_same_byte_for_byte(
    tmp_path: Path,
) -> None:
    path = tmp_path / "flight.record"
    path.write_bytes(gzip.decompress(ONE_PORT.read_bytes()))
    reader = open_record(path)
    ticks = list(ticks_of(reader))
    assert reader.header()["version"] == 5 and len(ticks) == 142 and len(chunks_of(reader)) == 5
    assert {"planning", "moving", "hold", "parking"} <= {tick["state"] for tick in ticks}
    assert reader.replay() == {
        "ticks": 142, "chunks": 5, "damaged": 0, "differing": 0, "first_tick": 0, "differing_at": -1,
    }  # fmt: skip


def test_a_goal_that_was_changed_in_it_is_found(record: Path) -> None:
    import struct
    import zlib

    data = bytearray(record.read_bytes())
    for index in range(100, 200):
        at = HEADER + index * CELL
        (kind,) = struct.unpack_from("<I", data, at + 8)
        if kind == TICK and struct.unpack_from("<q", data, at + 16)[0] == 90:
            goal_at = at + 16 + 48 + 48
            struct.pack_into("<i", data, goal_at, struct.unpack_from("<i", data, goal_at)[0] + 1)
            struct.pack_into("<I", data, at + 12, 0)
            struct.pack_into("<I", data, at + 12, zlib.crc32(data[at : at + CELL]))
            break
    record.write_bytes(data)
    told = open_record(record).replay()
    assert (told["damaged"], told["differing"], told["differing_at"]) == (0, 1, 90)


def test_a_record_of_an_unknown_version_is_refused(record: Path) -> None:
    data = bytearray(record.read_bytes())
    data[7:8] = b"9"
    record.write_bytes(data)
    with pytest.raises(ControlError, match="not a flight record"):
        open_record(record)


def test_a_record_of_inputs_of_before_is_run_again(tmp_path: Path) -> None:
    record, bundle = tmp_path / "inputs", tmp_path / "bundle"
    record.write_bytes(gzip.decompress(INPUTS.read_bytes()))
    shutil.copytree(OLD.parents[3] / "examples" / "reach-cube" / "bundle", bundle)
    shutil.copy(OLD.parents[1] / "manifest-without-programme.json", bundle / MANIFEST)  # that of the same build
    session, *inferences = list(read_inputs(record))
    assert session.head["bundle"] == open_bundle(bundle).digest and session.head["gate"]["guard_worst"] == 8.0
    assert [entry.head["reason"] for entry in inferences][2:] == ["reused", "picture_changed"]
    told = replay_inputs(record, bundle, lambda work: work)
    # Bit for bit on the machine that recorded it; elsewhere ONNX Runtime's kernels round otherwise.
    assert (told.inferences, told.gaps) == (4, 0) and told.worst < 1e-4
