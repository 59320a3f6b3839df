# SPDX-License-Identifier: Apache-2.0
"""The units under a user's systemd that runs for this test alone, in namespaces of its own, on emulated servos.

What happens in there is this file as a program; it ends with an AssertionError or with `DONE`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
SYSTEMD = Path("/lib/systemd/systemd")
UNITS = ("vla-control", "vla-inference")
START = ("2048", "1200", "2900", "2600", "2048", "1500")
DONE = "the units came and went"
NO_MANAGER = 77
EVENT_S = 240.0
INSIDE = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/0
chmod 700 /run/user/0
dbus-daemon --session --address=unix:path=/run/user/0/bus --fork
"$1" --user > systemd.log 2>&1 &
exec "$2" "$3"
"""


@pytest.mark.check
def test_units_run_under_systemd_and_their_arm_moves_holds_and_is_let_go(tmp_path: Path) -> None:
    tools = [name for name in ("unshare", "dbus-daemon", "systemctl") if shutil.which(name) is None]
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if tools or not SYSTEMD.exists() or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip(f"no systemd in namespaces of its own here ({', '.join(tools) or 'unshare is refused'})")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": "/run/user/0",
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/0/bus",
    }
    words = [*alone, "sh", "-c", INSIDE, "sh", str(SYSTEMD), sys.executable, __file__]
    ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    if ran.returncode == NO_MANAGER:
        pytest.skip(f"systemd does not start here: {(tmp_path / 'systemd.log').read_text()[-200:]}")
    assert ran.returncode == 0 and ran.stdout.endswith(f"{DONE}\n"), ran.stdout + ran.stderr


def vla_runtime(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vla_edge.runtime.command", *words], capture_output=True, text=True)


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True).stdout.strip()


def until(what: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + EVENT_S
    while not (found := what()):
        assert time.monotonic() < end_s, f"did not happen; {status()}; {systemctl('status', *UNITS)}"
        time.sleep(0.05)
    return found


def status() -> Mapping[str, Any]:
    said = vla_runtime("status", "--json").stdout
    return json.loads(said) if said else {}


def armed_until_it_moves() -> None:
    """Again where inference was not ready yet: the hold latches then."""

    def moves() -> bool:
        if status().get("state") not in ("moving", "planning"):
            vla_runtime("arm")
        return status().get("state") == "moving"

    until(moves)


def the_units_of_a_robot(folder: Path) -> None:
    from tests.runtime.control.control_rig import write_joints

    from vla_edge.robot.sim.emulator_process import emulator_process

    write_joints(folder / "koch.json")
    np.savez(folder / "pictures.npz", frames=np.zeros((1, 96, 128, 3), np.uint8))
    words = ("--joints", str(folder / "koch.json"), "--positions", *START)
    with emulator_process(folder, *words) as arm:
        (folder / "robot.yaml").write_text(
            "robot: koch\nport: port\njoints: koch.json\ncameras: {laptop: 'file:pictures.npz', phone: pictures.npz}\n"
            f"bundle: {ROOT / 'examples' / 'reach-cube' / 'bundle'}\ntask: reach the red cube\n"
        )
        installed = vla_runtime("install-service", "--user")
        assert installed.returncode == 0 and "systemctl --user enable --now" in installed.stdout, installed.stderr
        systemctl("daemon-reload")
        systemctl("enable", "--now", *UNITS)
        until(lambda: status().get("state") == "disarmed")
        assert not arm.entries("goal"), "services start disarmed"
        armed_until_it_moves()
        before = systemctl("show", "-P", "MainPID", "vla-inference")
        systemctl("kill", "-s", "KILL", "vla-inference")
        until(lambda: status()["state"] == "hold")
        until(lambda: systemctl("show", "-P", "MainPID", "vla-inference") not in ("0", before))
        armed_until_it_moves()
        removed = vla_runtime("uninstall-service", "--user")
        assert removed.returncode == 0 and removed.stdout.startswith("removed from"), removed.stderr
        assert [systemctl("is-active", unit) for unit in UNITS] == ["inactive", "inactive"]
        assert not list(folder.glob(".config/systemd/user/vla-*"))
        assert vla_runtime("status").returncode == 1, "control has ended"
        assert arm.entries("goal"), "it moved"
    print(DONE)


if __name__ == "__main__":
    end_s = time.monotonic() + 60
    while systemctl("is-system-running") not in ("running", "degraded"):
        if time.monotonic() > end_s:
            sys.exit(NO_MANAGER)
        time.sleep(0.1)
    sys.path.insert(0, str(ROOT))
    the_units_of_a_robot(Path.cwd())
