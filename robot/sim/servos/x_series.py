# SPDX-License-Identifier: Apache-2.0
"""One emulated X-series servo: its registers and what its firmware does.

Control table with access rules and EEPROM lock, profile generator, torque switch, bus watchdog, hardware alert, reboot.
Source: Robotis e-Manual, control tables of XL430-W250 and XL330-M288. Time is an argument: CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import math
import struct

from vla_edge.robot.arm_parts import Register
from vla_edge.robot.sim.emulated_servo import EmulatedServo
from vla_edge.robot.sim.framing import DYNAMIXEL2
from vla_edge.robot.sim.servos import x_series_table as r

ERROR_RANGE, ERROR_LENGTH, ERROR_ACCESS = 0x04, 0x05, 0x07
ALERT_BIT = 0x80
MULTI_TURN_LIMIT = 1_048_575
NO_LOAD_COUNTS_PER_S = {r.XL430_W250: 61 / 60 * 4096, r.XL330_M288: 103 / 60 * 4096}
"""Data sheet: 61 rpm at 12 V, 103 rpm at 5 V."""

_DEFAULTS: dict[Register, dict[int, int]] = {
    r.BAUD_RATE: {r.XL430_W250: 3, r.XL330_M288: 3},
    r.FIRMWARE: {r.XL430_W250: 46, r.XL330_M288: 50},
    r.OPERATING_MODE: {r.XL430_W250: 4, r.XL330_M288: 4},
    r.TEMPERATURE_LIMIT: {r.XL430_W250: 72, r.XL330_M288: 70},
    r.MAX_VOLTAGE: {r.XL430_W250: 140, r.XL330_M288: 70},
    r.MIN_VOLTAGE: {r.XL430_W250: 60, r.XL330_M288: 35},
    r.PWM_LIMIT: {r.XL430_W250: 885, r.XL330_M288: 885},
    r.CURRENT_LIMIT: {r.XL430_W250: 0, r.XL330_M288: 1750},
    r.VELOCITY_LIMIT: {r.XL430_W250: 265, r.XL330_M288: 445},
    r.MAX_POSITION: {r.XL430_W250: 4095, r.XL330_M288: 4095},
    r.SHUTDOWN: {r.XL430_W250: 52, r.XL330_M288: 53},
    r.STATUS_RETURN_LEVEL: {r.XL430_W250: 2, r.XL330_M288: 2},
    r.POSITION_P: {r.XL430_W250: 640, r.XL330_M288: 400},
    r.POSITION_D: {r.XL430_W250: 4000, r.XL330_M288: 0},
    r.GOAL_PWM: {r.XL430_W250: 885, r.XL330_M288: 885},
    r.GOAL_CURRENT: {r.XL430_W250: 0, r.XL330_M288: 1750},
    r.PRESENT_VOLTAGE: {r.XL430_W250: 120, r.XL330_M288: 50},
    r.PRESENT_TEMPERATURE: {r.XL430_W250: 31, r.XL330_M288: 33},
}
_RANGES: dict[Register, tuple[int, int]] = {
    r.ID: (0, 252),
    r.BAUD_RATE: (0, 6),
    r.RETURN_DELAY: (0, 254),
    r.HOMING_OFFSET: (-1_044_479, 1_044_479),
    r.MAX_POSITION: (0, 4095),
    r.MIN_POSITION: (0, 4095),
    r.TORQUE_ENABLE: (0, 1),
    r.STATUS_RETURN_LEVEL: (0, 2),
    r.BUS_WATCHDOG: (0, 127),
    r.PROFILE_ACCELERATION: (0, 32_767),
    r.PROFILE_VELOCITY: (0, 32_767),
}
_MODES = {r.XL430_W250: (1, 3, 4, 16), r.XL330_M288: (0, 1, 3, 4, 5, 16)}
_GOALS = (r.GOAL_PWM, r.GOAL_CURRENT, r.GOAL_VELOCITY, r.GOAL_POSITION)
_VOLATILE_START, _WRITABLE_END = 64, 120
_READ_ONLY = {*range(7), *range(69, 76), *range(120, 147)}


class XSeriesServo(EmulatedServo):
    """One XL430 or XL330, by its model number."""

    LANGUAGE = DYNAMIXEL2
    REGISTERS = r.REGISTERS
    TORQUE, GOAL, PRESENT = r.TORQUE_ENABLE, r.GOAL_POSITION, r.PRESENT_POSITION
    BAUD, BAUD_CODES, RETURN_DELAY = r.BAUD_RATE, r.BAUD_CODES, r.RETURN_DELAY
    VOLTAGE, TEMPERATURE = r.PRESENT_VOLTAGE, r.PRESENT_TEMPERATURE

    def __init__(self, model: int, servo_id: int, raw: float) -> None:
        super().__init__(raw)
        self.model = model
        self._fill_defaults(0)
        self.put(r.MODEL_NUMBER, model)
        self.put(r.ID, servo_id)
        self.setpoint = self.present
        self.put(r.GOAL_POSITION, round(self.present))
        self.show(raw, 0.0, 0.0)

    def _fill_defaults(self, start: int) -> None:
        self.memory[start:] = bytes(len(self.memory) - start)
        for register, values in _DEFAULTS.items():
            if register.address >= start:
                self.put(register, values[self.model])
        self.decode()

    def restart(self) -> None:
        self._fill_defaults(_VOLATILE_START)

    def decode(self) -> None:
        self.id = self.get(r.ID)
        self.torque = bool(self.get(r.TORQUE_ENABLE))
        self.goal = self.get(r.GOAL_POSITION)
        self.watchdog = self.get(r.BUS_WATCHDOG)
        self._sign = -1 if self.get(r.DRIVE_MODE) & 1 else 1
        self._homing = self.get(r.HOMING_OFFSET)
        limit = self.get(r.PROFILE_VELOCITY) * r.COUNTS_PER_S_OF_VELOCITY_UNIT or math.inf
        self.speed_limit = min(limit, NO_LOAD_COUNTS_PER_S[self.model])
        self.acceleration = self.get(r.PROFILE_ACCELERATION) * r.COUNTS_PER_S2_OF_ACCELERATION_UNIT or math.inf

    @property
    def present(self) -> float:
        """Sign · encoder + homing offset."""
        return self._sign * self.raw + self._homing

    def raw_of(self, shown: float) -> float:
        return self._sign * (shown - self._homing)

    @property
    def alert(self) -> int:
        return ALERT_BIT if self.get(r.HARDWARE_ERROR) else 0

    @property
    def status_level(self) -> int:
        return self.get(r.STATUS_RETURN_LEVEL)

    def ping_answer(self) -> bytes:
        return bytes(self.memory[0:2]) + bytes(self.memory[6:7])

    def refusal(self, error: int) -> int:
        return error

    @property
    def watchdog_tripped(self) -> bool:
        return self.watchdog == 0xFF

    def watchdog_due_ns(self) -> int | None:
        if not 1 <= self.watchdog <= 127 or not self.torque or self.last_heard_ns is None:
            return None
        return self.last_heard_ns + int(self.watchdog * r.WATCHDOG_UNIT_S * 1e9)

    def trip_watchdog(self) -> None:
        """Stop where the shaft is; goals are refused until 0 is written to the watchdog."""
        self.put(r.BUS_WATCHDOG, 0xFF)
        self.stop()

    def overload(self) -> None:
        """Hardware alert: torque off until a reboot, as the shutdown register says."""
        self.put(r.HARDWARE_ERROR, 0x20)
        if self.get(r.SHUTDOWN) & 0x20:
            self.put(r.TORQUE_ENABLE, 0)

    def show(self, raw: float, raw_velocity: float, current: float) -> None:
        self.raw = raw
        speed = self._sign * raw_velocity / r.COUNTS_PER_S_OF_VELOCITY_UNIT
        load = max(-32_768, min(32_767, round(self._sign * current)))
        self.position = round(self.present)
        struct.pack_into("<hii", self.memory, r.PRESENT_LOAD.address, load, round(speed), self.position)

    def read(self, address: int, length: int) -> tuple[int, bytes]:
        if length < 1 or address + length > len(self.memory):
            return ERROR_RANGE, b""
        return 0, bytes(self.memory[address : address + length])

    def write(self, address: int, data: bytes) -> int:
        touched = range(address, address + len(data))
        if not data or touched.stop > _WRITABLE_END or any(a in _READ_ONLY for a in touched):
            return ERROR_ACCESS
        if address < r.EEPROM_END and self.torque:
            return ERROR_ACCESS
        for register in r.REGISTERS.values():
            overlap = register.address < touched.stop and touched.start < register.address + register.size
            if not overlap:
                continue
            offset = register.address - address
            if offset < 0 or offset + register.size > len(data):
                return ERROR_LENGTH
            error = self._check(register, register.decode(data[offset : offset + register.size]))
            if error:
                return error
        torque_before, mode_before = self.torque, self.get(r.OPERATING_MODE)
        self.memory[address : address + len(data)] = data
        self.decode()
        if self.get(r.OPERATING_MODE) != mode_before:
            for register in (r.POSITION_P, r.POSITION_I, r.POSITION_D):  # the firmware loads the mode's own gains
                self.put(register, _DEFAULTS.get(register, {}).get(self.model, 0))
        if self.torque and not torque_before:
            self.setpoint, self.velocity = self.present, 0.0
        return 0

    def _check(self, register: Register, value: int) -> int:
        if register in _GOALS and self.watchdog_tripped:
            return ERROR_RANGE
        if register is r.GOAL_CURRENT and self.model == r.XL430_W250:
            return ERROR_ACCESS
        if register in (r.GOAL_PWM, r.GOAL_CURRENT):
            most = self.get(r.PWM_LIMIT if register is r.GOAL_PWM else r.CURRENT_LIMIT)
            return 0 if -most <= value <= most else ERROR_RANGE
        if register is r.OPERATING_MODE:
            return 0 if value in _MODES[self.model] else ERROR_RANGE
        if register is r.TORQUE_ENABLE and value == 1 and self.alert:
            return ERROR_RANGE
        low, high = _RANGES.get(register, (-math.inf, math.inf))
        if register is r.GOAL_POSITION:
            in_turn = self.get(r.OPERATING_MODE) == 3
            low = self.get(r.MIN_POSITION) if in_turn else -MULTI_TURN_LIMIT
            high = self.get(r.MAX_POSITION) if in_turn else MULTI_TURN_LIMIT
        return 0 if low <= value <= high else ERROR_RANGE
