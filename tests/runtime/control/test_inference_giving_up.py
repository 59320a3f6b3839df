# SPDX-License-Identifier: Apache-2.0
"""Chunks that are given up because the scene changed, and chunks that hurry: the whole inference process, with Euler
steps slowed down, against the real control loop."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tests.runtime.control.control_rig import EVENT_S, short_folder
from tests.runtime.control.inference_rig import Control, Switch, wait_until

from vla_edge.bundle import open_bundle
from vla_edge.contract import ChunkKind, Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import FlowSignal
from vla_edge.robot.cameras import FreshnessWatch
from vla_edge.runtime.control.handover import HandOver, HandOverOptions, HostDelays, Pace, Rhythm, pace_of
from vla_edge.runtime.control.inference_log import SEVERAL
from vla_edge.runtime.control.inference_loop import InferenceLoop, LoopOptions
from vla_edge.runtime.control.operator import describe, prefix_age, read_inference, read_status
from vla_edge.runtime.control.planning import WatchedScene, view_of
from vla_edge.runtime.control.run_folder import open_run_folder
from vla_edge.runtime.control.run_summary import one_line, tell
from vla_edge.runtime.inference.cache import CacheCounts, CacheMode, Decision, Reason
from vla_edge.runtime.inference.refresh import Adopted, Refresh, slow_refresh
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import PolicySession, SessionOptions, Timings

GOLDEN = Path(__file__).parents[2] / "golden" / "koch-bfloat16.npz"
NAMES = ("observation.images.laptop", "observation.images.phone")
ENDLESS_NS = 10**12
MEASURING = 20
"""Euler steps of the two inferences that measure"""
GUARD = GateSettings("pooled", threshold=-1, still_mean=1, still_worst=8, max_reuse=1000, max_age_s=1000)


class World:
    """A session whose Euler steps take `step_s`, two cameras, control, and the loop in a thread. `at_step` is called
    before each step with the session."""

    def __init__(
        self,
        folder,
        bundle,
        monkeypatch,
        rhythm: Rhythm,
        options: LoopOptions,
        step_s: float,
        session: SessionOptions,
        hz: float,
    ):
        monkeypatch.setattr("vla_edge.runtime.control.inference_loop.MEASURED", 1)
        # However slow this machine is: neither side takes the other for dead, and control goes on waiting.
        monkeypatch.setattr("vla_edge.runtime.control.control_files.SILENT_NS", ENDLESS_NS)
        monkeypatch.setattr(
            "vla_edge.runtime.control.inference_loop.pace_of", lambda *measured: Pace(rhythm, 0.4, 0.4, 1.7, 1.0)
        )
        self.folder = open_run_folder(folder)
        self.control = Control(self.folder, bundle.digest, hz, patience_min_ns=ENDLESS_NS, patience_max_ns=ENDLESS_NS)
        with np.load(GOLDEN, allow_pickle=False) as recorded:
            self.cameras = {name: Switch(name, recorded[f"raw/image/{name}"]) for name in NAMES}
        # The Python loop's step can be slowed down from here; the native one ends at the same places (test_session.py).
        self.session = PolicySession(bundle, load_engine("ort-python", EngineOptions(threads=1)), session)
        self.at_step: Callable[[], None] = lambda: None
        self.steps = 0
        self.steps_of: Counter[int] = Counter()
        """Euler steps of each inference behind those that measure, by its number"""
        expert = self.session.graphs.loaded("expert")
        quick = expert.run

        def slow() -> None:
            self.steps += 1
            if self.steps > MEASURING:
                self.steps_of[self.session.cache.counts.inferences] += 1
            self.at_step()
            time.sleep(step_s)
            quick()

        monkeypatch.setattr(expert, "run", slow)
        watches = {name: FreshnessWatch(name, noisy=False, exempt=True) for name in NAMES}
        self.loop = InferenceLoop(self.session, self.cameras, watches, self.folder, options)
        self.said: list[str] = []
        self.worker = threading.Thread(target=self.loop.run, args=(0, self.said.append))
        self.worker.start()

    def change_picture(self) -> None:
        """Show another scene, and go on with the running inference when the watch has noticed."""
        self.cameras[NAMES[1]].image = np.full((480, 640, 3), 180, np.uint8)
        wait_until(lambda: self.loop._abandon.signal[0] == FlowSignal.ABANDON)

    def close(self) -> None:
        """Also where a test ended the loop itself: a control loop that went on would read the words of the next test,
        from the socket that gets the number of its own."""
        self.at_step = lambda: None
        self.loop.stop()
        self.worker.join(EVENT_S)
        if self.control.thread.is_alive():
            self.control.stop()
        assert not self.worker.is_alive()

    @property
    def state(self) -> str:
        status = self.control.reader()
        return "" if status is None else str(status["state"])

    def events(self) -> dict[str, int]:
        file = self.folder.path / "inference.json"
        return json.loads(file.read_text())["events"] if file.is_file() else {}

    def lines(self) -> list[dict]:
        return [
            line
            for line in map(json.loads, (self.folder.path / "inference.jsonl").read_text().splitlines())
            if "reason" in line
        ]


@pytest.fixture
def world(golden_bundle, monkeypatch):
    made: list[World] = []

    def make(rhythm=Rhythm.OVERLAPPED, step_s=0.0, session=None, hz=30.0, **options) -> World:
        values = {"steps": 10, "least_steps": 10, "audit": 0.0, **options}
        loop = LoopOptions("put it away", HandOverOptions(HandOver.REPLACE), **values)
        made.append(
            World(
                run_folder,
                open_bundle(golden_bundle),
                monkeypatch,
                rhythm,
                loop,
                step_s,
                session or SessionOptions(),
                hz,
            )
        )
        return made[-1]

    with short_folder() as run_folder:  # in memory, as by default: on a disk a tick waits while others write to it
        yield make
        for running in made:
            running.close()


def test_a_plan_for_the_resting_arm_is_given_up_as_soon_as_somebody_moves_something(world):
    running = world(Rhythm.PLAN_THEN_MOVE)

    def disturb() -> None:
        if running.steps == MEASURING + 2:  # the second step of the first inference that plans
            running.change_picture()

    running.at_step = disturb
    wait_until(lambda: running.state == "moving")
    running.loop.stop()
    running.worker.join(EVENT_S)
    events = running.events()  # of the summary at its end
    assert events["abandoned"] >= 1 and events["scene_moved"] == 1
    assert sum("planning again" in line for line in running.said) == 1
    first = running.lines()[0]
    assert first["outcome"] == "sent" and first["steps"] == 10
    given_up, whole, *_ = running.steps_of.values()
    assert given_up == 2 and whole == 10, "given up behind the step in which the picture changed"


def test_a_moving_plan_is_given_up_when_a_scene_that_was_trusted_changes_and_the_next_one_follows_at_once(world):
    running = world(session=SessionOptions(CacheMode.STILL, gate=GUARD), replan_s=0.1)
    at: list[int] = []

    def disturb() -> None:
        counts = running.session.cache.counts
        if counts.hits == 3 and not at:
            at.append(counts.inferences)
            # Only a plan that follows at once comes before the pictures change again.
            running.loop._options = replace(running.loop._options, replan_s=1e6)
            running.change_picture()

    running.at_step = disturb
    wait_until(lambda: bool(at) and len(running.lines()) >= at[0] and "abandoned" in running.events())
    assert running.events()["abandoned"] == 1 and running.events()["scene_broke"] == 1
    line = running.lines()[at[0] - 1]
    assert line["reason"] == "picture_changed" and line["outcome"] == "sent" and line["vision"] == [1]
    assert running.session.cache.counts.misses == 2, "the first inference and the one after the change, no other"


def test_a_scene_that_was_not_trusted_is_not_watched_so_no_two_inferences_in_a_row_are_given_up(world):
    # The pictures change in every look: nothing is ever a hit, and every chunk is finished and sent.
    running = world(session=SessionOptions(CacheMode.STILL, gate=GUARD), replan_s=0.1)
    wait_until(lambda: running.state == "moving")

    def flicker() -> None:
        running.cameras["observation.images.phone"].image = np.full(
            (480, 640, 3), 20 + 30 * (running.steps // 3 % 7), np.uint8
        )

    running.at_step = flicker
    # The first may have looked, or be past its last step, and the second then saw what the first saw.
    before = len(running.lines())
    wait_until(lambda: len(running.lines()) >= before + 5)
    assert running.events().get("abandoned", 0) <= 1
    assert {line["reason"] for line in running.lines()[-3:]} == {"picture_changed"}


# At 15 Hz a chunk lasts 3.33 s. 2.5 s into it the next one is planned, which would take 1 s with all its steps: it
# comes 0.17 s too late, unless it takes fewer. (The first moving one is in time: the resting arm's chunk begins when it
# is taken, not when it was observed.)
HURRY = {"step_s": 0.1, "hz": 15.0, "replan_s": 2.5}


def moving_lines(running: World, count: int) -> list[dict]:
    wait_until(lambda: sum(line["kind"] == "moving" for line in running.lines()) >= count)
    return [line for line in running.lines() if line["kind"] == "moving"]


def comes_in_time(line: dict, before: dict) -> bool:
    """Whether a chunk was sent before the last of the 50 actions of the one before it was due, one each tick."""
    return line["tick"] + line["delay_ms"] / 1e3 * HURRY["hz"] < before["tick"] + 50


@pytest.mark.soak
def test_anytime_takes_fewer_steps_so_that_the_chunk_arrives_before_the_executing_one_runs_out(world):
    running = world(**HURRY, least_steps=2)
    wait_until(lambda: running.state == "moving")
    lines = moving_lines(running, 3)
    assert running.lines()[0]["steps"] == 10, "nothing to be late for: the first chunk takes all its steps"
    for before, line in zip(lines, lines[1:3]):
        assert 2 <= line["steps"] < 10
        assert comes_in_time(line, before), "the executing chunk was still executing when this one was sent"


@pytest.mark.soak
def test_without_anytime_the_same_host_runs_out_of_actions(world):
    running = world(**HURRY)
    wait_until(lambda: running.state == "moving")
    lines = moving_lines(running, 2)
    assert lines[1]["steps"] == 10 and not comes_in_time(lines[1], lines[0])


@pytest.mark.parametrize("least, left, steps", [(2, 14, 7), (2, 40, 10), (2, 1, 2), (10, 14, 10)])
def test_as_many_steps_are_asked_for_as_fit_before_the_executing_chunk_runs_out(world, least, left, steps):
    """The same on a made-up clock: an inference takes 1.1 s, 0.1 s of it each of ten steps, at 15 Hz."""
    running = world(least_steps=least, hz=15.0)
    running.close()
    loop = running.loop
    loop._delays = HostDelays(beside=False)
    loop._delays.add(1.1, [100.0] * 10, False, 0)
    loop._sender.sent.add(7, np.zeros((50, 32), np.float32))
    view = replace(
        view_of(running.control.reader()), tick=50 - left, action_sequence=7, action_index=50 - left, actions_left=left
    )
    observation = Observation(8, {}, JointReading(view.tick, 0, np.zeros(6, np.float32)), "task")
    assert loop._request(ChunkKind.MOVING, observation, view).steps == steps


@pytest.mark.parametrize(("refresh", "rhythm"), [("front", Rhythm.PLAN_THEN_MOVE), ("beside", Rhythm.OVERLAPPED)])
def test_beside_a_refresh_the_rhythm_is_that_of_moving_plans_and_control_waits_for_a_fresh_one(
    world, monkeypatch, refresh, rhythm
):
    """A made-up host: 1.6 s with a prefix, 0.04 s without, a chunk of 1.67 s."""
    running = world(session=SessionOptions(CacheMode.STILL, gate=GUARD, refresh=Refresh(refresh)))
    wait_until(lambda: running.state == "moving")
    view = view_of(running.control.reader())
    running.close()
    loop, announced = running.loop, []
    monkeypatch.setattr("vla_edge.runtime.control.inference_loop.pace_of", pace_of)
    monkeypatch.setattr(loop._sender, "_ring", SimpleNamespace(announce=lambda **words: announced.append(words)))
    loop._delays = HostDelays(refresh == "beside")

    def took(kind: ChunkKind, delay_s: float, prefix_ms: float) -> None:
        timings = Timings(0, 0, prefix_ms, 5, 30, prefix_ms + 35, (30,))
        decision = Decision(Reason.RESET if prefix_ms else Reason.REUSED, (), prefix_ms > 0)
        loop._took(kind, delay_s, SimpleNamespace(timings=timings, decision=decision))

    took(ChunkKind.REST, 1.6, 1560)
    for _ in range(20):
        took(ChunkKind.MOVING, 0.04, 0)
    loop._repace(replace(view, action_ns=round(1e9 / 30)))
    assert loop.pace.rhythm is rhythm
    assert announced[-1]["p99_ns"] == pytest.approx(1.6e9) and announced[-1]["plan_then_move"] is (refresh == "front")


def test_plans_that_must_wait_for_every_refresh_say_so_once(world, capsys):
    """A made-up clock: every refresh takes ten minutes, a prefix may be a thousand seconds old."""
    gate = replace(GUARD, max_reuse=1)
    running = world(session=SessionOptions(CacheMode.STILL, gate=gate, refresh=Refresh.BESIDE), replan_s=0.0)
    refresh = running.session._sight.refresh
    work = refresh._work
    refresh._work = lambda started: (work(started), (0.0, 600e3, 0.0))[1]
    wait_until(lambda: running.session.cache.counts.refreshes >= 3)
    running.close()
    told = [line for line in running.said if "a refresh takes" in line]
    assert len(told) == 1
    assert "takes 600.0 s beside the plans, more than half of the 1000 s that a prefix may be old" in told[0]
    assert told[0].endswith("--max-age-s 1800, or choose --refresh front")
    summary = json.loads((running.folder.path / "inference.json").read_text())
    assert told[0] == f"inference: {summary['slow_refresh']}"
    status = {"ticks": 1, "missed": 0, "chunks_taken": 0, "chunks_refused": {}, "earlier_faults": [], "fault": ""}
    status |= {"armed_s": 0.0, "motion_share": 0.0, "times_us": {}, "guard_degrees": {}, "record": "R"}
    tell({**status, "inference": summary}, Console())
    assert capsys.readouterr().out.count("A refresh takes") == 1


def ended_process() -> int:
    """A number that was a process's."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_the_age_of_prefixes_and_audits_that_never_have_time_are_told(world, capsys):
    running = world(session=SessionOptions(CacheMode.STILL, gate=GUARD), replan_s=0.0, audit=1.0)
    wait_until(lambda: prefix_age(read_inference(running.folder)))
    status, inference = read_status(running.folder), read_inference(running.folder)
    told = f"{inference['prefix_age_ms']['p50']:.0f} ms (p99 {inference['prefix_age_ms']['p99']:.0f})"
    assert f"; prefixes {told}\n" in describe(status, inference) and "prefixes" not in describe(status, {})
    assert f" ms, prefix {told}  clamped" in one_line(status, inference) and "prefix" not in one_line(status, {})
    left = running.folder.path / "inference.json"
    killed = {**json.loads(left.read_text()), "pid": ended_process()}
    running.close()
    assert read_inference(running.folder) == {}, "nothing plans any more"
    left.write_text(json.dumps(killed))
    assert killed["state"] == "ready" and read_inference(running.folder) == {}, "what it told last is past"

    loop = running.loop
    said: list[str] = []
    loop._say = said.append
    loop._session.cache.counts, loop._audit.due = CacheCounts(), lambda result: True
    loop._log.events.clear()
    loop._delays.fresh.add(1e6, ())  # no chunk lasts for two inferences
    for times in range(1, 3 * SEVERAL):
        assert len(said) == (times > SEVERAL)
        loop._audit_if_due(None, None)
    summary = loop._summary("stopped")
    assert said == [f"inference: {summary['no_audit']}"] and "--audit 0" in said[0]
    status = {"ticks": 1, "missed": 0, "chunks_taken": 0, "chunks_refused": {}, "earlier_faults": [], "fault": ""}
    status |= {"armed_s": 0.0, "motion_share": 0.0, "times_us": {}, "guard_degrees": {}, "record": "R"}
    tell({**status, "inference": summary}, Console())
    told = capsys.readouterr().out
    assert told.count("Nothing that a plan reused is checked") == told.count("The prefixes of the last plans were") == 1
    loop._session.cache.counts.audits = 1
    assert "no_audit" not in loop._summary("stopped")


@pytest.mark.parametrize(("took_ms", "slow"), [((0.0, 400.0, 600.0), False), ((1.0, 400.0, 600.0), True)])
def test_plans_wait_for_refreshes_of_which_two_do_not_fit_into_the_age_of_a_prefix(took_ms, slow):
    assert bool(slow_refresh(Adopted(5.0, *took_ms), max_age_s=2.0)) is slow


def test_only_a_newer_picture_beyond_the_limits_breaks_a_scene():
    def frames(level: int, captured_ns: int) -> dict[str, Frame]:
        return {"a": Frame("a", np.full((48, 64, 3), level, np.uint8), captured_ns, 1)}

    scene = WatchedScene(frames(100, 10), mean=2, worst=16)
    assert not scene.broken_by(frames(200, 10)), "the same picture, or an older one"
    assert not scene.broken_by(frames(102, 11)) and scene.broken_by(frames(103, 11))
    patch = frames(100, 11)
    patch["a"].image[:2, :2] = 140
    assert scene.broken_by(patch)
