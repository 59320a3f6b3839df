# SPDX-License-Identifier: Apache-2.0
"""The emulated STS3215 on a clock: its registers and what its firmware does, byte by byte on the line."""

from __future__ import annotations

import math

import pytest

from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_bus import EmulatedBus
from vla_edge.robot.sim.emulator import servos_of
from vla_edge.robot.sim.framing import BROADCAST, FEETECH0, PING, READ, SYNC_READ, SYNC_WRITE, WRITE, InstructionReader
from vla_edge.robot.sim.plant import IdealPlant
from vla_edge.robot.sim.servos.sts3215 import ERROR_ACCESS, ERROR_RANGE, Sts3215

MS = 1_000_000
R = Sts3215.REGISTERS
SO101 = load_arm("so101")


class Line:
    """Six servos, their log and the time; `ask` is one request and its answers."""

    def __init__(self, *shown: int, volts: float = 12.0) -> None:
        self.servos = servos_of(SO101, None, shown or [2048] * 6, volts)
        self.log: list[dict] = []
        self.plant = IdealPlant([servo.raw for servo in self.servos])
        self.bus = EmulatedBus(self.servos, self.plant, Faults(0), lambda entry: self.log.append(dict(entry)))
        self.now_ns = 0

    def ask(self, servo_id: int, instruction: int, body: bytes = b"") -> list[tuple[int, int, bytes]]:
        """(id, error, parameters) of each status."""
        self.bus.receive(FEETECH0.encode(servo_id, instruction, body), 1_000_000, self.now_ns)
        self.now_ns += 20 * MS
        statuses = InstructionReader(FEETECH0).feed(self.bus.take_output(self.now_ns))
        return [(status.id, status.instruction, status.parameters) for status in statuses]

    def set(self, servo_id: int, name: str, value: int) -> list[tuple[int, int, bytes]]:
        return self.ask(servo_id, WRITE, bytes([R[name].address]) + R[name].encode(value))

    def get(self, servo_id: int, name: str) -> int:
        ((_, _, data),) = self.ask(servo_id, READ, bytes([R[name].address, R[name].size]))
        return R[name].decode(data)

    def run(self, seconds: float) -> None:
        end_ns = self.now_ns + round(seconds * 1e9)
        while self.now_ns < end_ns:
            self.now_ns += 2 * MS
            self.bus.advance(self.now_ns)


@pytest.fixture
def line() -> Line:
    return Line()


def test_the_framing_is_the_manuals() -> None:
    """Ping of id 1, its answer, and a position of 0x0518 as the protocol manual shows them."""
    line = Line(0x0518, *[2048] * 5)
    assert FEETECH0.encode(1, PING, b"") == bytes.fromhex("ffff010201fb")
    assert line.ask(1, PING) == [(1, 0, b"")]
    assert line.ask(1, READ, b"\x38\x02") == [(1, 0, b"\x18\x05")]
    assert FEETECH0.encode_status(1, 0, b"\x18\x05") == bytes.fromhex("ffff01040018 05dd")
    assert [servo for servo, _, _ in line.ask(BROADCAST, PING)] == [1, 2, 3, 4, 5, 6]


def test_a_sync_write_moves_and_a_sync_read_shows_it(line: Line) -> None:
    for servo in range(1, 7):
        line.set(servo, "torque_enable", 1)
    goals = {servo: 2048 + 10 * servo for servo in range(1, 7)}
    body = b"".join(bytes([servo]) + goal.to_bytes(2, "little") for servo, goal in goals.items())
    assert line.ask(BROADCAST, SYNC_WRITE, b"\x2a\x02" + body) == []
    line.run(0.5)
    answers = line.ask(BROADCAST, SYNC_READ, bytes([56, 15, 1, 2, 3, 4, 5, 6]))
    assert {servo: int.from_bytes(data[:2], "little") for servo, _, data in answers} == goals
    assert all(len(data) == 15 and data[6] == 120 and data[10] == 0 for _, _, data in answers)
    assert [entry["goals"] for entry in line.log if entry["kind"] == "goal"] == [{str(i): goals[i] for i in goals}]


def test_a_profile_takes_the_time_that_its_speed_and_acceleration_give(line: Line) -> None:
    for name, value in {"goal_velocity": 800, "acceleration": 40, "torque_enable": 1, "goal_position": 3048}.items():
        line.set(1, name, value)
    start_ns = line.log[-1]["t"]
    line.run(3.0)
    motion = [entry for entry in line.log if entry["kind"] == "motion"]
    places = [2048] + [entry["positions"]["1"] for entry in motion]
    assert places[-1] == 3048 and max(b - a for a, b in zip(places, places[1:])) <= math.ceil(800 * 0.002)
    assert (motion[-1]["t"] - start_ns) / 1e9 == pytest.approx(1000 / 800 + 800 / 4000, abs=0.03)


def test_an_offset_shifts_what_is_shown_within_one_turn() -> None:
    line = Line(100, *[2048] * 5)
    assert line.set(1, "homing_offset", 300) == [(1, 0, b"")]
    line.run(0.002)
    assert line.get(1, "present_position") == 4096 - 200
    assert line.set(1, "homing_offset", -2047) == [(1, 0, b"")]
    line.run(0.002)
    assert line.ask(1, READ, bytes([31, 2])) == [(1, 0, (0x800 | 2047).to_bytes(2, "little"))]
    assert line.get(1, "present_position") == 100 + 2047
    line.set(1, "homing_offset", 300)
    line.set(1, "phase", 0x10 | 12)
    line.run(0.002)
    assert line.ask(1, READ, b"\x38\x02") == [(1, 0, (0x8000 | 200).to_bytes(2, "little"))]  # sign and magnitude


def test_a_goal_ends_at_the_limits_and_both_zero_are_none(line: Line) -> None:
    line.set(1, "min_position_limit", 1000)
    line.set(1, "max_position_limit", 2100)
    line.set(1, "torque_enable", 1)
    line.set(1, "goal_position", 3000)
    line.run(1.0)
    assert line.get(1, "present_position") == 2100
    line.set(1, "min_position_limit", 0)
    line.set(1, "max_position_limit", 0)
    line.run(1.0)
    assert line.get(1, "present_position") == 3000


def test_torque_goes_to_the_goal_of_before(line: Line) -> None:
    """Whoever switches it on writes the goal first."""
    line.set(1, "torque_enable", 1)
    line.set(1, "torque_enable", 0)
    line.plant.push(0, 2500)
    line.run(0.1)
    assert line.get(1, "present_position") == 2500
    line.set(1, "torque_enable", 1)
    line.run(1.0)
    assert line.get(1, "present_position") == 2048


def test_eeprom_is_written_under_lock_but_forgotten_without_power(line: Line) -> None:
    servo = line.servos[0]
    line.set(1, "p_coefficient", 20)
    line.set(1, "lock", 0)
    line.set(1, "i_coefficient", 5)
    line.set(1, "max_torque_limit", 700)
    line.set(1, "goal_velocity", 300)
    assert [line.get(1, name) for name in ("p_coefficient", "i_coefficient", "torque_limit")] == [20, 5, 1000]
    servo.reboot(line.now_ns)
    line.now_ns += 200 * MS
    told = (
        "p_coefficient",
        "i_coefficient",
        "max_torque_limit",
        "torque_limit",
        "goal_velocity",
        "lock",
        "torque_enable",
    )
    assert [line.get(1, name) for name in told] == [16, 5, 700, 700, 0, 1, 0]
    assert line.get(1, "present_voltage") == 120 and line.get(1, "model_number") == 777


def test_what_is_not_taken_is_not_told(line: Line) -> None:
    """The error byte says how the servo is: a driver must read back."""
    assert line.set(1, "p_coefficient", 255) == [(1, 0, b"")] and line.get(1, "p_coefficient") == 16
    assert line.set(1, "present_position", 7) == [(1, 0, b"")]
    assert line.ask(1, WRITE, bytes([86, 1, 1])) == [(1, 0, b"")]
    assert [entry["error"] for entry in line.log if entry["kind"] == "refused"] == [
        ERROR_RANGE,
        ERROR_ACCESS,
        ERROR_ACCESS,
    ]


def test_a_blocked_joint_lets_go_when_its_protection_time_is_over(line: Line) -> None:
    """The gripper: overload at 25 % for 2 s; the bit is in every status until the torque register is written."""
    line.plant.block(5, 1000, 2100)
    line.set(6, "torque_enable", 1)
    line.set(6, "goal_position", 3000)
    line.run(1.5)
    load = round(1000 * 900 / 2700)
    assert line.ask(6, READ, bytes([60, 2])) == [(6, 0, load.to_bytes(2, "little"))]
    assert line.get(6, "present_current") == round(900 / 6.5)
    line.run(1.0)
    assert line.ask(6, READ, bytes([40, 1])) == [(6, 0x20, b"\0")] and line.get(6, "status") == 0x20
    assert line.set(6, "torque_enable", 0) == [(6, 0, b"")]


def test_overcurrent_lets_go_too(line: Line) -> None:
    line.set(6, "overload_torque", 100)
    line.plant.block(5, 1000, 2049)
    line.set(6, "torque_enable", 1)
    line.set(6, "goal_position", 4000)
    line.run(3.0)
    assert line.get(6, "torque_enable") == 0 and line.get(6, "status") == 0x08


def test_voltage_and_temperature_are_told_as_they_are(line: Line) -> None:
    servo = line.servos[0]
    line.set(1, "torque_enable", 1)
    servo.put(servo.VOLTAGE, 39)
    assert line.ask(1, PING) == [(1, 0x01, b"")] and servo.torque
    servo.put(servo.VOLTAGE, 120)
    servo.put(servo.TEMPERATURE, 71)
    assert line.ask(1, PING) == [(1, 0x04, b"")] and not servo.torque
    servo.put(servo.TEMPERATURE, 60)
    assert line.ask(1, PING) == [(1, 0, b"")]
    weak = Line(volts=7.4)
    weak.servos[0].put(weak.servos[0].VOLTAGE, 120)  # the 12 V supply on a 7.4 V servo
    assert weak.ask(1, PING) == [(1, 0x01, b"")]


def test_a_return_delay_is_waited_by_each_and_a_status_level_silences_writes(line: Line) -> None:
    for servo in (1, 2):
        line.set(servo, "return_delay_time", 250)
    line.bus.receive(FEETECH0.encode(BROADCAST, SYNC_READ, bytes([56, 2, 1, 2, 3])), 1_000_000, line.now_ns)
    due = [entry[0] - line.now_ns for entry in sorted(line.bus._pending)]
    assert due == [500_000, 1_000_000, 1_000_000]
    line.now_ns += 20 * MS
    line.bus.take_output(line.now_ns)
    line.set(1, "response_status_level", 0)
    assert line.set(1, "acceleration", 7) == [] and line.get(1, "acceleration") == 7


def test_only_position_mode_moves(line: Line) -> None:
    line.set(1, "operating_mode", 1)
    line.set(1, "torque_enable", 1)
    line.set(1, "goal_position", 3000)
    line.run(1.0)
    assert line.get(1, "present_position") == 2048


def test_a_damaged_request_is_not_obeyed_and_junk_is_skipped(line: Line) -> None:
    request = FEETECH0.encode(BROADCAST, SYNC_WRITE, b"\x28\x01" + b"".join(bytes([i, 1]) for i in range(1, 7)))
    for at in range(len(request)):
        for bit in range(8):
            damaged = bytearray(request)
            damaged[at] ^= 1 << bit
            line.bus.receive(bytes(damaged) + bytes(280), 1_000_000, line.now_ns)
    assert not any(servo.torque for servo in line.servos)
    line.bus.receive(b"\xff\xff\xff\x01\x02\x03\x04" + request, 1_000_000, line.now_ns)
    assert all(servo.torque for servo in line.servos)
