# SPDX-License-Identifier: Apache-2.0
"""Pieces for a machine without network: joined they are the wheels again, a damaged piece is noticed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def carry() -> Any:
    spec = importlib.util.spec_from_file_location("carry_wheels", ROOT / "scripts" / "carry_wheels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["carry_wheels"] = module
    spec.loader.exec_module(module)
    return module


def packed(carry: Any, tmp_path: Path) -> Path:
    """Three pieces of a folder with one file, and a stand-in for the interpreter that only prints its arguments."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").write_bytes(bytes(range(256)) * 1000)
    out = tmp_path / "out"
    out.mkdir()
    assert len(carry.pack(tmp_path / "wheels", out, 100_000, "vla-edge")) == 3
    return out


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_script_checks_joins_and_installs(carry: Any, tmp_path: Path) -> None:
    out = packed(carry, tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    ran = subprocess.run(["sh", str(out / "install.sh"), str(python)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (out / "wheels" / "one.whl").read_bytes() == bytes(range(256)) * 1000
    assert "--no-index --find-links wheels --no-build-isolation vla-edge" in ran.stdout


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_a_damaged_piece_stops_the_installation(carry: Any, tmp_path: Path) -> None:
    out = packed(carry, tmp_path)
    piece = out / "piece-001"
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    ran = subprocess.run(["sh", str(out / "install.sh"), "false"], capture_output=True, text=True)
    assert ran.returncode != 0 and "piece-001: FAILED" in ran.stdout
    assert not (out / "wheels").exists()


def test_the_base_dependencies_are_those_of_the_project(carry: Any) -> None:
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since 3.11")
    assert carry.base_dependencies() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
