"""`vla-runtime run` against an emulated servo bus: how it begins, and every way in which it can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.machine_stall import timely
from tests.runtime.control.control_rig import START_S, Rig, rig, write_joints

from vla_edge.errors import ControlError
from vla_edge.runtime.control.operator import is_alive

pytest.importorskip("vla_edge._core")


@contextlib.contextmanager
def supervised(made: Rig, bundle: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`vla-runtime run` in the rig's folder, once it has armed."""
    words = [
        "-m",
        "vla_edge.runtime.command",
        "--bundle",
        str(bundle),
        "--robot",
        "koch",
        "--port",
        str(made.emulator.port),
    ]
    words += ["--joints", str(made.joints), "--run-dir", str(made.folder.path), *flags]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        armed = False
        end_s = time.monotonic() + START_S
        while not armed:
            timely(time.monotonic() < end_s, "not armed")
            with contextlib.suppress(ControlError):  # what the rig's own control told is forgotten first
                status = made.status()
                armed = status["pid"] != made.control.pid and bool(status["torque"])
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_killed_supervisor_takes_control_with_it(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as process:
            control = made.status()["pid"]
            process.kill()
            process.wait()
            timely(gone(control), "control still runs ten seconds after its supervisor was killed")
            assert made.status()["reason"] == "operator"  # it was stopped, not killed


def test_a_killed_control_process_is_no_good_end_of_a_run(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as process:
            os.kill(made.status()["pid"], signal.SIGKILL)
            _, said = process.communicate(timeout=30)
        assert process.returncode == 1 and "control ended with exit code -9" in said.splitlines()[-1]


def test_a_closed_terminal_ends_a_run_as_ctrl_c_does(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as process:
            control = made.status()["pid"]
            process.send_signal(signal.SIGHUP)
            process.communicate(timeout=30)
        assert process.returncode == 130 and gone(control)


def test_a_refused_start_is_one_line(golden_bundle: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "vla_edge.runtime.command",
        "--bundle",
        str(golden_bundle),
        "--robot",
        "koch",
        "--port",
        str(tmp_path / "no-port"),
    ]
    words += ["--joints", str(tmp_path / "joints.json"), "--run-dir", str(tmp_path / "run")]
    write_joints(tmp_path / "joints.json")
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    told = [line for line in ran.stderr.splitlines() if not line.startswith("note:")]
    assert ran.returncode == 2 and len(told) == 1 and "no port" in told[0]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_length_that_is_none_is_refused(golden_bundle: Path, seconds: str) -> None:
    words = ["-m", "vla_edge.runtime.command", "--bundle", str(golden_bundle), "--seconds", seconds]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2 and f"--seconds is {seconds}" in ran.stderr
