# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as people have them: each layout gives the chunk of the plain one, or a line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.policies.checkpoint_folder import resolve_checkpoint
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "koch-bfloat16"
RECORDED = Path(__file__).parents[3] / "shared" / "golden061"
SEVEN = ("artifact062", "libero16", "quantiles", "aloha3cam", "relative", "lora", "basesize")
PRE, POST, MODEL = "policy_preprocessor.json", "policy_postprocessor.json", "model.safetensors"
STATE_FILE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
CLASSES = {
    "rename_observations_processor": "lerobot.processor.rename_processor.RenameObservationsProcessorStep",
    "to_batch_processor": "lerobot.processor.batch_processor.AddBatchDimensionProcessorStep",
    "smolvla_new_line_processor": "lerobot.policies.smolvla.processor_smolvla.SmolVLANewLineProcessor",
    "tokenizer_processor": "lerobot.processor.tokenizer_processor.TokenizerProcessorStep",
    "device_processor": "lerobot.processor.device_processor.DeviceProcessorStep",
    "normalizer_processor": "lerobot.processor.normalize_processor.NormalizerProcessorStep",
    "unnormalizer_processor": "lerobot.processor.normalize_processor.UnnormalizerProcessorStep",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may change."""
    shutil.copytree(GOLDEN, tmp_path / "policy")
    return tmp_path / "policy"


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def chunk(policy: SmolVLAPolicy) -> torch.Tensor:
    torch.set_num_threads(1)
    pictures = {camera.source: np.full((48, 64, 3), 90, np.uint8) for camera in policy.settings.cameras}
    batch = policy.preprocess({**pictures, "observation.state": np.ones(6, np.float32), "task": "Lift the cube"})
    noise = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0))
    actions = policy.predict_action_chunk(batch, noise)
    assert isinstance(actions, torch.Tensor)
    return policy.postprocess(actions)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return chunk(SmolVLAPolicy.from_pretrained(GOLDEN))


def prefixed(prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save_file({f"{prefix}{name}": value for name, value in load_file(folder / MODEL).items()}, folder / MODEL)

    return change


def without_lm_head(folder: Path) -> None:
    save_file(
        {name: value for name, value in load_file(folder / MODEL).items() if "lm_head" not in name}, folder / MODEL
    )


def height_first(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content["input_features"].values():
            if item["type"] == "VISUAL":
                item["shape"] = [*item["shape"][1:], 3]

    edit(folder / "config.json", change)


def class_names(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for step in content["steps"]:
            step["class"] = CLASSES[step.pop("registry_name")]

    edit(folder / PRE, change)
    edit(folder / POST, change)


def rename_of_an_absent_camera(folder: Path) -> None:
    renamed = {"observation.images.top": "observation.images.camera9"}
    edit(folder / PRE, lambda content: content["steps"][0]["config"].update(rename_map=renamed))


def relative_steps(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Put LeRobot 0.6's pair of steps with these settings where it puts them."""
    first = {"registry_name": "relative_actions_processor", "config": before}
    second = {"registry_name": "absolute_actions_processor", "config": after}
    edit(folder / PRE, lambda content: content["steps"].insert(5, first))
    edit(folder / POST, lambda content: content["steps"].insert(1, second))


def disabled_relative_steps(folder: Path) -> None:
    relative_steps(folder, {"enabled": False}, {"enabled": False})


def target_buffers(prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        statistics, tensors = load_numpy(folder / STATE_FILE), load_file(folder / MODEL)
        for owner, feature in (("normalize_inputs", "observation.state"), ("normalize_targets", "action")):
            for name in ("mean", "std"):
                value = torch.from_numpy(statistics[f"{feature}.{name}"].copy())
                tensors[f"{owner}.{prefix}buffer_{feature.replace('.', '_')}.{name}"] = value
        save_file(tensors, folder / MODEL)
        for file in folder.glob("policy_*"):
            file.unlink()

    return change


LAYOUTS = {
    "compiled as a whole": prefixed("_orig_mod."),
    "trained on several processes": prefixed("module."),
    "an adapter's leftover": prefixed("base_model.model."),
    "compiled on several processes": prefixed("module._orig_mod."),
    "no lm_head": without_lm_head,
    "picture shapes height first": height_first,
    "steps named by class": class_names,
    "a rename of a camera that is not there": rename_of_an_absent_camera,
    "relative actions that are off": disabled_relative_steps,
    "only target buffers": target_buffers(""),
    "buffers with the dataset's name": target_buffers("so100_"),
    "buffers with the dataset's name and a dot": target_buffers("so100."),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_chunk_of_the_plain_one(name: str, folder: Path, expected: torch.Tensor) -> None:
    LAYOUTS[name](folder)
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert torch.equal(chunk(policy), expected) and not policy.settings.unknown_outputs


def test_an_empty_task_is_the_newline_that_lerobot_makes_of_it() -> None:
    tokenizer = SmolVLAPolicy.from_pretrained(GOLDEN).tokenizer
    assert torch.equal(tokenizer.encode([""])[0], tokenizer.encode(["\n"])[0])


def test_a_task_that_newer_transformers_read_otherwise_is_named(folder: Path) -> None:
    vlm = folder / "vlm"
    edit(vlm / "tokenizer_config.json", lambda content: content.update(tokenizer_class="GPT2Tokenizer"))
    content = json.loads((vlm / "tokenizer.json").read_text())
    tokens, merges = content["model"]["vocab"], content["model"]["merges"]
    tokens["12"] = len(tokens) + 100  # a merge over two digits: only a tokenizer that does not split them uses it
    merges.insert(0, ["1", "2"] if isinstance(merges[0], list) else "1 2")
    (vlm / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = SmolVLAPolicy.from_pretrained(folder).tokenizer
    said = tokenizer.read_otherwise(["Lift the cube", "Lift 12 cubes"])
    assert len(said) == 1 and "'Lift 12 cubes' becomes other tokens in transformers 5" in said[0] and "--vlm" in said[0]
    edit(vlm / "tokenizer_config.json", lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))
    assert SmolVLAPolicy.from_pretrained(folder).tokenizer.read_otherwise(["Lift 12 cubes"]) == []


def test_a_backbone_folder_with_one_file_missing_says_which(folder: Path) -> None:
    (folder / "vlm" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"policy/vlm \(has no tokenizer_config.json\)"):
        SmolVLAPolicy.from_pretrained(folder)


def test_buffers_of_several_datasets_are_refused_by_name(folder: Path) -> None:
    tensors = load_file(folder / MODEL)
    for name in ("so100_", "aloha_"):
        tensors[f"unnormalize_outputs.{name}buffer_action.mean"] = torch.zeros(6)
    save_file(tensors, folder / MODEL)
    with pytest.raises(CheckpointError, match="statistics of aloha, so100; keep those of one"):
        SmolVLAPolicy.from_pretrained(folder)


@pytest.mark.parametrize("renamed", ["so100.buffer.action", None])
def test_actions_without_statistics_say_what_is_there_instead(folder: Path, renamed: str | None) -> None:
    file = folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    statistics = load_file(file)
    for key in [key for key in statistics if key.startswith("action.")]:
        value = statistics.pop(key)
        if renamed is not None:
            statistics[f"{renamed}.{key.removeprefix('action.')}"] = value
    save_file(statistics, file)
    said = SmolVLAPolicy.from_pretrained(folder).settings.unknown_outputs
    assert "action has mode MEAN_STD and no statistics" in said and f"({6})" in said
    assert (renamed or "observation.state") in said


def test_half_a_pair_of_relative_steps_is_refused(folder: Path) -> None:
    step = {"registry_name": "absolute_actions_processor", "config": {"enabled": True}}
    edit(folder / POST, lambda content: content["steps"].insert(1, step))
    with pytest.raises(ConfigError, match="must be enabled together"):
        SmolVLAPolicy.from_pretrained(folder)


def test_relative_actions_count_from_the_state_but_for_excluded_joints_and_survive_saving(
    folder: Path, tmp_path: Path
) -> None:
    names = [f"joint_{index}.pos" for index in range(5)] + ["Gripper.pos"]
    before = {"enabled": True, "exclude_joints": ["gripper"], "action_names": names}
    relative_steps(folder, before, {"enabled": True})
    SmolVLAPolicy.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    for where in (folder, tmp_path / "saved"):
        policy = SmolVLAPolicy.from_pretrained(where)
        state = torch.arange(6.0)[None]
        actions = policy.postprocess(torch.zeros(1, 3, 6), state) - policy.postprocess(torch.zeros(1, 3, 6), 0 * state)
        assert torch.allclose(actions, torch.tensor([0.0, 1, 2, 3, 4, 0]).expand(1, 3, 6), atol=1e-5)


# ---- where checkpoints are


def test_a_run_its_last_checkpoint_and_a_file_of_the_folder_lead_to_the_policy(tmp_path: Path) -> None:
    place = tmp_path / "run" / "checkpoints" / "000100" / "pretrained_model"
    shutil.copytree(GOLDEN, place)
    shutil.copytree(GOLDEN, tmp_path / "run" / "checkpoints" / "000020" / "pretrained_model")
    step = place.parent
    assert resolve_checkpoint(tmp_path / "run") == place  # no link yet: the highest step
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("000100")
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last", step, place, place / "config.json"):
        assert resolve_checkpoint(path).resolve() == place


@pytest.mark.parametrize("name", [MODEL, STATE_FILE, "vlm/tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(name: str, folder: Path) -> None:
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 90671\n")
    with pytest.raises(CheckpointError, match=rf"{name}: a Git LFS pointer.*git lfs pull"):
        SmolVLAPolicy.from_pretrained(folder)


def test_a_backbone_path_of_another_machine_names_the_flag(folder: Path) -> None:
    shutil.rmtree(folder / "vlm")
    edit(folder / "config.json", lambda content: content.update(vlm_model_name="/data/models/SmolVLM2"))
    with pytest.raises(CheckpointError, match="another machine's; give the folder with --vlm DIR") as caught:
        SmolVLAPolicy.from_pretrained(folder)
    assert "download" not in str(caught.value)


# ---- LoRA


def lora(folder: Path, base: str, module: str, shape: tuple[int, ...], **settings: Any) -> Path:
    """A LoRA folder beside `folder` with one adapted module, rank 2."""
    adapter = folder.parent / "adapter"
    shutil.copytree(folder, adapter)
    (adapter / MODEL).unlink()
    generator = torch.Generator().manual_seed(0)
    sides = {"A": torch.randn(2, shape[1], generator=generator), "B": torch.randn(shape[0], 2, generator=generator)}
    named = {f"base_model.model.{module}.lora_{side}.weight": value for side, value in sides.items()}
    named["base_model.model.model.state_proj.modules_to_save.bias"] = torch.full((shape_of(folder),), 0.5)
    save_file(named, adapter / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": base, **settings}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    edit(adapter / "config.json", lambda content: content.update(use_peft=True))
    return adapter


def shape_of(folder: Path) -> int:
    return load_file(folder / MODEL)["model.state_proj.bias"].shape[0]


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5), ({"alpha_pattern": {"action_in_proj": 16}}, 8.0)],
)
def test_a_lora_folder_is_merged_into_its_base(folder: Path, settings: dict[str, Any], scale: float) -> None:
    weight = load_file(folder / MODEL)["model.action_in_proj.weight"]
    adapter = lora(folder, "../policy", "model.action_in_proj", tuple(weight.shape), **settings)
    policy = SmolVLAPolicy.from_pretrained(adapter)
    saved = load_file(adapter / "adapter_model.safetensors")
    down, up = (saved[f"base_model.model.model.action_in_proj.lora_{side}.weight"] for side in "AB")
    tensors = policy.state_dict()
    assert torch.allclose(tensors["model.action_in_proj.weight"], weight.float() + scale * up @ down, atol=1e-6)
    assert (tensors["model.state_proj.bias"] == 0.5).all()
    assert policy.config.source["use_peft"] is False  # what is saved from here is whole
    assert policy.digest != SmolVLAPolicy.from_pretrained(folder).digest


def test_a_lora_folder_without_its_base_names_the_flag(folder: Path) -> None:
    weight = load_file(folder / MODEL)["model.action_in_proj.weight"]
    adapter = lora(folder, "someone/gone", "model.action_in_proj", tuple(weight.shape))
    with pytest.raises(CheckpointError, match="a LoRA adapter of someone/gone.*--base DIR"):
        SmolVLAPolicy.from_pretrained(adapter)
    assert SmolVLAPolicy.from_pretrained(adapter, base=folder).digest
    with pytest.raises(CheckpointError, match="holds no LoRA adapter"):
        SmolVLAPolicy.from_pretrained(folder, base=folder)


def test_an_adapter_that_is_not_plain_lora_or_of_another_policy_is_refused(folder: Path) -> None:
    shape = tuple(load_file(folder / MODEL)["model.action_in_proj.weight"].shape)
    adapter = lora(folder, "../policy", "model.action_in_proj", (shape[0], shape[1] + 1))
    with pytest.raises(CheckpointError, match="fits no layer of the base policy"):
        SmolVLAPolicy.from_pretrained(adapter)
    edit(adapter / "adapter_config.json", lambda content: content.update(use_dora=True))
    with pytest.raises(CheckpointError, match="only plain LoRA is merged"):
        SmolVLAPolicy.from_pretrained(adapter)


# ---- LeRobot 0.6.1's own


@pytest.mark.skipif(not RECORDED.is_dir(), reason="golden061 lies in ../shared, which is not here")
@pytest.mark.parametrize("name", SEVEN)
def test_lerobot_061_is_reproduced_from_raw_pictures(name: str) -> None:
    with np.load(RECORDED / f"{name}.npz") as content:
        recorded = {key: content[key] for key in content.files}
    policy = SmolVLAPolicy.from_pretrained(RECORDED / name)
    pictures = {key.removeprefix("raw/image/"): value for key, value in recorded.items() if "raw/image/" in key}
    state = torch.from_numpy(recorded["raw/state"])[None]
    batch = policy.preprocess({**pictures, "observation.state": state[0], "task": str(recorded["raw/task"])})
    actions = policy.predict_action_chunk(batch, torch.from_numpy(recorded["noise"]))
    assert isinstance(actions, torch.Tensor)
    final = policy.postprocess(actions, state).numpy()
    wanted = recorded["actions/final"]
    assert np.abs(final - wanted).max() <= 1e-5 * np.abs(wanted).max()  # as for 0.4.4
