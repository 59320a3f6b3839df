# SPDX-License-Identifier: Apache-2.0
"""Opening a serial port for the servo bus: what can be wrong with it, in one line each."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_edge.core import load_core
from vla_edge.errors import BusError
from vla_edge.robot.arm_description import ArmDescription

BY_ID = Path("/dev/serial/by-id")
SYSFS_TTY = Path("/sys/class/tty")
LATENCY_TIMER_MS = 1


def ports_of(port: str, arm: ArmDescription, buses: int) -> list[str]:
    """The ports that `--port` names: one, or LEFT,RIGHT of two arms that are one. BusError: not as many as there are
    buses, or one twice."""
    ports = port.split(",")
    if len(ports) != buses:
        has, advice = ("one", "the follower's") if buses == 1 else ("two", "--port LEFT,RIGHT")
        raise BusError(f"--port {port} is {len(ports)}, {arm.title} has its servos on {has}; give {advice}")
    if len({Path(one).resolve() for one in ports}) < buses:
        raise BusError(f"--port {port} is the same port twice; give --port LEFT,RIGHT")
    return ports


def gone(port: str) -> str:
    """Which of `--port`'s ports is not there any more, as far as that can be told."""
    ports = port.split(",")
    return " and ".join([one for one in ports if not Path(one).exists()] or ports)


def open_port(
    path: str, arm: ArmDescription, ids: Sequence[int], baud: int | None = None, second: int | None = None
) -> Any:
    """A `_core.ServoArm` on `path`, locked for this process; second: the first of `ids` on the second of two ports.
    BusError tells what stands in the way."""
    baud = baud or arm.baud
    paths = ports_of(path, arm, 1 if second is None else 2)
    other = [] if second is None else [str(Path(paths[1]).resolve()), second]
    watchdog = (arm.watchdog.value, arm.watchdog.tripped) if arm.watchdog is not None else (0, 0)
    roles = {}
    for role in arm.roles:
        register = arm.at(role)
        roles[role] = (register.address, register.size, register.sign)
    try:
        return load_core().ServoArm(
            str(Path(paths[0]).resolve()), baud, arm.protocol, ids, roles, arm.velocity_unit, *watchdog, *other
        )
    except OSError as error:
        failed = next((one for one in paths if str(Path(one).resolve()) == error.filename), path)
        raise BusError(_why(failed, baud, error)) from error


def _why(path: str, baud: int, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        there = sorted(str(entry) for entry in BY_ID.iterdir()) if BY_ID.is_dir() else []
        return f"no port {path}; plug the adapter in" + (f" or use one of {', '.join(there)}" if there else "")
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"no permission on {path}; add this user to the group that owns it: sudo usermod -aG dialout $USER, then "
            "log in again"
        )
    if error.errno == errno.EBUSY:
        return f"{path} is in use by another process; stop it first (`fuser {path}` shows which)"
    if error.errno in (errno.ENOTTY, errno.EISDIR):
        return f"{path} is not a serial port; give the servo adapter's path"
    if error.errno == errno.EINVAL:
        return f"{path} cannot do {baud} baud; use an adapter that can (U2D2, OpenRB-150)"
    return f"{path} cannot be opened: {error.strerror}; unplug the adapter and plug it in again"


def check_latency_timer(port: str, sysfs: Path = SYSFS_TTY) -> None:
    """BusError when a USB adapter holds replies back for longer than 1 ms; adapters without a timer pass."""
    for path in port.split(","):
        _check_latency_timer(path, sysfs)


def _check_latency_timer(path: str, sysfs: Path) -> None:
    timer = sysfs / Path(path).resolve().name / "device" / "latency_timer"
    try:
        value = int(timer.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return
    if value > LATENCY_TIMER_MS:
        raise BusError(
            f"the latency timer of {path} is {value} ms, longest allowed {LATENCY_TIMER_MS} ms; "
            f"run `echo {LATENCY_TIMER_MS} | sudo tee {timer}` (docs/robot.md has a udev rule that keeps it)"
        )
