# SPDX-License-Identifier: Apache-2.0
"""The X-series control table, as far as the emulated servo has it.

Addresses, sizes and units: Robotis e-Manual, control tables of XL430-W250 and XL330-M288 (the same addresses on both).
All values little endian; signed ones are two's complement. 0..63 is EEPROM: writable only with torque off.
"""

from __future__ import annotations

from vla_edge.robot.arm_parts import TWOS, Register

XL430_W250 = 1060
XL330_M288 = 1200

COUNTS_PER_TURN = 4096
VELOCITY_UNIT_RPM = 0.229
COUNTS_PER_S_OF_VELOCITY_UNIT = VELOCITY_UNIT_RPM / 60 * COUNTS_PER_TURN
"""Present, goal and profile velocity: about 15.6 counts/s."""
COUNTS_PER_S2_OF_ACCELERATION_UNIT = 214.577 / 3600 * COUNTS_PER_TURN
"""Profile acceleration (214.577 rev/min²): about 244 counts/s²."""
WATCHDOG_UNIT_S = 0.02
BAUD_CODES = {0: 9_600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}

EEPROM_END = 64

MODEL_NUMBER = Register("model_number", 0, 2)
FIRMWARE = Register("firmware", 6, 1)
ID = Register("id", 7, 1)
BAUD_RATE = Register("baud_rate", 8, 1)
RETURN_DELAY = Register("return_delay", 9, 1)
DRIVE_MODE = Register("drive_mode", 10, 1)
OPERATING_MODE = Register("operating_mode", 11, 1)
HOMING_OFFSET = Register("homing_offset", 20, 4, TWOS)
TEMPERATURE_LIMIT = Register("temperature_limit", 31, 1)
MAX_VOLTAGE = Register("max_voltage", 32, 2)
MIN_VOLTAGE = Register("min_voltage", 34, 2)
PWM_LIMIT = Register("pwm_limit", 36, 2)
CURRENT_LIMIT = Register("current_limit", 38, 2)
VELOCITY_LIMIT = Register("velocity_limit", 44, 4)
MAX_POSITION = Register("max_position", 48, 4)
MIN_POSITION = Register("min_position", 52, 4)
SHUTDOWN = Register("shutdown", 63, 1)
TORQUE_ENABLE = Register("torque_enable", 64, 1)
STATUS_RETURN_LEVEL = Register("status_return_level", 68, 1)
HARDWARE_ERROR = Register("hardware_error", 70, 1)
POSITION_D = Register("position_d", 80, 2)
POSITION_I = Register("position_i", 82, 2)
POSITION_P = Register("position_p", 84, 2)
BUS_WATCHDOG = Register("bus_watchdog", 98, 1)
GOAL_PWM = Register("goal_pwm", 100, 2, TWOS)
GOAL_CURRENT = Register("goal_current", 102, 2, TWOS)
GOAL_VELOCITY = Register("goal_velocity", 104, 4, TWOS)
PROFILE_ACCELERATION = Register("profile_acceleration", 108, 4)
PROFILE_VELOCITY = Register("profile_velocity", 112, 4)
GOAL_POSITION = Register("goal_position", 116, 4, TWOS)
PRESENT_LOAD = Register("present_load", 126, 2, TWOS)
"""0.1 % on the XL430, mA (Present_Current) on the XL330."""
PRESENT_VELOCITY = Register("present_velocity", 128, 4, TWOS)
PRESENT_POSITION = Register("present_position", 132, 4, TWOS)
PRESENT_VOLTAGE = Register("present_voltage", 144, 2)
PRESENT_TEMPERATURE = Register("present_temperature", 146, 1)

REGISTERS = {value.name: value for value in list(globals().values()) if isinstance(value, Register)}
