# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime install-service`: units of systemd for control and inference, from the templates in `deploy/`.

The units call the command of this installation with this robot file. Services start disarmed; `vla-runtime arm` lets
the arm move. `uninstall-service` removes them again.
"""

from __future__ import annotations

import argparse
import getpass
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from vla_edge.command_line import answer, folder_to_write
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.files import write_text
from vla_edge.robot.robot_file import ROBOT_FILE, read_robot_file

TEMPLATES = Path(str(files("vla_edge"))) / "deploy"
UNITS = ("vla-control.service", "vla-inference.service")
SYSTEM_UNITS = Path("/etc/systemd/system")
RUN_FOLDER = Path("/run/vla-edge")
NEEDED = ("--port", "--joints", "--bundle", "--task", "--camera")
_ONLY_SYSTEM = ("User=", "SupplementaryGroups=", "OOMScoreAdjust=-")
"""Lines that a user's own systemd does not take."""


def unit_texts(robot_file: Path, user: str, as_user: bool) -> dict[str, str]:
    """Name and text of each unit. as_user: for the systemd of one user, not of the machine. Sandboxing that needs root
    falls away there."""
    command = shutil.which("vla-runtime", path=str(Path(sys.executable).parent))
    words = [command] if command else [sys.executable, "-m", "vla_edge.runtime.command"]
    values = {
        "@COMMAND@": " ".join(_quoted(word) for word in words),
        "@ROBOT_FILE@": _quoted(str(robot_file.absolute())),
        "@USER@": user,
        "@DOCUMENTATION@": (TEMPLATES.parent / "docs" / "operations.md").as_uri(),
    }
    return {name: _filled((TEMPLATES / name).read_text(encoding="utf-8"), values, as_user) for name in UNITS}


def _filled(text: str, values: Mapping[str, str], as_user: bool) -> str:
    for mark, value in values.items():
        text = text.replace(mark, value)
    if as_user:
        head, _, rest = text.partition("NoNewPrivileges")
        text = head + "\n[Install]" + rest.partition("[Install]")[2].replace("multi-user.target", "default.target")
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_ONLY_SYSTEM))
    return text


def _quoted(word: str) -> str:
    """A word of a unit's command line: a percent sign and a dollar sign stand for themselves."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word


def verify(texts: Mapping[str, str], as_user: bool) -> None:
    """Let `systemd-analyze verify` judge the units where it is installed. CheckFailed: its first complaint."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in texts]
        for path, text in zip(paths, texts.values()):
            path.write_text(text, encoding="utf-8")
        words = [tool, "verify", "--man=no", *(["--user"] if as_user else []), *map(str, paths)]
        judged = subprocess.run(words, capture_output=True, text=True)
    ours = [line for line in judged.stderr.splitlines() if "vla-" in line]
    if ours:
        raise CheckFailed(f"systemd-analyze: {ours[0].replace(folder + '/', '')}")


def units_folder(as_user: bool) -> Path:
    """Where systemd looks for units: the machine's, or this user's."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(config) / "systemd" / "user" if as_user else SYSTEM_UNITS


def _add_where(parser: argparse.ArgumentParser, folder: Callable[[str], Path]) -> None:
    parser.add_argument("--user", action="store_true", help="this user's systemd instead of the machine's: no root")
    parser.add_argument("--unit-dir", type=folder, metavar="DIR", help="folder of the units (default: systemd's own)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot-file", type=Path, default=ROBOT_FILE, metavar="FILE", help="the robot they run")
    parser.add_argument(
        "--as", dest="account", metavar="NAME", help="account the services run under (default: who called sudo)"
    )
    _add_where(parser, folder_to_write)


def run(arguments: argparse.Namespace) -> int:
    given = {flag for flag, _ in read_robot_file(arguments.robot_file)}
    if missing := [flag[2:] for flag in NEEDED if flag not in given]:
        raise ConfigError(
            f"{arguments.robot_file} says no {', '.join(missing)}; services need it: `vla-runtime setup --replace` "
            "finds it, or write it in by hand"
        )
    account = arguments.account or os.environ.get("SUDO_USER") or getpass.getuser()
    try:
        pwd.getpwnam(account)
    except KeyError:
        raise ConfigError(f"there is no account {account!r}; make it with `sudo useradd --system {account}`") from None
    texts = unit_texts(arguments.robot_file, account, arguments.user)
    verify(texts, arguments.user)
    folder = arguments.unit_dir or units_folder(arguments.user)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except PermissionError:
        raise ConfigError(f"no permission on {folder}; run it with sudo, or with --user for your own systemd") from None
    systemctl = "systemctl --user" if arguments.user else "sudo systemctl"
    print(f"{folder}: {', '.join(texts)}")
    print(f"next: {systemctl} daemon-reload && {systemctl} enable --now {' '.join(n[:-8] for n in UNITS)}")
    whose = "" if arguments.user or account == getpass.getuser() else f"sudo -u {account} "
    where = "" if arguments.user else f" --run-dir {RUN_FOLDER}"
    print(f"then: {whose}vla-runtime arm{where} (they start disarmed)")
    answer({"folder": str(folder), "units": list(texts), "account": account})
    return 0


def add_uninstall_arguments(parser: argparse.ArgumentParser) -> None:
    _add_where(parser, Path)


def run_uninstall(arguments: argparse.Namespace) -> int:
    folder = arguments.unit_dir or units_folder(arguments.user)
    there = [folder / name for name in UNITS if (folder / name).exists()]
    if not there:
        raise ConfigError(f"{folder} holds no units of vla-edge; nothing was removed")
    systemctl = shutil.which("systemctl")
    if systemctl and arguments.unit_dir is None:
        words = [systemctl, *(["--user"] if arguments.user else []), "disable", "--now", *(path.name for path in there)]
        stopped = subprocess.run(words, capture_output=True, text=True)
        if stopped.returncode:
            print(f"note: {stopped.stderr.strip().splitlines()[-1] if stopped.stderr.strip() else 'not stopped'}")
    try:
        for path in there:
            path.unlink()
    except PermissionError:
        raise ConfigError(f"no permission on {folder}; run it with sudo") from None
    print(f"removed from {folder}: {', '.join(path.name for path in there)}")
    answer({"folder": str(folder), "removed": [path.name for path in there]})
    return 0
