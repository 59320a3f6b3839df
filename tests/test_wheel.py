# SPDX-License-Identifier: Apache-2.0
"""The wheel in a fresh environment without the repository: every command, the demo, the steps of the Dockerfile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("export-engines", "vla-runtime", "vla-bench", "vla-calibrate", "vla-data", "vla-train", "vla-doctor")
NEEDED = (
    "vla_edge/deploy/vla-control.service",
    "vla_edge/docs/operations.md",
    "vla_edge/examples/reach-cube/bundle/manifest.json",
    "vla_edge/runtime/service/status_page.html",
    "vla_edge/training/kuavo.yaml",
    "vla_edge/robot/arms/koch.yaml",
    "vla_edge/robot/arms/so101.yaml",
    "vla_edge/robot/sim/still_arm.c",
)
pytestmark = pytest.mark.check


def run(*words: object, cwd: Path, within_s: float = 900) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    made = subprocess.run(
        [*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=within_s, env=environment
    )
    assert made.returncode == 0, f"{words}: {made.stdout[-2000:]}{made.stderr[-2000:]}"
    return made.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks: nothing that was built here can help."""
    folder = tmp_path_factory.mktemp("sources")
    archive = folder / "tree.tar"
    run("git", "-C", ROOT, "archive", "-o", archive, "HEAD", cwd=folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "tree")
    return folder / "tree"


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "dist", ".", cwd=sources)
    (made,) = (sources / "dist").glob("*.whl")
    return made


def test_the_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in NEEDED if name not in names]
    assert any(re.fullmatch(r"vla_edge/_core\..*\.so", name) for name in names)
    assert not [name for name in names if name.startswith("tests")]
    assert wheel.stat().st_size < 8 << 20


def test_the_sources_of_the_sdist_build_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=sources)
    (sdist,) = tmp_path.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, sdist, cwd=tmp_path)
    (made,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(made).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_every_command_runs_from_the_wheel_and_the_demo_moves_an_arm(wheel: Path, tmp_path: Path) -> None:
    """The environment is made by the Dockerfile's own step; its Debian packages are those of this machine."""
    (extras,) = re.findall(r"whl\)\[([a-z,]+)\]", (ROOT / "deploy" / "Dockerfile").read_text())
    run(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    there = tmp_path / "env" / "bin"
    run(there / "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[{extras}]", cwd=tmp_path)
    for command in COMMANDS:
        assert run(there / command, "--version", cwd=tmp_path).startswith(command)
        assert "usage:" in run(there / command, "--help", cwd=tmp_path)
    told = run(there / "vla-runtime", "demo", "--out", "demo", "--seconds", "8", cwd=tmp_path)
    assert "reached 3 of 3" in told and ". env/bin/activate" in told
    run(there / "vla-runtime", "report", cwd=tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
