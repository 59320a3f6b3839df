# SPDX-License-Identifier: Apache-2.0
"""The inference process against the real control loop (an arm without a bus) and cameras that play files."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.runtime.control.control_rig import EVENT_S, short_folder
from tests.runtime.control.inference_rig import PATIENT, Control, Switch, wait_until

from vla_edge.bundle import open_bundle
from vla_edge.camera_names import EMPTY_CAMERA
from vla_edge.contract import ChunkKind, Frame
from vla_edge.errors import ConfigError
from vla_edge.runtime.command import main
from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.handover import HandOver, HandOverOptions, Pace, Rhythm, pace_of
from vla_edge.runtime.control.inference_process import camera_options
from vla_edge.runtime.control.planning import (
    ControlView,
    PlanRules,
    SceneStill,
    SentChunks,
    frames_are_of_rest,
    next_kind,
    still,
)
from vla_edge.runtime.control.run_folder import open_run_folder

GOLDEN = Path(__file__).parents[2] / "golden" / "koch-bfloat16.npz"
PACE = "vla_edge.runtime.control.inference_loop.pace_of"
RULES = PlanRules(settle_ticks=9, replan_ticks=8)
VIEW = ControlView(
    session=5,
    state="planning",
    latched=False,
    tick=100,
    tick_ns=3_333_000_000,
    period_ns=33_333_333,
    reading_tick=100,
    reading_ns=3_334_000_000,
    positions=np.zeros(6, np.float32),
    goal_moved_tick=50,
    action_ns=33_333_333,
    plan_tick=0,
    action_sequence=-1,
    action_index=-1,
    actions_left=0,
    bundle_digest="d",
)


# ---- the rules


def test_at_rest_every_host_plans_a_rest_chunk():
    for rhythm in Rhythm:
        for state in ("planning", "hold"):
            assert next_kind(replace(VIEW, state=state), rhythm, RULES, None) is ChunkKind.REST


def test_nothing_is_planned_while_control_takes_no_chunks():
    for change in (
        {"state": "disarmed"},
        {"state": "fault"},
        {"state": "parking"},
        {"state": "hold", "latched": True},
        {"reading_tick": -1},
    ):
        assert next_kind(replace(VIEW, **change), Rhythm.OVERLAPPED, RULES, None) is None


def test_a_rest_observation_waits_until_the_arm_has_settled():
    assert next_kind(replace(VIEW, goal_moved_tick=92), Rhythm.PLAN_THEN_MOVE, RULES, None) is None
    assert next_kind(replace(VIEW, goal_moved_tick=91), Rhythm.PLAN_THEN_MOVE, RULES, None) is ChunkKind.REST


def test_only_an_overlapping_host_plans_while_moving_and_not_faster_than_told():
    moving = replace(VIEW, state="moving", goal_moved_tick=100)
    assert next_kind(moving, Rhythm.PLAN_THEN_MOVE, RULES, 50) is None
    assert next_kind(moving, Rhythm.OVERLAPPED, RULES, 93) is None
    assert next_kind(moving, Rhythm.OVERLAPPED, RULES, 92) is ChunkKind.MOVING
    assert next_kind(moving, Rhythm.OVERLAPPED, RULES, None) is ChunkKind.MOVING


def frame(level=100, captured_ns=0):
    return {"a": Frame("a", np.full((48, 64, 3), level, np.uint8), captured_ns, 1)}


def test_a_rest_plan_needs_pictures_taken_at_rest():
    # Goal constant since tick 51, whose reading was taken 49 periods before that of tick 100.
    since = VIEW.reading_ns - 49 * VIEW.period_ns
    assert frames_are_of_rest(frame(captured_ns=since), VIEW)
    assert not frames_are_of_rest(frame(captured_ns=since - 1), VIEW)


def test_a_rest_plan_is_void_when_a_picture_changed_meanwhile():
    assert still(frame(100), frame(101)) and not still(frame(100), frame(103))
    moved = frame(100)
    moved["a"].image[:8, :8] = 140
    assert not still(frame(100), moved)


def test_a_scene_moves_once_and_only_after_it_stood_still():
    scene = SceneStill()
    # A first look, a moving scene, the same one three times, then another and the next still one.
    told = []
    for level in (100, 140, 180, 180, 181, 140, 180, 180, 140):
        scene.see(frame(level))
        told.append(scene.known_to(True))
    assert told == [False] * 5 + [True, False, False, True]


def test_a_change_waits_for_the_plan_that_rests_on_newer_pictures():
    scene = SceneStill()
    told = []
    for level, newer in ((100, True), (100, False), (140, False), (140, False), (140, True), (140, True)):
        scene.see(frame(level))
        told.append((scene.moved, scene.known_to(newer)))
    assert told == [(False, False)] * 2 + [(True, False)] * 2 + [(True, True), (False, False)]


def test_a_plan_begins_in_time_for_a_short_chunk():
    """An action of hand-over and one more before the last chunk ends; a slow host is told by its rhythm."""
    assert pace_of(0.02, 0.03, 8, 1 / 30).latest_s == pytest.approx(8 / 30 - 0.03 - 2 / 30)
    assert pace_of(0.02, 0.03, 50, 1 / 30).latest_s > 1.5
    assert pace_of(0.02, 0.03, 2, 1 / 30).rhythm is Rhythm.PLAN_THEN_MOVE


def test_the_executing_chunk_is_found_by_its_sequence_and_placed_in_ticks():
    sent = SentChunks(keep=2)
    for sequence in (1, 2, 3):
        sent.add(sequence, np.full((50, 32), sequence, np.float32))
    running = sent.executing(replace(VIEW, action_sequence=3, action_index=12, plan_tick=88))
    assert (
        running is not None
        and running.start_tick == 88
        and running.rest(100)[0, 0] == 3
        and len(running.rest(100)) == 38
    )
    fast = sent.executing(replace(VIEW, action_sequence=3, action_index=4, plan_tick=88, period_ns=11_111_111))
    assert fast is not None and len(fast.rest(100)) == 46
    assert sent.executing(replace(VIEW, action_sequence=1, action_index=0)) is None
    assert sent.executing(VIEW) is None


def test_the_chunk_that_control_has_not_told_of_yet_is_placed_by_its_observation():
    sent = SentChunks()
    rows = [np.full((50, 32), number, np.float32) for number in (1, 2)]
    sent.add(1, rows[0], sent_tick=90, due_tick=90)
    sent.add(2, rows[1], sent_tick=99, due_tick=95)
    newest = sent.executing(VIEW)
    assert newest is not None and newest.start_tick == 95 and newest.rest(100)[0, 0] == 2
    assert sent.executing(replace(VIEW, tick=101)) is None, "control has told of what it executes since"
    sent.add(3, rows[0], sent_tick=100)  # of an arm at rest: due when control accepts it
    assert sent.awaited(VIEW) and sent.executing(VIEW) is None


@pytest.mark.soak
def test_plans_follow_each_other_from_tick_to_tick_without_waiting_for_controls_status(
    control, folder, golden_bundle, pictures, capsys
):
    """Needs a machine that makes two plans within a sixth of a second each."""
    control(hz=6.0)

    def one_tick_apart():
        log = folder.path / "inference.jsonl"
        whole = log.read_text().rpartition("\n")[0] if log.exists() else ""  # the next line is being written
        lines = [json.loads(line) for line in whole.splitlines()]
        ticks = [line["tick"] for line in lines if line.get("kind") == "moving" and line["outcome"] == "sent"]
        return any(after - before == 1 for before, after in zip(ticks, ticks[1:]))

    assert infer_until(one_tick_apart, folder, golden_bundle, pictures, "--replan-s", "0") == 0


# ---- cameras


def test_every_camera_of_the_policy_must_be_given_or_left_out(golden_bundle):
    bundle = open_bundle(golden_bundle)
    assert [option.name for option in camera_options(bundle, ["laptop=0", "phone=1"], [])] == [
        "observation.images.laptop",
        "observation.images.phone",
    ]
    assert len(camera_options(bundle, ["laptop=0"], ["phone"])) == 1
    for given, without, message in (
        (["laptop=0"], [], "camera phone of the policy is not given; give --camera phone=DEVICE, or --without phone"),
        (["laptop=0", "front=1"], [], "the policy has no camera front; there is laptop, phone$"),
        (["latop=0", "phone=1"], [], r"the policy has no camera latop; did you mean laptop\?$"),
        (["laptop=0"], ["phon"], r"the policy has no camera phon; did you mean phone\?$"),
        (["laptop=0", "phone=1"], ["phone"], "given and left out"),
        (
            ["laptop=0", "phone=0"],
            [],
            "laptop and phone both read 0; give each its own device, or leave one out with --without phone",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            camera_options(bundle, given, without)


def test_an_empty_camera_is_opened_when_it_is_given_and_not_asked_for(golden_bundle):
    bundle = open_bundle(golden_bundle)
    empty = replace(bundle.manifest.cameras[0], name=f"{EMPTY_CAMERA}0", source=f"{EMPTY_CAMERA}0")
    bundle = replace(bundle, manifest=replace(bundle.manifest, cameras=(*bundle.manifest.cameras, empty)))
    assert len(camera_options(bundle, ["laptop=0", "phone=1"], [])) == 2
    assert len(camera_options(bundle, ["laptop=0", "phone=1", "empty_camera_0=2"], [])) == 3


# ---- the process


@pytest.fixture
def folder():
    """In memory, as by default: on a disk a tick waits while others write to it."""
    with short_folder() as path:
        yield open_run_folder(path)


@pytest.fixture
def pictures(tmp_path):
    """Camera arguments that play the golden pictures, still."""
    arguments = []
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        for name in ("laptop", "phone"):
            place = tmp_path / name
            place.mkdir()
            cv2.imwrite(
                str(place / "0.png"), cv2.cvtColor(recorded[f"raw/image/observation.images.{name}"], cv2.COLOR_RGB2BGR)
            )
            arguments += ["--camera", f"{name}=file:{place}"]
    return arguments


@pytest.fixture
def control(folder, golden_bundle):
    started = []

    def start(**settings):
        started.append(Control(folder, open_bundle(golden_bundle).digest, **settings))
        return started[-1]

    yield start
    for running in started:
        running.stop()


def infer_for(seconds, folder, bundle, pictures, *extra):
    words = [
        "--bundle",
        str(bundle),
        "--run-dir",
        str(folder.path),
        "--task",
        "Place the bracelet into the box",
        "--seconds",
        str(seconds),
    ]
    return main(["inference", *words, "--threads", "1", "--nice", "0", "--json", *pictures, *extra])


def infer_until(happened, folder, bundle, pictures, *extra):
    """The inference process, told to end as soon as `happened()`."""

    def terminate():
        try:
            wait_until(lambda: planned(folder, 1))  # its handler of the signal is set
            wait_until(happened)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    code = infer_for(1e6, folder, bundle, pictures, *extra)
    killer.join()
    return code


def planned(folder, count):
    """Whether the log holds so many lines behind its first."""
    log = folder.path / "inference.jsonl"
    return log.exists() and log.read_bytes().count(b"\n") > count


def lines_of(folder):
    """The log behind its first line, which says what the run was."""
    start, *lines = [json.loads(line) for line in (folder.path / "inference.jsonl").read_text().splitlines()]
    assert start["start"]["task"] == "Place the bracelet into the box" and start["start"]["seed"] == 0
    return lines


@pytest.mark.parametrize("handover", ["replace", "blend", "inpaint", "ensemble"])
def test_a_fast_host_moves_all_the_time_and_replans_under_way(
    control, folder, golden_bundle, pictures, capsys, monkeypatch, handover
):
    monkeypatch.setattr(PACE, lambda *measured: Pace(Rhythm.OVERLAPPED, 0.1, 0.1, 1.7, 1.0))
    running = control(blend_actions=HandOver(handover).blend_actions, patience_min_ns=10**12, patience_max_ns=10**12)

    def replanned():
        return running.reader()["chunks"]["taken"] >= 4

    assert infer_until(replanned, folder, golden_bundle, pictures, "--handover", handover) == 0
    status = running.reader()
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["pace"]["rhythm"] == "overlapped" and "expected share of time in motion 100%" in captured.err
    lines = lines_of(folder)
    assert lines[0]["kind"] == "rest"
    for before, line in zip(lines, lines[1:]):  # at rest again only where the machine did not plan for a whole chunk
        assert line["kind"] == "moving" or line["tick"] - before["tick"] >= 40
    assert all(line["reason"] == "always" and line["prefix"] and line["ms"]["flow"] > 0 for line in lines)
    assert status["chunks"]["taken"] >= 4 and status["moving_ticks"] > 0
    assert summary["handover"] == handover
    # 0.25 s at 30 Hz are 8 ticks: no two observations are nearer.
    ticks = [line["tick"] for line in lines]
    assert min(np.diff(ticks)) >= 8


@pytest.mark.parametrize("delay_s, plans", [(0.9, 2), pytest.param(3.0, 12, marks=pytest.mark.soak)])
def test_a_slow_host_plans_then_moves_and_never_latches(
    control, folder, golden_bundle, pictures, capsys, monkeypatch, delay_s, plans
):
    """Short: that it never latches is so for any host, as control's patience is made endless."""
    from vla_edge.runtime.inference.session import PolicySession

    whole = PolicySession._infer

    def slow(self, request, audit):
        time.sleep(delay_s)
        return whole(self, request, audit)

    monkeypatch.setattr(PolicySession, "_infer", slow)
    monkeypatch.setattr("vla_edge.runtime.control.inference_loop.MEASURED", 2)
    in_time = plans > 2
    running = control() if in_time else control(patience_min_ns=10**12, patience_max_ns=10**12)

    def moved():
        return planned(folder, plans) and running.reader()["chunks"]["taken"] >= plans

    assert infer_until(moved, folder, golden_bundle, pictures) == 0
    status, captured = running.reader(), capsys.readouterr()
    told = re.search(r"plan-then-move: an inference takes (\d+) ms", captured.err)
    assert told and int(told[1]) >= 1000 * delay_s
    lines = lines_of(folder)
    assert {line["kind"] for line in lines} == {"rest"} and {line["outcome"] for line in lines} == {"sent"}
    assert status["chunks"]["taken"] >= len(lines) - 1  # the last one may have been sent within the last tick
    assert not status["latched"] and status["reason"] == ""
    summary = json.loads((folder.path / "inference.json").read_text(), parse_constant=pytest.fail)
    assert summary["pace"]["latest_s"] is None  # a host that plans at rest need not begin by then
    if in_time:
        # A chunk of 1.67 s after 3 s of planning, 0.3 s of rest before it, and the measuring of three at the start.
        assert 0.15 < status["moving_ticks"] / status["ticks"] < 0.40


def test_cached_prefixes_are_recorded_with_their_reasons(control, folder, golden_bundle, pictures, capsys, monkeypatch):
    from vla_edge.runtime.inference import session as module
    from vla_edge.runtime.inference.scene_gate import GateSettings

    limits = GateSettings("pooled", threshold=-1, still_mean=1, still_worst=4, max_reuse=3, max_age_s=100)
    monkeypatch.setattr(module, "read_gate", lambda bundle: limits)
    # Chunks of 50 s: an audit is made only where the running one lasts longer than two inferences.
    control(patience_min_ns=10**12, patience_max_ns=10**12, action_ns=10**9)

    def audited():
        return planned(folder, 2) and '"audit"' in (folder.path / "inference.jsonl").read_text()

    assert infer_until(audited, folder, golden_bundle, pictures, "--cache", "still", "--audit", "1") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = lines_of(folder)
    chunks, audits = [line for line in lines if "reason" in line], [line for line in lines if "audit" in line]
    assert (
        chunks[0]["reason"] == "reset"
        and chunks[1]["reason"] == "reused"
        and chunks[1]["ms"]["prefix"] == 0
        and chunks[1]["vision"] == []
    )
    # The pictures stand still, so what an audit finds is nothing.
    assert audits and max(line["audit"] for line in audits) <= 1e-6 and summary["cache"]["audits"] >= len(audits)


def test_plans_go_on_while_a_prefix_is_made_beside_them(control, folder, golden_bundle, pictures, capsys, monkeypatch):
    from vla_edge.runtime.inference import session as module
    from vla_edge.runtime.inference.scene_gate import GateSettings

    limits = GateSettings("pooled", threshold=-1, still_mean=1, still_worst=4, max_reuse=1, max_age_s=1000)
    monkeypatch.setattr(module, "read_gate", lambda bundle: limits)
    # Every picture is worth another prefix after one plan; moving chunks are what is planned beside a refresh.
    monkeypatch.setattr(
        "vla_edge.runtime.control.inference_loop.pace_of", lambda *measured: Pace(Rhythm.OVERLAPPED, 0.1, 0.1, 1.7, 1.0)
    )
    control(patience_min_ns=10**12, patience_max_ns=10**12)

    def went_over():
        return planned(folder, 2) and '"adopted": {' in (folder.path / "inference.jsonl").read_text()

    words = ("--cache", "still", "--audit", "0", "--refresh", "beside", "--replan-s", "0")
    assert infer_until(went_over, folder, golden_bundle, pictures, *words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    chunks = [line for line in lines_of(folder) if "reason" in line]
    beside = [line for line in chunks if line["reason"] == "beside"]
    assert beside and all(
        line["kind"] == "moving" and not line["prefix"] and line["ms"]["prefix"] == 0 for line in beside
    )
    assert summary["cache"]["refreshes"] >= 1 and summary["cache"]["beside"] >= len(beside)
    over = next(line for line in chunks if line["adopted"])
    # The plan's own age and that of its prefix are told apart.
    assert over["adopted"]["prefix_ms"] > 0 and over["age_s"] == over["adopted"]["age_s"] and over["delay_ms"] > 0
    assert summary["prefix_age_ms"]["p99"] >= summary["prefix_age_ms"]["p50"] >= 0


@pytest.mark.parametrize("rhythm", list(Rhythm))
def test_a_frozen_camera_stops_the_arm_at_once_and_says_so(control, folder, golden_bundle, monkeypatch, rhythm):
    from vla_edge.engines.engine import EngineOptions, load_engine
    from vla_edge.robot.cameras import FreshnessWatch
    from vla_edge.runtime.control.inference_loop import InferenceLoop, LoopOptions
    from vla_edge.runtime.inference.session import PolicySession

    monkeypatch.setattr(
        "vla_edge.runtime.control.inference_loop.pace_of", lambda *measured: Pace(rhythm, 0.1, 0.1, 1.7, 1.0)
    )
    running = control(hz=6.0, patience_min_ns=10**12, patience_max_ns=10**12)  # a chunk lasts 8.3 s
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        cameras = {
            name: Switch(name, recorded[f"raw/image/{name}"])
            for name in ("observation.images.laptop", "observation.images.phone")
        }
    session = PolicySession(open_bundle(golden_bundle), load_engine("ort", EngineOptions(threads=1)))
    watches = {name: FreshnessWatch(name, noisy=False, exempt=False) for name in cameras}
    loop = InferenceLoop(
        session,
        cameras,
        watches,
        folder,
        LoopOptions("put it away", HandOverOptions(HandOver.REPLACE), 10, 10, audit=0),
    )
    said: list[str] = []
    worker = threading.Thread(target=loop.run, args=(0, said.append))
    worker.start()
    try:
        wait_until(lambda: running.reader() is not None and running.reader()["state"] == "moving")
        cameras["observation.images.phone"].frozen = True
        # 0.5 s until it counts as frozen, then the braking; the chunk alone would have gone on for up to 8.3 s.
        wait_until(lambda: running.reader()["state"] in ("planning", "hold"))
        moved = [tick for tick in ticks_of(open_record(folder.record)) if tick["due"]]
        assert moved[-1]["action_index"] < 49, "it was not stopped, its chunk ran out"
        wait_until(lambda: json.loads((folder.path / "inference.json").read_text())["state"] == "fault")
        assert sum("observation.images.phone is frozen" in line for line in said) == 1
        cameras["observation.images.phone"].frozen = False
        wait_until(lambda: running.reader()["state"] == "moving")
    finally:
        loop.stop()
        worker.join(EVENT_S)
    assert not worker.is_alive()


def test_control_with_another_bundle_is_refused(folder, golden_bundle, pictures, capsys):
    running = Control(folder, "0" * 64)
    try:
        wait_until(lambda: running.reader() is not None)
        assert infer_for(1e6, folder, golden_bundle, pictures) == 2
        assert "control runs bundle 000000000000" in capsys.readouterr().err
    finally:
        running.stop()


def test_without_control_it_waits_and_ends_when_told(folder, golden_bundle, pictures, capsys):
    assert infer_for(0.5, folder, golden_bundle, pictures) == 0
    assert "waiting for the control process" in capsys.readouterr().err


def test_a_signal_ends_it_with_its_summary(control, folder, golden_bundle, pictures, capsys):
    control(**PATIENT)
    before = signal.getsignal(signal.SIGTERM)
    assert infer_until(lambda: True, folder, golden_bundle, pictures) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_task_the_policy_cannot_take_is_refused_before_anything_starts(folder, golden_bundle, pictures, capsys):
    words = ["--bundle", str(golden_bundle), "--run-dir", str(folder.path), "--nice", "0", *pictures]
    assert main(["inference", *words]) == 2 and "no --task" in capsys.readouterr().err
    assert main(["inference", *words, "--task", "put the cube into the box " * 20]) == 2
    assert "too long" in capsys.readouterr().err


def test_a_camera_without_pictures_is_an_error_in_one_line(folder, golden_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vla_edge.runtime.control.inference_process.FIRST_PICTURE_S", 0.2)
    given = ["--camera", f"laptop=file:{tmp_path / 'none'}", "--camera", f"phone=file:{tmp_path / 'none'}"]
    assert infer_for(1, folder, golden_bundle, given) == 2
    assert "does not exist" in capsys.readouterr().err
