# SPDX-License-Identifier: Apache-2.0
"""Records: replayed goals and chunks, exported episodes, the report with its blame, and what a full disk does."""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import shutil
import struct

import numpy as np
import pytest
from tests.runtime.control.inference_rig import PATIENT, Control
from tests.runtime.records.recorded_run import T, record_run

from vla_edge.contract import Chunk, ChunkKind, Command
from vla_edge.errors import RecordError
from vla_edge.lerobot_data.command import main as vla_data
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.runtime.command import main
from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.run_folder import open_run_folder
from vla_edge.runtime.inference.input_record import Entry, pack, read_inputs
from vla_edge.runtime.records.blame import Cause, Missed, count_by_cause, missed_ticks, spans_of
from vla_edge.runtime.records.episodes import episodes_of, trials_of
from vla_edge.runtime.records.replay_inputs import replay_inputs


@pytest.fixture(scope="module")
def run_folder(golden_bundle, tmp_path_factory):
    """A short run with everything recorded; inputs in `inputs.rec`."""
    root = tmp_path_factory.mktemp("recorded")
    return record_run(root, golden_bundle, "--record-inputs", str(root / "inputs.rec"), "--record-fps", "15")


@pytest.fixture(scope="module")
def inputs(run_folder):
    return run_folder.parent / "inputs.rec"


@pytest.fixture(scope="module")
def exported(run_folder, inputs, tmp_path_factory):
    """The run as a dataset, all of it, and what the command told of it."""
    target = tmp_path_factory.mktemp("exported") / "episodes"
    words = ["--inputs", str(inputs), "--export", str(target), "--picture-age", "5", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["replay", str(run_folder / "flight.record"), *words]) == 0
    return target, json.loads(out.getvalue().splitlines()[-1])["episodes"]


# ---- replay


def test_goals_and_chunks_are_computed_again_bit_for_bit(run_folder, inputs, golden_bundle, capsys):
    words = [str(run_folder / "flight.record"), "--inputs", str(inputs), "--bundle", str(golden_bundle), "--json"]
    assert main(["replay", *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["differing"] == 0 and told["ticks"] > 60 and told["chunks"] >= 1
    # The same engine, threads and version: not one bit may differ.
    assert (
        told["inputs"]["differing"] == 0
        and told["inputs"]["inferences"] >= 2
        and told["inputs"]["worst"] == 0
        and told["inputs"]["gaps"] == 0
    )


def test_goals_are_computed_again_also_where_inference_voided_a_chunk(tmp_path):
    """What the record holds of inference's notice is what the pilot was given at that tick, not what came during it."""
    folder, digest = open_run_folder(tmp_path / "run"), "ab" * 32
    control = Control(folder, digest, hz=100, **PATIENT)

    def wait(*states):
        return control.wait(lambda told: told["state"] in states and told["reading_tick"] >= 0)

    try:
        told = wait("planning")
        ring = control.core.RingWriter(folder.ring)
        for sequence in range(1, 6):
            ring.announce(p99_ns=10_000_000, plan_then_move=False, dropped_through=sequence - 1, ready=True)
            actions = np.linspace(0, 2, 60, dtype=np.float32)[:, None].repeat(6, 1)
            ring.write(Chunk(ChunkKind.MOVING, 7, digest, sequence, told["reading_tick"], told["reading_ns"], actions))
            wait("moving")
            ring.announce(p99_ns=10_000_000, plan_then_move=False, dropped_through=sequence, ready=True)
            told = wait("hold", "planning")
    finally:
        control.stop()
    again = open_record(folder.record).replay()
    assert again["chunks"] == 5 and again["differing"] == 0


def test_a_changed_input_gives_another_chunk_and_fails(run_folder, inputs, golden_bundle, tmp_path, capsys):
    """The check can fail: one picture's bytes exchanged in a copy of the record (with its CRC made right again)."""
    changed, done = tmp_path / "changed.rec", False
    with changed.open("wb") as out:
        for entry in read_inputs(inputs):
            arrays = dict(entry.arrays)
            if entry.head["kind"] == "inference" and not done:
                name = next(name for name in arrays if name.startswith("picture/"))
                arrays[name], done = 255 - arrays[name], True
            out.write(pack(Entry(entry.head, arrays)))
    assert (
        main(["replay", str(run_folder / "flight.record"), "--inputs", str(changed), "--bundle", str(golden_bundle)])
        == 1
    )
    assert "chunks differ from the recorded ones" in capsys.readouterr().err


def test_a_record_of_inputs_with_the_names_of_before_is_replayed(inputs, golden_bundle, tmp_path):
    old = tmp_path / "old.rec"
    before = {"off": "always", "still": "guard", "gated": "cls", "delta": "delta"}
    with old.open("wb") as out:
        for entry in read_inputs(inputs):
            head = dict(entry.head)
            if head["kind"] == "session":
                head["policy"] = before[head.pop("cache")]
            if head.get("gate") is not None:
                head["gate"] = {name.replace("still_", "guard_"): value for name, value in head["gate"].items()}
            out.write(pack(Entry(head, entry.arrays)))
    again = replay_inputs(old, golden_bundle, lambda entries: entries)
    assert again.inferences > 0 and not again.differing


def test_another_bundle_is_refused(run_folder, inputs, golden_bundle, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in golden_bundle.iterdir():
        if file.name != "manifest.json":
            (other / file.name).symlink_to(file)
    (other / "manifest.json").write_bytes((golden_bundle / "manifest.json").read_bytes() + b"\n")
    assert main(["replay", str(run_folder / "flight.record"), "--inputs", str(inputs), "--bundle", str(other)]) == 2
    assert "recorded with bundle" in capsys.readouterr().err


def test_a_cut_record_of_inputs_is_read_up_to_the_cut_and_a_damaged_one_is_refused(inputs, tmp_path):
    data = inputs.read_bytes()
    whole = sum(1 for _ in read_inputs(inputs))
    (tmp_path / "cut").write_bytes(data[: len(data) - 7])
    assert sum(1 for _ in read_inputs(tmp_path / "cut")) == whole - 1
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(RecordError, match="at byte"):
        list(read_inputs(tmp_path / "damaged"))
    (tmp_path / "foreign").write_bytes(b"x" * 64)
    with pytest.raises(RecordError, match="no entry at byte 0"):
        list(read_inputs(tmp_path / "foreign"))
    (tmp_path / "huge").write_bytes(struct.pack("<4sIQI", b"VLAI", 1 << 30, 1 << 60, 0))
    with pytest.raises(RecordError, match="no entry"):
        list(read_inputs(tmp_path / "huge"))


# ---- export


def every_tick(span, name):
    """float64 [ticks, 6] of a span, none left out."""
    number = np.array([tick["tick"] for tick in span])
    wanted = np.arange(number[0], number[-1] + 1)
    return np.stack([np.interp(wanted, number, column) for column in np.array([tick[name] for tick in span]).T], 1)


def test_the_exported_dataset_passes_the_verifier_and_holds_the_actions_that_were_sent(run_folder, exported):
    target, told = exported
    assert vla_data(["verify", str(target)]) == 0
    reader = open_record(run_folder / "flight.record")
    spans = [[tick for tick in span if tick["write"]] for span in episodes_of(ticks_of(reader))]
    # A tick that a busy machine missed is a row all the same, half way between its neighbours.
    rows = {name: np.concatenate([every_tick(span, name) for span in spans]) for name in ("goals", "position")}
    scale, offset = np.array(reader.header()["maps"]).T
    with open_dataset(target) as dataset:
        assert len(dataset) == told["frames"] == len(rows["goals"])
        assert len(dataset.episodes) == told["episodes"] >= 1
        actions, states = dataset.column("action"), dataset.column("observation.state")
        # Goals are whole counts; float32 joint units hold them to a thousandth of a count.
        assert np.abs(actions * scale + offset - rows["goals"]).max() < 1e-2
        assert np.abs(states * scale + offset - rows["position"]).max() < 1e-2
        assert set(dataset.tasks.values()) == {"Place the bracelet into the box"} and set(dataset.camera_keys) == {
            "observation.images.laptop",
            "observation.images.phone",
        }


def test_inputs_of_another_run_and_an_age_that_is_no_limit_are_refused(run_folder, inputs, tmp_path, capsys):
    other = tmp_path / "other.rec"
    with other.open("wb") as out:
        for entry in read_inputs(inputs):
            head = (
                {**entry.head, "sequence": entry.head["sequence"] + 10**9}
                if entry.head["kind"] == "inference"
                else entry.head
            )
            out.write(pack(Entry(head, entry.arrays)))
    record, target = str(run_folder / "flight.record"), tmp_path / "episodes"
    assert main(["replay", record, "--inputs", str(other), "--export", str(target), "--picture-age", "1000000"]) == 2
    assert "no chunk of the flight record was planned from it" in capsys.readouterr().err and not target.exists()
    assert main(["replay", record, "--inputs", str(inputs), "--export", str(target), "--picture-age", "nan"]) == 2
    assert "--picture-age: 'nan' is not" in capsys.readouterr().err and not target.exists()


def test_a_tick_whose_pictures_are_too_old_is_left_out_and_its_episode_goes_on_as_another(
    run_folder, inputs, exported, tmp_path, capsys
):
    """The limit lies between the ages that occur, so some ticks are too late for it and some are not."""
    record, target = str(run_folder / "flight.record"), tmp_path / "out"
    words = ["replay", record, "--inputs", str(inputs), "--export", str(target), "--picture-age"]
    _, whole = exported
    assert main([*words, str(whole["oldest_picture_s"] * 0.9), "--json"]) == 0
    part = json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"]
    assert part["stale"] >= 1 and part["frames"] + part["stale"] == whole["frames"]
    assert part["oldest_picture_s"] < whole["oldest_picture_s"] and vla_data(["verify", str(target)]) == 0
    shutil.rmtree(target)
    assert main([*words, "0"]) == 2
    assert "record with --record-fps" in capsys.readouterr().err and not target.exists()


def tick(number, **fields):
    known = {
        "tick": number,
        "now_ns": number * T,
        "state": "moving",
        "reason": "",
        "latched": False,
        "due": True,
        "write": True,
        "late_ns": 0,
        "read_ns": 1_000_000,
        "write_ns": 100_000,
        "work_ns": 1_200_000,
        "read_result": 0,
        "action_sequence": 1,
        "action_index": 0,
        "plan_then_move": False,
        "command": 0,
    }
    return {**known, **fields}


def test_an_episode_ends_where_the_arm_was_parked_latched_or_lost_many_ticks():
    ticks = (
        [tick(k) for k in range(5)]
        + [tick(5, state="parking", due=False)]
        + [tick(k) for k in range(6, 9)]
        + [tick(9, state="hold", due=False)]
    )
    ticks += [tick(k) for k in range(30, 33)] + [tick(33, state="hold", due=False, latched=True)]
    assert [[item["tick"] for item in span] for span in episodes_of(iter(ticks))] == [
        [0, 1, 2, 3, 4],
        [6, 7, 8],
        [30, 31, 32],
    ]


def test_an_episode_that_was_to_be_done_again_is_left_out():
    """The one that runs, or the one that a hold had ended before."""
    held = {"state": "hold", "due": False, "latched": True}
    ticks = [tick(k) for k in range(3)] + [tick(3, **held, command=Command.REDO)] + [tick(k) for k in range(4, 6)]
    ticks += [tick(6, **held, command=Command.HOLD), tick(7, **held, command=Command.REDO)]
    ticks += [tick(8, **held), *(tick(k) for k in range(9, 12))]
    assert [[item["tick"] for item in span] for span in episodes_of(ticks)] == [[9, 10, 11]]


# ---- blame


def line(start_ms, end_ms, verdict=None, **ms):
    stages = {"prepare": 0, "vision": 0, "prefix": 0, "state": 0, "flow": 0, **ms}
    return {
        "time_ns": int(end_ms * 1e6),
        "delay_ms": end_ms - start_ms,
        "ms": stages,
        "verdict": verdict,
        "reason": "always",
    }


def test_every_missed_tick_is_blamed_once():
    """All of it on a run made by hand: which ticks were missed is known, and each must be named with its cause."""
    period = 10_000_000
    ms = 1_000_000

    def at(number, **fields):
        return tick(number, **{"now_ns": number * period, **fields})

    idle = {"state": "planning", "due": False}
    ticks = [
        at(0),
        at(1, work_ns=25 * ms, read_ns=24 * ms, write_ns=0),  # the bus kept it: 2 and 3 are skipped
        at(4, late_ns=1 * ms),
        at(6, late_ns=9 * ms),  # nobody woke it for 5
        at(7, work_ns=15 * ms, read_ns=1 * ms, write_ns=0),  # interrupted in its work: 8 is skipped
        at(9),
        at(10, **idle),  # inference 95..145: pictures until 105
        at(11, **idle),  # prefix until 125
        at(12, **idle),
        at(13, **idle),  # flow until 145
        at(14, **idle),
        at(15, **idle),  # nothing runs
        at(16, **idle, read_result=1),
        at(17, action_sequence=5, action_index=10),
        at(18, **idle),  # inference 175..215 whose gate said changed: prefix until 185, then the void
        at(19, **idle),
        at(20, state="hold", due=False, reason="operator"),  # as the operator wished
        at(21, state="hold", due=False, latched=True, reason="no_action"),
        at(22, state="disarmed", due=False),
        at(24, **idle),  # 23 was not run; a camera is frozen since 235
    ]
    log = [line(95, 145, vision=10, prefix=10, flow=20), line(175, 215, verdict="changed", prefix=10, flow=30)]
    found = missed_ticks(ticks, period, {1: 50, 5: 50}, spans_of([{"audit": 1}, *log]), [235 * ms])
    blamed = {number: (item.skipped, item.cause) for item in found for number in range(item.first, item.last + 1)}
    assert blamed == {
        2: (True, Cause.BUS),
        3: (True, Cause.BUS),
        5: (True, Cause.SCHEDULER),
        8: (True, Cause.SCHEDULER),
        10: (False, Cause.CAMERA),
        11: (False, Cause.PREFIX),
        12: (False, Cause.PREFIX),
        13: (False, Cause.STEP),
        14: (False, Cause.STEP),
        15: (False, Cause.SCHEDULER),
        16: (False, Cause.BUS),
        18: (False, Cause.PREFIX),
        19: (False, Cause.GATE),
        23: (True, Cause.SCHEDULER),
        24: (False, Cause.CAMERA),
    }
    assert all(item.why for item in found) and sum(item.ticks for item in found) == len(blamed)


def test_a_tick_whose_cell_is_damaged_is_blamed_on_the_record(run_folder, tmp_path, capsys):
    content = bytearray((run_folder / "flight.record").read_bytes())
    ticks = list(ticks_of(open_record(run_folder / "flight.record")))
    lost = ticks[len(ticks) // 2]
    at = content.index(struct.pack("<qq", lost["tick"], lost["now_ns"]))
    content[at + 40] ^= 1
    damaged = tmp_path / "damaged.record"
    damaged.write_bytes(content)
    assert main(["report", str(damaged), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ticks"] == len(ticks) - 1
    assert [(item["first"], item["last"]) for item in told["missed"] if item["cause"] == "record"] == [
        (lost["tick"], lost["tick"])
    ]
    main(["replay", str(damaged)])
    assert "; 1 cells are damaged" in capsys.readouterr().out


def test_neighbours_of_one_cause_are_told_together():
    ticks = [tick(k, state="planning", due=False) for k in range(5)]
    assert missed_ticks(ticks, T, {}, []) == [Missed(0, 4, False, Cause.SCHEDULER, "no inference was running")]


def test_the_report_of_a_run_names_every_missed_tick(run_folder, tmp_path, capsys):
    out = tmp_path / "report.html"
    told = tmp_path / "deep" / "new" / "trials.json"
    words = ["report", str(run_folder / "flight.record"), "--out", str(out), "--trials", str(told), "--json"]
    assert main(words) == 0
    trials = json.loads(told.read_text())["trials"]
    assert trials and all(trial["succeeded"] and trial["seconds"] >= 0 for trial in trials)
    printed = capsys.readouterr()
    assert re.search(r" ticks, \d+ skipped( \([\w ,]+\))?, \d+ without action \([\w ,]+\)\n", printed.err), printed.err
    told = json.loads(printed.out.splitlines()[-1])
    ticks = list(ticks_of(open_record(run_folder / "flight.record")))
    numbers = {item["tick"] for item in ticks}
    skipped = set(range(min(numbers), max(numbers) + 1)) - numbers
    idle = {
        item["tick"]
        for item in ticks
        if item["state"] in ("planning", "hold")
        and not item["due"]
        and not item["latched"]
        and item["reason"] not in ("operator", "parked")
    }
    blamed = [(number, item["skipped"]) for item in told["missed"] for number in range(item["first"], item["last"] + 1)]
    assert (
        len(blamed) == len(set(blamed))
        and {n for n, s in blamed if s} == skipped
        and {n for n, s in blamed if not s} == idle
        and idle
    )
    assert all(item["cause"] in {cause.value for cause in Cause} for item in told["missed"])
    text = out.read_text()
    assert (
        text.startswith("<!doctype html>")
        and "<svg" in text
        and "http" not in text.replace("http-equiv", "")
        and "Missed ticks" in text
    )
    assert f"every missed tick ({len(blamed)})" in text


def test_the_report_tells_plans_beside_a_refresh_from_hits_and_the_age_of_the_prefix(run_folder, tmp_path):
    whole = (run_folder / "inference.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in whole]
    plans = [line for line in lines if "reason" in line]
    for line, (reason, prefix, age_s) in zip(plans, [("beside", False, 0.25), ("reused", False, 0.25)]):
        line.update(reason=reason, prefix=prefix, age_s=age_s)
    for line in plans:
        line["delay_ms"] = 40.0 if line["outcome"] == "sent" else 9000.0
    plans[-1].update(outcome="scene_moved", delay_ms=9000.0)
    for line in plans[2:]:
        line.update(reason="reused", prefix=False, age_s=0.25)
    log, out = tmp_path / "log.jsonl", tmp_path / "page.html"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["report", str(run_folder / "flight.record"), "--inference", str(log), "--out", str(out)]
    assert main(words) == 0
    text = out.read_text()
    assert "planned beside a refresh</span><b>1</b>" in text and "prefix runs</span><b>0</b>" in text
    assert "age of the prefix, p50 and p99</span><b>250 and 250 ms</b>" in text
    assert "age of the plan when it was sent, p50 and p99</span><b>40 and 40 ms</b>" in text


def test_the_page_says_what_ran_on_which_arm_and_what_the_cameras_saw_last(run_folder, tmp_path):
    """The last pictures are inference's; what control writes of the arm counts for its own run alone."""
    record, facts = run_folder / "flight.record", run_folder / "arm-facts.json"
    limits = {"gripper": {"low": -10.0, "high": 80.0, "velocity": 180.0, "acceleration": 3500.0}}
    arm = {"port": "/dev/arm", "joints": "arm.json", "joint_units": "degrees", "machine": "a machine", "limits": limits}
    for session, told in ((open_record(record).header()["session"], True), (1, False)):
        facts.write_text(json.dumps({"session": session, **arm}))
        assert main(["report", str(record), "--out", str(tmp_path / "page.html")]) == 0
        text = (tmp_path / "page.html").read_text()
        assert ("/dev/arm, calibration arm.json, degrees" in text) == told and ("-10 to 80" in text) == told
        assert text.count("data:image/jpeg") == (2 if told else 0)
        assert "<td>task</td>" in text and "<td>hand-over</td>" in text
    facts.unlink()


def test_a_log_that_is_none_and_a_page_that_cannot_be_written_are_refused_in_one_line(run_folder, tmp_path, capsys):
    record = run_folder / "flight.record"
    now_ns = next(iter(ticks_of(open_record(record))))["now_ns"]
    whole = (run_folder / "inference.jsonl").read_text()
    log = tmp_path / "log.jsonl"
    for line in (
        "[]",
        "{",
        "[" * 100_000,
        '{"time_ns": "1"}',
        json.dumps({"reason": "x", "time_ns": now_ns}),
        json.dumps({"reason": "x", "ms": {}, "time_ns": now_ns, "prefix": True}),
    ):
        log.write_text(line + "\n" + whole)
        assert main(["report", str(record), "--inference", str(log), "--out", str(tmp_path / "page.html")]) == 2
        assert "line 1 is not an entry" in capsys.readouterr().err
    log.write_text(whole[:-20])  # what a kill in the middle of a line leaves
    assert main(["report", str(record), "--inference", str(log), "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert main(["report", str(record), "--out", str(tmp_path)]) == 2
    assert "name a file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "page.html"]


def test_counts_by_cause_count_ticks_not_entries():
    assert count_by_cause([Missed(1, 3, True, Cause.BUS, "x"), Missed(5, 5, False, Cause.BUS, "x")], True) == {"bus": 3}


# ---- limits


def test_when_the_disk_takes_no_more_the_recording_stops_and_the_arm_moves_on(golden_bundle, tmp_path, capsys):
    """The kernel refuses every byte of a file beyond 8 MB (RLIMIT_FSIZE): some five inferences of pictures."""
    (tmp_path / "clip").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, hard))
    try:
        folder = record_run(
            tmp_path / "clip", golden_bundle, "--record-inputs", str(tmp_path / "inputs.rec"), seconds=8
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    runs = told.count("inference: bundle ")  # a busy machine needs a longer one
    assert told.count("recording of inputs to") == runs and "the record ends here, inference goes on" in told
    kept = list(read_inputs(tmp_path / "inputs.rec"))
    assert kept and (tmp_path / "inputs.rec").stat().st_size <= 8 << 20
    moved = [item for item in ticks_of(open_record(folder / "flight.record")) if item["due"]]
    last = max(entry.head.get("now_ns", 0) for entry in kept)
    assert moved and moved[-1]["now_ns"] > last + 5e8, "the arm moved on after the recording had stopped"


def test_a_trial_has_succeeded_unless_it_was_marked_or_ended_in_a_fault():
    def hold(number, **fields):
        return tick(number, state="hold", due=False, latched=True, **fields)

    ticks = [tick(k) for k in range(4)] + [hold(4)]
    ticks += [tick(k) for k in range(5, 8)] + [hold(8, command=Command.REDO)]
    ticks += [tick(k) for k in range(9, 11)] + [tick(11, state="fault", due=False)]
    facts = [trial.facts() for trial in trials_of(ticks)]
    assert [(one["succeeded"], one["stepped_in"]) for one in facts] == [(True, False), (False, True), (False, False)]
    assert facts[0]["seconds"] == pytest.approx(3 * T / 1e9)
    assert [[item["tick"] for item in span] for span in episodes_of(ticks)] == [[0, 1, 2, 3], [9, 10]]
