"""One tick's decision with time as an argument: states, latches, faults. No process, no clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_edge.contract import Chunk, ChunkKind, Command
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits

core = pytest.importorskip("vla_edge._core")

HZ = 30
T = 1_000_000_000 // HZ
DIGEST = "ab" * 32
DONE, BUSY, NOT_PARKED = 1, 2, 4
"""pilot_answer of runtime/core/control/pilot.h"""


def settings(**fields: Any) -> ControlSettings:
    limits = tuple(JointLimits(1000, 3000, 10.0, 2000.0) for _ in range(6))
    return ControlSettings(limits=limits, period_ns=T, session=7, bundle_digest=DIGEST, **fields)


class Flight:
    """A pilot whose arm is where its goals put it; `tick` plays one tick at its nominal time."""

    def __init__(self, **fields: Any) -> None:
        self.pilot = core.Pilot(settings(**fields))
        self.position = [2000] * 6
        self.tick_number = -1
        self.sequence = 0
        self.last: dict[str, Any] = {}
        self.inference: dict[str, Any] = {}

    def tick(self, *chunks: Chunk, command: Command = Command.NONE, **fields: Any) -> dict[str, Any]:
        self.tick_number += 1
        positions = None if fields.pop("lost", False) else self.position
        self.last = self.pilot.tick(
            self.tick_number, self.tick_number * T, positions, chunks, command=command, **self.inference, **fields
        )
        if self.last["write"]:
            self.position = list(self.last["goals"])
        return self.last

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
    flight.position = [2000, 1500, 2500, 2999, 1001, 2222]
    armed = flight.tick(command=Command.ARM)
    assert armed["torque"] == 1 and armed["goals"] == (2000, 1500, 2500, 2999, 1001, 2222)


def test_a_joint_outside_its_soft_limits_is_not_armed_and_is_named() -> None:
    flight = Flight()
    flight.position[4] = 3003
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


def test_a_limit_below_one_count_is_refused_with_the_joint() -> None:
    with pytest.raises(ValueError, match="joint 0: its velocity, acceleration, jerk or step limit is below one count"):
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
        assert np.abs(np.diff(goals, order)).max() <= limit, order


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


def test_a_servo_far_outside_its_soft_limits_after_a_watchdog_is_left_to_stand_and_named() -> None:
    flight = Flight().armed()
    for _ in range(3):
        flight.tick(lost=True)
    flight.position[4] = 3100
    told = flight.tick(watchdog=True)
    assert (told["state"], told["reason"], told["joint"]) == ("fault", "outside", 4)
    assert not told["clear_watchdog"] and not told["write"]
