"""Faults and unwanted holds in words: the joint, the cause, and what to do, the same wherever they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_edge.contract import KOCH_JOINTS

CAUSES = {
    "no_action": ("no chunk came in time", "look at inference's messages, then `vla-runtime arm`"),
    "reads_lost": (
        "the servos did not answer for half a second",
        "check the cable and the supply of the servo that does not blink when power comes on, then `vla-runtime arm`",
    ),
    "alert": (
        "hardware alert (overload, heat or voltage)",
        "free the joint, let it cool, switch the servos' power off and on, start again",
    ),
    "unplugged": ("the adapter is gone", "plug it in and start again; the arm will be disarmed"),
    "watchdog": ("the servos heard nothing for 200 ms and stopped by themselves", "`vla-runtime arm`"),
    "outside": ("outside its soft limits", "move it inside by hand, then `vla-runtime arm`"),
    "malformed": (
        "a chunk had a wrong shape or values that are no numbers",
        "restart inference, then `vla-runtime arm`",
    ),
    "torque": (
        "did not take the torque command, or rebooted and lost its torque",
        "check the supply, switch the servos' power off and on, start again",
    ),
}
"""Reason → (cause, remedy)."""


def fault_of(status: Mapping[str, Any]) -> str:
    """One sentence without a full stop. status: `reason` and `joint` (index, or -1) of a status or a recorded tick."""
    cause, remedy = CAUSES.get(status["reason"], (status["reason"].replace("_", " "), "see `vla-runtime status`"))
    joint = KOCH_JOINTS[status["joint"]] if 0 <= status["joint"] < len(KOCH_JOINTS) else ""
    return f"{f'{joint}: ' if joint else ''}{cause}; {remedy}"
