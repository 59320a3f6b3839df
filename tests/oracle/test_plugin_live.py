# SPDX-License-Identifier: Apache-2.0
"""The plug-in of integrations/lerobot in a live LeRobot: `lerobot-rollout` on a robot of no hardware, with and without.

LeRobot finds the plug-in as it finds any: by a distribution's name, which plugins/ gives it without an installation.
Its interpreter needs onnxruntime; LEROBOT_PYTHONPATH may name where it lies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies.act.act_checkpoints import checkpoint

from vla_edge.export.assemble import ExportRequest, export_bundle

ROOT = Path(__file__).resolve().parents[2]
ROLLOUT = "from lerobot.scripts.lerobot_rollout import main; main()"
TICKS = 300
TOLERANCE = 1e-4
"""Of the largest action: rounding, fed back by an arm that stands where it was sent (seen 7e-6)."""


class Live:
    """A checkpoint, its bundle, and rollouts of either."""

    def __init__(self, place: Path, name: str) -> None:
        self.place, self.checkpoint, self.bundle = place, checkpoint(place / name, name), place / f"{name}-bundle"
        export_bundle(ExportRequest(self.checkpoint, self.bundle, threads=1), lambda _: None)

    def rollout(self, policy: Path, *more: str, ticks: int = TICKS) -> tuple[int, str, dict[str, np.ndarray]]:
        """(exit code, what it said, what the arm kept)."""
        out = self.place / "actions.npz"
        out.unlink(missing_ok=True)
        paths = [ROOT / "src", ROOT / "integrations" / "lerobot", Path(__file__).with_name("plugins")]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "ARM_OUT": str(out), "ARM_TICKS": str(ticks)}
        env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("LEROBOT_PYTHONPATH", "")])
        env["HF_LEROBOT_HOME"] = str(self.place / "home")
        words = ["--robot.type=counting_arm", "--fps=1000", "--return_to_initial_position=false", "--play_sounds=false"]
        ran = subprocess.run(
            [os.environ["LEROBOT_PYTHON"], "-c", ROLLOUT, f"--policy.path={policy}", *words, *more],
            capture_output=True,
            text=True,
            env=env,
        )
        kept: dict[str, Any] = {}
        if out.exists():
            with np.load(out) as content:
                kept = dict(content)
        return ran.returncode, ran.stdout + ran.stderr, kept


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    path = os.environ.get("LEROBOT_PYTHONPATH", "")
    found = subprocess.run(
        [os.environ["LEROBOT_PYTHON"], "-c", "import onnxruntime"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
    )
    if found.returncode:
        pytest.skip("LEROBOT_PYTHON has no onnxruntime; name where it lies with LEROBOT_PYTHONPATH")
    return Live(tmp_path_factory.mktemp("live"), "resnet18")


def test_the_bundle_sends_the_actions_that_lerobots_policy_sends(live: Live) -> None:
    _, _, theirs = live.rollout(live.checkpoint)
    _, said, ours = live.rollout(live.bundle, f"--policy.checkpoint={live.checkpoint}")
    assert "the first chunk is LeRobot's to" in said, said
    assert theirs["actions"].shape == ours["actions"].shape == (TICKS, 6)
    assert np.abs(ours["actions"] - theirs["actions"]).max() <= TOLERANCE * np.abs(theirs["actions"]).max()
    took = [float(kept["seconds"][20::20].sum()) for kept in (theirs, ours)]
    print(f"seconds for {TICKS} ticks' chunks: LeRobot {took[0]:.3f}, bundle {took[1]:.3f}")


def test_an_ensemble_is_lerobots(tmp_path: Path, live: Live) -> None:
    ensemble = Live(tmp_path, "ensemble")
    _, _, theirs = ensemble.rollout(ensemble.checkpoint, ticks=60)
    _, _, ours = ensemble.rollout(ensemble.bundle, ticks=60)
    assert np.abs(ours["actions"] - theirs["actions"]).max() <= TOLERANCE * np.abs(theirs["actions"]).max()


def test_a_bundle_that_differs_leaves_the_arm_to_lerobots_policy_and_says_so(live: Live) -> None:
    _, _, theirs = live.rollout(live.checkpoint, ticks=60)
    _, said, ours = live.rollout(
        live.bundle, f"--policy.checkpoint={live.checkpoint}", "--policy.tolerance=1e-9", ticks=60
    )
    assert said.count("LeRobot's policy runs instead") == 1
    np.testing.assert_array_equal(ours["actions"], theirs["actions"])


@pytest.mark.parametrize("file", ("graphs/weights.bin", "config.json"))
def test_a_changed_byte_is_refused_in_one_line_before_the_robot(live: Live, tmp_path: Path, file: str) -> None:
    bundle = tmp_path / "changed"
    shutil.copytree(live.bundle, bundle)
    data = bytearray((bundle / file).read_bytes())
    data[-5] ^= 3  # in config.json: n_action_steps 20 becomes 10
    (bundle / file).write_bytes(data)
    code, said, kept = live.rollout(bundle)
    assert code == 1 and not kept
    last = said.strip().splitlines()[-1]
    assert file in last and "sha256 differs" in last, said
    assert "counting_arm" not in said.split("Loading policy")[-1]
