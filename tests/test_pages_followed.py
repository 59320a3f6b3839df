# SPDX-License-Identifier: Apache-2.0
"""README and docs/from-lerobot.md followed word for word, in a folder of their own: every command they give, in order.

A stranger has a checkpoint, an arm and cameras; here they are the example's and a simulated arm behind an emulated bus.
Words are added where a command would run until somebody stops it, and where it would write outside the folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.test_readme import ROOT, commands

pytestmark = pytest.mark.check
BIN = Path(sys.executable).parent
EXAMPLE = ROOT / "examples" / "reach-cube"
FOLDER = "outputs/train/{}/checkpoints/last/pretrained_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("my_policy", "RUN"):
        shutil.copytree(EXAMPLE / "checkpoint", tmp_path / FOLDER.format(name))
    return tmp_path


@pytest.fixture
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """A simulated arm behind an emulated bus: its port, its joint calibration, its cameras."""
    home = tmp_path_factory.mktemp("arm")
    words = [sys.executable, "-m", "vla_edge.robot.sim.simulator", "--run-dir", str(home), "--size", "128x96"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


def run(line: str, folder: Path, code: int = 0) -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(folder / "config")}
    words = shlex.split(line)
    made = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900, env=environment)
    assert made.returncode == code, f"{line}: {made.stdout[-1500:]}\n{made.stderr[-1500:]}"
    return made.stdout + made.stderr


def complete(folder: Path, arm: dict[str, object]) -> None:
    """What `setup` finds on a machine with an arm and cameras, written into the file it made."""
    file = folder / "robot.yaml"
    cameras = arm["frames"]
    assert isinstance(cameras, dict)
    found = yaml.safe_load(file.read_text())
    found |= {"port": arm["port"], "joints": arm["calibration"], "task": "put the cube in the box"}
    found["cameras"] = {name.rpartition(".")[2]: f"sim:{path}" for name, path in cameras.items()}
    file.write_text(yaml.safe_dump(found))


def follow(page: Path, folder: Path, arm: dict[str, object]) -> list[str]:
    """Run every whole command of the page; the lines that were run."""
    ran = []
    for line in dict.fromkeys(commands(page)):
        words = line.split()
        if len(words) < 2 and words[0] != "vla-doctor" or "…" in line or "serve" in words or "--precision" in words:
            continue  # a word in a sentence; a service, which tests/runtime/service asks; a search of minutes
        if line.startswith("vla-runtime cameras") or "calibrate-joints" in words or "PORT" in line:
            continue  # they need a person, or stand for what robot.yaml says
        if words[:2] == ["vla-runtime", "setup"]:
            run(f"{line} --replace", folder)
            complete(folder, arm)
        elif words[:2] == ["vla-runtime", "install-service"]:
            run(f"{line} --unit-dir units", folder)
        elif words[0] == "vla-runtime" and words[1].startswith("--"):
            run(f"{line} --seconds 3", folder)
        elif "identity" in words:
            other = ROOT / "tests" / "data" / "koch_v30_official"
            assert "differences, the first" in run(line.replace("DATASET", str(other)), folder, code=1)
        elif "infer" in words:
            fields: dict[str, Any] = {"observation.state": np.zeros(6, np.float32), "task": "reach the red cube"}
            for name in ("laptop", "phone"):
                fields[f"observation.images.{name}"] = np.zeros((96, 128, 3), np.uint8)
            np.savez(folder / "OBS.npz", **fields)
            run(line, folder)
        else:
            run(line, folder)
        ran.append(line)
    return ran


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "from-lerobot.md"], ids=lambda page: page.stem)
def test_every_command_of_the_page_works_in_order(page: Path, folder: Path, arm: dict[str, object]) -> None:
    ran = follow(page, folder, arm)
    told = re.sub(r"\s+", " ", " ".join(ran))
    for needed in ("export-engines --checkpoint", "--robot sim", "vla-runtime setup", "vla-runtime --shadow", "report"):
        assert needed in told, f"{page.name} gives no {needed}"
