# SPDX-License-Identifier: Apache-2.0
"""status, arm, hold, park, stop, torque-off: words to the running control process, one datagram each."""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.command_line import answer
from vla_edge.core import load_core
from vla_edge.errors import CheckFailed, ConfigError, ControlError
from vla_edge.runtime.control.faults import fault_of, heat_of, joint_of
from vla_edge.runtime.control.run_folder import RunFolder, facts_in, last_run_folder, open_run_folder

ANSWER_S = 3.0
"""Many ticks at the slowest rate: a busy machine wakes us late."""

WORDS = {"arm": "arm", "hold": "hold", "park": "park", "stop": "stop", "torque-off": "torque_off"}
REFUSALS = {
    "busy": "the arm still slows down; ask again",
    "not_armed": "the arm is not armed; `vla-runtime arm` first",
    "not_parked": "the arm is not parked and would fall; `vla-runtime park` first, or --now with a hand under it",
    "no_pose": "no parking pose is stored; rest the limp arm and run `vla-runtime move --store-park`",
    "fault": "the last reading failed or shows an alert; see `vla-runtime status`",
    "outside": "it lies outside its soft limits; move it inside by hand",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What control said to a word: `word` is done or a refusal; state and reason after it; joint by name."""

    word: str
    state: str
    reason: str
    joint: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", type=Path, help="run folder of the control process (default: the last run's)")
    if parser.prog.endswith("torque-off"):
        parser.add_argument("--now", action="store_true", help="wherever the arm is: it may fall")
    parser.set_defaults(word=parser.prog.rsplit(" ", 1)[-1])


def run(arguments: argparse.Namespace) -> int:
    if arguments.run_dir is not None and not arguments.run_dir.is_dir():
        raise ControlError(f"run folder {arguments.run_dir}: there is none; give the --run-dir of the control process")
    folder = open_run_folder(arguments.run_dir or last_run_folder())
    if arguments.word == "status":
        status = read_status(folder)
        print(describe(status, read_inference(folder)))
        answer(status)
        if not status["alive"]:
            raise CheckFailed(f"the control process of {folder.path} has ended or is stuck; start it again")
        return 0
    word = WORDS[arguments.word]
    if word == "torque_off" and arguments.now:
        word = "torque_off_now"
    reply = ask(folder, word)
    answer({"answer": reply.word, "state": reply.state, "reason": reply.reason, "joint": reply.joint})
    if reply.word != "done":
        raise CheckFailed(f"{arguments.word}: {refusal_of(reply, read_status(folder))}")
    print(f"{arguments.word}: done, state {reply.state}")
    return 0


def refusal_of(reply: Answer, status: Mapping[str, Any]) -> str:
    """Why a word was refused: the fault and its remedy where there is one."""
    if reply.word == "fault" and status["unguarded"]:
        status = {**status, "reason": "guardian", "joint": -1}
    fault = fault_of(status) if reply.word == "fault" else ""
    return fault or f"{f'{reply.joint}: ' if reply.joint else ''}{REFUSALS.get(reply.word, reply.word)}"


_ASKED = itertools.count()


def ask(folder: RunFolder, word: str, timeout_s: float = ANSWER_S) -> Answer:
    """Send one word and wait for its answer. ControlError: no control process answers there."""
    own = folder.path / f"{os.getpid():x}.{next(_ASKED):x}"  # no longer than control.sock: the path's limit is its
    own.unlink(missing_ok=True)  # of a process of this number that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        try:
            asker.bind(os.fspath(own))
            asker.settimeout(timeout_s)
            asker.sendto(word.encode(), os.fspath(folder.socket))
            text = asker.recv(128).decode()
        except OSError as error:  # a timeout is one too
            raise ControlError(
                f"no control process answers in {folder.path} ({error.strerror or 'no answer'}); start it, or give "
                "its --run-dir"
            ) from None
        finally:
            own.unlink(missing_ok=True)
    if text == "unknown":
        raise ConfigError(f"control does not know the word {word!r}; it is of another version")
    answer, state, reason, joint = text.split()
    index = int(joint)
    named = read_status(folder)["joints"][index] if index >= 0 else ""
    return Answer(answer, state, "" if reason == "-" else reason, named)


def read_status(folder: RunFolder) -> Mapping[str, Any]:
    """The newest status with `alive` and `silent_s`. ControlError: control never ran here."""
    try:
        status = load_core().StateReader(folder.state).read()
    except OSError as error:
        raise ControlError(f"{folder.state}: {error.strerror}; no control process has run there") from error
    if status is None:
        raise ControlError(f"{folder.state}: nothing was written yet; ask again")
    silent_s = (time.monotonic_ns() - status["tick_ns"]) / 1e9
    return {**status, "silent_s": silent_s, "alive": is_alive(status["pid"]) and silent_s < 1.0}


def read_inference(folder: RunFolder) -> Mapping[str, Any]:
    """The newest summary of the inference that plans; empty where none does, or it was killed."""
    summary = facts_in(folder.path / "inference.json")
    plans = summary.get("state") == "ready" and "pid" in summary and is_alive(summary["pid"])
    return summary if plans else {}


def prefix_age(inference: Mapping[str, Any]) -> str:
    """How old the prefixes of the last plans were; empty where each plan made its own."""
    age = inference.get("prefix_age_ms", {"p99": 0})
    return f"{age['p50']:.0f} ms (p99 {age['p99']:.0f})" if age["p99"] > 0 else ""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def silent_now(status: Mapping[str, Any]) -> str:
    """Which servo the last reading was lost at, while none has come since; empty where it is not known."""
    joint = joint_of(status, "trouble_joint") if status["reading_tick"] < status["tick"] else ""
    return f", {joint} does not answer" if joint else ""


def describe(status: Mapping[str, Any], inference: Mapping[str, Any]) -> str:
    """Lines for a person."""

    def counts(name: str) -> str:
        return ", ".join(f"{key} {value}" for key, value in status[name].items() if value) or "none"

    why = fault_of(status) or " ".join((status["reason"], "(latched: arm again)" if status["latched"] else ""))
    age_ms = status["age_ns"] / 1e6
    ages = [f"the plan's observation is {age_ms:.0f} ms old"] if age_ms >= 0 else []
    ages += [f"prefixes {old}"] if (old := prefix_age(inference)) else []
    lines = [
        f"state      {status['state']} {why.strip()}".rstrip(),
        f"process    {'alive' if status['alive'] else 'gone'}, pid {status['pid']}, silent {status['silent_s']:.2f} s"
        + (", shadow: nothing is written to the arm" if status["shadow"] else ""),
        f"rate       {1e9 / status['period_ns']:.1f} Hz, actions at {1e9 / status['action_ns']:.1f} a second, "
        f"{status['ticks']} ticks, {status['missed']} missed, "
        f"latest {status['late_max_ns'] / 1e6:.2f} ms, bus at most {status['io_max_ns'] / 1e6:.2f} ms",
        f"class      {'SCHED_FIFO' if status['fifo'] else 'normal priority (SCHED_FIFO was refused)'}, "
        f"memory {'locked' if status['locked'] else 'not locked'}, page faults {status['minor_faults']}",
        "; ".join([f"chunks     {counts('chunks')}", *ages]),
        f"guard      {counts('verdicts')}; rest within {status['rest_ticks']} ticks",
        f"patience   {status['patience_ns'] / 1e9:.2f} s (age limit and latch time)",
        f"readings   {status['lost_reads']} lost" + silent_now(status),
        *([f"heat       {heat_of(status)}"] if heat_of(status) else []),
        f"joints     {', '.join(f'{name} {value:.1f}' for name, value in zip(status['joints'], status['positions']))}",
        f"record     {status['record']}",
    ]
    return "\n".join(lines)
