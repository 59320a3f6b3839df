# SPDX-License-Identifier: Apache-2.0
"""The simulated arm as a process: the Koch path on its servo bus, pictures in shared frames, the recording."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vla_edge.errors import ConfigError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.camera_options import parse_camera
from vla_edge.robot.cameras import FreshnessWatch, open_camera
from vla_edge.robot.joint_calibration import JointCalibrations, load_joint_calibration
from vla_edge.robot.servo_arm import ArmOptions, open_arm
from vla_edge.robot.sim.bodies.arm_body import counts_from_radians
from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_bus import EmulatedBus
from vla_edge.robot.sim.emulator import servos_of
from vla_edge.robot.sim.framing import BROADCAST, FEETECH0, SYNC_READ, SYNC_WRITE, InstructionReader
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.robot.sim.run_video import Recording
from vla_edge.robot.sim.scene import BODIES, random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.robot.sim.simulator import SimPlant, SimProcess

FAULT = rendering_fault()
pytestmark = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))

MS = 1_000_000


def start(process: SimProcess) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, *process.command()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    ready = child.stdout.readline()
    assert ready, child.stderr.read() if child.stderr else ""
    assert json.loads(ready)["port"] == str(process.port)
    return child


@pytest.fixture(params=sorted(BODIES))
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SimProcess, subprocess.Popen[str]]]:
    process = SimProcess(tmp_path, scene=3, height=96, width=128, record=tmp_path / "seen.png", arm=request.param)
    child = start(process)
    yield process, child
    child.kill()
    child.wait()


def test_the_driver_moves_either_simulated_arm_and_cameras_see_it(
    running: tuple[SimProcess, subprocess.Popen[str]],
) -> None:
    process, child = running
    camera = open_camera(parse_camera(f"phone=sim:{process.cameras()['phone']}"))
    watch = FreshnessWatch(camera.name, noisy=True, exempt=camera.exempt_from_freshness, limit_s=240.0)
    before = camera.newest()
    known = load_arm(process.arm)
    arm = open_arm(ArmOptions(known, str(process.port), load_joint_calibration(process.calibration, known)))
    try:
        resting = np.array(arm.read().positions)
        arm.set_torque(True)
        goal = resting + [300, 0, 0, 0, 0, 0]
        end = time.monotonic() + 240.0
        reached, after = resting, before
        # The pan joint carries no weight: friction alone keeps it off its goal, by 0.006 rad or 4 counts at most.
        while abs(reached[0] - goal[0]) > 5 or after.sequence <= before.sequence + 10:
            assert time.monotonic() < end, reached
            arm.write_goals([int(count) for count in goal])
            reached, after = np.array(arm.read().positions), camera.newest()
            watch.check(after, time.monotonic_ns())
            time.sleep(0.03)
        arm.set_torque(False)
    finally:
        arm.close()
    assert np.abs(after.image.astype(int) - before.image).max() > 60, "the phone camera must see the arm turn"
    child.send_signal(signal.SIGTERM)
    last_words, _ = child.communicate(timeout=240)
    assert child.returncode == 0
    assert set(json.loads(last_words.splitlines()[-1])["tip_to_cube_m"]) == {"red", "green", "blue"}
    strip = cv2.imread(str(process.record))
    assert strip is not None and strip.shape[0] >= 360


def test_the_process_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    for words, reason in (
        (["--run-dir", str(tmp_path / "none")], "no such folder"),
        (["--run-dir", str(tmp_path), "--size", "wide"], "not WIDTHxHEIGHT"),
        (["--run-dir", str(tmp_path), "--video", str(tmp_path / "a.gif")], "ends in .mp4 or .png"),
        (["--run-dir", str(tmp_path), "--video", "/proc/a.png"], "/proc takes no new folder"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vla_edge.robot.sim.simulator", *words], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 2
        assert reason in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "sag_counts"), [("koch", 34), ("so101", 57)])
def test_a_stand_holds_the_arm_until_torque_and_without_torque_it_then_falls(name: str, sag_counts: int) -> None:
    arm = SimulatedArm(random_scene(1, BODIES[name]), SimOptions(noisy=False))
    plant = SimPlant(arm)
    first = counts_from_radians(arm.positions)
    now = 0
    for _ in range(500):
        now += 2 * MS
        state = plant.step([None] * 6, now)
    assert np.abs(np.array(state.positions) - first).max() < 1
    for _ in range(500):
        now += 2 * MS
        state = plant.step([float(count) for count in first], now)
    # The shoulder sags by its load over its stiffness: under 3 degrees, on the SO-101 under 5.
    assert np.abs(np.array(state.positions) - first).max() < sag_counts
    for _ in range(1000):
        now += 2 * MS
        state = plant.step([None] * 6, now)
    assert np.abs(np.array(state.positions) - first).max() > 50
    for joint, count in zip(arm.body.calibration(), state.positions):
        assert joint.range_min <= count <= joint.range_max, f"{joint.name} fell out of its calibrated range"


def test_the_so101_moves_behind_its_own_servos() -> None:
    """Feetech's frames through the emulated STS3215 to the physics and back, on a clock of its own."""
    arm = SimulatedArm(random_scene(1, SO101), SimOptions(noisy=False))
    plant, first = SimPlant(arm), counts_from_radians(arm.positions)
    calibration = JointCalibrations(SO101.calibration(), "the simulated arm")
    servos = servos_of(load_arm("so101"), calibration, [int(count) for count in first])
    bus = EmulatedBus(servos, plant, Faults(0), lambda entry: None)
    now_ns = 0

    def said(instruction: int, body: bytes) -> list[bytes]:
        nonlocal now_ns
        bus.receive(FEETECH0.encode(BROADCAST, instruction, body), 1_000_000, now_ns)
        now_ns += 20 * MS
        return [answer.parameters for answer in InstructionReader(FEETECH0).feed(bus.take_output(now_ns))]

    def positions() -> NDArray[np.int64]:
        answers = said(SYNC_READ, bytes([56, 2, 1, 2, 3, 4, 5, 6]))
        return np.array([int.from_bytes(data, "little") for data in answers])

    assert (positions() == first).all()
    goal = first + [300, 0, 0, 0, 0, 0]
    said(SYNC_WRITE, bytes([40, 1, *(byte for servo in range(1, 7) for byte in (servo, 1))]))
    goals = [bytes([i + 1]) + int(count).to_bytes(2, "little") for i, count in enumerate(goal)]
    said(SYNC_WRITE, bytes([42, 2]) + b"".join(goals))
    for _ in range(1000):
        now_ns += 2 * MS
        bus.advance(now_ns)
    # The pan joint is kept off its goal by friction alone, 0.006 rad or 4 counts; the others sag, under 5 degrees.
    assert abs(positions()[0] - goal[0]) <= 5
    assert np.abs(positions() - goal).max() < 57
    assert abs(counts_from_radians(arm.positions)[0] - goal[0]) <= 5, "the links turned with the shaft"


def test_an_mp4_holds_every_picture_and_a_strip_at_most_twelve(tmp_path: Path) -> None:
    video, strip = Recording(tmp_path / "a.mp4", 10), Recording(tmp_path / "b.png", 10)
    for value in range(40):
        picture = np.full((48, 64, 3), 6 * value, np.uint8)
        video.add(picture)
        strip.add(picture)
    assert not (tmp_path / "a.mp4").exists(), "a recording appears whole"
    video.close()
    strip.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = cv2.imread(str(tmp_path / "b.png"))
    assert image is not None and image.shape == (3 * 48, 4 * 64, 3)
    assert image[0, 0, 0] == 0 and image[-1, -1, 0] >= 6 * 36, "from the first picture to one of the last"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png", "b.png"]


def test_a_recording_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends in .mp4 or .png"):
        Recording(tmp_path / "a.avi", 10)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="record into a folder that can be written to"):
        Recording(tmp_path / "file" / "a.png", 10)


def test_a_recording_that_cannot_be_finished_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """A file stands where its folder was."""
    (tmp_path / "films").mkdir()
    process = SimProcess(tmp_path, scene=3, height=96, width=128, record=tmp_path / "films" / "seen.png")
    child = start(process)
    (tmp_path / "films").rmdir()
    (tmp_path / "films").touch()
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=240)
    assert child.returncode == 2 and "the recording stopped" in said and said.count("\n") == 1


def test_the_real_time_class_is_not_inherited_and_given_up_by_a_loop_that_hogs_a_core() -> None:
    words = (
        "import os, subprocess, sys, vla_edge.robot.sim.emulator as emulator\n"
        "emulator.HOG_US = 50_000\n"
        "if not emulator.try_realtime(): sys.exit(3)\n"
        "child = [sys.executable, '-c', 'import os; print(os.sched_getscheduler(0) == os.SCHED_OTHER)']\n"
        "assert subprocess.check_output(child).strip() == b'True'\n"
        "while os.sched_getscheduler(0) != os.SCHED_OTHER: pass"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=240)
    if done.returncode == 3:
        pytest.skip("no real-time class is granted here")
    assert done.returncode == 0, done.stderr
