# SPDX-License-Identifier: Apache-2.0
"""One tick's decision with time as an argument: states, latches, faults. No process, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_edge.contract import Chunk, ChunkKind, Command
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.arm_parts import Register
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_bus import EmulatedBus
from vla_edge.robot.sim.emulator import servos_of
from vla_edge.robot.sim.framing import BROADCAST, SYNC_WRITE
from vla_edge.robot.sim.plant import IdealPlant
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits

core = pytest.importorskip("vla_edge._core")

HZ = 30
T = 1_000_000_000 // HZ
DIGEST = "ab" * 32
DONE, BUSY, NOT_ARMED, NOT_PARKED, NO_POSE, FAULT = 1, 2, 3, 4, 5, 6
"""pilot_answer of runtime/core/control/pilot.h"""
NO_TORQUE, DEAF, WARM, VOLTAGE, HOT, ALERT = 1, 2, 4, 5, 6, 7
"""finding_kind of runtime/core/control/health.h"""
ALERT_READING = 3
"""arm_result of robot/bus/arm.h"""
GRAVITY, STALL, TRACKING = 40, 60, 120


def settings(**fields: Any) -> ControlSettings:
    limits = tuple(JointLimits(1000, 3000, 10.0, 2000.0, gravity=GRAVITY, stall=STALL) for _ in range(6))
    return ControlSettings(limits=limits, period_ns=T, session=7, bundle_digest=DIGEST, **fields)


class Flight:
    """A pilot whose arm follows its goals, but for what hangs on a joint and what stands in its way.

    `tick` plays one tick at its nominal time.
    """

    def __init__(self, **fields: Any) -> None:
        self.pilot = core.Pilot(settings(**fields))
        self.position = [2000] * 6
        self.tick_number = -1
        self.sequence = 0
        self.hang = [0] * 6
        """Counts by which each joint rests beside its goal."""
        self.way = [(-9999, 9999)] * 6
        """Where each joint can be, counts."""
        self.last: dict[str, Any] = {}
        self.inference: dict[str, Any] = {}

    def tick(self, *chunks: Chunk, command: Command = Command.NONE, **fields: Any) -> dict[str, Any]:
        self.tick_number += 1
        fields = {**self.inference, **fields}
        positions = None if fields.pop("lost", False) else self.position
        self.last = self.pilot.tick(
            self.tick_number, self.tick_number * T, positions, chunks, command=command, **fields
        )
        if self.last["write"]:
            self.position = [
                min(max(goal + hang, low), high)
                for goal, hang, (low, high) in zip(self.last["goals"], self.hang, self.way)
            ]
        return self.last

    def run(self, seconds: float, **fields: Any) -> np.ndarray:
        """Goals [n, 6] of so many seconds, without a new chunk."""
        return np.array([self.tick(**fields)["goals"] for _ in range(round(seconds * HZ))])

    def overload(self, joint: int) -> None:
        """The servo shuts down by itself, and says so from now on."""
        self.inference = {"alerts": [int(i == joint) for i in range(6)], "read_result": ALERT_READING}

    def obstruct(self, joint: int, count: int) -> None:
        """Nothing goes beyond there any more."""
        self.way[joint] = (-9999, count)

    def place(self, *positions: int) -> None:
        """Somebody puts the arm there between two ticks: so far away that the next reading has to confirm it."""
        self.position = list(positions)
        self.tick()

    def chunk(
        self, kind: ChunkKind = ChunkKind.MOVING, n: int = 30, step: float = 0.5, observed: int | None = None
    ) -> Chunk:
        """n actions from where the arm is, `step` joint units a tick."""
        self.sequence += 1
        tick = self.tick_number if observed is None else observed
        start = (self.position[0] - 2000) / 10
        actions = np.repeat(start + step * np.arange(1, n + 1)[:, None], 6, axis=1).astype(np.float32)
        return Chunk(kind, 7, DIGEST, self.sequence, tick, tick * T, actions)

    def armed(self) -> Flight:
        assert self.tick(command=Command.ARM)["state"] == "planning"
        self.tick()
        return self


def test_it_writes_nothing_before_arming_and_starts_at_the_present_position() -> None:
    flight = Flight()
    assert not flight.tick(flight.chunk())["write"] and flight.last["chunks"] == ["not_armed"]
    flight.place(2000, 1500, 2500, 2999, 1001, 2222)
    armed = flight.tick(command=Command.ARM)
    assert armed["torque"] == 1 and armed["goals"] == (2000, 1500, 2500, 2999, 1001, 2222)


def test_an_arm_on_its_stops_starts_where_it_is_and_moves_inwards_only() -> None:
    flight = Flight()
    flight.place(2000, 2000, 2000, 2000, 3040, 2000)
    told = flight.tick(command=Command.ARM)
    assert (told["state"], told["torque"], told["goals"][4]) == ("planning", 1, 3040)
    outwards, inwards = np.full((60, 6), 150.0, np.float32), np.full((60, 6), 0.0, np.float32)
    flight.tick(Chunk(ChunkKind.MOVING, 7, DIGEST, 1, flight.tick_number, flight.tick_number * T, outwards))
    goals = [flight.tick()["goals"][4] for _ in range(20)]
    assert max(goals) <= 3040 and goals == sorted(goals, reverse=True)
    flight.tick(Chunk(ChunkKind.MOVING, 7, DIGEST, 2, flight.tick_number, flight.tick_number * T, inwards))
    goals = [flight.tick()["goals"][4] for _ in range(40)]
    assert goals[-1] == 2000 and goals == sorted(goals, reverse=True)
    flight.tick(Chunk(ChunkKind.MOVING, 7, DIGEST, 3, flight.tick_number, flight.tick_number * T, outwards))
    assert max(flight.tick()["goals"][4] for _ in range(50)) == 3000  # once inside, the soft limit is the limit


def test_a_joint_a_lost_turn_away_is_not_armed_and_is_named() -> None:
    flight = Flight()
    flight.place(2000, 2000, 2000, 2000, 3513, 2000)
    told = flight.tick(command=Command.ARM)
    assert (told["state"], told["reason"], told["joint"], told["torque"]) == ("disarmed", "outside", 4, 0)


def test_an_unread_or_alerting_arm_is_not_armed() -> None:
    flight = Flight()
    assert flight.tick(command=Command.ARM, lost=True)["state"] == "disarmed"
    assert flight.tick(command=Command.ARM, alerts=[0, 0, 0, 1, 0, 0], read_result=3)["torque"] == 0
    assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("fault", "alert", 3)
    assert flight.tick(command=Command.ARM)["state"] == "planning"


def test_a_slow_host_plans_moves_and_plans_again() -> None:
    flight = Flight().armed()
    flight.inference = {"p99_ns": 1_500_000_000, "plan_then_move": True}
    for _ in range(3):
        for _ in range(40):
            assert flight.tick()["state"] == "planning"
        assert flight.tick(flight.chunk(ChunkKind.REST, observed=flight.tick_number - 20))["chunks"] == ["taken"]
        for _ in range(29):
            assert flight.last["state"] == "moving"
            flight.tick()
        assert flight.tick()["state"] == "planning"
    waited = 1
    while not flight.tick()["latched"]:
        waited += 1
    assert flight.last["state"] == "hold" and abs(waited / HZ - 4.5) < 0.1  # three times the slowest inference


def test_a_rest_chunk_is_refused_while_goals_still_move() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk(n=5))
    observed = flight.tick_number
    for _ in range(8):
        flight.tick()
    assert flight.tick(flight.chunk(ChunkKind.REST, observed=observed))["chunks"] == ["moved"]
    assert flight.tick(flight.chunk(ChunkKind.REST))["chunks"] == ["taken"]


def test_patience_grows_with_the_inference_and_is_bounded() -> None:
    flight = Flight(patience_max_ns=3_000_000_000).armed()
    flight.inference = {"p99_ns": 10_000_000_000}
    flight.tick(flight.chunk(n=3))
    for _ in range(3):
        flight.tick()
    waited = 0
    while not flight.tick()["latched"]:
        waited += 1
    assert abs(waited / HZ - 3.0) < 0.1


def test_a_changed_scene_drops_the_plan_that_came_before_it() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk())
    assert flight.tick()["state"] == "moving"
    flight.inference = {"dropped_through": flight.sequence}
    assert flight.tick()["action"] is None
    assert flight.tick(flight.chunk())["state"] == "moving"


def test_two_lost_readings_go_on_and_the_third_holds_until_readings_return() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk())
    flight.tick()
    assert [flight.tick(lost=True)["state"] for _ in range(4)] == ["moving", "moving", "hold", "hold"]
    assert flight.last["reason"] == "reads_lost" and flight.last["verdict"] == "refused_no_reading"
    assert flight.tick()["state"] == "moving"
    for _ in range(HZ // 2 + 2):  # half a second since the first one that was lost
        flight.tick(lost=True)
    assert flight.last["latched"] and flight.tick()["state"] == "hold"
    assert flight.tick(command=Command.ARM)["state"] == "planning" and flight.last["torque"] == 0


def test_the_servo_that_does_not_answer_is_named_from_the_hold_on() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk(n=200))
    told = [flight.tick(lost=True, finding=0, finding_joint=3) for _ in range(20)]
    assert [tick["joint"] for tick in told if tick["reason"] == "reads_lost"] == [3] * 18
    assert not told[10]["latched"] and told[-1]["latched"]


def test_an_absurd_action_is_refused_with_the_rest_of_its_plan() -> None:
    flight = Flight().armed()
    chunk = flight.chunk()
    chunk.actions[3, 2] = 1e30
    assert flight.tick(chunk)["chunks"] == ["taken"]  # finite, so the shape is right: the guard meets it
    while flight.last["verdict"] != "refused_not_finite":
        flight.tick()
    assert flight.last["verdict_joint"] == 2 and flight.last["reason"] == "malformed" and flight.last["state"] == "hold"
    goals = flight.last["goals"]
    assert flight.tick()["action"] is None and max(flight.last["goals"]) - max(goals) < 5


def test_a_tripped_watchdog_makes_the_present_position_the_goal() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk())
    for _ in range(4):
        flight.tick()
    flight.position = [position - 6 for position in flight.position]
    told = flight.tick(watchdog=True)
    assert told["clear_watchdog"] and told["state"] == "fault" and told["goals"] == tuple(flight.position)
    assert flight.tick(command=Command.ARM)["state"] == "planning"


def test_a_watchdog_that_tripped_in_a_short_loss_of_readings_is_cleared_and_the_plan_goes_on() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk(n=60))
    for lost in (False, False, *[True] * 8):
        flight.tick(lost=lost)
    told = flight.tick(watchdog=True)
    assert told["clear_watchdog"] and told["state"] == "moving"
    for _ in range(16):
        flight.tick(lost=True)
    assert flight.tick(watchdog=True)["state"] == "fault"


def test_an_unplugged_bus_is_a_fault_and_nothing_is_written() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk())
    assert flight.tick(lost=True, read_result=5)["reason"] == "unplugged" and not flight.last["write"]
    assert flight.tick(lost=True, watchdog=True)["reason"] == "unplugged"


def test_of_two_buses_the_one_that_is_left_gets_goals_that_slow_down() -> None:
    flight = Flight(buses=2)
    plain = settings(buses=2)
    slow = tuple(replace(limit, acceleration=2000.0) for limit in plain.limits)
    flight.pilot = core.Pilot(replace(plain, limits=slow))
    flight.armed()
    flight.tick(flight.chunk(step=2))
    for _ in range(12):
        flight.tick()
    goals = [flight.last["goals"]]
    for _ in range(20):
        told = flight.tick(lost=True, read_result=5, unsent=True, unplugged=True)
        assert (told["state"], told["reason"], told["write"]) == ("fault", "unplugged", True)
        goals.append(told["goals"])
    steps = np.diff(np.array(goals)[:, 0])
    assert steps[0] > 0 and steps[1] > 0 and (np.diff(steps) <= 0).all() and not steps[-5:].any()


def test_joints_park_by_turns_and_one_without_torque_keeps_nobody_waiting() -> None:
    turns = (1, 1, 0, 2, 2, 2)
    plain = settings(park=(2100,) * 6)
    limits = tuple(replace(limit, park_turn=turn) for limit, turn in zip(plain.limits, turns))
    for limp in (None, 2):
        flight = Flight(park=(2100,) * 6)
        flight.pilot = core.Pilot(replace(plain, limits=limits))
        flight.armed()
        if limp is not None:
            flight.overload(limp)
            flight.tick()
        flight.tick(command=Command.PARK)
        goals = [flight.last["goals"]]
        while flight.last["reason"] != "parked":
            goals.append(flight.tick()["goals"])
            assert len(goals) < 30 * HZ
        moves = np.diff(np.array(goals), axis=0) != 0
        spans = [(np.flatnonzero(moved)[0], np.flatnonzero(moved)[-1]) for moved in moves.T if moved.any()]
        if limp is None:
            pan, lift, elbow, *rest = spans
            assert goals[-1] == (2100,) * 6 and elbow[1] <= pan[0] == lift[0] and pan[1] <= min(rest)[0]
        else:
            assert goals[-1] == (2100, 2100, 2000, 2100, 2100, 2100) and len(spans) == 5


def test_stopping_slows_down_parks_and_switches_torque_off() -> None:
    flight = Flight(park=(2050,) * 6).armed()
    flight.tick(flight.chunk())
    for _ in range(6):
        flight.tick()
    flight.tick(command=Command.STOP)
    states = []
    while not flight.last["done"]:
        states.append(flight.tick()["state"])
        assert len(states) < 100
    assert "parking" in states and flight.position == [2050] * 6
    assert flight.last["torque"] == 2 and flight.last["state"] == "disarmed"


def test_stopping_without_a_pose_ends_holding() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk())
    for _ in range(6):
        flight.tick()
    flight.tick(command=Command.STOP)
    while not flight.last["done"]:
        flight.tick()
    assert flight.last["torque"] == 0 and flight.last["state"] == "hold" and flight.last["latched"]


def test_a_limit_below_a_sixteenth_of_a_count_is_refused_with_the_joint() -> None:
    with pytest.raises(ValueError, match=r"\(2, 0\)"):
        core.Pilot(
            ControlSettings(
                limits=tuple(JointLimits(0, 9, 1.0, 0.0, jerk=1.0) for _ in range(6)),
                period_ns=T,
                session=1,
                bundle_digest=DIGEST,
            )
        )


def test_limits_hold_over_the_goals_that_were_sent_when_writes_fail() -> None:
    """R8 in the bus's eyes: a goal that did not go out is not a step."""
    flight = Flight().armed()
    generator = np.random.default_rng(4)
    low, high, velocity, acceleration, jerk = flight.pilot.step_limits[0]
    sent, unsent = [2000], False
    for index in range(600):
        if index % 7 == 0:
            flight.sequence += 1
            wild = generator.uniform(-200, 200, (20, 6)).astype(np.float32)
            told = flight.tick(
                Chunk(ChunkKind.MOVING, 7, DIGEST, flight.sequence, flight.tick_number, flight.tick_number * T, wild),
                unsent=unsent,
            )
        else:
            told = flight.tick(unsent=unsent)
        unsent = bool(generator.random() < 0.2)
        if told["write"] and not unsent:
            sent.append(told["goals"][0])
    goals = np.array(sent)
    assert len(goals) > 400 and np.ptp(goals) > 200
    assert goals.min() >= low and goals.max() <= high
    for order, limit in ((1, velocity), (2, acceleration), (3, jerk)):
        # The servos get whole counts: each within half a count of a goal that keeps the limits.
        assert np.abs(np.diff(goals, order)).max() <= limit + 2**order / 2, order


def test_stopping_waits_for_a_lost_reading_before_it_parks() -> None:
    flight = Flight(park=(2050,) * 6).armed()
    flight.tick(command=Command.STOP, lost=True)
    flight.tick(lost=True)
    assert not flight.last["done"]
    assert flight.tick()["state"] == "parking"
    blind = Flight(park=(2050,) * 6).armed()
    blind.tick(command=Command.STOP, lost=True)
    ticks = 0
    while not blind.last["done"]:
        blind.tick(lost=True)
        ticks += 1
    assert 13 <= ticks <= 17 and blind.last["torque"] == 0  # half a second, then it ends holding


def test_servos_that_another_process_left_under_torque_are_not_let_go_unasked() -> None:
    flight = Flight()
    assert flight.tick(command=Command.TORQUE_OFF)["answer"] == NOT_PARKED and flight.last["torque"] == 0
    assert flight.tick(command=Command.TORQUE_OFF_NOW)["torque"] == 2
    assert flight.tick(command=Command.TORQUE_OFF)["answer"] == DONE
    flight.tick(command=Command.ARM)
    assert flight.tick(command=Command.TORQUE_OFF)["answer"] == NOT_PARKED


def test_a_fault_is_armed_again_only_at_rest() -> None:
    flight = Flight().armed()
    flight.tick(flight.chunk(step=5))
    for _ in range(5):
        flight.tick()
    assert flight.tick(alerts=[0, 0, 1, 0, 0, 0], read_result=3)["state"] == "fault"
    assert flight.tick(command=Command.ARM)["answer"] == BUSY
    for _ in range(6):
        flight.tick()
    assert flight.tick(command=Command.ARM)["answer"] == DONE


def test_a_servo_that_hangs_below_its_soft_limit_goes_on_from_the_limit_after_a_watchdog() -> None:
    flight = Flight()
    flight.position[1] = 1000
    flight.armed()
    for _ in range(3):
        flight.tick(lost=True)
    flight.position[1] = 975  # gravity; the goal was the limit
    told = flight.tick(watchdog=True)
    assert told["clear_watchdog"] and told["write"] and told["goals"][1] == 1000 and told["state"] != "fault"


def test_a_servo_outside_its_soft_limits_after_a_watchdog_is_held_where_it_is() -> None:
    flight = Flight().armed()
    for _ in range(3):
        flight.tick(lost=True)
    flight.position[4] = 3100
    told = flight.tick(watchdog=True)
    assert told["clear_watchdog"] and told["write"] and told["goals"][4] == 3100


def test_a_servo_a_lost_turn_away_after_a_watchdog_is_left_to_stand_and_named() -> None:
    flight = Flight().armed()
    for _ in range(14):
        flight.tick(lost=True)
    flight.position[4] = 6096
    told = flight.tick(watchdog=True)
    assert not told["clear_watchdog"] and told["state"] != "fault"  # not believed before the next reading confirms it
    flight.position = [*flight.position[:4], 6096, 2000]
    told = flight.tick(watchdog=True)
    assert (told["state"], told["reason"], told["joint"]) == ("fault", "outside", 4)
    assert not told["clear_watchdog"] and not told["write"]


PARK = (2300,) * 6


class OnBus(Flight):
    """A pilot whose arm is the emulated bus, on the pilot's clock: what the arm did stands in the bus's own log."""

    arm = "koch"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        servos = servos_of(load_arm(self.arm), None, self.position)
        self.plant = IdealPlant([servo.raw for servo in servos])
        self.log: list[Mapping[str, Any]] = []
        self.bus = EmulatedBus(servos, self.plant, Faults(0, (0.0, 0.0)), self.log.append)
        self.bus.advance(0)

    def tick(self, *chunks: Chunk, command: Command = Command.NONE, **fields: Any) -> dict[str, Any]:
        now_ns = (self.tick_number + 1) * T
        self.bus.advance(now_ns)
        self.position = [servo.position for servo in self.bus.servos]
        super().tick(*chunks, command=command, **fields)
        servo = self.bus.servos[0]
        if self.last["write"]:
            self._say(servo.GOAL, self.last["goals"], now_ns)
        if self.last["torque"] != 0:
            self._say(servo.TORQUE, [int(self.last["torque"] == 1)] * 6, now_ns)
        return self.last

    def _say(self, register: Register, values: Sequence[int], now_ns: int) -> None:
        language = self.bus.servos[0].LANGUAGE
        head = b"".join(
            number.to_bytes(language.address_bytes, "little") for number in (register.address, register.size)
        )
        body = head + b"".join(
            bytes([servo.id]) + register.encode(value) for servo, value in zip(self.bus.servos, values)
        )
        self.bus.receive(language.encode(BROADCAST, SYNC_WRITE, body), 1_000_000, now_ns)

    def overload(self, joint: int) -> None:
        super().overload(joint)
        self.bus.servos[joint].overload()

    def obstruct(self, joint: int, count: int) -> None:
        self.plant.block(joint, -np.inf, self.bus.servos[joint].raw_of(count))

    def moved(self, since_ns: int) -> int:
        """Counts over which the servo that moved most went from then on, by the log."""
        before = [entry["positions"] for entry in self.log if entry["kind"] == "motion" and entry["t"] <= since_ns][-1:]
        after = [entry["positions"] for entry in self.log if entry["kind"] == "motion" and entry["t"] > since_ns]
        return max(int(np.ptp([shown[str(i)] for shown in before + after])) for i in range(1, 7))


class OnFeetech(OnBus):
    arm = "so101"


def disarmed(make: type[Flight] = Flight) -> Flight:
    flight = make(park=PARK)
    flight.tick()
    return flight


def planning(make: type[Flight] = Flight) -> Flight:
    return make(park=PARK).armed()


def moving(make: type[Flight] = Flight) -> Flight:
    flight = planning(make)
    flight.tick(flight.chunk(n=200, step=2.0))
    flight.run(0.3)
    assert flight.last["state"] == "moving"
    return flight


def held(make: type[Flight] = Flight) -> Flight:
    flight = moving(make)
    flight.tick(command=Command.HOLD)
    return flight


def parking(make: type[Flight] = Flight) -> Flight:
    flight = planning(make)
    flight.tick(command=Command.PARK)
    flight.run(0.2)
    assert flight.last["state"] == "parking"
    return flight


def stopping(make: type[Flight] = Flight) -> Flight:
    flight = moving(make)
    flight.tick(command=Command.STOP)
    while flight.last["state"] != "parking":
        flight.tick()
    flight.run(0.1)
    return flight


def parked(make: type[Flight] = Flight) -> Flight:
    flight = parking(make)
    while flight.last["reason"] != "parked":
        flight.tick()
    return flight


def alerted(make: type[Flight] = Flight) -> Flight:
    """A servo shut down in the middle of a motion."""
    flight = moving(make)
    flight.overload(5)
    flight.tick()
    assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("fault", "alert", 5)
    return flight


def blocked(make: type[Flight] = Flight) -> Flight:
    """A joint met an obstacle, and still stands against it."""
    flight = moving(make)
    flight.obstruct(1, flight.position[1])
    while flight.last["reason"] != "stall":
        flight.tick()
    flight.run(0.5)
    return flight


def unplugged(make: type[Flight] = Flight) -> Flight:
    flight = moving(make)
    flight.tick(lost=True, read_result=5)
    flight.inference = {"read_result": 5, "lost": True}
    return flight


STATES = [disarmed, planning, moving, held, parking, stopping, parked, alerted, blocked, unplugged]
SETTLE_S = 0.4
"""For slowing down from the fastest motion of these tests."""


@pytest.mark.parametrize("bus", [OnBus, OnFeetech], ids=lambda bus: bus.arm)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("command", [c for c in Command if c is not Command.NONE], ids=lambda c: c.name.lower())
def test_what_a_command_has_answered_is_true_for_the_next_two_seconds(
    state: Callable[[type[Flight]], Flight], command: Command, bus: type[OnBus]
) -> None:
    """And what the arm did in them stands in the log of the emulated bus."""
    flight = state(bus)
    assert isinstance(flight, bus)
    before = dict(flight.last)
    asked_ns = (flight.tick_number + 1) * T
    told = flight.tick(command=command)
    answer, torque = told["answer"], [told["torque"]]
    states = [told["state"]]
    goals = [told["goals"]]
    for _ in range(2 * HZ):
        if flight.last["done"]:
            break
        flight.tick(flight.chunk(n=200, step=2.0))  # inference goes on planning
        goals.append(flight.last["goals"])
        states.append(flight.last["state"])
        torque.append(flight.last["torque"])
    flight.bus.advance(flight.tick_number * T + 200_000_000)
    since_ns = asked_ns + round(SETTLE_S * 1e9)
    moves = flight.moved(since_ns) > 0
    went = flight.moved(asked_ns) > 2
    limp = [entry["id"] for entry in flight.log if entry["kind"] == "torque" and not entry["on"]]
    name = state.__name__
    if command in (Command.HOLD, Command.REDO):
        # Done means: no motion once it has slowed down, no letting go, whatever was asked before.
        assert answer == {"disarmed": NOT_ARMED, "unplugged": FAULT}.get(name, DONE)
        assert not moves and not limp and not flight.last["done"]
    if command is Command.PING:
        assert answer == DONE
        twin = state(bus)
        twin.tick()
        undisturbed = [twin.tick(twin.chunk(n=200, step=2.0))["goals"] for _ in goals[1:6]]
        assert undisturbed == goals[1:6]
    if command is Command.ARM:
        busy = name in ("held", "parking", "stopping")
        assert answer == (FAULT if name in ("alerted", "unplugged") else BUSY if busy else DONE)
        assert ("moving" in states) == (answer == DONE) and (went or answer != DONE)
    if command in (Command.PARK, Command.PARK_IDLE):
        assert answer == {"disarmed": NOT_ARMED, "unplugged": FAULT}.get(name, DONE)
        if name == "blocked":  # the pose lies behind the obstacle: it is given up, and the force goes
            assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("hold", "stall", 1)
            assert abs(flight.last["goals"][1] - flight.position[1]) <= GRAVITY
        elif answer == DONE:
            joints = 5 if name == "alerted" else 6  # the one without torque is not told to move
            assert flight.last["reason"] == "parked" or flight.last["done"]
            assert [servo.position for servo in flight.bus.servos][:joints] == list(PARK[:joints])
    if command is Command.STOP:
        assert answer == DONE and flight.last["done"]
        kept = name in ("disarmed", "blocked", "unplugged")
        assert kept == (not limp)
        if not kept:  # torque goes off where the arm rests by itself
            assert [servo.position for servo in flight.bus.servos][:5] == list(PARK[:5])
    if command is Command.TORQUE_OFF:
        assert answer == (DONE if name == "parked" else NOT_PARKED)
        if answer != DONE:
            assert told["torque"] == 0 and told["state"] == before["state"]
    if command is Command.TORQUE_OFF_NOW:
        assert answer == DONE and torque[0] == 2 and not moves and "moving" not in states
        assert states[0] == "disarmed" and (name == "unplugged" or set(states) == {"disarmed"})
    if command is Command.RECOVER:
        assert answer == (BUSY if name == "alerted" else FAULT if name == "unplugged" else DONE)
        assert told["state"] == before["state"] and 1 not in torque


def test_a_blocked_joint_is_noticed_named_and_no_longer_pressed_within_half_a_second() -> None:
    flight = Flight().armed()
    flight.way[1] = (-9999, 2100)
    flight.tick(flight.chunk(n=100, step=2.0))
    while flight.last["goals"][1] - flight.position[1] <= STALL:
        flight.tick()
    goals = flight.run(0.5)
    assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("hold", "stall", 1)
    assert flight.last["latched"] and goals[:, 1].max() - 2100 <= TRACKING
    assert flight.last["goals"][1] - 2100 == GRAVITY  # freed now, it springs forward no further
    flight.way[1] = (-9999, 9999)
    assert np.ptp(flight.run(2.0), axis=0).max() == 0


def test_a_hold_against_an_obstacle_leads_the_goal_back_once_and_an_arm_that_sags_does_not_sink() -> None:
    flight = moving()
    flight.hang[1] = -35  # within what gravity may take
    flight.hang[2] = -50  # a heavier load than stated
    flight.tick(command=Command.HOLD)
    flight.run(0.6)
    stands = list(flight.position)
    assert flight.last["goals"][1] - stands[1] == 35
    assert np.ptp(flight.run(60.0)[:, 1:3], axis=0).max() == 0 and flight.position == stands
    flight.tick(command=Command.HOLD)  # asked for again: not led back again
    assert np.ptp(flight.run(2.0), axis=0).max() == 0
    assert flight.last["goals"][2] - (stands[2] - flight.hang[2]) == 0


def test_parking_that_meets_an_obstacle_gives_up_and_holds_also_when_it_was_to_stop() -> None:
    for command in (Command.PARK, Command.STOP):
        flight = planning()
        flight.way[3] = (-9999, 2080)
        flight.tick(command=command)
        goals = [flight.last["goals"]]
        while not (flight.last["done"] if command is Command.STOP else flight.last["reason"] == "stall"):
            goals.append(flight.tick()["goals"])
            assert len(goals) < 150
        assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("hold", "stall", 3)
        assert flight.last["torque"] == 0 and np.array(goals)[:, 3].max() - 2080 <= TRACKING


def test_a_gripper_that_holds_something_is_no_stall_and_keeps_its_grip() -> None:
    limits = [JointLimits(1000, 3000, 10.0, 2000.0, gravity=GRAVITY, stall=STALL) for _ in range(5)]
    limits.append(JointLimits(1000, 3000, 10.0, 2000.0, tracking=1500, gravity=1500, stall=0))
    flight = Flight()
    flight.pilot = core.Pilot(ControlSettings(limits=tuple(limits), period_ns=T, session=7, bundle_digest=DIGEST))
    flight.armed()
    flight.way[5] = (-9999, 2050)
    flight.tick(flight.chunk(n=30, step=1.0))
    flight.run(1.2)
    assert flight.last["state"] != "fault" and flight.last["reason"] != "stall"
    flight.tick(command=Command.HOLD)
    flight.run(1.0)
    assert flight.last["goals"][5] > 2200


def test_recovering_reboots_the_servo_and_holds_it_where_it_has_fallen() -> None:
    flight = alerted()
    flight.run(0.5)
    others = flight.last["goals"][:5]
    told = flight.tick(command=Command.RECOVER)
    assert told["answer"] == DONE and told["reboot"] == 1 << 5 and told["torque"] == 0
    flight.inference = {}
    for _ in range(4):
        assert flight.tick(lost=True)["torque"] == 0  # it is not back yet
    flight.position[5] -= 90
    told = flight.tick()
    assert told["torque"] == 1 and told["goals"] == (*others, flight.position[5])
    assert (told["state"], told["reason"], told["latched"]) == ("hold", "operator", True)
    assert flight.tick(command=Command.ARM)["state"] == "planning"


def test_an_alert_that_a_reboot_does_not_take_away_stays_a_fault_and_torque_never_returns_by_itself() -> None:
    flight = alerted()
    flight.run(0.5)
    flight.tick(command=Command.RECOVER)
    flight.tick()
    assert (flight.last["state"], flight.last["reason"]) == ("fault", "alert")
    flight.inference = {}
    assert all(flight.tick()["torque"] == 0 for _ in range(3 * HZ)) and flight.last["state"] == "fault"
    late = alerted()
    late.run(0.5)
    late.tick(command=Command.RECOVER)
    late.inference = {}
    for _ in range(3 * HZ):
        late.tick(lost=True)
    assert late.tick()["torque"] == 0


def test_a_hold_ends_recovering_too() -> None:
    flight = alerted()
    flight.run(0.5)
    flight.tick(command=Command.RECOVER)
    flight.inference = {}
    flight.tick(command=Command.HOLD, lost=True)
    assert all(flight.tick()["torque"] == 0 for _ in range(HZ))


@pytest.mark.parametrize(("finding", "state", "reason"), [
    (NO_TORQUE, "fault", "torque"), (DEAF, "fault", "deaf"), (VOLTAGE, "hold", "voltage"), (WARM, "moving", ""),
    (ALERT, "fault", "alert"),
])  # fmt: skip
def test_what_the_servos_health_shows_is_acted_on_and_the_joint_named(finding: int, state: str, reason: str) -> None:
    flight = moving()
    told = flight.tick(finding=finding, finding_joint=3)
    assert (told["state"], told["reason"]) == (state, reason) and told["joint"] == (3 if reason else -1)


@pytest.mark.parametrize("finding", [NO_TORQUE, ALERT])
def test_a_servo_that_shuts_down_between_reading_and_question_is_told_by_its_alert(finding: int) -> None:
    """The question behind a reading finds it without torque; the next reading has its alert, which `recover` needs."""
    flight = moving()
    flight.overload(3)
    for _ in range(HZ):
        told = flight.tick(finding=finding, finding_joint=3)
        assert (told["state"], told["reason"], told["joint"]) == ("fault", "alert", 3)
    assert flight.tick(command=Command.RECOVER)["reboot"] == 1 << 3


def test_a_hot_servo_parks_the_arm_once_and_a_hold_is_stronger() -> None:
    flight = moving()
    told = flight.tick(finding=HOT, finding_joint=2)
    assert (told["state"], told["reason"], told["joint"]) == ("parking", "temperature", 2)
    flight.tick(command=Command.HOLD)
    flight.run(0.5)
    stands = flight.last["goals"]
    for _ in range(HZ):
        assert flight.tick(finding=HOT, finding_joint=2)["goals"] == stands
    unparkable = Flight().armed()
    told = unparkable.tick(finding=HOT, finding_joint=2)
    assert (told["reason"], told["state"]) == ("temperature", "hold")


@pytest.mark.parametrize("start", [moving, parking], ids=lambda state: state.__name__)
def test_a_silent_supervisor_is_a_hold_until_it_is_back_and_the_arm_is_armed(start: Callable[[], Flight]) -> None:
    flight = start()
    told = flight.tick(unattended=True)
    assert (told["state"], told["reason"], told["latched"]) == ("hold", "supervisor", True)
    flight.run(0.5, unattended=True)
    assert flight.tick(unattended=True, command=Command.ARM)["answer"] == FAULT
    assert flight.tick(unattended=True, command=Command.PARK)["state"] == "parking"  # a person asked
    assert flight.tick(unattended=True)["state"] == "parking"


def test_without_a_guardian_the_arm_holds_is_not_armed_and_parks_when_asked() -> None:
    flight = moving()
    told = flight.tick(unguarded=True)
    assert (told["state"], told["reason"], told["latched"]) == ("hold", "guardian", True)
    flight.inference = {"unguarded": True}
    flight.run(0.5)
    assert flight.tick(command=Command.ARM)["answer"] == FAULT
    assert flight.tick(command=Command.PARK)["state"] == "parking" and flight.tick()["state"] == "parking"
    flight.inference = {}
    flight.tick(command=Command.HOLD)
    flight.run(0.5)
    assert flight.tick(command=Command.ARM)["answer"] == DONE  # it was only stopped
    limp = disarmed()
    assert limp.tick(command=Command.ARM, unguarded=True)["answer"] == FAULT and limp.last["torque"] == 0


def test_a_stop_parks_although_the_supervisor_is_gone() -> None:
    flight = stopping()
    while not flight.last["done"]:
        flight.tick(unattended=True)
    assert flight.last["torque"] == 2


def test_another_writer_of_chunks_than_at_arming_latches_a_hold() -> None:
    flight = Flight()
    flight.tick()
    flight.inference = {"writer": 5}
    flight.armed()
    flight.tick(flight.chunk())
    flight.tick()
    assert flight.last["state"] == "moving"
    flight.inference = {"writer": 6}
    told = flight.tick(flight.chunk())
    assert (told["state"], told["reason"], told["chunks"]) == ("hold", "writer", ["not_armed"])
    flight.run(0.5)
    flight.tick(command=Command.ARM)
    assert flight.tick(flight.chunk())["state"] == "moving"


def test_a_file_cut_short_brakes_and_cannot_be_armed() -> None:
    flight = moving()
    told = flight.tick(damaged=True)
    assert (told["state"], told["reason"]) == ("fault", "files")
    flight.run(0.5, damaged=True)
    assert flight.tick(damaged=True, command=Command.ARM)["answer"] == FAULT


@pytest.mark.parametrize("off", [-727, 219 * 4, 4096])
def test_a_reading_further_away_than_the_joint_can_travel_is_confirmed_before_it_is_used(off: int) -> None:
    flight = moving()
    goals = np.array(flight.last["goals"])
    truth = list(flight.position)
    flight.position[2] += off
    told = flight.tick()
    assert (abs(np.array(told["goals"]) - goals) <= 70).all() and told["state"] == "moving"
    flight.position = [*truth]
    assert flight.tick()["state"] == "moving"
    flight.position[2] += 727
    flight.tick()
    moved = flight.position[2] = truth[2] + 727
    flight.tick()
    assert abs(flight.last["goals"][2] - moved) > 500  # confirmed, and the goal does not jump after it


def test_a_setting_that_a_servo_does_not_take_is_told_apart_from_lost_torque() -> None:
    flight = Flight().armed()
    assert flight.tick(torque_failed=True, setting_refused=True, finding=0, finding_joint=2)["reason"] == "setting"
    assert flight.last["joint"] == 2
    for follows in (
        {"watchdog": True},
        {"finding": NO_TORQUE, "finding_joint": 5},
        {"torque_failed": True},
    ):  # the remedy is another
        flight.tick(**follows)
        assert (flight.last["state"], flight.last["reason"], flight.last["joint"]) == ("fault", "setting", 2)
    assert flight.tick(finding=DEAF, finding_joint=1)["reason"] == "deaf"
    assert Flight().armed().tick(torque_failed=True)["reason"] == "torque"


def test_a_plan_with_corners_too_sharp_for_the_joint_is_followed_in_its_middle_and_not_hunted() -> None:
    """A policy's noise at rest: every action lies 2 degrees beside the one before. At 90 Hz such a line cannot be
    followed within the usual limits; goals that tried overshot to several degrees, three times a second."""
    tick_ns, actions = round(1e9 / 90), np.zeros((50, 6), np.float32)
    actions[1::2, 0] = 2.0
    actions[:, 1] = np.linspace(0, 20, 50)  # one that can be followed is
    one = JointLimits(1000, 3000, 4096 / 360, 2000.0)
    pilot = core.Pilot(ControlSettings((one,) * 6, tick_ns, 7, DIGEST, action_ns=round(1e9 / 30)))
    pilot.tick(0, 0, [2000] * 6, command=Command.ARM)
    present, goals, wishes = [2000] * 6, [], []
    for tick in range(1, 140):
        chunks = [Chunk(ChunkKind.MOVING, 7, DIGEST, 1, 0, 0, actions)] if tick == 1 else []
        told = pilot.tick(tick, tick * tick_ns, present, chunks)
        present = list(told["goals"])
        goals.append((np.array(present) - 2000) * 360 / 4096)
        wishes.append(told["action"])
    rest, wish = np.array(goals[30:]), np.array(wishes[30:])
    assert np.ptp(rest[:, 0]) < 0.2 and abs(rest[:, 0].mean() - 1.0) < 0.05
    line = np.arange(31, 140) / 3 * 20 / 49
    assert np.abs(wish[:, 1] - line).max() < 1e-3 and np.abs(rest[:, 1] - line).max() < 0.1
