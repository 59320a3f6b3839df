# SPDX-License-Identifier: Apache-2.0
"""Honest tests on a CPU: a task that can be learnt, one that cannot, a gate that separates, forgetting that replay and
CRaFT reduce. Every number is printed (`pytest -rP`)."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import TrainingError
from vla_edge.export.command import main as export
from vla_edge.files import write_json
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings, SceneVerdict
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.training.evaluation.cls_report import (
    Seen,
    gate_aurocs,
    history_of,
    look,
    scene_pairs,
    similarities,
    write_report,
)
from vla_edge.training.evaluation.evaluate import Scope, evaluate
from vla_edge.training.evaluation.predictors import CheckpointPredictor
from vla_edge.training.progress import silent
from vla_edge.training.run_config import (
    CraftConfig,
    FreezeConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskData,
    TrainConfig,
)
from vla_edge.training.runs import fine_tune
from vla_edge.training.sequential.phases import SharedSettings, Stage, StagePlan, StageTask, hold_out
from vla_edge.training.sequential.task_sequence import StageRun, plan_content, train_stages
from vla_edge.training.sequential.transfer import Transfer
from vla_edge.training.training_frames import Frames, FrameSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import CAMERA, World, one_thread, write_data, write_policy

one_thread()
EVERYTHING = FreezeConfig(vision=False, expert_only=False, state_proj=True)
TRAINED, HELD_OUT = 80, tuple(range(80, 110))
LEARNT = 0.6
"""Share of the better baseline's error that counts as learnt; measured 0.27 of mean-action, 0.25 of hold-last."""
NOT_LEARNT = 0.9
"""Share that a run with shuffled instructions must not get below; measured 1.10."""


def teach(root: Path, world: World, steps: int) -> Path:
    """Write `world`, train the whole tiny policy on its first 80 episodes, return the checkpoint."""
    write_policy(root / "policy")
    write_data(root / "data", world)
    config = TrainConfig(
        str(root / "policy"),
        str(root / "run"),
        (TaskData("reach", str(root / "data"), held_out=HELD_OUT),),
        steps=steps,
        batch_size=32,
        save_every=steps,
        log_every=50,
        device="cpu",
        freeze=EVERYTHING,
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=1e-4, grad_clip_norm=1.0),
        schedule=ScheduleConfig(40, steps, 1e-4),
    )
    fine_tune(config)
    return root / "run" / "checkpoints" / "last" / "pretrained_model"


def shares(root: Path, checkpoint: Path) -> tuple[float, float]:
    """Chunk MAE of the checkpoint on held-out episodes as shares of hold-last's and mean-action's."""
    errors, _, _ = evaluate(
        CheckpointPredictor(checkpoint, "policy", "cpu"), Scope(str(root / "data"), HELD_OUT, stride=1)
    )
    mae = {name: float(by["chunk"].mae.mean()) for name, by in errors.items()}
    print(
        f"held-out MAE: policy {mae['policy']:.4f}, hold last {mae['hold last action']:.4f}, mean action "
        f"{mae['mean action']:.4f}"
    )
    return mae["policy"] / mae["hold last action"], mae["policy"] / mae["mean action"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("taught")
    return root, teach(root, World(episodes=110), 160)


def test_the_task_is_learnt_and_beats_hold_last_and_mean_action_on_held_out_episodes(taught):
    assert max(shares(*taught)) < LEARNT


def test_with_shuffled_instructions_the_same_training_does_not_beat_the_baselines(tmp_path):
    against_hold, against_mean = shares(tmp_path, teach(tmp_path, World(episodes=110, shuffled=True), 160))
    assert against_mean > NOT_LEARNT  # holding the last action is worse than the mean here, so the mean is the bar
    assert against_hold > LEARNT


@pytest.fixture(scope="module")
def gated(taught: tuple[Path, Path]) -> Path:
    """The learnt policy with a delta expert and CLS head trained for 50 steps."""
    root, checkpoint = taught
    config = TrainConfig(
        str(checkpoint),
        str(root / "gated"),
        (TaskData("reach", str(root / "data"), held_out=HELD_OUT),),
        kind="delta",
        delta_target="noise",
        steps=50,
        batch_size=32,
        save_every=50,
        device="cpu",
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(5, 50, 1e-4),
    )
    fine_tune(config)
    return root / "gated" / "checkpoints" / "last" / "pretrained_model"


def test_a_trained_gate_separates_the_same_scene_from_changed_ones_and_an_untrained_one_is_refused(
    taught, gated, tmp_path
):
    root, checkpoint = taught
    policy = SmolVLAPolicy.from_pretrained(gated)
    data = Frames(TaskData("gate", str(root / "data"), episodes=HELD_OUT), FrameSettings((CAMERA,), 1, 0))
    seen = look(policy, data, 1)
    aurocs = gate_aurocs(seen)
    print("AUROC " + ", ".join(f"{name} {value:.3f}" for name, value in aurocs.items()))
    selected = max(("00", "11"), key=lambda name: aurocs[name])
    assert (
        aurocs[selected] > 0.8
    )  # TRAINING.md §6; measured 0.999. 01 is reported beside it: the loss does not align it
    history = history_of(seen, 0.5)
    write_report(tmp_path / "report", history, 0.5, aurocs)
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"similarity.csv", "cls.json", "similarity.png"}
    assert np.isnan(history.similarity[0]) and not history.stable[0]  # no history, no decision

    policy.config = replace(policy.config, cls_trained=False)
    policy.model.config = policy.config
    with pytest.raises(TrainingError, match="never trained"):
        look(policy, data, 1)
    policy.model.config = policy.config = replace(policy.config, cls_trained=True)
    for weight in policy.model.obs_cls_proj.parameters():
        weight.data.zero_()
    with pytest.raises(TrainingError, match="same answer"):
        look(policy, data, 1)
    with pytest.raises(TrainingError, match="no CLS head"):
        look(SmolVLAPolicy.from_pretrained(checkpoint), data, 1)


def test_the_trained_head_is_exported_and_gates_in_the_runtime(taught, gated, tmp_path):
    assert export(["--checkpoint", str(gated), "--out", str(tmp_path / "bundle"), "--threads", "1"]) == 0
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.gate["kind"] == "cls" and {"delta", "delta_kv"} <= set(bundle.manifest.graphs)
    data = Frames(TaskData("gate", str(taught[0] / "data"), episodes=HELD_OUT), FrameSettings((CAMERA,), 1, 0))
    same, changed = scene_pairs(look(SmolVLAPolicy.from_pretrained(gated), data, 1), 4, 0)
    threshold = float(np.percentile(similarities(same)["00"], 5))
    settings = GateSettings("00", threshold, still_mean=0.0, still_worst=0.0, max_age_s=100.0)
    session = PolicySession(
        bundle, load_engine("ort", EngineOptions(threads=1)), SessionOptions(CacheMode.GATED, gate=settings)
    )

    def infer(seen: Seen, now_ns: int) -> tuple[bool, SceneVerdict | None]:
        sample = data.sample(
            int(np.flatnonzero(data.indices == data.dataset.episodes[seen.episode].from_index + seen.frame)[0]), 0
        )
        observation = Observation(
            now_ns,
            {CAMERA: Frame(CAMERA, sample.images[CAMERA], now_ns, now_ns)},
            JointReading(now_ns, now_ns, sample.state),
            sample.task,
        )
        result = session.infer(InferenceRequest(observation, now_ns))
        assert result is not None
        return result.decision.hit, result.verdict

    verdicts: dict[str, list[SceneVerdict | None]] = {"same": [], "changed": []}
    for kind, pairs in (("same", same[:30]), ("changed", changed[:30])):
        for now, before in pairs:
            session.reset()
            assert infer(before, 0) == (False, SceneVerdict.NO_HISTORY)
            verdicts[kind].append(infer(now, 1)[1])
            if verdicts[kind][-1] is SceneVerdict.STABLE:
                assert infer(now, 2)[0]  # the very same picture in a stable scene: no prefix runs
    shares = [verdicts["same"].count(SceneVerdict.STABLE) / 30, verdicts["changed"].count(SceneVerdict.CHANGED) / 30]
    print(f"stable of same {shares[0]:.2f}, changed of changed {shares[1]:.2f}")
    assert (
        min(shares) > 0.8
    )  # the threshold keeps 95 % of same pairs; the AUROC of 0.999 leaves few changed ones above it


# ---- forgetting

MARGIN = 0.1
"""By how much of the task's own best loss forgetting without replay must exceed the others; measured in the
long form 9.9 against 0.13 (replay) and 0.69 (CRaFT) for seed 2, 16.5 against 0.17 and 0.94 for seed 3."""


def two_tasks(root: Path, seed: int, epochs: tuple[float, float]) -> StageRun:
    """Go to the named square, then, on a lighter table, away from it: alone, the second task is learnt by turning the
    first one round."""
    write_policy(root / "policy", seed=seed)
    for name, world in (
        ("near", World(episodes=90, seed=seed)),
        ("away", World(episodes=90, seed=seed + 100, direction=-1, background=110)),
    ):
        write_data(root / name, world)
    plan = StagePlan(
        "two",
        tuple(StageTask(name, str(root / name), 2, 2) for name in ("near", "away")),
        (Stage("near", (1.0,), 2e-3, epochs[0], 40, 200), Stage("away", (0.0, 1.0), 1e-3, epochs[1], 5, 200)),
        SharedSettings(
            batch_size=32,
            validate_every_epochs=1000,
            held_out_fraction=0.1,
            freeze=EVERYTHING,
            optimizer=OptimizerConfig(weight_decay=1e-4, grad_clip_norm=1.0),
            decay_lr=1e-4,
        ),
    )
    base = TrainConfig(
        str(root / "policy"),
        str(root / "plain"),
        (),
        device="cpu",
        seed=seed,
        save_every=10_000,
        validation_frames=64,
        craft=CraftConfig(every=2),
    )
    return StageRun(plan, base)


class Quiet:
    """A reporter that says nothing."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self):
        return silent

    def __exit__(self, *_: object) -> None: ...


def forgetting(root: Path, seed: int, epochs: tuple[float, float]) -> dict[str, Transfer]:
    """The sequence without replay, with replay, and with CRaFT; the first stage is trained once and copied."""
    plain = two_tasks(root, seed, epochs)
    first, second = plain.plan.stages
    replay = replace(
        plain, plan=replace(plain.plan, stages=(first, replace(second, mix=(0.4, 0.6), epochs=second.epochs * 0.6)))
    )
    results: dict[str, Transfer] = {}
    for name, run in (("without", plain), ("replay", replay), ("CRaFT", replace(plain, anchors=64))):
        output = root / name
        if results:
            output.mkdir()
            shutil.copytree(root / "without" / "1_near", output / "1_near", symlinks=True)
            shutil.copytree(root / "without" / "start", output / "start")
        run = replace(run, base=replace(run.base, output=str(output)))
        if results:
            adopt_plan(run)
        results[name] = train_stages(run, Quiet)
    return results


def adopt_plan(run: StageRun) -> None:
    """Write the plan of a sequence whose first stage was copied in."""
    held = [
        hold_out(len(open_dataset(task.dataset).episodes), run.plan.shared.held_out_fraction, run.base.seed)
        for task in run.plan.tasks
    ]
    write_json(Path(run.base.output) / "plan.json", plan_content(run, held))


def told(seed: int, results: dict[str, Transfer]) -> dict[str, float]:
    """Print and return the forgetting of the first task."""
    lost = {name: transfer.forgetting()["near"] for name, transfer in results.items()}
    print(
        f"seed {seed}: "
        + ", ".join(
            f"{name} {value:+.2f} (losses {np.round(results[name].losses[1], 3).tolist()})"
            for name, value in lost.items()
        )
    )
    return lost


def test_forgetting_is_largest_without_replay_and_smaller_with_replay_and_with_craft(tmp_path):
    lost = told(0, forgetting(tmp_path, 0, (5.0, 1.5)))
    assert lost["without"] > MARGIN + max(lost["replay"], lost["CRaFT"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_over_three_seeds_forgetting_without_replay_exceeds_replay_and_craft(tmp_path, seed):
    lost = told(seed, forgetting(tmp_path, seed, (10.0, 3.0)))
    assert lost["without"] > MARGIN + max(lost["replay"], lost["CRaFT"])
