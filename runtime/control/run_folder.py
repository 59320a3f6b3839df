# SPDX-License-Identifier: Apache-2.0
"""The run folder: where control, inference and operators find each other (docs/design.md)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import ControlError
from vla_edge.files import write_text

LAST_RUN = "last-run"
"""In the default folder: the path of the newest run's."""
KEPT_RECORDS = 4
"""Flight records of earlier runs that are kept beside the running one."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Made by `open_run_folder`."""

    path: Path

    @property
    def ring(self) -> Path:
        return self.path / "chunks.ring"

    @property
    def state(self) -> Path:
        return self.path / "control.state"

    @property
    def record(self) -> Path:
        return self.path / "flight.record"

    @property
    def arm(self) -> Path:
        """Which arm control drives: port, joint calibration, units."""
        return self.path / "arm-facts.json"

    @property
    def beat(self) -> Path:
        return self.path / "supervisor.beat"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"


def default_run_folder() -> Path:
    """One per user. In memory where the system offers it, so that the tick never waits for a disk's write-back."""
    user = os.getuid()
    for base in (Path("/run/user") / str(user), Path("/dev/shm")):
        if base.is_dir() and os.access(base, os.W_OK):
            return base / (f"vla-edge-{user}" if base.name == "shm" else "vla-edge")
    return Path(tempfile.gettempdir()) / f"vla-edge-{user}"


def open_run_folder(path: Path | None) -> RunFolder:
    """Make it with mode 0700; ControlError when it is another user's or open to others."""
    folder = default_run_folder() if path is None else path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        raise ControlError(f"run folder {folder}: {error.strerror}; give another with --run-dir") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ControlError(f"run folder {folder} is not a folder of this user; give another with --run-dir")
    if info.st_mode & 0o077:
        raise ControlError(
            f"run folder {folder} is open to other users (mode {stat.S_IMODE(info.st_mode):o}); chmod 700 it"
        )
    if len(os.fsencode(folder / "control.sock")) > 100:
        raise ControlError(f"run folder {folder}: the path is too long for a socket; give a shorter one with --run-dir")
    return RunFolder(folder)


def note_run(folder: RunFolder) -> None:
    """Remember that the newest run is in this folder; where that cannot be written the default folder is it."""
    with contextlib.suppress(OSError, ControlError):
        write_text(open_run_folder(None).path / LAST_RUN, os.fspath(folder.path.absolute()), flush=False)


def last_run_folder() -> Path:
    """The folder of the newest run of this user, the default one where none is remembered."""
    default = default_run_folder()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        noted = Path((default / LAST_RUN).read_text(encoding="utf-8"))
        if noted.is_dir():
            return noted
    return default


def lock_for_control(folder: RunFolder) -> int:
    """A lock held as long as the returned descriptor; ControlError when a control process runs here already."""
    lock = os.open(folder.path / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ControlError(
            f"a control process already runs in {folder.path}; stop it with `vla-runtime stop` or give another "
            "--run-dir"
        ) from None
    return lock


def control_runs(folder: RunFolder) -> bool:
    """Whether a control process holds this folder now."""
    try:
        lock = os.open(folder.path / "control.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def facts_in(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a run folder; empty where there is none, or it is just being replaced."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def free_bytes(folder: Path) -> int:
    """What this user may still write there."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def keep_old_records(
    folder: RunFolder, needed_bytes: int = 0, free_bytes: Callable[[Path], int] = free_bytes
) -> list[Path]:
    """Move the last run's flight record aside: after a crash it is what one wants to read.

    Where the folder has less than needed_bytes left, the oldest are removed until it has; returns the removed ones.
    """
    older = [folder.record.with_name(f"flight.record.{age}") for age in range(1, KEPT_RECORDS + 1)]
    for newer, target in reversed(list(zip([folder.record, *older], older))):
        if newer.exists():
            newer.replace(target)
    removed = []
    for record in reversed(older):
        if free_bytes(folder.path) >= needed_bytes:
            break
        if record.exists():
            record.unlink()
            removed.append(record)
    return removed


def listen(folder: RunFolder) -> socket.socket:
    """The command socket, readable and writable by this user alone. Call with the lock held."""
    folder.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(folder.socket))
    except OSError as error:
        listener.close()
        raise ControlError(f"{folder.socket}: {error.strerror}; give another --run-dir") from error
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener
