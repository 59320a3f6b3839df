# SPDX-License-Identifier: Apache-2.0
"""An arm's servo bus behind a pseudo-terminal, with injected faults and a log.

    python -m vla_edge.robot.sim.emulator --link PORT --log LOG.jsonl [--arm so101]

Prints the port's path when it is ready. PORT (a link to the terminal) can be
given to anything that opens a serial port. Events come from `--at "2.5 overload
3"` (seconds after the start) or, with `--commands`, as lines on standard input:

    dead ID | alive ID | hang SECONDS | overload ID | limp ID | reboot ID | push ID COUNTS | sag ID COUNTS |
    block ID LOW HIGH | free ID | ignore ID REGISTER | voltage ID TENTHS | temperature ID DEGREES |
    rate FAULT PROBABILITY | dump | unplug | quit

The log is JSON lines, described at `EmulatedBus`; times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import tty
from collections.abc import Callable, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import TextIO

from vla_edge.command_line import count, file_to_write, run_command, whole
from vla_edge.command_parser import CommandParser
from vla_edge.errors import BusError, ConfigError
from vla_edge.robot.arm_description import DEFAULT_ARM, ArmDescription, arm_names, load_arm
from vla_edge.robot.arm_parts import BUSES_MAX, ArmJoint
from vla_edge.robot.joint_calibration import JointCalibrations, load_joint_calibration
from vla_edge.robot.sim.bus_faults import FAULT_NAMES, Faults
from vla_edge.robot.sim.bus_log import open_log
from vla_edge.robot.sim.emulated_bus import STEP_NS, EmulatedBus, Log
from vla_edge.robot.sim.emulated_servo import EmulatedServo
from vla_edge.robot.sim.plant import IdealPlant, Plant
from vla_edge.robot.sim.servos.sts3215 import Sts3215
from vla_edge.robot.sim.servos.x_series import XSeriesServo

MIDDLE = 2048
REALTIME_PRIORITY = 10
HOG_US = 1_000_000
"""Longest time on a core in the real-time class without waiting for anything."""
_TCGETS2, _TERMIOS2_BYTES, _OSPEED_AT = 0x802C542A, 44, 40  # asm-generic/termbits.h: struct termios2


Event = tuple[float, tuple[str, ...]]
"""Seconds after the start, and a line of the grammar above."""


def _x_series(joint: ArmJoint, model: int, volts: float) -> EmulatedServo:
    return XSeriesServo(model, joint.id, 0.0)


def _sts3215(joint: ArmJoint, model: int, volts: float) -> EmulatedServo:
    """As LeRobot's `configure` leaves it."""
    settings = {"return_delay_time": 0, "acceleration": 254, "p_coefficient": 16}
    if joint.name.endswith("gripper"):
        settings |= {"max_torque_limit": 500, "torque_limit": 500, "protection_current": 250, "overload_torque": 25}
    servo = Sts3215(joint.id, 0.0, volts)
    for name, value in settings.items():
        servo.put(servo.REGISTERS[name], value)
    return servo


SERVOS: dict[str, Callable[[ArmJoint, int, float], EmulatedServo]] = {"dynamixel2": _x_series, "feetech0": _sts3215}
"""By the language that they speak."""


def servos_of(
    arm: ArmDescription, calibration: JointCalibrations | None, shown: Sequence[int], volts: float = 12.0, bus: int = 0
) -> list[EmulatedServo]:
    """The servos on a bus of an arm by its description: ids, models, modes; what they must hold of `calibration`.

    shown: present position of each as its register shows it, counts. volts: 7.4 or 12, where there are such servos of
    one model.
    """
    servos = []
    for joint, place in zip((joint for joint in arm.joints if joint.bus == bus), shown):
        servo = SERVOS[arm.protocol](joint, arm.kind(joint.name).model, volts)
        servo.put(arm.register("operating_mode"), joint.mode)
        if calibration is not None:
            for field, register in arm.checked.items():
                servo.put(arm.register(register), getattr(calibration.joint(joint.name), field))
        servo.place(place)
        servos.append(servo)
    return servos


class Terminal:
    """The pseudo-terminal: `path` is what a driver opens; its far end is kept open here."""

    def __init__(self, link: Path) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.link = link
        temporary = link.with_name(link.name + ".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.ttyname(self._slave))
        temporary.replace(link)

    def baud(self) -> int:
        """The rate the driver has set on its end."""
        settings = ioctl(self.master, _TCGETS2, bytes(_TERMIOS2_BYTES))
        return int(struct.unpack_from("<I", settings, _OSPEED_AT)[0])

    def read(self) -> bytes:
        try:
            return os.read(self.master, 4096)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        # A line has no buffer: what nobody takes is lost.
        with contextlib.suppress(BlockingIOError):
            os.write(self.master, data)

    def close(self) -> None:
        os.close(self.master)
        os.close(self._slave)
        self.link.unlink(missing_ok=True)


class Emulator:
    """Joins a terminal, a bus and events; `run` serves until `quit`, `unplug` or end of commands."""

    def __init__(
        self, terminal: Terminal, bus: EmulatedBus, plant: Plant, faults: Faults, log: Log = lambda entry: None
    ) -> None:
        self._terminal = terminal
        self._bus = bus
        self._plant = plant
        self._faults = faults
        self._log = log
        self._running = True
        self._unfinished = b""

    def run(self, events: Sequence[Event], commands: TextIO | None) -> None:
        start_ns = time.monotonic_ns()
        waiting = sorted(events, key=lambda event: event[0])
        poller = select.poll()
        poller.register(self._terminal.master, select.POLLIN)
        if commands is not None:
            poller.register(commands, select.POLLIN | select.POLLHUP)
        try:
            while self._running:
                self._serve(poller.poll(self._wait_ms()), commands)
                while waiting and (time.monotonic_ns() - start_ns) / 1e9 >= waiting[0][0]:
                    self.apply(waiting.pop(0)[1])
        finally:
            self._terminal.close()

    def _serve(self, ready: Sequence[tuple[int, int]], commands: TextIO | None) -> None:
        """What the poll found ready: bytes of the host, commands; and the time that has passed."""
        now_ns = time.monotonic_ns()
        if any(fd == self._terminal.master for fd, _ in ready):
            self._bus.receive(self._terminal.read(), self._terminal.baud(), now_ns)
        else:
            self._bus.advance(now_ns)
        out = self._bus.take_output(now_ns)
        if out:
            self._terminal.write(out)
        if commands is not None and any(fd == commands.fileno() for fd, _ in ready):
            self._take_commands(commands.fileno())

    def _wait_ms(self) -> float:
        due_ns = self._bus.next_due_ns()
        wait_ns = STEP_NS if due_ns is None else min(STEP_NS, max(0, due_ns - time.monotonic_ns()))
        return wait_ns / 1e6

    def _take_commands(self, descriptor: int) -> None:
        """All whole lines that lie there; read from the descriptor, as a file object would keep some back."""
        data = os.read(descriptor, 4096)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self.apply(tuple(line.decode("ascii", "replace").split()))
        if not data:
            self._running = False

    def apply(self, words: tuple[str, ...]) -> None:
        """One event of the grammar."""
        try:
            self._apply(words)
        except ValueError as error:
            raise ConfigError(f"event {' '.join(words)!r}: {error}; the grammar stands in --help") from None
        self._log({"t": time.monotonic_ns(), "kind": "event", "words": words})

    def _apply(self, words: tuple[str, ...]) -> None:
        match words:
            case ("dead", servo):
                self._bus.dead.add(int(servo))
            case ("alive", servo):
                self._bus.dead.discard(int(servo))
            case ("hang", seconds):
                self._bus.silent_until_ns = time.monotonic_ns() + int(float(seconds) * 1e9)
            case ("overload", servo):
                self._servo(servo).overload()
            case ("limp", servo):
                found = self._servo(servo)
                found.put(found.TORQUE, 0)
            case ("reboot", servo):
                self._servo(servo).reboot(time.monotonic_ns())
            case ("push", servo, counts) if isinstance(self._plant, IdealPlant):
                index = self._bus.servos.index(self._servo(servo))
                self._plant.push(index, self._bus.servos[index].raw_of(int(counts)))
            case ("sag", servo, counts) if isinstance(self._plant, IdealPlant):
                found = self._servo(servo)
                self._plant.sag(self._bus.servos.index(found), found.raw_of(int(counts)) - found.raw_of(0))
            case ("block", servo, low, high):
                found = self._servo(servo)
                ends = sorted((found.raw_of(int(low)), found.raw_of(int(high))))
                self._plant.block(self._bus.servos.index(found), ends[0], ends[1])
            case ("free", servo):
                self._plant.block(self._bus.servos.index(self._servo(servo)), -math.inf, math.inf)
            case ("ignore", servo, register):
                found = self._servo(servo)
                if register not in found.REGISTERS:
                    raise ConfigError(f"no register is called {register!r}; names are {', '.join(found.REGISTERS)}")
                found.ignored.add(found.REGISTERS[register].address)
            case ("temperature", servo, degrees):
                found = self._servo(servo)
                found.put(found.TEMPERATURE, int(degrees))
            case ("voltage", servo, tenths):
                found = self._servo(servo)
                found.put(found.VOLTAGE, int(tenths))
            case ("rate", name, probability):
                self._faults.set_rate(name, float(probability))
            case ("dump",):
                self._bus.dump(time.monotonic_ns())
            case ("unplug",) | ("quit",):
                self._running = False
            case ():
                pass
            case _:
                raise ConfigError(f"event {' '.join(words)!r} is unknown; the grammar stands in --help")

    def _servo(self, servo_id: str) -> EmulatedServo:
        for servo in self._bus.servos:
            if servo.id == int(servo_id):
                return servo
        raise ConfigError(
            f"no emulated servo has id {servo_id}; ids are {', '.join(str(s.id) for s in self._bus.servos)}"
        )


def _set_register(text: str, servos: Sequence[EmulatedServo]) -> None:
    """`ID:REGISTER=NUMBER` of the command line."""
    servo_id, _, rest = text.partition(":")
    name, _, value = rest.partition("=")
    known = servos[0].REGISTERS
    if name not in known or not servo_id.isdigit() or not value.lstrip("-").isdigit():
        raise ConfigError(f"--set {text!r} is not ID:REGISTER=NUMBER; registers: {', '.join(sorted(known))}")
    for servo in servos:
        if servo.id == int(servo_id):
            servo.put(known[name], int(value))


def _event(text: str) -> Event:
    at_s, _, words = text.partition(" ")
    try:
        return float(at_s), tuple(words.split())
    except ValueError:
        raise ConfigError(f'--at {text!r} does not begin with seconds; write e.g. --at "2.5 overload 3"') from None


def _parser() -> CommandParser:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = CommandParser(prog="python -m vla_edge.robot.sim.emulator", description=description)
    parser.notes = rest.strip("\n")
    parser.add_argument("--link", type=Path, required=True, help="where to put the link to the terminal")
    parser.add_argument(
        "--arm", default=DEFAULT_ARM, help=f"whose servos: {', '.join(arm_names())}, or a description's path"
    )
    parser.add_argument(
        "--bus",
        type=int,
        choices=range(BUSES_MAX),
        default=0,
        help="which side of an arm on two ports: 0 left, 1 right",
    )
    parser.add_argument("--log", type=file_to_write, help="JSON lines of everything accepted")
    parser.add_argument("--joints", type=Path, help="calibration file whose homing and limits the servos hold")
    parser.add_argument(
        "--positions",
        type=int,
        nargs="+",
        metavar="COUNTS",
        help=f"where each joint stands at the start (default: {MIDDLE})",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="ID:REGISTER=NUMBER",
        help="what a register holds at the start",
    )
    parser.add_argument(
        "--missing", type=count, action="append", default=[], metavar="ID", help="a servo that never answers"
    )
    parser.add_argument(
        "--rate",
        nargs=2,
        action="append",
        default=[],
        metavar=("FAULT", "P"),
        help=f"probability of a fault: {', '.join(FAULT_NAMES)}",
    )
    parser.add_argument(
        "--late-ms",
        type=float,
        nargs=2,
        default=(5.0, 120.0),
        metavar=("FROM", "TO"),
        help="how late a late answer comes",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the faults")
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar='"SECONDS EVENT"',
        help="an event at a time after the start, see below",
    )
    parser.add_argument("--commands", action="store_true", help="take events from standard input")
    return parser


def try_realtime() -> bool:
    """Servos do not wait for a scheduler: run before ordinary processes where that is allowed. What we start does not,
    and neither do we after a second without a pause: a loop that hogs a core starves everything below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (HOG_US, hard))
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(REALTIME_PRIORITY))
    except (PermissionError, ValueError):
        return False
    signal.signal(signal.SIGXCPU, lambda *_: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)))
    return True


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    arm = load_arm(options.arm)
    calibration = load_joint_calibration(options.joints, arm) if options.joints else None
    joints = sum(joint.bus == options.bus for joint in arm.joints)
    if joints == 0:
        raise ConfigError(f"--bus {options.bus}: {arm.title} has its servos on one port; leave --bus out")
    positions = options.positions or [MIDDLE] * joints
    if len(positions) != joints:
        raise ConfigError(f"--positions has {len(positions)} counts, {arm.title} has {joints} joints there")
    servos = servos_of(arm, calibration, positions, bus=options.bus)
    for setting in options.settings:
        _set_register(setting, servos)
    faults = Faults(options.seed, tuple(options.late_ms))
    for name, probability in options.rate:
        faults.set_rate(name, float(probability))
    events = [_event(line) for line in options.at]
    plant = IdealPlant([servo.raw for servo in servos])
    with open_log(options.log) as log:
        bus = EmulatedBus(servos, plant, faults, log)
        bus.dead.update(options.missing)
        try:
            terminal = Terminal(options.link)
        except OSError as error:
            raise BusError(
                f"no pseudo-terminal at {options.link}: {error.strerror}; check the folder and /dev/pts"
            ) from error
        try_realtime()
        print(options.link, flush=True)
        emulator = Emulator(terminal, bus, plant, faults, log)
        signal.signal(signal.SIGTERM, lambda *_: emulator.apply(("quit",)))
        emulator.run(events, sys.stdin if options.commands else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
