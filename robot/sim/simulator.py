# SPDX-License-Identifier: Apache-2.0
"""The simulated arm as a process of its own: physics behind the emulated servo bus, cameras in shared frames.

    python -m vla_edge.robot.sim.simulator --run-dir DIR [--arm so101]

Makes in DIR `servo-bus` (a link to the pseudo-terminal; give it as the arm's port), `calibration.json` (the simulated
arm's joint calibration) and `frames.laptop`, `frames.phone`. Prints one JSON line when everything is there and then
serves until SIGTERM, SIGINT or `quit` on standard input (`--commands`); its last line says how far the tip was from
each cube while the last 30 goals came. Physics runs at the rate of the wall clock in the process that answers the bus
(before ordinary processes where that is allowed); pictures are rendered in another one, from a copy of the
configuration.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_edge.command_line import between, file_to_write, run_command, whole
from vla_edge.command_parser import CommandParser
from vla_edge.errors import BusError, ConfigError
from vla_edge.robot.arm_description import DEFAULT_ARM, load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, save_joint_calibration
from vla_edge.robot.sim.bodies.arm_body import RADIANS_PER_COUNT, ZERO_COUNT, counts_from_radians
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_bus import CATCH_UP_NS, EmulatedBus
from vla_edge.robot.sim.emulator import Emulator, Terminal, servos_of, try_realtime
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.plant import PlantState
from vla_edge.robot.sim.render import BACKENDS
from vla_edge.robot.sim.scene import BODIES
from vla_edge.robot.sim.sim_process import SimProcess
from vla_edge.robot.sim.sim_rendering import SharedConfiguration, rendering
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm


class SimPlant:
    """The simulated arm as the mechanics behind the emulated servos (`robot.plant.Plant`).

    Until torque is first switched on a stand holds the arm in its first pose; without torque it falls from then on.
    """

    def __init__(self, arm: SimulatedArm) -> None:
        self._arm = arm
        self._last_ns: int | None = None
        self._driven = [True] * len(arm.body.joints)
        self._on_stand = arm.positions
        self._stand = True
        self._ma_per_nm = np.array([servo.ma_per_nm for servo in arm.body.servos.values()])
        self.shared: SharedConfiguration | None = None
        """Where the rendering process reads the configuration from, when there is one."""

    def block(self, servo: int, low: float, high: float) -> None:
        self._arm.block(servo, (low - ZERO_COUNT) * RADIANS_PER_COUNT, (high - ZERO_COUNT) * RADIANS_PER_COUNT)

    def step(self, setpoints: Sequence[float | None], now_ns: int) -> PlantState:
        arm = self._arm
        goals = arm.goals
        for joint, setpoint in enumerate(setpoints):
            if (setpoint is not None) != self._driven[joint]:
                self._driven[joint] = setpoint is not None
                arm.set_torque(joint, setpoint is not None)
                self._stand = self._stand and setpoint is None
            if setpoint is not None:
                goals[joint] = (setpoint - ZERO_COUNT) * RADIANS_PER_COUNT
        arm.set_goals(goals)
        if self._stand:
            arm.place(self._on_stand)
        elif self._last_ns is not None:
            arm.step(min(now_ns - self._last_ns, CATCH_UP_NS) / 1e9)
        self._last_ns = now_ns
        if self.shared is not None:
            self.shared.write(now_ns, arm.configuration, armed=not self._stand)
        positions = arm.positions / RADIANS_PER_COUNT + ZERO_COUNT
        return PlantState(
            list(positions), list(arm.velocities / RADIANS_PER_COUNT), list(arm.torques * self._ma_per_nm)
        )


def serve(process: SimProcess, commands: bool) -> None:
    """Run until told to stop. Errors: BusError (no pseudo-terminal), CameraError (no rendering, no recording),
    ConfigError."""
    if not process.run_dir.is_dir():
        raise ConfigError(f"{process.run_dir}: no such folder; make the run folder first")
    arm = SimulatedArm(process.new_scene(), SimOptions(renderer=process.renderer))
    plant = SimPlant(arm)
    save_joint_calibration(arm.body.calibration(), process.calibration)
    calibration = JointCalibrations(arm.body.calibration(), str(process.calibration))
    shown = [int(count) for count in counts_from_radians(arm.positions)]
    servos = servos_of(load_arm(process.arm), calibration, shown)
    faults = Faults(process.scene, (5.0, 120.0))
    with rendering(process, arm.configuration) as plant.shared:
        try:
            terminal = Terminal(process.port)
        except OSError as error:
            raise BusError(
                f"no pseudo-terminal at {process.port}: {error.strerror}; check the folder and /dev/pts"
            ) from None
        tips = TipAtGoals(arm)
        emulator = Emulator(terminal, EmulatedBus(servos, plant, faults, tips), plant, faults)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: emulator.apply(("quit",)))
        realtime = try_realtime()
        frames = {camera: str(path) for camera, path in process.cameras().items()}
        print(
            json.dumps(
                {
                    "port": str(process.port),
                    "calibration": str(process.calibration),
                    "frames": frames,
                    "realtime": realtime,
                }
            ),
            flush=True,
        )
        emulator.run([], sys.stdin if commands else None)
    print(json.dumps({"tip_to_cube_m": tips.mean()}), flush=True)


class TipAtGoals:
    """Looks through the bus's log for accepted goals: where the tip was at the last `GOALS` of them.

    Afterwards it is nobody's doing: 200 ms without a word the servos' watchdog trips, and the arm sags.
    """

    GOALS = 30

    def __init__(self, arm: SimulatedArm) -> None:
        self._arm = arm
        self._seen = deque([tip_to_cubes(arm)], maxlen=self.GOALS)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        if entry["kind"] == "goal":
            self._seen.append(tip_to_cubes(self._arm))

    def mean(self) -> dict[str, float]:
        """Mean distance in metres from the point above each cube, by colour."""
        return {colour: round(float(np.mean([seen[colour] for seen in self._seen])), 4) for colour in CUBE_COLOURS}


def tip_to_cubes(arm: SimulatedArm) -> dict[str, float]:
    """Distance in metres from the tip to the point above each cube, by colour."""
    return {colour: round(float(np.linalg.norm(arm.tip - arm.scene.target(colour))), 4) for colour in CUBE_COLOURS}


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not (0 < int(found[1]) <= 1280 and 0 < int(found[2]) <= 960):
        raise ConfigError(f"--size {text!r} is not WIDTHxHEIGHT of at most 1280x960")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="python -m vla_edge.robot.sim.simulator", description="a simulated arm behind an emulated servo bus"
    )
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="folder for the port, the calibration and the frames"
    )
    parser.add_argument("--arm", choices=sorted(BODIES), default=DEFAULT_ARM, help="which arm")
    parser.add_argument("--scene", type=whole, default=0, metavar="SEED", help="where the cubes lie")
    parser.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT", help="of the cameras' pictures")
    parser.add_argument("--fps", type=between(1, 120), default=30.0)
    parser.add_argument("--renderer", choices=sorted(BACKENDS), default="egl")
    parser.add_argument(
        "--video", type=file_to_write, metavar="FILE", help="what a person sees, as .mp4 or as a strip of pictures .png"
    )
    parser.add_argument("--commands", action="store_true", help="take the emulator's events from standard input")
    arguments = parser.parse_args(argv)
    width, height = _size(arguments.size)
    pictures = (height, width, arguments.fps, arguments.renderer, arguments.video)
    process = SimProcess(arguments.run_dir, arguments.scene, *pictures, arm=arguments.arm)
    serve(process, arguments.commands)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
