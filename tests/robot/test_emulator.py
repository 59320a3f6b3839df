# SPDX-License-Identifier: Apache-2.0
"""The emulated bus: the unmodified dynamixel-sdk talks to it, and its servos do what the data sheet says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.bus_log import read_log
from vla_edge.robot.sim.emulated_bus import EmulatedBus
from vla_edge.robot.sim.emulator import servos_of
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.robot.sim.framing import (
    BROADCAST,
    DYNAMIXEL2,
    PING,
    REBOOT,
    SYNC_READ,
    SYNC_WRITE,
    InstructionReader,
    crc16,
)
from vla_edge.robot.sim.plant import IdealPlant
from vla_edge.robot.sim.servos import x_series_table as r
from vla_edge.robot.sim.servos.x_series import ALERT_BIT, ERROR_ACCESS, ERROR_LENGTH, ERROR_RANGE, XSeriesServo

dxl = pytest.importorskip("dynamixel_sdk")

MS = 1_000_000
encode = DYNAMIXEL2.encode


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    with emulator_process(tmp_path) as process:
        yield process


@pytest.fixture(autouse=True)
def patient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits a second for an answer instead of 34 ms: what it is told is judged here, not how soon."""
    monkeypatch.setattr("dynamixel_sdk.port_handler.LATENCY_TIMER", 500)


def wait_for(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 120.0
    while not what():
        assert time.monotonic() < end_s, "did not happen"
        time.sleep(0.01)


@pytest.fixture
def sdk(emulator: EmulatorProcess) -> Iterator[tuple[object, object]]:
    port, packets = dxl.PortHandler(str(emulator.port)), dxl.PacketHandler(2.0)
    assert port.openPort() and port.setBaudRate(1_000_000)
    yield port, packets
    port.closePort()


def test_the_sdk_pings_each_servo_and_all_at_once(sdk: tuple) -> None:
    port, packets = sdk
    for servo in range(1, 7):
        assert packets.ping(port, servo) == (1060 if servo <= 2 else 1200, dxl.COMM_SUCCESS, 0)
    found, result = packets.broadcastPing(port)
    assert result == dxl.COMM_SUCCESS
    assert {servo: data[0] for servo, data in found.items()} == {1: 1060, 2: 1060, 3: 1200, 4: 1200, 5: 1200, 6: 1200}


def test_the_sdk_reads_and_writes_registers_of_each_size(sdk: tuple) -> None:
    port, packets = sdk
    assert packets.write1ByteTxRx(port, 3, 65, 1) == (dxl.COMM_SUCCESS, 0)
    assert packets.read1ByteTxRx(port, 3, 65) == (1, dxl.COMM_SUCCESS, 0)
    assert packets.write2ByteTxRx(port, 3, 84, 1500) == (dxl.COMM_SUCCESS, 0)
    assert packets.read2ByteTxRx(port, 3, 84) == (1500, dxl.COMM_SUCCESS, 0)
    # FF FF FD in the value: stuffed both ways.
    stuffed = 0x00FDFFFF
    assert packets.write4ByteTxRx(port, 3, 108, 0x7F) == (dxl.COMM_SUCCESS, 0)
    assert packets.write4ByteTxRx(port, 3, 104, stuffed) == (dxl.COMM_SUCCESS, 0)
    assert packets.read4ByteTxRx(port, 3, 104) == (stuffed, dxl.COMM_SUCCESS, 0)


def test_the_sdk_moves_all_servos_with_sync_write_and_sees_it_with_sync_read(
    sdk: tuple, emulator: EmulatorProcess
) -> None:
    port, packets = sdk
    for servo in range(1, 7):
        assert packets.write1ByteTxRx(port, servo, 64, 1) == (dxl.COMM_SUCCESS, 0)
    writer = dxl.GroupSyncWrite(port, packets, 116, 4)
    reader = dxl.GroupSyncRead(port, packets, 132, 4)
    for servo in range(1, 7):
        assert writer.addParam(servo, (2048 + 10 * servo).to_bytes(4, "little"))
        assert reader.addParam(servo)
    assert writer.txPacket() == dxl.COMM_SUCCESS

    def positions() -> list[int]:
        assert reader.txRxPacket() == dxl.COMM_SUCCESS
        return [reader.getData(servo, 132, 4) for servo in range(1, 7)]

    wait_for(lambda: positions() == [2058, 2068, 2078, 2088, 2098, 2108])
    (goal,) = emulator.entries("goal")
    assert goal["goals"] == {str(servo): 2048 + 10 * servo for servo in range(1, 7)}


def test_the_sdk_is_told_that_eeprom_is_locked_under_torque(sdk: tuple) -> None:
    port, packets = sdk
    assert packets.write1ByteTxRx(port, 2, 64, 1) == (dxl.COMM_SUCCESS, 0)
    assert packets.write4ByteTxRx(port, 2, 20, 100) == (dxl.COMM_SUCCESS, ERROR_ACCESS)
    assert packets.write1ByteTxRx(port, 2, 64, 0) == (dxl.COMM_SUCCESS, 0)
    assert packets.write4ByteTxRx(port, 2, 20, 100) == (dxl.COMM_SUCCESS, 0)
    assert packets.read4ByteTxRx(port, 2, 132) == (2148, dxl.COMM_SUCCESS, 0)


def test_the_sdk_reboots_a_servo_with_an_alert(sdk: tuple, emulator: EmulatorProcess) -> None:
    port, packets = sdk
    packets.write1ByteTxRx(port, 4, 64, 1)
    emulator.event("overload 4")
    wait_for(lambda: packets.read1ByteTxRx(port, 4, 70) == (0x20, dxl.COMM_SUCCESS, ALERT_BIT))
    assert packets.read1ByteTxRx(port, 4, 64)[0] == 0
    assert packets.reboot(port, 4)[0] == dxl.COMM_SUCCESS
    wait_for(lambda: packets.read1ByteTxRx(port, 4, 70) == (0, dxl.COMM_SUCCESS, 0))
    assert [entry["id"] for entry in emulator.entries("reboot")] == [4]


def test_a_servo_at_the_factory_baud_rate_hears_only_that_rate(tmp_path: Path) -> None:
    with emulator_process(tmp_path, "--set", "3:baud_rate=1") as emulator:
        port, packets = dxl.PortHandler(str(emulator.port)), dxl.PacketHandler(2.0)
        assert port.openPort() and port.setBaudRate(1_000_000)
        assert packets.ping(port, 3)[1] == dxl.COMM_RX_TIMEOUT
        assert packets.ping(port, 2)[1] == dxl.COMM_SUCCESS
        assert port.setBaudRate(57_600)
        assert packets.ping(port, 3)[1] == dxl.COMM_SUCCESS
        assert packets.ping(port, 2)[1] == dxl.COMM_RX_TIMEOUT
        port.closePort()


def bus_on_a_clock() -> tuple[EmulatedBus, list[XSeriesServo], list[dict]]:
    servos = [s for s in servos_of(load_arm("koch"), None, [2048] * 6) if isinstance(s, XSeriesServo)]
    log: list[dict] = []
    plant = IdealPlant([servo.raw for servo in servos])
    return EmulatedBus(servos, plant, Faults(0), lambda entry: log.append(dict(entry))), servos, log


def test_a_profile_takes_the_time_that_its_velocity_and_acceleration_give() -> None:
    """Trapezoid: distance/speed + speed/acceleration, within two steps of 2 ms."""
    bus, (servo, *_), _ = bus_on_a_clock()
    servo.write(108, r.PROFILE_ACCELERATION.encode(20))
    servo.write(112, r.PROFILE_VELOCITY.encode(50))
    servo.write(64, b"\1")
    speed, acceleration = 50 * r.COUNTS_PER_S_OF_VELOCITY_UNIT, 20 * r.COUNTS_PER_S2_OF_ACCELERATION_UNIT
    bus.advance(0)
    servo.write(116, r.GOAL_POSITION.encode(2048 + 1000))
    now, fastest, last = 0, 0.0, servo.raw
    while servo.position != 3048:
        now += 2 * MS
        bus.advance(now)
        fastest = max(fastest, (servo.raw - last) / 0.002)
        last = servo.raw
        assert servo.raw <= 3048.5
    assert fastest == pytest.approx(speed, rel=1e-6)
    assert now / 1e9 == pytest.approx(1000 / speed + speed / acceleration, abs=0.03)


def test_the_watchdog_stops_the_shaft_and_refuses_goals_until_it_is_cleared() -> None:
    bus, (servo, *_), log = bus_on_a_clock()
    servo.write(112, r.PROFILE_VELOCITY.encode(50))
    bus.receive(encode(1, 3, b"\x62\0\x0a") + encode(1, 3, b"\x40\0\1"), 1_000_000, 0)
    bus.receive(encode(1, 3, b"\x74\0" + (4000).to_bytes(4, "little")), 1_000_000, 10 * MS)
    bus.advance(209 * MS)
    assert not servo.watchdog_tripped
    bus.advance(211 * MS)
    stopped = servo.position
    assert servo.watchdog_tripped and 2048 < stopped < 2300
    bus.advance(500 * MS)
    assert servo.position == stopped
    assert servo.write(116, (3000).to_bytes(4, "little")) == ERROR_RANGE
    assert servo.write(98, b"\0") == 0
    assert servo.write(116, (3000).to_bytes(4, "little")) == 0
    assert [entry["t"] for entry in log if entry["kind"] == "watchdog"] == [210 * MS]


def test_writes_follow_the_access_rules_of_the_control_table() -> None:
    xl430 = XSeriesServo(r.XL430_W250, 1, 2048)
    xl330 = XSeriesServo(r.XL330_M288, 6, 2048)
    assert xl430.write(132, bytes(4)) == ERROR_ACCESS
    assert xl430.write(0, b"\1\1") == ERROR_ACCESS
    assert xl430.write(116, b"\1\2") == ERROR_LENGTH
    assert xl430.write(11, b"\5") == ERROR_RANGE and xl330.write(11, b"\5") == 0
    assert xl430.write(102, b"\1\0") == ERROR_ACCESS and xl330.write(102, b"\1\0") == 0
    assert xl430.write(116, (1_048_576).to_bytes(4, "little")) == ERROR_RANGE
    assert xl430.write(11, b"\3") == 0
    assert xl430.write(116, (4096).to_bytes(4, "little")) == ERROR_RANGE


def test_a_changed_operating_mode_loads_its_own_gains() -> None:
    servo = XSeriesServo(r.XL330_M288, 3, 0)
    servo.write(84, (1500).to_bytes(2, "little"))
    servo.write(11, b"\3")
    assert servo.get(r.POSITION_P) == 400


def test_drive_mode_and_homing_offset_are_in_the_counts() -> None:
    servo = XSeriesServo(r.XL330_M288, 3, 1000.0)
    servo.put(r.DRIVE_MODE, 1)
    servo.put(r.HOMING_OFFSET, 3000)
    servo.show(1000.0, 0.0, 0.0)
    assert servo.get(r.PRESENT_POSITION) == 2000
    servo.write(64, b"\1")
    servo.write(116, (2100).to_bytes(4, "little"))
    servo.advance_profile(10.0)
    assert servo.plant_setpoint == 900.0


def test_nobody_speaks_behind_a_dead_servo_in_a_sync_read() -> None:
    bus, _, log = bus_on_a_clock()
    bus.dead.add(4)
    bus.receive(encode(BROADCAST, SYNC_READ, b"\x84\0\4\0" + bytes(range(1, 7))), 1_000_000, 0)
    reader = bus.take_output(0)
    assert len(reader) == 3 * (11 + 4)
    assert list(log[-1]["positions"]) == ["1", "2", "3"]


def test_a_damaged_request_is_not_obeyed() -> None:
    bus, servos, log = bus_on_a_clock()
    request = bytearray(encode(BROADCAST, SYNC_WRITE, b"\x40\0\1\0" + b"".join(bytes([i, 1]) for i in range(1, 7))))
    for bit in range(8 * len(request)):
        damaged = bytearray(request)
        damaged[bit // 8] ^= 1 << (bit % 8)
        bus.receive(bytes(damaged) + bytes(64), 1_000_000, 0)
    assert not any(servo.torque for servo in servos) and not [entry for entry in log if entry["kind"] == "torque"]
    bus.receive(bytes(request), 1_000_000, 0)
    assert all(servo.torque for servo in servos)


def test_a_rebooted_servo_forgets_ram_and_keeps_eeprom() -> None:
    bus, (servo, *_), _ = bus_on_a_clock()
    servo.write(20, r.HOMING_OFFSET.encode(77))
    servo.write(98, b"\x0a")
    servo.write(64, b"\1")
    bus.receive(encode(1, REBOOT, b""), 1_000_000, 0)
    assert (servo.torque, servo.watchdog, servo.get(r.HOMING_OFFSET), servo.position) == (False, 0, 77, 2125)
    bus.take_output(0)
    bus.receive(encode(1, PING, b""), 1_000_000, 20 * MS)
    assert bus.take_output(30 * MS) == b""  # it starts up
    bus.receive(encode(1, PING, b""), 1_000_000, 1_000 * MS)
    assert len(bus.take_output(1_010 * MS)) == 14


def test_the_python_framing_knows_the_manuals_examples() -> None:
    assert encode(1, 1, b"") == bytes.fromhex("fffffd000103000119 4e")
    assert crc16(bytes.fromhex("fffffd00010300 01")) == 0x4E19
    (found,) = InstructionReader(DYNAMIXEL2).feed(b"\xff\xff" + encode(3, 3, b"\x74\0\xff\xff\xfd\0"))
    assert (found.id, found.instruction, found.parameters) == (3, 3, b"\x74\0\xff\xff\xfd\0")


def test_a_log_that_was_cut_short_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"t":1,"kind":"goal"}\n{"t":2,"ki')
    assert read_log(path) == [{"t": 1, "kind": "goal"}]
