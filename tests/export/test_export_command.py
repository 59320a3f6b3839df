# SPDX-License-Identifier: Apache-2.0
"""`export-engines` as a user meets it: tables, JSON, and for each bad input one line, exit code 2 and nothing
written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.bundle import open_bundle
from vla_edge.errors import ConfigError
from vla_edge.export import command
from vla_edge.export.command import main
from vla_edge.export.proof_observations import Recording, data_fps
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.trials.identity_check import shape_differences

GOLDEN = Path(__file__).parents[1] / "golden" / "koch-bfloat16"
PROGRAM = "import sys; from vla_edge.export.command import main; sys.exit(main())"
DATASET = Path(__file__).parents[1] / "data" / "koch_v30_official"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "policy"))


def run(*arguments: object) -> int:
    return main([str(item) for item in arguments])


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """stderr must be exactly one line; it is returned."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_checkpoint_becomes_a_bundle_beside_it_and_the_command_says_so(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--threads", 1, "--json", "--joint-units", "degrees") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    bundle = open_bundle(checkpoint.parent / "policy-bundle")
    bundle.verify()
    assert "policy-bundle" in captured.err
    assert report["digest"] == bundle.digest
    assert report["parity"]["graphs"]["chunk"] <= 1e-4
    assert set(report["graphs"]) == {"vision", "prefix", "state", "expert"}
    assert bundle.manifest.joint_units == "degrees"
    assert bundle.manifest.fps is report["fps"] is None
    assert "the bundle does not say how many actions a second" in " ".join(captured.err.split())
    assert run("--inspect", bundle.path) == 0
    shown = capsys.readouterr().out
    assert "actions a second: unknown" in shown and "export-engines` with --fps N" in " ".join(shown.split())
    for words in ("observation.images.laptop", "50 actions", "ek01", "MEAN_STD", "pooled", "torch 2"):
        assert words in shown


def test_a_checkpoint_on_the_hub_is_exported_by_its_id(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "hub" / "models--someone--reach"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text("0123456789abcdef")
    shutil.copytree(checkpoint, repository / "snapshots" / "0123456789abcdef")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert run("--checkpoint", "someone/reach", "--revision", "v1", "--threads", 1) == 0
    manifest = open_bundle(tmp_path / "reach-bundle").manifest
    assert manifest.checkpoint["name"] == "someone/reach@0123456789ab"
    capsys.readouterr()
    assert run("--checkpoint", checkpoint, "--out", tmp_path / "new", "--revision", "v1") == 2
    assert "a folder here has no revision v1" in the_line(capsys)


def damage_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        changed = change(weights.pop(name))
        save_file(weights if changed is None else {**weights, name: changed}, folder / "model.safetensors")

    return apply


def change_config(**fields: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **fields}))

    return apply


def add_step(folder: Path) -> None:
    content = json.loads((folder / "policy_preprocessor.json").read_text())
    content["steps"].insert(1, {"registry_name": "blur_processor", "config": {}})
    (folder / "policy_preprocessor.json").write_text(json.dumps(content))


def pad_beyond_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "vlm" / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 600, "content": "<far>"})
    (folder / "vlm" / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "vlm" / "tokenizer_config.json").read_text())
    (folder / "vlm" / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<far>"}))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing weights": (remove("model.safetensors"), ("model.safetensors", "missing")),
    "truncated weights": (damage_weights, ("model.safetensors", "truncated or damaged")),
    "missing config": (remove("config.json"), ("config.json", "missing")),
    "unknown policy type": (change_config(type="pi0"), ("config.json", "'pi0'", "smolvla")),
    "unsupported value": (change_config(attention_mode="sliding"), ("attention_mode", "'sliding'")),
    "wrong tensor shape": (
        change_tensor("model.state_proj.weight", lambda tensor: tensor[:, :31].clone()),
        ("model.state_proj.weight", "[96, 31]", "[96, 32]"),
    ),
    "missing tensor": (
        change_tensor("model.action_out_proj.bias", lambda tensor: None),
        ("model.action_out_proj.bias", "missing"),
    ),
    "a weight that is not finite": (
        change_tensor("model.action_out_proj.weight", lambda tensor: tensor * float("nan")),
        ("model.safetensors: tensor model.action_out_proj.weight is not finite",),
    ),
    "missing statistics": (
        remove("policy_preprocessor_step_5_normalizer_processor.safetensors"),
        ("normalizer_processor.safetensors", "missing"),
    ),
    "unknown processor step": (add_step, ("policy_preprocessor.json", "blur_processor")),
    "no tokenizer": (remove("vlm/tokenizer.json"), ("tokenizer.json",)),
    "another model's tokenizer": (pad_beyond_vocabulary, ("id 600", "below 512")),
    "no backbone": (remove("vlm/config.json"), ("config.json", "vlm")),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_line_exit_2_and_no_folder(
    checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = BAD_CHECKPOINTS[name]
    damage(checkpoint)
    assert run("--checkpoint", checkpoint, "--out", checkpoint.parent / "bundle") == 2
    line = the_line(capsys)
    for word in words:
        assert word in line
    assert [item.name for item in checkpoint.parent.iterdir()] == ["policy"]


def test_an_existing_folder_is_refused_before_work_begins(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint.parent / "bundle").mkdir()
    assert run("--checkpoint", checkpoint, "--out", checkpoint.parent / "bundle") == 2
    assert "exists already" in the_line(capsys)
    assert not list((checkpoint.parent / "bundle").iterdir())


def test_a_checkpoint_that_is_not_there_and_no_argument_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", tmp_path / "nowhere", "--out", tmp_path / "bundle") == 2
    assert "config.json" in the_line(capsys)
    assert run() == 2
    assert "--checkpoint" in the_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path) -> None:
    """The kernel refuses to let any file of the process grow beyond 300 kB, as a full disk would at that point."""
    limit = 300_000

    out = checkpoint.parent / "bundle"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{PROGRAM}"
    command = [sys.executable, "-c", limited, "--checkpoint", str(checkpoint), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be written: File too large" in result.stderr and "nothing was left behind" in result.stderr
    assert [item.name for item in checkpoint.parent.iterdir()] == ["policy"]


def test_a_terminated_export_leaves_nothing(tmp_path: Path) -> None:
    write_random_policy(
        tmp_path / "policy", RandomPolicy(config={"num_vlm_layers": 6, "chunk_size": 400, "num_steps": 50})
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--checkpoint", str(tmp_path / "policy"), "--out", str(tmp_path / "bundle")]
    )
    while process.poll() is None and not list(tmp_path.glob(".bundle.*/graphs/expert.onnx")):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 130
    assert [item.name for item in tmp_path.iterdir()] == ["policy"]


def test_a_place_where_no_folder_can_be_is_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint.parent / "file").write_text("")
    for place in (checkpoint.parent / "file" / "bundle", Path("/proc/bundle"), Path("/sys/new/bundle")):
        assert run("--checkpoint", checkpoint, "--out", place) == 2
        assert f"'{place}' cannot be made" in the_line(capsys)


def test_the_folders_above_a_quantised_bundle_are_made(checkpoint: Path, capsys, monkeypatch) -> None:
    def exported(arguments: Any, out: Path, tell: Any) -> None:
        raise ConfigError(f"{out.name} begun" if out.parent.is_dir() else "no folder")

    monkeypatch.setattr(command, "export_from_arguments", exported)
    words = ("--checkpoint", checkpoint, "--out", checkpoint.parent / "new" / "deep" / "b", "--synthetic")
    assert run(*words, "--precision", "int8") == 2
    assert "float32 begun" in the_line(capsys)


def test_the_backbone_may_lie_elsewhere_when_it_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "vlm").rename(checkpoint.parent / "elsewhere")
    assert run("--checkpoint", checkpoint, "--out", checkpoint.parent / "bundle") == 2
    assert "vlm" in the_line(capsys)
    assert (
        run("--checkpoint", checkpoint, "--out", checkpoint.parent / "bundle", "--vlm", checkpoint.parent / "nowhere")
        == 2
    )
    assert "nowhere" in the_line(capsys)
    assert (
        run(
            "--checkpoint",
            checkpoint,
            "--out",
            checkpoint.parent / "bundle",
            "--vlm",
            checkpoint.parent / "elsewhere",
            "--threads",
            1,
        )
        == 0
    )


@pytest.mark.parametrize("package", ("onnx", "torch", "onnxruntime"))
def test_a_missing_package_is_named(checkpoint: Path, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; {PROGRAM[len('import sys; ') :]}"
    command = [
        sys.executable,
        "-c",
        program,
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(checkpoint.parent / "bundle"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {package} is not installed here; install it with: ")
    assert line.endswith('[export,ort,data]"')


def test_exporting_without_a_dataset_needs_no_data_packages(checkpoint: Path) -> None:
    program = f"import sys; sys.modules.update(pyarrow=None, av=None); {PROGRAM[len('import sys; ') :]}"
    command = [
        sys.executable,
        "-c",
        program,
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(checkpoint.parent / "bundle"),
        "--threads",
        "1",
    ]
    assert subprocess.run(command, capture_output=True, text=True, timeout=240).returncode == 0
    result = subprocess.run(
        [*command[:-3], str(checkpoint.parent / "other"), "--dataset", str(DATASET)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "[export,ort,data]" in result.stderr


def test_inspecting_a_damaged_bundle_names_the_file(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))
    data = bytearray((bundle / "graphs" / "weights.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "graphs" / "weights.bin").write_bytes(data)
    assert run("--inspect", bundle) == 2
    assert "weights.bin: sha256 differs" in the_line(capsys)
    assert run("--inspect", tmp_path) == 2
    assert "manifest.json" in the_line(capsys)


def test_recorded_frames_are_compared_too_and_name_the_joints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_policy(
        tmp_path / "policy",
        RandomPolicy(cameras=("front", "top"), image_width=160, image_height=120, config={"num_vlm_layers": 2}),
    )
    wrong = ("--dataset", DATASET, "--camera", "observation.images.top=observation.images.side")
    assert run("--checkpoint", tmp_path / "policy", "--out", tmp_path / "bundle", *wrong) == 2
    assert "no camera side;" in the_line(capsys)
    assert run("--checkpoint", tmp_path / "policy", "--out", tmp_path / "masked", "--dataset", DATASET) == 0
    cases = open_bundle(tmp_path / "masked").manifest.parity["cases"]
    assert cases[-1] == "koch_v30_official frame 66 without observation.images.top"
    capsys.readouterr()
    assert run("--checkpoint", GOLDEN, "--out", tmp_path / "other", "--dataset", DATASET) == 2
    assert "are none of the policy's" in the_line(capsys) and not (tmp_path / "other").exists()
    mapping = "observation.images.top=observation.images.wrist"
    assert (
        run(
            "--checkpoint",
            tmp_path / "policy",
            "--out",
            tmp_path / "bundle",
            "--dataset",
            DATASET,
            "--camera",
            mapping,
            "--threads",
            1,
        )
        == 0
    )
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.fps == open_dataset(DATASET).fps == 30
    assert manifest.robot_type == "koch"
    assert [camera.in_data for camera in manifest.cameras] == ["", "observation.images.wrist"]
    with open_dataset(DATASET) as data:  # the same data fits without a word on its cameras
        assert not [line for line in shape_differences(open_bundle(tmp_path / "bundle"), data) if "camera" in line]
    assert "does not say how many actions" not in capsys.readouterr().out
    assert [case for case in manifest.parity["cases"] if "frame" in case] == [
        "koch_v30_official frame 33",
        "koch_v30_official frame 66",
    ]
    assert manifest.joints == (
        "shoulder_pan.pos",
        "shoulder_lift.pos",
        "elbow_flex.pos",
        "wrist_flex.pos",
        "wrist_roll.pos",
        "gripper.pos",
    )
    feature = open_dataset(DATASET).features["observation.images.front"].shape
    assert {(camera.height, camera.width) for camera in manifest.cameras} == {tuple(feature[:2])}


@pytest.mark.parametrize(
    ("told", "dataset", "fps"), [(50.0, False, 50.0), ("unknown", True, None), (30.0, True, 30.0), (None, False, None)]
)
def test_the_rate_is_the_datasets_unless_it_is_told(told: float | str | None, dataset: bool, fps: float | None) -> None:
    assert data_fps(told, Recording(DATASET, {}) if dataset else None) == fps


def test_a_rate_that_is_not_the_datasets_or_none_at_all_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--fps is 25, .* was recorded at 30; leave --fps out"):
        data_fps(25.0, Recording(DATASET, {}))
    for wrong in ("0", "-1", "nan", "fast", "2000"):
        assert run("--checkpoint", GOLDEN, "--out", tmp_path / "bundle", "--fps", wrong) == 2
        assert "or unknown" in the_line(capsys)
