# SPDX-License-Identifier: Apache-2.0
"""The Koch v1.1 follower: what its servos must be before any torque, and the arm behind the checks.

Nothing here switches torque on before every check has passed. Each failure is
one line with the joint and the fix (docs/runtime.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum

from vla_edge.contract import KOCH_JOINTS
from vla_edge.errors import BusError, JointCalibrationError
from vla_edge.robot import registers as r
from vla_edge.robot.arm import ArmReading
from vla_edge.robot.joint_calibration import GRIPPER, JointCalibrations, JointUnits, LinearMap, linear_map
from vla_edge.robot.port import check_latency_timer
from vla_edge.robot.servo_bus import BAUD, ServoBus, answers_at

FACTORY_BAUD = 57_600
FACTORY_ID = 1
MIN_FIRMWARE = 38
"""Bus_Watchdog exists since firmware 38 (e-Manual, X series)."""
EXTENDED_POSITION, CURRENT_BASED_POSITION = 4, 5
MODELS = dict(zip(KOCH_JOINTS, (r.XL430_W250, r.XL430_W250, *(4 * (r.XL330_M288,)))))
OPERATING_MODES = {joint: CURRENT_BASED_POSITION if joint == GRIPPER else EXTENDED_POSITION for joint in KOCH_JOINTS}
MODE_NAMES = {EXTENDED_POSITION: "extended position", CURRENT_BASED_POSITION: "current-based position"}
VOLTAGE_TENTHS = {r.XL430_W250: (65, 132), r.XL330_M288: (37, 60)}
"""Data sheets: 6.5–12.0 V (a 12 V supply may show up to a tenth more) and 3.7–6.0 V."""
TEMPERATURE_LIMITS = {r.XL430_W250: 72, r.XL330_M288: 70}
"""°C at which the servos shut down: the factory's Temperature_Limit."""
GRAVITY = {"shoulder_pan": 25, "shoulder_lift": 100, "elbow_flex": 60, "wrist_flex": 104, "wrist_roll": 25}
"""Counts by which each joint hangs below its goal at most: its links and 150 g held at arm's length, at the gains below
(full force comes at 177 counts on the XL430, 283 on the XL330, 75 at the elbow). The rest is friction."""
GOAL_PWM = dict(zip(KOCH_JOINTS, (600, 700, 885, 885, 600, 885)))
"""0.113 % each; 885 is all there is. The shoulder needs no more for an arm that carries 150 g."""
RANGE_MARGIN = 512
"""Counts (45°) a joint may stand outside its calibrated range: further means a lost turn."""
READINGS, READINGS_ENOUGH = 30, 5
"""Tries of the reading time, and how many must be short enough: a busy machine delays some."""
READ_S, READ_TRIES = 0.03, 6
"""Longest time of a reading of the slow path, and how often it is asked for: together less than the servos' watchdog.
"""
TORQUE_S, TORQUE_TRIES = 0.2, 5
"""The same for switching torque: five exchanges, and a third of the time to take them back."""
CALL_S = 0.1
"""Longest time of any other call of the slow path."""


class ArmResult(IntEnum):
    """`arm_result` of robot/bus/arm.h."""

    OK = 0
    TIMEOUT = 1
    CORRUPT = 2
    ALERT = 3
    WATCHDOG = 4
    UNPLUGGED = 5
    REBOOTED = 6
    REFUSED = 7


@dataclass(frozen=True, slots=True)
class KochOptions:
    """port: serial port, by-id path preferred. units: of the joint values that cross to inference.

    profile_velocity (0.229 rpm; 131 is 180°/s, see `profile_velocity_above`) and profile_acceleration (214.6 rev/min²;
    164 is 40,000 counts/s²) are the servos' own limits behind the safety filter; gripper_current in mA bounds the grip.
    write: False leaves every register as it is (shadow mode).
    reading_s: longest time a reading of the six servos may take; 0: any.
    """

    port: str
    calibration: JointCalibrations
    units: JointUnits = JointUnits.RANGE_M100_100
    profile_velocity: int = 131
    profile_acceleration: int = 164
    gripper_current: int = 750
    write: bool = True
    reading_s: float = 0.0


def profile_velocity_above(counts_per_s: float) -> int:
    """The servos' own speed limit for goals that move at most so fast: a little higher, so that it never lags
    behind."""
    return math.ceil(1.02 * counts_per_s / r.COUNTS_PER_S_OF_VELOCITY_UNIT)


class KochArm:
    """A `RobotArm`: an opened, checked and configured follower. Made by `open_koch`."""

    def __init__(self, bus: ServoBus, options: KochOptions) -> None:
        self._bus = bus
        self.joints: tuple[str, ...] = KOCH_JOINTS
        self.calibration = options.calibration
        self.maps: tuple[LinearMap, ...] = tuple(
            linear_map(joint, options.units) for joint in options.calibration.joints
        )
        self.ranges = tuple((joint.range_min, joint.range_max) for joint in options.calibration.joints)

    @property
    def port(self) -> object:
        return self._bus.native.port

    def read(self) -> ArmReading:
        for _ in range(READ_TRIES):
            result, time_ns, positions, velocities, loads, alerts = self._bus.native.read_arm(READ_S)
            if result in (ArmResult.OK, ArmResult.ALERT):
                return ArmReading(time_ns, positions, velocities, loads, tuple(map(bool, alerts)))
            if result == ArmResult.UNPLUGGED:
                break
        raise self._failed("reading the joints", result)

    def reading_s(self) -> float:
        """How long one reading of the six servos takes; infinite when it does not come whole. BusError: unplugged."""
        start_s = time.monotonic()
        result = self._bus.native.read_arm(CALL_S)[0]
        if result == ArmResult.UNPLUGGED:
            raise self._failed("reading the joints", result)
        return time.monotonic() - start_s if result in (ArmResult.OK, ArmResult.ALERT) else math.inf

    def ailing(self) -> dict[str, str]:
        """What is wrong with which servo: "does not answer", or its hardware errors in words."""
        found = {}
        for joint in self.joints:
            try:
                errors = self._bus.read(joint, r.HARDWARE_ERROR)
            except BusError:
                found[joint] = "does not answer"
                continue
            if errors:
                found[joint] = r.describe_hardware_error(errors)
        return found

    def write_goals(self, counts: Sequence[int]) -> None:
        result = self._bus.native.write_goals(tuple(counts), CALL_S)
        if result != ArmResult.OK:
            raise self._failed("sending goals", result)

    def set_torque(self, on: bool) -> None:
        result = ArmResult.TIMEOUT
        for _ in range(TORQUE_TRIES):
            result = self._bus.native.set_torque(on, TORQUE_S)
            if result == ArmResult.OK:
                return
        raise self._failed(f"switching torque {'on' if on else 'off'}", result)

    def close(self) -> None:
        self._bus.close()

    def _failed(self, action: str, result: int) -> BusError:
        if result == ArmResult.UNPLUGGED:
            return BusError(f"the adapter at {self._bus.path} is gone; plug it in and start again")
        if result == ArmResult.ALERT:
            return BusError(f"{action} failed: a servo reports a hardware alert; restart to see which")
        if result == ArmResult.REFUSED:
            joint, address, wanted, found = self._bus.native.trouble()
            register = next(name for name, register in r.REGISTERS.items() if register.address == address)
            return BusError(
                f"{action} failed: {self.joints[joint]} holds {register} = {found} and does not take {wanted}; check "
                "the servo in Dynamixel Wizard"
            )
        return BusError(f"{action} failed ({ArmResult(result).name.lower()}); check cables and power, then start again")


def open_koch(options: KochOptions) -> KochArm:
    """Open the port, check everything, configure; no torque is switched. Errors: BusError, JointCalibrationError."""
    check_latency_timer(options.port)
    bus = ServoBus(options.port, {joint.name: joint.id for joint in options.calibration.joints})
    with ExitStack() as failed:
        failed.callback(bus.close)
        check_servos(bus)
        check_against_calibration(bus, options.calibration)
        if options.write:
            configure(bus, options)
        if options.reading_s > 0:
            check_reading_time(bus, options.reading_s)
        arm = KochArm(bus, options)
        failed.pop_all()
    return arm


def check_servos(bus: ServoBus) -> None:
    """Six servos of the right model, firmware, baud rate and voltage, without a hardware error."""
    found = bus.ping()
    missing = [joint for joint, answer in found.items() if answer is None]
    if missing:
        raise _missing(bus, missing)
    for joint, answer in found.items():
        assert answer is not None
        model, firmware = answer
        if model == r.XL330_M077 and model != MODELS[joint]:
            raise BusError(
                f"{joint} (id {bus.joints[joint]}) is an XL330-M077 (model {model}), the servo of a leader arm, not a "
                f"{r.MODEL_NAMES[MODELS[joint]]} ({MODELS[joint]}); give the follower's port, or check the ids"
            )
        if model != MODELS[joint]:
            raise BusError(
                f"{joint} (id {bus.joints[joint]}) is a {r.MODEL_NAMES.get(model, 'servo of another kind')} (model "
                f"{model}), "
                f"not a {r.MODEL_NAMES[MODELS[joint]]} ({MODELS[joint]}); check the ids and which servo sits where"
            )
        if firmware < MIN_FIRMWARE:
            raise BusError(
                f"{joint} (id {bus.joints[joint]}) has firmware {firmware}, at least {MIN_FIRMWARE} is needed for "
                "the bus watchdog; "
                "update it with Dynamixel Wizard"
            )
    for joint, code in bus.read_all(r.BAUD_RATE).items():
        if r.BAUD_CODES.get(code) != BAUD:
            raise BusError(
                f"{joint}: baud rate register is {code}, it must be 3 ({BAUD:,}); set it with Dynamixel Wizard"
            )
    for joint, errors in bus.read_all(r.HARDWARE_ERROR).items():
        if errors:
            raise BusError(
                f"{joint} reports a hardware error: {r.describe_hardware_error(errors)}; remove the cause, then run "
                "`vla-runtime recover` with the same --port and --joints"
            )
    for joint, tenths in bus.read_all(r.PRESENT_VOLTAGE).items():
        low, high = VOLTAGE_TENTHS[MODELS[joint]]
        if not low <= tenths <= high:
            raise BusError(
                f"{joint} has {tenths / 10:.1f} V, a {r.MODEL_NAMES[MODELS[joint]]} needs {low / 10:.1f} to "
                f"{high / 10:.1f} V; check the power supply"
            )


def _missing(bus: ServoBus, missing: Sequence[str]) -> BusError:
    """Why servos do not answer: look for them at the factory's baud rate."""
    bus.close()
    ids = list(dict.fromkeys([*(bus.joints[joint] for joint in missing), FACTORY_ID]))
    there = answers_at(bus.path, ids, FACTORY_BAUD)
    joint = next((name for name in missing if bus.joints[name] == there), missing[0])
    if there is not None:
        return BusError(
            f"{joint} (id {bus.joints[joint]}) does not answer at {BAUD:,} baud, but id {there} answers at "
            f"{FACTORY_BAUD:,}, the factory "
            f"baud rate; set id and baud rate with `lerobot-setup-motors` or Dynamixel Wizard"
        )
    if len(missing) == len(bus.joints):
        return BusError(
            f"no servo answers on {bus.path} at {BAUD:,} baud; check the power supply and that this is the "
            "follower's port"
        )
    others = f" (also missing: {', '.join(missing[1:])})" if len(missing) > 1 else ""
    return BusError(f"{joint} (id {bus.joints[joint]}) does not answer{others}; check its cable and its id")


def check_against_calibration(bus: ServoBus, calibration: JointCalibrations) -> None:
    """EEPROM and calibration file must say the same, and the joints must stand where they can be."""
    modes = bus.read_all(r.OPERATING_MODE)
    for joint, mode in modes.items():
        if mode != OPERATING_MODES[joint]:
            wanted = OPERATING_MODES[joint]
            raise BusError(
                f"{joint} is in operating mode {mode}, it must be {wanted} ({MODE_NAMES[wanted]}); `vla-runtime "
                "calibrate-joints` sets it"
            )
    differences: list[tuple[str, str]] = []
    for register, field in (
        (r.DRIVE_MODE, "drive_mode"),
        (r.HOMING_OFFSET, "homing_offset"),
        (r.MIN_POSITION, "range_min"),
        (r.MAX_POSITION, "range_max"),
    ):
        for name, value in bus.read_all(register).items():
            told = getattr(calibration.joint(name), field)
            if value != told:
                differences.append((name, f"{field} is {value} in the servo and {told} in {calibration.source}"))
    if differences:
        name, what = differences[0]
        joints = {joint for joint, _ in differences}
        more = (
            f" ({len(joints)} of {len(KOCH_JOINTS)} joints disagree: probably another arm's calibration)"
            if len(joints) > 2
            else ""
        )
        raise JointCalibrationError(f"{name}: {what}{more}; give this arm's file or run `vla-runtime calibrate-joints`")
    for name, position in bus.read_all(r.PRESENT_POSITION).items():
        calibrated = calibration.joint(name)
        if calibrated.range_min - RANGE_MARGIN <= position <= calibrated.range_max + RANGE_MARGIN:
            continue
        turned = any(
            calibrated.range_min <= position + turn <= calibrated.range_max
            for turn in (-r.COUNTS_PER_TURN, r.COUNTS_PER_TURN)
        )
        again = " (a turn off: when it is so again, `vla-runtime calibrate-joints` measures this arm anew)"
        raise JointCalibrationError(
            f"{name} stands at {position} counts, its range is {calibrated.range_min}..{calibrated.range_max}; "
            f"move it into its range by hand, then switch its power off and on{again if turned else ''}"
        )


def check_reading_time(bus: ServoBus, longest_s: float) -> None:
    """BusError when the six servos cannot be read within `longest_s`: every tick would hold."""
    times = []
    for _ in range(READINGS):
        start_s = time.monotonic()
        result = bus.native.read_arm(CALL_S)[0]
        if result in (ArmResult.OK, ArmResult.ALERT):
            times.append(time.monotonic() - start_s)
            if sum(took <= longest_s for took in times) >= READINGS_ENOUGH:
                return
    if not times:
        raise BusError(
            f"no reading of all six servos came whole over {bus.path}; check the cables and the power supply"
        )
    usual_s = sorted(times)[len(times) // 2]
    raise BusError(
        f"reading the six servos over {bus.path} takes {usual_s * 1e3:.1f} ms, longest allowed {longest_s * 1e3:.1f} "
        "ms; "
        "set the adapter's latency timer to 1 ms or use an adapter without one (docs/robot.md)"
    )


def settings_of(bus: ServoBus, options: KochOptions) -> dict[r.Register, Mapping[str, int]]:
    """What the servos must hold whenever there is torque: gains, limits of force and speed; by rising address.

    All of it is RAM, which a servo forgets when its voltage breaks down: the C core reads it back before every
    torque-on and writes what differs.
    """
    # The limit itself is EEPROM; a goal current above it would be refused.
    current = min(options.gripper_current, bus.read(GRIPPER, r.CURRENT_LIMIT))
    return {
        r.STATUS_RETURN_LEVEL: dict.fromkeys(KOCH_JOINTS, 2),
        r.POSITION_D: {"elbow_flex": 600},
        r.POSITION_I: {"elbow_flex": 0},
        r.POSITION_P: {"elbow_flex": 1500},
        r.GOAL_PWM: GOAL_PWM,
        r.GOAL_CURRENT: {GRIPPER: current},
        r.PROFILE_ACCELERATION: dict.fromkeys(KOCH_JOINTS, options.profile_acceleration),
        r.PROFILE_VELOCITY: dict.fromkeys(KOCH_JOINTS, options.profile_velocity),
    }


def configure(bus: ServoBus, options: KochOptions) -> None:
    """The return delay (EEPROM) and the settings where they differ; the settings are made sure of at every
    torque-on."""
    settings = settings_of(bus, options)
    stopped = 0xFF in bus.read_all(r.BUS_WATCHDOG).values()  # such a servo refuses goals until torque is switched on
    bus.write_where_different(r.RETURN_DELAY, dict.fromkeys(KOCH_JOINTS, 0))
    for register, values in settings.items():
        if not (stopped and register in (r.GOAL_PWM, r.GOAL_CURRENT)):
            bus.write_where_different(register, values)
    bus.native.settings(
        [
            (register.address, register.size, tuple(values.get(joint) for joint in bus.joints))
            for register, values in settings.items()
        ]
    )
