# SPDX-License-Identifier: Apache-2.0
"""The deployment checklist on an exported tiny policy, and evaluation and comparison of checkpoint, bundle and saved
predictions."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vla_edge.bundle import MANIFEST, file_sha256, open_bundle, write_manifest
from vla_edge.doctor import main as doctor
from vla_edge.errors import DatasetError, ObservationError
from vla_edge.export.command import main as export
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.robot.arm_description import arm_names, load_arm
from vla_edge.runtime.inference.units import read_tables
from vla_edge.training.command import main
from vla_edge.training.evaluation.compare_report import Contender, draw
from vla_edge.trials import deploy_check, safety_check
from vla_edge.trials.deploy_check import FAILED, NOT_RUN, PASSED, check_deployment
from vla_edge.trials.identity_check import robot_differences

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import CAMERA, World, one_thread, write_data, write_policy

one_thread()

SLOW_HZ = 0.01
"""A control rate that this host keeps up with, however busy it is."""


def changed(bundle: Path, target: Path, change) -> Path:
    """A copy of the bundle whose tables `change` altered, with hashes that fit: only the checklist can find it."""
    shutil.copytree(bundle, target)
    tables = load_file(target / "tables.safetensors")
    change(tables)
    save_file(tables, target / "tables.safetensors")
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["files"]["tables.safetensors"] = file_sha256(target / "tables.safetensors")
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, data/ with three episodes, and the policy's bundle/ with the statistics of the data."""
    root = tmp_path_factory.mktemp("deploy")
    write_policy(root / "policy", chunk_size=4, n_action_steps=3)
    write_data(root / "data", World(episodes=3, length=8))
    assert export(["--checkpoint", str(root / "policy"), "--out", str(root / "exported"), "--threads", "1"]) == 0
    with open_dataset(root / "data") as data:
        known = {
            f"{feature}.{name}": np.asarray(data.stats[feature][name], np.float32)
            for feature in ("observation.state", "action")
            for name in ("mean", "std")
        }
    changed(root / "exported", root / "bundle", lambda tables: tables.update(known))
    return root


def test_the_eleven_checks_run_on_an_exported_policy(place):
    items = check_deployment(place / "bundle", place / "data", None, SLOW_HZ, 1)
    assert [item.name for item in items] == [
        "dataset",
        "speed",
        "output range",
        "instruction",
        "image preprocessing",
        "state normalisation",
        "action round trip",
        "safety limits",
        "delta expert",
        "exception handling",
        "logging",
    ]
    assert items[1].found.startswith("overlapped: p50 ") and ", in 10 flow steps; 3 actions" in items[1].found
    states = {item.name: item.state for item in items}
    assert states.pop("safety limits") == NOT_RUN  # the policy has two joints, the arm six
    assert set(states.values()) == {PASSED}


def test_declared_cameras_that_the_data_never_had_are_masked(place, tmp_path):
    """As in fine-tunes of smolvla_base: config.json keeps cameras of 256 x 256 that no data had."""
    features = {"observation.state": {"type": "STATE", "shape": [2]}}
    names = (CAMERA, "observation.images.camera2", "observation.images.camera3")
    features |= {name: {"type": "VISUAL", "shape": [3, 256, 256]} for name in names}
    write_policy(tmp_path / "policy", chunk_size=4, n_action_steps=2, input_features=features)
    words = ["--checkpoint", str(tmp_path / "policy"), "--dataset", str(place / "data"), "--threads", "1"]
    assert export([*words, "--out", str(tmp_path / "bundle")]) == 0
    cameras = open_bundle(tmp_path / "bundle").manifest.cameras
    assert [(camera.height, camera.seen) for camera in cameras] == [(64, True), (256, False), (256, False)]
    states = {item.name: item for item in check_deployment(tmp_path / "bundle", place / "data", None, SLOW_HZ, 1)}
    assert states["image preprocessing"].state == PASSED and "over 1 cameras" in states["image preprocessing"].found
    assert states["exception handling"].state == PASSED and states["output range"].state != NOT_RUN


def test_actions_outside_the_training_range_fail_the_range_check(place, tmp_path):
    narrow = {"action.min": np.full(2, -1e-3, np.float32), "action.max": np.full(2, 1e-3, np.float32)}
    bundle = changed(place / "bundle", tmp_path / "bundle", lambda tables: tables.update(narrow))
    items = {item.name: item for item in check_deployment(bundle, place / "data", None, SLOW_HZ, 1)}
    assert items["output range"].state == FAILED and "of its range outside" in items["output range"].found


def test_another_robots_dataset_fails_its_check_and_the_others_run_on_random_pictures(place, tmp_path):
    write_data(tmp_path / "data", World(episodes=1, dims=3))
    items = {item.name: item for item in check_deployment(place / "bundle", tmp_path / "data", None, SLOW_HZ, 1)}
    assert items["dataset"].state == FAILED and "vla-runtime identity" in items["dataset"].found
    assert items["output range"].state == NOT_RUN and items["speed"].state == PASSED


def test_deploy_and_identity_name_the_same_differences_of_a_dataset(place, tmp_path):
    off = {"observation.state.mean": np.full(2, 9.0, np.float32)}
    bundle = changed(place / "bundle", tmp_path / "bundle", lambda tables: tables.update(off))
    with open_dataset(place / "data") as data:
        (told,) = robot_differences(open_bundle(bundle), read_tables(open_bundle(bundle)), data)
    (item,) = [item for item in check_deployment(bundle, place / "data", None, SLOW_HZ, 1) if item.name == "dataset"]
    assert item.state == FAILED and item.found == told


def test_without_data_the_output_range_is_not_run_and_says_what_it_needs(place):
    items = {item.name: item for item in check_deployment(place / "bundle", None, "red", SLOW_HZ, 1)}
    assert items["output range"].state == NOT_RUN and "--dataset" in items["output range"].fix
    assert items["speed"].state == PASSED


def test_an_instruction_that_would_be_cut_fails_its_check_alone(place):
    items = check_deployment(
        place / "bundle", None, "please go to the red square and then stay there for a long while", SLOW_HZ, 1
    )
    assert [item.name for item in items if item.state == FAILED] == ["instruction"]


def test_a_host_too_slow_for_the_rate_fails_the_speed_check(place):
    items = check_deployment(place / "bundle", None, "red", 100_000.0, 1)
    assert items[1].name == "speed" and items[1].state == FAILED and "INT8" in items[1].fix
    assert "execute more actions" in items[1].fix and items[1].found.startswith("plan-then-move: p50 ")


def test_a_chunk_too_short_to_plan_the_next_one_meanwhile_fails_the_speed_check(place, tmp_path):
    """Two actions of 100 s outlast an inference, and not two with an action of hand-over each."""
    words = ["--checkpoint", str(place / "policy"), "--chunk-size", "2", "--threads", "1"]
    assert export([*words, "--out", str(tmp_path / "short")]) == 0
    speed = check_deployment(tmp_path / "short", None, "red", SLOW_HZ, 1)[1]
    assert (speed.name, speed.state) == ("speed", FAILED)
    assert speed.found.startswith("plan-then-move: ") and "; 2 actions at 0.01 a second last 200000 ms" in speed.found
    assert "holds the first 2 of the policy's 4 actions a chunk (--chunk-size): export with a larger one" in speed.fix


def test_a_chunk_lasts_as_long_as_the_datas_rate_says_whatever_the_rate_of_control(place, tmp_path):
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    write_manifest(tmp_path / "bundle", replace(open_bundle(place / "bundle").manifest, fps=50.0))
    steps = open_bundle(place / "bundle").manifest.policy.n_action_steps
    item = check_deployment(tmp_path / "bundle", None, "red", 90.0, 1)[1]
    assert f"{steps} actions at 50 a second last {steps / 50 * 1e3:.0f} ms" in item.found and "say" not in item.found
    assert "does not say the data's rate" in check_deployment(place / "bundle", None, "red", 90.0, 1)[1].found


def test_arithmetic_that_differs_from_the_definition_fails_the_check_that_names_it(place, monkeypatch):
    from vla_edge.runtime.inference.picture import PictureScaler
    from vla_edge.runtime.inference.prepare import Preparer

    into, state, actions = PictureScaler.into, Preparer.state, Preparer.actions

    def failed() -> list[str]:
        return [
            item.name for item in check_deployment(place / "bundle", None, "red", SLOW_HZ, 1) if item.state == FAILED
        ]

    monkeypatch.setattr(
        PictureScaler, "into", lambda self, image, pixels: (into(self, image, pixels), pixels.__imul__(0.999))[0]
    )
    assert failed() == ["image preprocessing"]
    monkeypatch.setattr(PictureScaler, "into", into)
    monkeypatch.setattr(
        Preparer, "state", lambda self, positions, out: (state(self, positions, out), out.__iadd__(0.001))[0]
    )
    assert failed() == ["state normalisation"]
    monkeypatch.setattr(Preparer, "state", state)
    monkeypatch.setattr(Preparer, "actions", lambda self, latent: actions(self, latent * 1.01))
    assert failed() == ["action round trip"]


def test_a_runtime_that_takes_a_bad_observation_fails_exception_handling(place, monkeypatch):
    def accept(deployment, scene):
        try:
            return infer(deployment, scene)
        except ObservationError:
            return infer(deployment, deployment.scenes[0])

    infer = deploy_check.Deployment.infer
    monkeypatch.setattr(deploy_check.Deployment, "infer", accept)
    items = {item.name: item for item in check_deployment(place / "bundle", None, "red", SLOW_HZ, 1)}
    assert items["exception handling"].state == FAILED and "NaN state" in items["exception handling"].found


def test_the_command_prints_a_line_for_every_check_and_exits_1_on_a_failure(place, capsys):
    words = ["deploy", str(place / "bundle"), "--task", "red", "--threads", "1"]
    assert doctor([*words, "--hz", str(SLOW_HZ)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.lstrip()[:1].isdigit()]
    assert len(lines) == 13 and "camera place" in lines[11] and "start pose" in lines[12]
    assert doctor([*words, "--hz", "100000"]) == 1
    assert "1 of 13 deployment checks: speed" in capsys.readouterr().err


def test_the_control_core_keeps_its_limits_under_hostile_chunks_and_a_broken_one_is_found(monkeypatch):
    pytest.importorskip("vla_edge._core")
    for arm in map(load_arm, arm_names()):
        item = safety_check.check_safety(arm, 6, 30.0)
        assert item.state == PASSED and item.found.startswith(f"{arm.title}, 600 ticks")
    core = safety_check.load_core()

    class Broken:
        """A pilot that lets one goal through as it came."""

        def __init__(self, settings):
            self.inner = core.Pilot(settings)
            self.step_limits = self.inner.step_limits

        def tick(self, tick, *rest, **named):
            output = self.inner.tick(tick, *rest, **named)
            return {**output, "goals": [9000] * 6, "write": True} if tick == 200 else output

    monkeypatch.setattr(safety_check, "load_core", lambda: type("Core", (), {"Pilot": Broken}))
    item = safety_check.check_safety(load_arm("koch"), 6, 30.0)
    assert item.state == FAILED and "shoulder_pan at tick 200" in item.found
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "vla_edge._core", None)
    monkeypatch.delattr("vla_edge._core", raising=False)
    item = safety_check.check_safety(load_arm("koch"), 6, 30.0)
    assert item.state == NOT_RUN and "install a C compiler" in item.fix


# ---- evaluate and compare


def test_a_checkpoint_its_bundle_and_its_saved_predictions_have_the_same_errors(place, tmp_path, capsys):
    common = [
        "--dataset",
        str(place / "data"),
        "--episodes",
        "1,2",
        "--stride",
        "3",
        "--seed",
        "4",
        "--threads",
        "1",
        "--json",
    ]
    results = {}
    for name, path in (("checkpoint", place / "policy"), ("bundle", place / "exported")):
        assert main(["evaluate", str(path), "--out", str(tmp_path / f"{name}.npz"), *common]) == 0
        results[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
    torch_error, bundle_error = (next(iter(results[name].values()))["chunk"] for name in results)
    assert bundle_error["mae"] == pytest.approx(torch_error["mae"], rel=1e-4)  # the export's own tolerance
    assert set(results["checkpoint"]) == {"policy", "hold last action", "mean action"}
    assert main(["evaluate", str(tmp_path / "checkpoint.npz"), *common]) == 0
    saved = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert saved["policy"]["chunk"]["mae"] == torch_error["mae"]


def test_compare_writes_the_picture_and_the_table_with_rows_for_robot_trials(place, tmp_path, capsys):
    assert (
        main(
            [
                "evaluate",
                str(place / "policy"),
                "--dataset",
                str(place / "data"),
                "--stride",
                "4",
                "--out",
                str(tmp_path / "act.npz"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    words = [
        "compare",
        place / "policy",
        place / "exported",
        tmp_path / "act.npz",
        "--dataset",
        place / "data",
        "--stride",
        "4",
        "--timed",
        "3",
    ]
    words += ["--threads", "1", "--png", tmp_path / "compare.png", "--markdown", tmp_path / "compare.md", "--json"]
    assert main([str(word) for word in words]) == 0
    rows = json.loads(capsys.readouterr().out)["policies"]
    assert [row["kind"] for row in rows] == ["checkpoint (torch)", "bundle (ort)", "saved predictions"]
    assert rows[0]["latency_p50_ms"] > 0 and rows[1]["latency_p50_ms"] > 0 and rows[2]["latency_p50_ms"] is None
    table = (tmp_path / "compare.md").read_text()
    assert "robot trials: successes / trials" in table and "within 33.3 ms at p99" in table
    assert "| actions a chunk (executed) | 4 (3) | 4 (3) | 4 (3) |" in table
    picture = cv2.imread(str(tmp_path / "compare.png"))
    assert picture is not None and picture.shape[1] > 2 * picture.shape[0] - 200  # three panels side by side


def test_policies_of_other_chunks_are_compared_over_the_actions_that_all_make(place, tmp_path, capsys):
    """The same predictions, of which one file holds the nearer ones alone, have the same errors."""
    common = ["--dataset", str(place / "data"), "--stride", "4", "--draws", "2", "--threads", "1", "--json"]
    assert main(["evaluate", str(place / "policy"), "--out", str(tmp_path / "whole.npz"), *common]) == 0
    with np.load(tmp_path / "whole.npz") as whole:
        first = {**whole, "action": whole["action"][:, :3], "executed": np.array(1)}
    np.savez(tmp_path / "first.npz", **first)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "whole.npz"), str(tmp_path / "first.npz"), *common]) == 0
    answered, told = capsys.readouterr()
    whole, first = json.loads(answered)["policies"]
    assert (whole["chunk"], whole["executed"], first["chunk"], first["executed"]) == (4, 3, 3, 1)
    assert whole["mae"] == first["mae"] and whole["mse"] == first["mse"] and whole["per_joint"] == first["per_joint"]
    assert whole["mae"]["executed"] == whole["mae"]["first step"] != whole["mae"]["chunk"]
    assert "| actions a chunk (executed) | 4 (3) | 3 (1) |" in told
    assert "| of them compared (executed) | 3 (1) | 3 (1) |" in told


def test_the_picture_draws_the_30_hz_line(tmp_path):
    error = {"first step": 1.0, "executed": 2.0, "chunk": 3.0}
    draw(
        [
            Contender("a", "bundle", 20.0, 25.0, 10**6, 4, 2, error, error),
            Contender("b", "bundle", 60.0, 80.0, None, 4, 2, error, error),
        ],
        tmp_path / "p.png",
    )
    loaded = cv2.imread(str(tmp_path / "p.png"))
    assert loaded is not None
    picture = loaded.astype(int)
    blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
    line = (red > 180) & (green < 80) & (blue < 80)  # matplotlib's tab:red
    left = line[:, : picture.shape[1] // 3]
    assert left.sum(1).max() > picture.shape[1] // 12  # one long dashed row in the first panel
    assert line[:, picture.shape[1] // 3 :].sum() == 0


def test_predictions_of_other_frames_are_refused(place, tmp_path):
    np.savez(tmp_path / "few.npz", index=np.array([1]), action=np.zeros((1, 4, 2), np.float32))
    from vla_edge.training.evaluation.evaluate import Scope, evaluate
    from vla_edge.training.evaluation.predictors import open_predictor

    with pytest.raises(DatasetError, match="lack frame"):
        evaluate(open_predictor(tmp_path / "few.npz"), Scope(str(place / "data"), ()))


def test_a_damaged_bundle_is_named_before_any_check(place, tmp_path):
    shutil.copytree(place / "exported", tmp_path / "bundle")
    weights = tmp_path / "bundle" / "graphs" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(bytes(data))
    from vla_edge.errors import BundleError

    with pytest.raises(BundleError, match=r"weights\.bin"):
        check_deployment(tmp_path / "bundle", None, "red", SLOW_HZ, 1)
    assert open_bundle(place / "exported").digest


@pytest.mark.parametrize("names", [None, ["a"], {"left": ["a"], "right": ["b"]}])
def test_export_takes_nested_names_and_numbers_joints_that_have_too_few(place, tmp_path, names):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["action"]["names"] = names
    (data / "meta/info.json").write_text(json.dumps(info))
    words = ["--checkpoint", str(place / "policy"), "--dataset", str(data), "--out", str(tmp_path / "bundle")]
    assert export([*words, "--threads", "1"]) == 0
    joints = open_bundle(tmp_path / "bundle").manifest.joints
    assert joints == (("a", "b") if isinstance(names, dict) else ("joint_0", "joint_1"))
