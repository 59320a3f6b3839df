# SPDX-License-Identifier: Apache-2.0
"""The plug-in of integrations/lerobot in a live LeRobot: `lerobot-rollout` (0.4: `lerobot-record`) on a robot of no
hardware, with and without.

LeRobot finds the plug-in as it finds any: by a distribution's name, which plugins/ gives it without an installation.
Its interpreter needs onnxruntime; LEROBOT_PYTHONPATH may name where it lies, and what else the command imports.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies.act.act_checkpoints import checkpoint, dinov2_checkpoint
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.export.assemble import ExportRequest, export_bundle

ROOT = Path(__file__).resolve().parents[2]
ROLLOUT, RECORD = "lerobot.scripts.lerobot_rollout", "lerobot.scripts.lerobot_record"
RECORD_WORDS = (
    *("--dataset.fps=1000", "--dataset.repo_id=x/eval_y", "--dataset.single_task=go", "--dataset.num_episodes=1"),
    *("--dataset.episode_time_s=600", "--dataset.push_to_hub=false", "--dataset.vcodec=h264", "--display_data=false"),
)
TICKS = 300
TOLERANCE = 1e-4
"""Of the largest action: rounding, fed back by an arm that stands where it was sent (seen 7e-6)."""


class Live:
    """A checkpoint, its bundle, and rollouts of either."""

    def __init__(self, place: Path, name: str, command: str) -> None:
        self.place, self.command, self.bundle = place, command, place / f"{name}-bundle"
        self.checkpoint = checkpoint(place / name, name, "061" if command == ROLLOUT else "044")
        export_bundle(ExportRequest(self.checkpoint, self.bundle, threads=1), lambda _: None)

    def rollout(self, policy: Path, *more: str, ticks: int = TICKS) -> tuple[int, str, dict[str, np.ndarray]]:
        """(exit code, what it said, what the arm kept)."""
        out = self.place / "actions.npz"
        out.unlink(missing_ok=True)
        paths = [ROOT / "src", ROOT / "integrations" / "lerobot", Path(__file__).with_name("plugins")]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "ARM_OUT": str(out), "ARM_TICKS": str(ticks)}
        env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), os.environ.get("LEROBOT_PYTHONPATH", "")])
        env["HF_LEROBOT_HOME"] = str(self.place / "home")
        words = ["--fps=1000", "--return_to_initial_position=false"]
        if self.command == RECORD:
            shutil.rmtree(self.place / "data", ignore_errors=True)
            words = [*RECORD_WORDS, f"--dataset.root={self.place / 'data'}"]
        words += ["--robot.type=counting_arm", "--play_sounds=false"]
        code = f"from {self.command} import main; main()"
        ran = subprocess.run(
            [os.environ["LEROBOT_PYTHON"], "-c", code, f"--policy.path={policy}", *words, *more],
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
    for command in (ROLLOUT, RECORD):
        found = subprocess.run(
            [os.environ["LEROBOT_PYTHON"], "-c", f"import onnxruntime, {command}"],
            env={**os.environ, "PYTHONPATH": os.environ.get("LEROBOT_PYTHONPATH", "")},
            capture_output=True,
            text=True,
        )
        if found.returncode == 0:
            return Live(tmp_path_factory.mktemp("live"), "resnet18", command)
    last = found.stderr.strip().splitlines()[-1]
    pytest.skip(f"LEROBOT_PYTHON cannot run a policy: {last}; name where that lies with LEROBOT_PYTHONPATH")


def test_the_bundle_sends_the_actions_that_lerobots_policy_sends(live: Live) -> None:
    _, _, theirs = live.rollout(live.checkpoint)
    _, said, ours = live.rollout(live.bundle, f"--policy.checkpoint={live.checkpoint}")
    assert "the first chunk is LeRobot's to" in said, said
    assert theirs["actions"].shape == ours["actions"].shape == (TICKS, 6)
    assert np.abs(ours["actions"] - theirs["actions"]).max() <= TOLERANCE * np.abs(theirs["actions"]).max()
    took = [float(kept["seconds"][20::20].sum()) for kept in (theirs, ours)]
    print(f"seconds for {TICKS} ticks' chunks: LeRobot {took[0]:.3f}, bundle {took[1]:.3f}")


def test_an_ensemble_is_lerobots(tmp_path: Path, live: Live) -> None:
    ensemble = Live(tmp_path, "ensemble", live.command)
    _, _, theirs = ensemble.rollout(ensemble.checkpoint, ticks=60)
    _, _, ours = ensemble.rollout(ensemble.bundle, ticks=60)
    assert np.abs(ours["actions"] - theirs["actions"]).max() <= TOLERANCE * np.abs(theirs["actions"]).max()


def test_a_checkpoint_that_lerobot_does_not_open_is_not_compared_and_the_bundle_runs(
    tmp_path: Path, live: Live
) -> None:
    folder = dinov2_checkpoint(tmp_path / "dinov2")
    bundle = tmp_path / "dinov2-bundle"
    export_bundle(ExportRequest(folder, bundle, threads=1), lambda _: None)
    _, said, kept = live.rollout(
        bundle, f"--policy.checkpoint={folder}", "--robot.height=28", "--robot.width=42", ticks=60
    )
    assert said.count("LeRobot does not open the checkpoint") == 1, said
    assert kept["actions"].shape == (60, 6) and np.isfinite(kept["actions"]).all()


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


def test_the_first_actions_of_smolvlas_chunk_are_lerobots(
    tmp_path: Path, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of fewer actions than the checkpoint draws noise for: compared, and what is sent is LeRobot's."""
    if live.command != ROLLOUT:
        pytest.skip("0.4.4's command has no task of its own")
    small = {"num_vlm_layers": 2, "chunk_size": 6, "n_action_steps": 3, "num_steps": 3, "tokenizer_max_length": 12}
    made = RandomPolicy(cameras=("front", "wrist"), image_width=128, image_height=96, config=small)
    write_random_policy(tmp_path / "policy", made)
    export_bundle(ExportRequest(tmp_path / "policy", tmp_path / "bundle", threads=1, chunk_size=3), lambda _: None)
    monkeypatch.chdir(tmp_path / "policy")  # where LeRobot looks for the backbone that config.json names
    words = ("--task=go",)
    _, said, theirs = live.rollout(tmp_path / "policy", *words, ticks=30)
    assert theirs, said
    _, said, ours = live.rollout(tmp_path / "bundle", f"--policy.checkpoint={tmp_path / 'policy'}", *words, ticks=30)
    assert "the first chunk is LeRobot's to" in said, said
    assert np.abs(ours["actions"] - theirs["actions"]).max() <= TOLERANCE * np.abs(theirs["actions"]).max()
