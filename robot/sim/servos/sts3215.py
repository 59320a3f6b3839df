# SPDX-License-Identifier: Apache-2.0
"""One emulated Feetech STS3215: its registers and what its firmware does in position mode.

Control table with sign and magnitude, EEPROM lock, homing offset, profile, protections, power loss. Names, addresses
and sign bits: LeRobot 0.6.1 (`motors/feetech/tables.py`) and Feetech's STS memory table, whose units and defaults these
are. What neither says is assumed, in the stricter way for a driver, and marked so.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from vla_edge.robot.arm_parts import Register
from vla_edge.robot.sim.emulated_servo import EmulatedServo
from vla_edge.robot.sim.framing import FEETECH0

STS3215 = 777
NO_LOAD_COUNTS_PER_S = 45 / 60 * 4096
"""Data sheet of the 12 V servo (STS3215-C018): 45 rpm; assumed for the 7.4 V one."""
STALL_MA = 2700.0
"""Data sheet of the 12 V servo."""
CURRENT_UNIT_MA = 6.5
ACCELERATION_UNIT = 100
"""counts/s²; speeds are in counts/s."""
PROTECTION_UNIT_S = 0.01
BAUD_CODES = {0: 1_000_000, 1: 500_000, 2: 250_000, 3: 128_000, 4: 115_200}
TURN = 4096
NOT_WRAPPED = 0x10
"""Bit of `phase`: positions count on beyond one turn."""
VOLTAGE_BIT, TEMPERATURE_BIT, CURRENT_BIT, OVERLOAD_BIT = 0x01, 0x04, 0x08, 0x20
ERROR_RANGE, ERROR_ACCESS = 0x04, 0x07
"""For the log alone: the servo says nothing of what it does not take."""

_READ_ONLY = (
    Register("firmware_major_version", 0, 1),
    Register("firmware_minor_version", 1, 1),
    Register("model_number", 3, 2),
    Register("present_position", 56, 2, 15),
    Register("present_velocity", 58, 2, 15),
    Register("present_load", 60, 2, 10),
    Register("present_voltage", 62, 1),
    Register("present_temperature", 63, 1),
    Register("status", 65, 1),
    Register("moving", 66, 1),
    Register("present_current", 69, 2),
)
# Register: default, lowest and highest value that is taken.
_EEPROM: dict[Register, tuple[int, int, int]] = {
    Register("id", 5, 1): (1, 0, 253),
    Register("baud_rate", 6, 1): (0, 0, 7),
    Register("return_delay_time", 7, 1): (250, 0, 254),
    Register("response_status_level", 8, 1): (1, 0, 1),
    Register("min_position_limit", 9, 2): (0, 0, 4094),
    Register("max_position_limit", 11, 2): (4095, 0, 4095),
    Register("max_temperature_limit", 13, 1): (70, 0, 100),
    Register("max_voltage_limit", 14, 1): (140, 0, 254),
    Register("min_voltage_limit", 15, 1): (40, 0, 254),
    Register("max_torque_limit", 16, 2): (1000, 0, 1000),
    Register("phase", 18, 1): (12, 0, 254),
    Register("unloading_condition", 19, 1): (TEMPERATURE_BIT | CURRENT_BIT | OVERLOAD_BIT, 0, 254),
    Register("led_alarm_condition", 20, 1): (47, 0, 254),
    Register("p_coefficient", 21, 1): (32, 0, 254),
    Register("d_coefficient", 22, 1): (32, 0, 254),
    Register("i_coefficient", 23, 1): (0, 0, 254),
    Register("minimum_startup_force", 24, 2): (16, 0, 1000),
    Register("cw_dead_zone", 26, 1): (1, 0, 32),
    Register("ccw_dead_zone", 27, 1): (1, 0, 32),
    Register("protection_current", 28, 2): (500, 0, 511),
    Register("angular_resolution", 30, 1): (1, 1, 3),
    Register("homing_offset", 31, 2, 11): (0, -2047, 2047),
    Register("operating_mode", 33, 1): (0, 0, 3),
    Register("protective_torque", 34, 1): (20, 0, 100),
    Register("protection_time", 35, 1): (200, 0, 254),
    Register("overload_torque", 36, 1): (80, 0, 100),
    Register("over_current_protection_time", 38, 1): (200, 0, 254),
    Register("maximum_acceleration", 85, 1): (254, 0, 254),
}
_RAM: dict[Register, tuple[int, int, int]] = {
    Register("torque_enable", 40, 1): (0, 0, 1),
    Register("acceleration", 41, 1): (0, 0, 254),
    Register("goal_position", 42, 2, 15): (0, -32_766, 32_766),
    Register("goal_time", 44, 2): (0, 0, 1000),
    Register("goal_velocity", 46, 2, 15): (0, -3400, 3400),
    Register("torque_limit", 48, 2): (1000, 0, 1000),
    Register("lock", 55, 1): (1, 0, 1),
}
_EEPROM_END, _FACTORY_START, _TABLE_END = 40, 80, 87
_REGISTERS = {register.name: register for register in (*_READ_ONLY, *_EEPROM, *_RAM)}
r: Any = SimpleNamespace(**_REGISTERS)
"""The same by their names."""


class Sts3215(EmulatedServo):
    """shown = encoder - homing offset, within one turn unless `phase` says otherwise. `volts`: 7.4 or 12, the kind."""

    LANGUAGE = FEETECH0
    REGISTERS = _REGISTERS
    TORQUE, GOAL, PRESENT = r.torque_enable, r.goal_position, r.present_position
    BAUD, BAUD_CODES, RETURN_DELAY = r.baud_rate, BAUD_CODES, r.return_delay_time
    VOLTAGE, TEMPERATURE = r.present_voltage, r.present_temperature

    def __init__(self, servo_id: int, raw: float, volts: float = 12.0, firmware: tuple[int, int] = (3, 10)) -> None:
        super().__init__(raw)
        self._kept = bytearray(len(self.memory))
        self._latched = 0
        self._over_s = {OVERLOAD_BIT: 0.0, CURRENT_BIT: 0.0}
        self._ma = 0.0
        for register, (value, _, _) in {**_EEPROM, **_RAM}.items():
            self.store(register, value)
        self.memory[0:2] = bytes(firmware)
        self.put(r.model_number, STS3215)
        self.put(r.id, servo_id)
        self.put(r.max_voltage_limit, 80 if volts < 9 else 140)
        self.put(r.present_voltage, round(volts * 10))
        self.put(r.present_temperature, 31)
        self._keep(0, _TABLE_END)
        self.show(raw, 0.0, 0.0)
        self.stop()

    def put(self, register: Register, value: int) -> None:
        super().put(register, value)
        self._keep(register.address, register.size)
        self._judge()

    def _keep(self, address: int, size: int) -> None:
        """EEPROM holds these bytes when the power goes."""
        for at in range(address, address + size):
            if at < _EEPROM_END or at >= _FACTORY_START:
                self._kept[at] = self.memory[at]

    def restart(self) -> None:
        """The power was off. Then the torque limit is what EEPROM says, and EEPROM is locked."""
        self.memory[:] = self._kept
        for register, (value, _, _) in _RAM.items():
            self.store(register, value)
        self._latched = 0
        self.put(r.torque_limit, self.get(r.max_torque_limit))

    def decode(self) -> None:
        self.id = self.get(r.id)
        self.torque = self.get(r.torque_enable) == 1
        self.goal = self.get(r.goal_position)
        self._homing = self.get(r.homing_offset)
        self._limits = self.get(r.min_position_limit), self.get(r.max_position_limit)
        self._wraps = not self.get(r.phase) & NOT_WRAPPED
        self.speed_limit = min(abs(self.get(r.goal_velocity)) or math.inf, NO_LOAD_COUNTS_PER_S)
        steps = min(self.get(r.acceleration) or math.inf, self.get(r.maximum_acceleration) or math.inf)
        self.acceleration = steps * ACCELERATION_UNIT

    @property
    def present(self) -> float:
        shown = self.raw - self._homing
        return shown % TURN if self._wraps else shown

    def raw_of(self, shown: float) -> float:
        turn = math.floor((self.raw - self._homing) / TURN) if self._wraps else 0
        return shown + self._homing + TURN * turn

    @property
    def profile_goal(self) -> float:
        """Goals end at the limits (assumed), both 0: there are none. Only position mode is emulated: in another one the
        shaft stands."""
        low, high = self._limits
        if self.get(r.operating_mode) != 0:
            return self.setpoint
        return self.goal if low == high == 0 else min(max(self.goal, low), high)

    @property
    def alert(self) -> int:
        return self.get(r.status)

    @property
    def status_level(self) -> int:
        return 2 if self.get(r.response_status_level) else 1

    def ping_answer(self) -> bytes:
        return b""

    def refusal(self, error: int) -> int:
        return 0

    def overload(self) -> None:
        self._latched |= OVERLOAD_BIT
        self._judge()

    def _judge(self) -> None:
        """Status bits, and no torque for those that unload. Overload and current stay until the torque register is
        written (assumed); voltage and temperature are what they are."""
        bits = self._latched
        lowest, highest = self.get(r.min_voltage_limit), self.get(r.max_voltage_limit)
        bits |= 0 if lowest <= self.get(r.present_voltage) <= highest else VOLTAGE_BIT
        bits |= TEMPERATURE_BIT if self.get(r.present_temperature) > self.get(r.max_temperature_limit) else 0
        self.memory[r.status.address] = bits
        if bits & self.get(r.unloading_condition) and self.torque:
            self.memory[r.torque_enable.address] = 0
            self.decode()

    def advance_profile(self, seconds: float) -> None:
        super().advance_profile(seconds)
        self.memory[r.moving.address] = self.torque and (self.velocity != 0.0 or self.setpoint != self.profile_goal)
        loads = {
            OVERLOAD_BIT: (
                abs(self.get(r.present_load)) > self.get(r.overload_torque) * 10,
                self.get(r.protection_time),
            ),
            CURRENT_BIT: (
                abs(self._ma) > self.get(r.protection_current) * CURRENT_UNIT_MA,
                self.get(r.over_current_protection_time),
            ),
        }
        for bit, (above, limit) in loads.items():
            self._over_s[bit] = self._over_s[bit] + seconds if above and self.torque else 0.0
            if self._over_s[bit] > limit * PROTECTION_UNIT_S:
                self._latched |= bit
                self._judge()

    def show(self, raw: float, raw_velocity: float, current: float) -> None:
        self.raw = raw
        self._ma = current
        self.position = round(self.present) % TURN if self._wraps else round(self.present)
        limit = self.get(r.torque_limit)
        shown = {
            r.present_position: self.position,
            r.present_velocity: max(-32_767, min(32_767, round(raw_velocity))),
            r.present_load: max(-limit, min(limit, round(1000 * current / STALL_MA))),
            r.present_current: min(65_535, round(abs(current) / CURRENT_UNIT_MA)),
        }
        for register, value in shown.items():
            self.store(register, value)

    def read(self, address: int, length: int) -> tuple[int, bytes]:
        """Bytes beyond the table are 0 (assumed)."""
        return 0, bytes(self.memory[address : address + length]).ljust(length, b"\0")

    def write(self, address: int, data: bytes) -> int:
        touched = range(address, address + len(data))
        if not data or touched.stop > _TABLE_END:
            return ERROR_ACCESS
        before = bytes(self.memory)
        self.memory[address : touched.stop] = data
        for register in self.REGISTERS.values():
            if register.address >= touched.stop or register.address + register.size <= address:
                continue
            _, low, high = _EEPROM.get(register) or _RAM.get(register) or (0, 1, 0)
            if not low <= self.get(register) <= high:
                self.memory[:] = before
                return ERROR_ACCESS if register in _READ_ONLY else ERROR_RANGE
        if not before[r.lock.address]:
            self._keep(address, len(data))
        had_torque = self.torque
        self.decode()
        if r.torque_enable.address in touched:
            self._latched = 0
            self._over_s = dict.fromkeys(self._over_s, 0.0)
        if self.torque and not had_torque:
            self.setpoint, self.velocity = self.present, 0.0
        self._judge()
        return 0
