# SPDX-License-Identifier: Apache-2.0
"""A policy distilled to few flow steps: what it learns, what its checkpoint and bundle say, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.training_world import World, write_data, write_policy

from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import ConfigError, ObservationError, TrainingError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.checkpoint import MODEL_FILE
from vla_edge.policies.smolvla.config import DISTILLED
from vla_edge.policies.smolvla.distill import step_starts
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.runtime.inference.session import PolicySession, SessionOptions
from vla_edge.training.command import main
from vla_edge.training.loop_inputs import teacher_of
from vla_edge.training.run_config import LoraConfig, OptimizerConfig, ScheduleConfig, TaskData, TrainConfig
from vla_edge.training.runs import fine_tune, prepare, resumed_policy

STEPS = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, data/, run/: the policy, distilled on the data to one step."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("distill")
    write_policy(root / "policy", chunk_size=4, n_action_steps=4)
    write_data(root / "data", World(episodes=4, length=6))
    fine_tune(config(root, root / "run"))
    return root


def config(root: Path, out: Path, flow_steps: int = 1) -> TrainConfig:
    return TrainConfig(
        str(root / "policy"),
        str(out),
        (TaskData("data", str(root / "data")),),
        kind="distill",
        num_steps=flow_steps,
        steps=STEPS,
        batch_size=8,
        device="cpu",
        optimizer=OptimizerConfig(lr=2e-3),
        schedule=ScheduleConfig(warmup_steps=100, decay_steps=1000),
    )


def checkpoint(root: Path) -> Path:
    return root / "run" / "checkpoints" / "last" / "pretrained_model"


def distance(root: Path, other: SmolVLAPolicy, steps: int) -> float:
    """Of `other`'s chunks in `steps` steps from the teacher's in ten, on the data's first frames, in the mean."""
    teacher, data = SmolVLAPolicy.from_pretrained(root / "policy"), open_dataset(root / "data")
    generator = torch.Generator().manual_seed(7)
    found = []
    for index in range(8):
        names = {camera.name: data.image(camera.source, index) for camera in teacher.settings.cameras}
        state = torch.from_numpy(data.column("observation.state")[index].copy())
        batch = teacher.preprocess(
            {**names, "observation.state": state, "task": data.tasks[int(data.column("task_index")[index])]}
        )
        noise = torch.randn((1, 4, 8), generator=generator)
        with torch.no_grad():
            prefix = teacher.model.prefix_of(teacher.prepare(batch))
            made = [teacher.model.integrate(prefix, noise, 10), other.model.integrate(prefix, noise, steps)]
        found.append((made[0] - made[1])[..., :2].abs().mean())
    return float(torch.stack(found).mean())


def test_one_step_of_the_student_comes_nearer_to_the_teachers_ten_than_one_of_the_teachers(world: Path) -> None:
    teacher, student = (SmolVLAPolicy.from_pretrained(folder) for folder in (world / "policy", checkpoint(world)))
    assert distance(world, student, 1) < 0.5 * distance(world, teacher, 1)


def test_only_the_expert_and_the_action_projections_change(world: Path) -> None:
    before, after = (load_file(folder / MODEL_FILE) for folder in (world / "policy", checkpoint(world)))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed and all("lm_expert" in name or ".action_" in name for name in changed)


def test_the_checkpoint_says_its_steps_in_lerobots_field_and_its_teacher_beside_it(world: Path) -> None:
    content = json.loads((checkpoint(world) / "config.json").read_text())
    assert content["num_steps"] == 1 and "distilled" not in content
    mark = json.loads((checkpoint(world) / DISTILLED).read_text())
    teacher = SmolVLAPolicy.from_pretrained(world / "policy")
    assert mark == {"flow_steps": 1, "teacher_steps": 10, "teacher": teacher.digest}
    assert SmolVLAPolicy.from_pretrained(checkpoint(world)).config.distilled == mark


def test_the_bundle_takes_the_steps_it_was_distilled_to_and_refuses_others_in_a_line(
    world: Path, tmp_path: Path
) -> None:
    export_bundle(ExportRequest(checkpoint(world), tmp_path / "bundle", threads=1), lambda step: None)
    bundle = open_bundle(tmp_path / "bundle")
    policy = bundle.manifest.policy
    assert policy.distilled and policy.num_steps == policy.min_steps == 1
    engine = load_engine("ort", EngineOptions(threads=1, spin=False))
    PolicySession(bundle, engine, SessionOptions(steps=1))
    with pytest.raises(ObservationError, match="steps is 10; this policy was distilled to 1: ask for no other, or"):
        PolicySession(bundle, engine, SessionOptions(steps=10))
    uneven = ExportRequest(checkpoint(world), tmp_path / "uneven", threads=1, step_sizes=(0.5, 0.5))
    with pytest.raises(ConfigError, match="was distilled to 1 equal steps; leave --step-sizes out"):
        export_bundle(uneven, lambda step: None)


def test_evaluate_takes_a_distilled_checkpoint_in_its_steps_and_refuses_others_in_a_line(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(checkpoint(world)), "--dataset", str(world / "data"), "--episodes", "0"]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--flow-steps", "10"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "was distilled to 1: ask for no other" in told


def test_other_steps_in_config_json_than_it_was_distilled_to_are_refused(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    SmolVLAPolicy.from_pretrained(checkpoint(world)).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "num_steps": 10}))
    with pytest.raises(ConfigError, match=r"num_steps is 10, the policy was distilled to 1 \(distilled.json\); set it"):
        SmolVLAPolicy.from_pretrained(folder)


def test_a_run_that_goes_on_needs_the_weights_it_began_with(world: Path, tmp_path: Path) -> None:
    run = config(world, tmp_path / "run")
    student = resumed_policy(run, world / "run" / "checkpoints" / "last")
    other = write_policy(tmp_path / "other", seed=5, chunk_size=4, n_action_steps=4)
    with open_dataset(world / "data") as data, pytest.raises(TrainingError, match="not the weights this run is dist"):
        teacher_of(replace(run, policy=str(other)), [data], student)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more steps than the policy takes": ({"num_steps": 10}, "--flow-steps 10: the policy takes 10; distill to fewer"),
    "adapters": ({"lora": LoraConfig(rank=2)}, "--lora-rank does not go with distill"),
    "padded dimensions": ({"padded_dims": True}, "--padded-dims does not go with distill"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_distilled_is_one_line(world: Path, tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        prepare(replace(config(world, tmp_path / "run"), **changes))


def test_a_distilled_policy_is_not_trained_on(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["fine-tune"], ["distill", "--flow-steps", "1"]):
        told = [*command, "--checkpoint", str(checkpoint(world)), "--dataset", str(world / "data")]
        assert main([*told, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
        assert "distilled to 1 flow steps, which more training would undo" in capsys.readouterr().err


def test_samples_are_asked_for_where_a_step_begins() -> None:
    torch.manual_seed(0)
    times = step_starts(4, 4000, torch.device("cpu"))
    assert set(times.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert all(abs(float((times == start).float().mean()) - 0.25) < 0.03 for start in (1.0, 0.75, 0.5, 0.25))
    assert set(step_starts(1, 8, torch.device("cpu")).tolist()) == {1.0}
