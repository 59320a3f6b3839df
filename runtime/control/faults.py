# SPDX-License-Identifier: Apache-2.0
"""Faults and unwanted holds in words: the joint, the cause, and what to do, the same wherever they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_edge.robot.arm_description import arm_names, load_arm

WANTED = ("", "operator", "parked", "idle")
"""Reasons to stand still that somebody asked for."""
ARM_AGAIN = "then `vla-runtime arm`"
POWER = "switch the servos' power off and on, start again"
CAUSES = {
    "no_action": ("no chunk came in time", f"look at inference's messages, {ARM_AGAIN}"),
    "reads_lost": ("no answer for half a second", f"check cables and supply, {ARM_AGAIN}"),
    "alert": ("hardware alert (overload, heat or voltage)", "free it, let it cool, then `vla-runtime recover`"),
    "unplugged": ("the adapter is gone", "plug it in and start again; the arm will be disarmed"),
    "watchdog": (
        "the servos heard nothing of control and were stopped where they stood",
        f"see that it is safe, {ARM_AGAIN}",
    ),
    "outside": ("far outside its soft limits", f"move it inside by hand, {ARM_AGAIN}"),
    "malformed": ("a chunk had a wrong shape or values that are no numbers", f"restart inference, {ARM_AGAIN}"),
    "torque": ("did not take the torque command, or rebooted and lost its torque", f"check the supply, {ARM_AGAIN}"),
    "stall": ("pressed against something", f"clear the way, {ARM_AGAIN}"),
    "setting": ("does not take a setting, so there is no torque", POWER),
    "deaf": ("does not take goals", POWER),
    "voltage": ("the supply is outside the servo's limits", f"check the supply, {ARM_AGAIN}"),
    "temperature": ("about to shut down from heat", f"let it cool, {ARM_AGAIN}"),
    "supervisor": ("`vla-runtime run` was silent for half a second", f"see whether it was stopped, {ARM_AGAIN}"),
    "writer": (
        "another inference process writes the chunks, or it was started anew",
        f"see that it is yours, {ARM_AGAIN}",
    ),
    "guardian": (
        "the guardian is gone: nothing would stop the servos if control died",
        "`vla-runtime park` still parks; start again",
    ),
    "files": ("a file of the run folder was cut short", "start again"),
}
"""Reason → (cause, remedy)."""
SILENT = "does not answer"
STATES = {
    "disarmed": "disarmed: take control, then Arm lets the policy move it",
    "planning": "armed: waits for the first chunk",
    "hold": "holds as it was asked to: take control, then Arm goes on",
    "parking": "moves to its parking pose",
}
"""State of control without a fault → why nothing moves, and what goes on."""


def why_still(status: Mapping[str, Any]) -> str:
    """Why the arm stands still and what goes on, in a sentence; empty while it moves."""
    return fault_of(status) or STATES.get(status["state"], "")


def joint_of(status: Mapping[str, Any], which: str = "joint") -> str:
    """The name of a joint that a status or a recorded tick tells by its index; empty for none."""
    return status["joints"][status[which]] if 0 <= status[which] < len(status["joints"]) else ""


def _in_words(arm: str, bits: int) -> str:
    return load_arm(arm).errors_in_words(bits) if arm in arm_names() else f"error bits 0x{bits:02x}"


def fault_of(status: Mapping[str, Any], ailing: Mapping[str, str] | None = None) -> str:
    """One sentence without a full stop; empty when nothing is wrong. status: `reason` and `joint` (index, or -1) of a
    status or a recorded tick. ailing: what servos were found to have, by joint."""
    if status["reason"] in WANTED:
        return ""
    cause, remedy = CAUSES.get(status["reason"], (status["reason"].replace("_", " "), "see `vla-runtime status`"))
    nobody = "the servos" if status["reason"] == "reads_lost" else ""
    joint = joint_of(status) or nobody
    errors = dict(zip(status["joints"], status.get("errors", ())))
    found = ailing or {name: _in_words(status["arm"], bits) for name, bits in errors.items() if bits}
    text = ", ".join(f"{name}: {what}" for name, what in found.items()) or f"{f'{joint}: ' if joint else ''}{cause}"
    return f"{text}; {remedy}"


def heat_of(status: Mapping[str, Any]) -> str:
    """One sentence on a servo that is near the temperature at which it shuts down; empty when none is."""
    if status["warm_joint"] < 0:
        return ""
    joint, degrees = joint_of(status, "warm_joint"), status["temperatures"][status["warm_joint"]]
    return f"{joint} is {degrees} °C warm and shuts down soon; let the arm rest (3 °C below, it parks or holds)"
