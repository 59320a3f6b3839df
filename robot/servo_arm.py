# SPDX-License-Identifier: Apache-2.0
"""An arm of servos on one bus or two: what they must be before any torque, and the arm behind the checks.

Which servos, registers and settings is told by the arm's description. Nothing here switches torque on before every
check has passed. Each failure is one line with the joint and the fix (docs/robot.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum

from vla_edge.errors import BusError, JointCalibrationError
from vla_edge.robot.arm_description import LAST_ADDRESS, ArmDescription, arm_names, load_arm
from vla_edge.robot.arm_parts import Setting
from vla_edge.robot.joint_calibration import JointCalibrations
from vla_edge.robot.port import check_latency_timer, gone
from vla_edge.robot.servo_bus import ServoBus, answers_at

FACTORY_ID = 1
RANGE_MARGIN = 512
"""Counts (45°) a joint may stand outside its calibrated range: further means a lost turn."""
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
class ArmReading:
    """All joints at one moment. positions: counts. velocities: servo units. alerts: hardware alert per joint."""

    positions: tuple[int, ...]
    velocities: tuple[int, ...]
    alerts: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ArmOptions:
    """arm: its description. port: serial port, by-id path preferred; LEFT,RIGHT of two arms that are one.

    velocity: counts/s that goals move at most: the servos' own limit behind the safety filter is a little higher, so
    that they never lag behind; None: as described. write: False leaves every register as it is (shadow mode).
    """

    arm: ArmDescription
    port: str
    calibration: JointCalibrations
    velocity: float | None = None
    write: bool = True


class ServoArm:
    """An opened, checked and configured follower, made by `open_arm`; arrays are in the order of `joints`. Errors:
    BusError, one line with the joint and the fix."""

    def __init__(self, bus: ServoBus, options: ArmOptions, supply: tuple[tuple[int, int], ...]) -> None:
        self._bus = bus
        self.description = options.arm
        self.joints = options.arm.joint_names
        self.velocity_unit = options.arm.velocity_unit
        """Counts/s of one unit of velocity."""
        self.calibration = options.calibration
        self.supply = supply
        """Lowest and highest voltage of the supply that each servo was found on, 0.1 V."""

    @property
    def port(self) -> object:
        """The arm for the C control loop (capsule of an `arm_port`); valid until `close`."""
        return self._bus.native.port

    def read(self) -> ArmReading:
        for _ in range(READ_TRIES):
            result, _time_ns, positions, velocities, _loads, alerts = self._bus.native.read_arm(READ_S)
            if result in (ArmResult.OK, ArmResult.ALERT):
                return ArmReading(positions, velocities, tuple(map(bool, alerts)))
            if result == ArmResult.UNPLUGGED:
                break
        raise self._failed("reading the joints", result)

    def reading_s(self) -> float:
        """How long one reading of all servos takes; infinite when it does not come whole. BusError: unplugged."""
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
                errors = self._bus.errors(joint)[joint]
            except BusError:
                found[joint] = "does not answer"
                continue
            if errors:
                found[joint] = self.description.errors_in_words(errors)
        return found

    def stopped(self) -> list[str]:
        """The joints whose servo takes no more goals, because its bus watchdog has heard nothing for too long."""
        return _stopped(self._bus)

    def write_goals(self, counts: Sequence[int]) -> None:
        result = self._bus.native.write_goals(tuple(counts), CALL_S)
        if result != ArmResult.OK:
            raise self._failed("sending goals", result)

    def set_torque(self, on: bool) -> None:
        """On: goals become the present position first. Off: attempts every joint even if one fails."""
        result = switch_torque(self._bus, on)
        if result != ArmResult.OK:
            raise self._failed(f"switching torque {'on' if on else 'off'}", result)

    def close(self) -> None:
        """Free the port; torque stays as it is."""
        self._bus.close()

    def _failed(self, action: str, result: int) -> BusError:
        if result == ArmResult.UNPLUGGED:
            return BusError(f"the adapter at {gone(self._bus.path)} is gone; plug it in and start again")
        if result == ArmResult.ALERT:
            return BusError(f"{action} failed: a servo reports a hardware alert; restart to see which")
        if result == ArmResult.REFUSED:
            joint, address, wanted, found = self._bus.native.trouble()
            register = register_at(self.description, address)
            return BusError(
                f"{action} failed: {self.joints[joint]} holds {register} = {found} and does not take {wanted}; check "
                f"the servo in {self.description.tool}"
            )
        return BusError(
            f"{action} failed ({ArmResult(result).name.lower()}); check cables and power, and that the adapter answers "
            "at once (docs/robot.md), then start again"
        )


def register_at(arm: ArmDescription, address: int) -> str:
    """The name of the register whose setting a servo did not take."""
    return next(setting.register for setting in arm.settings if arm.registers[setting.register].at == address)


def open_arm(options: ArmOptions) -> ServoArm:
    """Open the port, check everything, configure; no torque is switched. Errors: BusError, JointCalibrationError."""
    check_latency_timer(options.port)
    bus = ServoBus(options.port, options.arm, {joint.name: joint.id for joint in options.calibration.joints})
    with ExitStack() as failed:
        failed.callback(bus.close)
        supply = check_servos(bus)
        if options.write:
            clear_bits(bus)
        check_against_calibration(bus, options.calibration)
        if options.write:
            configure(bus, options)
        arm = ServoArm(bus, options, supply)
        failed.pop_all()
    return arm


def check_servos(bus: ServoBus) -> tuple[tuple[int, int], ...]:
    """Servos of the right model, firmware, baud rate and voltage, without a hardware error; the voltages that each
    one's supply may have."""
    arm = bus.arm
    found = bus.ping()
    missing = [joint for joint, answer in found.items() if answer is None]
    if missing:
        raise _missing(bus, missing)
    answers = {joint: answer for joint, answer in found.items() if answer is not None}
    for joint, (model, firmware) in answers.items():
        _check_model(bus, joint, model)
        if firmware < arm.min_firmware:
            raise BusError(
                f"{joint} (id {bus.joints[joint]}) has firmware {firmware}, at least {arm.min_firmware} is needed for "
                f"the bus watchdog; update it with {arm.tool}"
            )
    if arm.same_firmware:
        _check_same_firmware(bus, {joint: firmware for joint, (_, firmware) in answers.items()})
    if arm.baud_code is not None:
        for joint, code in bus.read_all(arm.register("baud_rate")).items():
            if code != arm.baud_code:
                raise BusError(
                    f"{joint}: baud rate register is {code}, it must be {arm.baud_code} ({arm.baud:,}); set it with "
                    f"{arm.tool}"
                )
    supply = _check_voltage(bus)
    for joint, errors in bus.errors().items():
        if errors:
            raise BusError(
                f"{joint} reports a hardware error: {arm.errors_in_words(errors)}; remove the cause, then run "
                "`vla-runtime recover` with the same --port and --joints"
            )
    return supply


def _check_model(bus: ServoBus, joint: str, model: int) -> None:
    arm = bus.arm
    wanted = arm.models[joint]
    if model == wanted:
        return
    what = f"{arm.joint(joint).servo} ({wanted})"
    if model in arm.leader_servos.values():
        raise BusError(
            f"{joint} (id {bus.joints[joint]}) is an {arm.servo_name(model)} (model {model}), the servo of a leader "
            f"arm, not a {what}; give the follower's port, or check the ids"
        )
    raise BusError(
        f"{joint} (id {bus.joints[joint]}) is a {arm.servo_name(model)} (model {model}), not a {what}; check the ids "
        "and which servo sits where"
    )


def _check_same_firmware(bus: ServoBus, firmware: Mapping[str, int]) -> None:
    """Servos of one arm that run different firmware are known to spoil each other's answers."""
    usual = max(firmware.values(), key=list(firmware.values()).count)
    for joint, version in firmware.items():
        if version != usual:
            raise BusError(
                f"{joint} (id {bus.joints[joint]}) has firmware {version >> 8}.{version & 255}, the others have "
                f"{usual >> 8}.{usual & 255}; bring all of them to one version with {bus.arm.tool}"
            )


def _check_voltage(bus: ServoBus) -> tuple[tuple[int, int], ...]:
    """Every servo within what it is made for, and all that can have two supplies on the same one."""
    arm = bus.arm
    measured = bus.read_all(arm.at("voltage"))
    own = bus.read_all(arm.register("max_voltage")) if "max_voltage" in arm.registers else {}
    supplies = []
    for joint, tenths in measured.items():
        kind = arm.kind(joint)
        limit = own.get(joint, tenths)
        if tenths > limit:
            raise BusError(
                f"{joint} has {tenths / 10:.1f} V, its own limit is {limit / 10:.1f} V: a servo for a lower voltage on "
                "this supply; switch the supply off now and give it the one it is made for"
            )
        fits = [
            (round(10 * low), round(10 * high)) for low, high in kind.volts.values() if 10 * low <= tenths <= 10 * high
        ]
        if not fits:
            needs = " or ".join(f"{low:.1f} to {high:.1f} V" for low, high in kind.volts.values())
            raise BusError(
                f"{joint} has {tenths / 10:.1f} V, a {arm.joint(joint).servo} needs {needs}; check the power supply"
            )
        supplies.append(fits[0])
    return tuple(supplies)


def _missing(bus: ServoBus, missing: Sequence[str]) -> BusError:
    """Why servos do not answer: look for them at the factory's baud rate."""
    arm, path, beside = bus.arm, bus.path_of(missing[0]), bus.beside(missing[0])
    missing = [name for name in missing if name in beside]
    bus.close()
    ids = list(dict.fromkeys([*(bus.joints[joint] for joint in missing), FACTORY_ID]))
    there = answers_at(path, arm, ids, arm.factory_baud) if arm.factory_baud is not None else None
    joint = next((name for name in missing if bus.joints[name] == there), missing[0])
    if there is not None:
        return BusError(
            f"{joint} (id {bus.joints[joint]}) does not answer at {arm.baud:,} baud, but id {there} answers at "
            f"{arm.factory_baud:,}, the factory "
            f"baud rate; set id and baud rate with `lerobot-setup-motors` or {arm.tool}"
        )
    if missing == beside:
        known = _who_answers(path, arm)
        if known:
            names = " or ".join(f"--robot {name}" for name in known)
            return BusError(
                f"no servo answers on {path} as {arm.title}'s do, but one does as another arm's: say {names}, or "
                f"give {arm.title}'s port"
            )
        return BusError(
            f"no servo answers on {path} at {arm.baud:,} baud; check the power supply and that this is the "
            "follower's port"
        )
    others = f" (also missing: {', '.join(missing[1:])})" if len(missing) > 1 else ""
    return BusError(f"{joint} (id {bus.joints[joint]}) does not answer{others}; check its cable and its id")


def _who_answers(path: str, but: ArmDescription) -> list[str]:
    """The arms whose servos speak another language than those of `but`, and answer in it."""
    for protocol in LAST_ADDRESS:
        arms = [arm for arm in map(load_arm, arm_names()) if arm.protocol == protocol != but.protocol]
        if arms and answers_at(path, arms[0], [arms[0].joints[0].id], arms[0].baud) is not None:
            return [arm.name for arm in arms]
    return []


def check_against_calibration(bus: ServoBus, calibration: JointCalibrations) -> None:
    """EEPROM and calibration file must say the same, and the joints must stand where they can be."""
    arm = bus.arm
    for name, mode in bus.read_all(arm.register("operating_mode")).items():
        wanted = arm.joint(name).mode
        if mode != wanted:
            raise BusError(
                f"{name} is in operating mode {mode}, it must be {wanted} ({arm.modes[wanted]}); `vla-runtime "
                "calibrate-joints` sets it"
            )
    differences: list[tuple[str, str]] = []
    for field, register in arm.checked.items():
        for name, value in bus.read_all(arm.register(register)).items():
            joint_value = getattr(calibration.joint(name), field)
            if value != joint_value:
                differences.append((name, f"{field} is {value} in the servo and {joint_value} in {calibration.source}"))
    if differences:
        name, what = differences[0]
        joints = {joint for joint, _ in differences}
        many = f" ({len(joints)} of {len(arm.joints)} joints disagree: probably another arm's calibration)"
        more = many if len(joints) > 2 else ""
        raise JointCalibrationError(f"{name}: {what}{more}; give this arm's file or run `vla-runtime calibrate-joints`")
    for name, position in bus.read_all(arm.at("position")).items():
        calibrated = calibration.joint(name)
        if calibrated.range_min - RANGE_MARGIN <= position <= calibrated.range_max + RANGE_MARGIN:
            continue
        turned = arm.multi_turn and any(
            calibrated.range_min <= position + turn <= calibrated.range_max
            for turn in (-arm.counts_per_turn, arm.counts_per_turn)
        )
        anew = "; when it is there already, run `vla-runtime calibrate-joints`"
        off_and_on = ", then switch its power off and on" if arm.multi_turn else anew
        again = " (a turn off: when it is so again, `vla-runtime calibrate-joints` measures this arm anew)"
        raise JointCalibrationError(
            f"{name} stands at {position} counts, its range is {calibrated.range_min}..{calibrated.range_max}; "
            f"move it into its range by hand{off_and_on}{again if turned else ''}"
        )


def clear_bits(bus: ServoBus) -> None:
    """Bits of the EEPROM that change what a position means, before one is read."""
    for name, bits in bus.arm.cleared.items():
        register = bus.arm.register(name)
        held = bus.read_all(register)
        bus.write_where_different(register, {joint: value & ~bits for joint, value in held.items()})


def _stopped(bus: ServoBus) -> list[str]:
    """The joints whose bus watchdog has tripped."""
    watchdog = bus.arm.watchdog
    if watchdog is None:
        return []
    return [joint for joint, value in bus.read_all(bus.arm.at("watchdog")).items() if value == watchdog.tripped]


def switch_torque(bus: ServoBus, on: bool) -> int:
    """Torque of all servos, asked again where it was not confirmed; the last ArmResult."""
    result = int(ArmResult.TIMEOUT)
    for _ in range(TORQUE_TRIES):
        result = bus.native.set_torque(on, TORQUE_S)
        if result == ArmResult.OK:
            break
    return result


def _values(bus: ServoBus, options: ArmOptions, setting: Setting) -> Mapping[str, int]:
    """What a register must hold whenever there is torque: a gain, or a limit of force or speed."""
    arm = options.arm
    values = dict(setting.of) if setting.value is None else dict.fromkeys(arm.joint_names, setting.value)
    if setting.register == arm.speed and options.velocity is not None:
        return dict.fromkeys(values, math.ceil(1.02 * options.velocity / arm.velocity_unit))
    if setting.at_most is not None:
        # The limit itself is EEPROM; a value above it would be refused.
        limit = arm.register(setting.at_most)
        return {joint: min(value, bus.read(joint, limit)) for joint, value in values.items()}
    return values


def configure(bus: ServoBus, options: ArmOptions) -> None:
    """The EEPROM and the settings where they differ. A servo may forget the settings when its voltage breaks down: the
    C core reads them back before every torque-on and writes what differs."""
    arm = options.arm
    settings = {arm.register(setting.register): _values(bus, options, setting) for setting in arm.settings}
    # Such a servo refuses goals until torque is switched on.
    stopped = _stopped(bus)
    for name, value in arm.eeprom.items():
        bus.write_where_different(arm.register(name), dict.fromkeys(arm.joint_names, value))
    for register, values in settings.items():
        if not (stopped and register.name in arm.refused_when_stopped):
            bus.write_where_different(register, values)
    bus.native.settings(
        [
            (register.address, register.size, tuple(values.get(joint) for joint in bus.joints))
            for register, values in settings.items()
        ]
    )
