# SPDX-License-Identifier: Apache-2.0
"""Units for systemd: the command of this installation, this robot file, and systemd's own verdict on them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vla_edge.runtime.command import main
from vla_edge.runtime.service import install_service

WHOLE = "port: /dev/arm\njoints: arm.json\ncameras: {a: '0'}\nbundle: b\ntask: pick 100% of $it\n"


@pytest.mark.parametrize("words", [[], ["--user"]], ids=["system", "user"])
def test_units_call_this_command_with_this_robot_and_systemd_takes_them(tmp_path: Path, words: list[str]) -> None:
    robot = tmp_path / "my 50% robot.yaml"
    robot.write_text(WHOLE)
    units = tmp_path / "units"
    assert main(["install-service", "--robot-file", str(robot), "--unit-dir", str(units), *words]) == 0
    texts = {file.name: file.read_text() for file in sorted(units.iterdir())}
    assert sorted(texts) == sorted(install_service.UNITS)
    for text in texts.values():
        # Where the kernel shares real time out by group, either takes it from every unit.
        assert not any(line.startswith(("CPUWeight", "CPUQuota", "CPUShares")) for line in text.splitlines())
        assert "@" not in text.replace("@system-service", "") and f'"{tmp_path}/my 50%% robot.yaml"' in text
        (start,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        assert Path(start.removeprefix("ExecStart=").split()[0]).is_file()
        (manual,) = [line for line in text.splitlines() if line.startswith("Documentation=file://")]
        assert Path(manual.removeprefix("Documentation=file://")).is_file()
        assert ("User=" in text) == (not words)
    if tool := shutil.which("systemd-analyze"):
        files = [str(units / name) for name in texts]
        judged = subprocess.run([tool, "verify", "--man=no", *words, *files], capture_output=True, text=True)
        assert "vla-" not in judged.stderr, judged.stderr
    assert main(["uninstall-service", "--unit-dir", str(units), *words]) == 0
    assert not list(units.iterdir())
    assert main(["uninstall-service", "--unit-dir", str(units), *words]) == 2


def test_a_robot_file_that_lacks_something_installs_nothing(tmp_path: Path, capsys) -> None:
    robot = tmp_path / "robot.yaml"
    robot.write_text("port: /dev/arm\n")
    assert main(["install-service", "--robot-file", str(robot), "--unit-dir", str(tmp_path / "units")]) == 2
    assert "says no joints, bundle, task, camera" in capsys.readouterr().err
    assert not (tmp_path / "units").exists()
    robot.write_text(WHOLE)
    assert main(["install-service", "--robot-file", str(robot), "--unit-dir", "/proc/a/b"]) == 2
    assert "'/proc/a/b' cannot be made" in capsys.readouterr().err


def test_a_unit_that_systemd_refuses_is_not_written(tmp_path: Path, capsys, monkeypatch) -> None:
    robot = tmp_path / "robot.yaml"
    robot.write_text(WHOLE)
    judge = tmp_path / "judge"
    judge.write_text("#!/bin/sh\necho 'vla-control.service: Unknown key' >&2\n")
    judge.chmod(0o755)
    monkeypatch.setattr(install_service.shutil, "which", lambda name, path=None: str(judge) if path is None else None)
    assert main(["install-service", "--robot-file", str(robot), "--unit-dir", str(tmp_path / "units")]) == 1
    assert "Unknown key" in capsys.readouterr().err and not (tmp_path / "units").exists()
