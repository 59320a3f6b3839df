# SPDX-License-Identifier: Apache-2.0
"""The guardian of an SO-101, whose servos have no watchdog, judged by the servos' log: what was written, what moved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.control.control_rig import EVENT_S, Rig, rig

from vla_edge.runtime.control.faults import fault_of
from vla_edge.runtime.control.operator import refusal_of


def entries_behind(made: Rig, time_ns: int, *kinds: str) -> list[dict[str, Any]]:
    return [entry for entry in made.emulator.entries(*kinds) if entry["t"] > time_ns]


def counts(told: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([told[str(i + 1)] for i in range(6)])


def children(pid: int) -> list[int]:
    """Of its main thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until_said(made: Rig, since_ns: int, times: int) -> dict[str, int]:
    """The goals that the servos were told so often in a row behind this time: the guardian's, as control moves on."""
    end_s = time.monotonic() + EVENT_S
    while True:
        told = [entry["goals"] for entry in entries_behind(made, since_ns, "goal")][-times:]
        if len(told) == times and all(goals == told[0] for goals in told):
            return told[0]
        assert time.monotonic() < end_s, "nobody made the arm stand still"
        time.sleep(0.02)


def assert_where_it_stood(made: Rig, goals: dict[str, int], since_ns: int) -> None:
    assert goals in [entry["positions"] for entry in entries_behind(made, since_ns, "answer")]


def until_at_rest(made: Rig) -> NDArray[np.int64]:
    """Where the shafts have come to rest, counts."""
    end_s = time.monotonic() + EVENT_S
    while True:
        made.emulator.event("dump")
        held = made.emulator.entries("registers")[-1]["servos"]
        if not any(servo["moving"] for servo in held.values()):
            return counts({servo: registers["present_position"] for servo, registers in held.items()})
        assert time.monotonic() < end_s, "they move on"


def until_gone(pid: int) -> None:
    end_s = time.monotonic() + EVENT_S
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < end_s, "it lives on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("hz", "times", "in_time"),
    [
        ("30", 1, False),
        *(pytest.param(hz, 100, True, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]) for hz in ("30", "90")),
    ],
)
def test_an_arm_whose_control_is_killed_stands_still_and_its_port_is_free_again(
    paced_bundle: Path, hz: str, times: int, in_time: bool
) -> None:
    """R14. What it does within 250 ms stands on a virtual clock in guardian_test.c; here nothing but the guardian's
    goals follows the kill, and the shafts come to rest there. in_time: no count moves after 250 ms."""
    stopped_ms = []
    with rig(paced_bundle, "--hz", hz, arm="so101") as made:
        for _ in range(times):
            made.move(20)
            (guardian,) = children(made.control.pid)
            killed_ns = time.monotonic_ns()
            made.control.kill()
            made.control.wait()
            until_gone(guardian)
            told = entries_behind(made, killed_ns, "goal", "torque", "write")
            held = told[-1]["goals"]
            assert {entry["kind"] for entry in told} == {"goal"}
            assert all(entry["goals"] == held for entry in told[1:]), "behind a packet of control's that was under way"
            assert_where_it_stood(made, held, killed_ns)
            assert np.abs(until_at_rest(made) - counts(held)).max() <= 1, "they rest where they were told to"
            moved = entries_behind(made, killed_ns, "motion")
            stopped_ms.append((moved[-1]["t"] - killed_ns) / 1e6 if moved else 0.0)
            assert not in_time or stopped_ms[-1] < 300  # 250 ms, and what the emulator's clock is late by
            made.start_control()
            assert made.status()["state"] == "disarmed"
            made.arm()
        made.move(8)
    print(f"{times} kills, the last motion at most {max(stopped_ms):.0f} ms later")


def test_a_stopped_control_that_wakes_up_is_latched_and_never_writes_beside_the_guardian(golden_bundle: Path) -> None:
    with rig(golden_bundle, arm="so101") as made:
        made.move(20)
        stopped_ns = time.monotonic_ns()
        made.control.send_signal(signal.SIGSTOP)
        held = until_said(made, stopped_ns, 3)
        assert_where_it_stood(made, held, stopped_ns)
        until_at_rest(made)
        awake_ns = time.monotonic_ns()
        made.control.send_signal(signal.SIGCONT)
        made.wait(lambda status: status["state"] == "fault")
        status = made.expect("fault", "watchdog")
        assert status["latched"]
        made.pass_ticks(20)
        stands = counts(held)
        for kind, name in (("goal", "goals"), ("motion", "positions")):
            for entry in entries_behind(made, awake_ns, kind):
                assert np.abs(counts(entry[name]) - stands).max() <= 2, "it stays where the guardian held it"
        assert made.emulator.entries("goal")[-1]["t"] > awake_ns
        made.arm()
        made.move(8)


def test_an_orderly_end_and_one_before_torque_leave_the_servos_alone(golden_bundle: Path) -> None:
    with rig(golden_bundle, arm="so101", armed=False) as made:
        (guardian,) = children(made.control.pid)
        made.control.kill()
        made.control.wait()
        until_gone(guardian)
        assert made.emulator.entries("goal", "torque") == []
        made.start_control()
        made.arm()
        (guardian,) = children(made.control.pid)
        made.stop()
        until_gone(guardian)
        assert made.control.returncode == 0 and all(entry["on"] for entry in made.emulator.entries("torque"))


def test_the_keyboards_signals_do_not_reach_the_guardian(golden_bundle: Path) -> None:
    with rig(golden_bundle, arm="so101") as made:
        (guardian,) = children(made.control.pid)
        assert os.getsid(guardian) == guardian != os.getsid(made.control.pid)
        os.kill(guardian, signal.SIGTERM)
        made.move(8)
        assert children(made.control.pid) == [guardian]


def test_control_without_its_guardian_holds_says_so_and_is_not_armed_again(golden_bundle: Path) -> None:
    """One that was only stopped counts again when it goes on."""
    with rig(golden_bundle, arm="so101") as made:
        made.move(8)
        (guardian,) = children(made.control.pid)
        os.kill(guardian, signal.SIGSTOP)
        made.wait(lambda status: status["reason"] == "guardian")
        assert made.expect("hold", "guardian")["latched"]
        os.kill(guardian, signal.SIGCONT)
        made.wait(lambda status: not status["unguarded"])
        made.arm()
        made.move(8)
        os.kill(guardian, signal.SIGKILL)
        status = made.wait(lambda status: status["reason"] == "guardian")
        assert fault_of(status).startswith("the guardian is gone") and "start again" in fault_of(status)
        rests = made.wait(lambda later: later["tick"] > status["tick"] + status["rest_ticks"] + 15)
        made.wave()
        assert made.pass_ticks(5)["goals"] == rests["goals"], "it moved on"
        assert made.ask("hold").word == "done"
        refused = made.ask("arm")
        assert refused.word == "fault" and refusal_of(refused, made.status()).startswith("the guardian is gone")
        assert [entry for entry in made.emulator.entries("torque") if not entry["on"]] == []
        made.stop()
        made.start_control()
        made.arm()
        made.move(8)
