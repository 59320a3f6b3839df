# SPDX-License-Identifier: Apache-2.0
"""Reading and writing checkpoints: layouts that must load, damage that must be named, and what saving keeps."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from tests.random_policy import RandomPolicy, main, write_random_policy

from vla_edge.errors import CheckpointError, ConfigError, VlaEdgeError
from vla_edge.policies.smolvla.backbone import backbone_from_json
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "koch-bfloat16"
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER = "policy_preprocessor_step_5_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
TENSOR = "model.vlm_with_expert.lm_expert.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may change."""
    shutil.copytree(GOLDEN, tmp_path / "policy")
    return tmp_path / "policy"


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def chunk(policy: SmolVLAPolicy) -> torch.Tensor:
    torch.set_num_threads(1)
    pictures = {camera.source: np.full((48, 64, 3), 90, np.uint8) for camera in policy.settings.cameras}
    batch = policy.preprocess({**pictures, "observation.state": np.ones(6, np.float32), "task": "Lift the cube"})
    noise = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0))
    result = policy.predict_action_chunk(batch, noise)
    assert isinstance(result, torch.Tensor)
    return policy.postprocess(result)


# ---- layouts that load


def test_a_compiled_models_keys_load(folder: Path) -> None:
    expected = chunk(SmolVLAPolicy.from_pretrained(folder))
    renamed = {
        name.replace("model.", "model._orig_mod.", 1): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(renamed, folder / "model.safetensors")
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(folder)), expected)


def test_an_older_checkpoint_with_normalisation_buffers_and_no_processors_loads(folder: Path) -> None:
    expected = chunk(SmolVLAPolicy.from_pretrained(folder))
    statistics = load_file(folder / NORMALIZER)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for owner, feature in (
            ("normalize_inputs", "observation.state"),
            ("normalize_targets", "action"),
            ("unnormalize_outputs", "action"),
        ):
            for name in ("mean", "std"):
                tensors[f"{owner}.buffer_{feature.replace('.', '_')}.{name}"] = statistics[f"{feature}.{name}"].clone()

    edit_tensors(folder / "model.safetensors", add)
    for file in (PRE, POST):
        (folder / file).unlink()
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert torch.equal(chunk(policy), expected) and policy.notes == ()


def test_tensors_that_were_tied_when_saved_get_back_both_names(folder: Path) -> None:
    expected = chunk(SmolVLAPolicy.from_pretrained(folder))
    head, table = (
        "model.vlm_with_expert.vlm.lm_head.weight",
        "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight",
    )
    tensors = load_file(folder / "model.safetensors")
    tensors[head] = tensors.pop(table)  # the name that safetensors' save_model keeps comes first in the alphabet
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", table: head})
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert torch.equal(chunk(policy), expected) and torch.equal(policy.state_dict()[head], policy.state_dict()[table])


def test_keys_of_a_fork_are_reported_and_ignored_and_a_zero_head_counts_as_absent(folder: Path) -> None:
    expected = chunk(SmolVLAPolicy.from_pretrained(folder))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.action_context_encoder.weight"] = torch.ones(3, 3)
        tensors["model.pre_cls_param"] = torch.zeros(1, 2, 96)
        tensors["model.suf_cls_param"] = torch.zeros(1, 2, 72)

    edit_tensors(folder / "model.safetensors", add)
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert torch.equal(chunk(policy), expected) and not policy.config.use_cls_head
    assert any("action_context_encoder" in note for note in policy.notes) and any(
        "only zeros" in note for note in policy.notes
    )


def test_the_backbone_is_found_by_a_path_in_the_checkpoint_and_in_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    expected = chunk(SmolVLAPolicy.from_pretrained(folder))
    edit_json(folder / "config.json", lambda content: content.update(vlm_model_name=name))
    edit_json(folder / PRE, lambda content: content["steps"][3]["config"].update(tokenizer_name=name))
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(folder)), expected)

    snapshot = tmp_path / "hub" / "models--HuggingFaceTB--SmolVLM2-500M-Video-Instruct" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    (folder / "vlm").rename(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(folder)), expected)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(folder)), expected)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="SmolVLM2-500M.*not found"):
        SmolVLAPolicy.from_pretrained(folder)
    edit_json(folder / "config.json", lambda content: content.update(vlm_model_name=str(snapshot)))
    edit_json(folder / PRE, lambda content: content["steps"][3]["config"].update(tokenizer_name=str(snapshot)))
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(folder)), expected)


def test_missing_fields_of_the_backbones_config_take_transformers_defaults() -> None:
    content: dict[str, Any] = {
        "model_type": "smolvlm",
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 960,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "intermediate_size": 2560,
            "vocab_size": 49280,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "image_size": 512,
            "num_attention_heads": 12,
            "patch_size": 16,
        },
    }
    backbone = backbone_from_json(content, Path("config.json"))
    transformers = pytest.importorskip("transformers")
    text, vision = (
        transformers.LlamaConfig(**content["text_config"]),
        transformers.SmolVLMVisionConfig(**content["vision_config"]),
    )
    assert (backbone.text.head_dim, backbone.text.layers, backbone.text.rms_norm_eps) == (
        text.head_dim,
        text.num_hidden_layers,
        text.rms_norm_eps,
    )
    assert (
        (backbone.vision.layers, backbone.vision.mlp_size)
        == (vision.num_hidden_layers, vision.intermediate_size)
        == (12, 3072)
    )
    assert backbone.vision.layer_norm_eps == vision.layer_norm_eps


def test_cameras_are_renamed_as_the_preprocessor_says(folder: Path) -> None:
    edit_json(
        folder / PRE,
        lambda content: content["steps"][0]["config"].update(
            rename_map={"observation.images.front": "observation.images.laptop"}
        ),
    )
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert [(camera.name, camera.source) for camera in policy.settings.cameras] == [
        ("observation.images.laptop", "observation.images.front"),
        ("observation.images.phone", "observation.images.phone"),
    ]
    assert torch.equal(chunk(policy), chunk(SmolVLAPolicy.from_pretrained(GOLDEN)))


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")]
)
def test_other_normalisation_modes_map_the_range_to_minus_one_and_one(
    folder: Path, mode: str, low: str, high: str
) -> None:
    for file in (NORMALIZER, UNNORMALIZER):
        statistics = load_numpy(folder / file)
        for feature in ("observation.state", "action"):
            statistics[f"{feature}.{low}"], statistics[f"{feature}.{high}"] = (
                np.full(6, -3, np.float32),
                np.full(6, 5, np.float32),
            )
            statistics[f"{feature}.{high}"][5] = -3
        save_numpy(statistics, folder / file)
    for file, step in ((PRE, 5), (POST, 0)):
        step_of(file, step, norm_map={"STATE": mode, "ACTION": mode})(folder)
    policy = SmolVLAPolicy.from_pretrained(folder)
    state = np.array([-3, 5, 1, 3, -1, -3], np.float32)
    normalised = policy.preprocess({"observation.state": state, "task": "go"})["observation.state"]
    assert torch.allclose(normalised, torch.tensor([[-1, 1, 0, 0.5, -0.5, -1]]))
    assert torch.allclose(policy.postprocess(normalised), torch.from_numpy(state), atol=1e-6)


def test_a_feature_without_statistics_passes_unchanged_and_says_so(folder: Path) -> None:
    statistics = {
        name: value
        for name, value in load_numpy(folder / NORMALIZER).items()
        if not name.startswith("observation.state")
    }
    for file in (NORMALIZER, UNNORMALIZER):
        save_numpy(statistics, folder / file)
    policy = SmolVLAPolicy.from_pretrained(folder)
    assert any("observation.state has no statistics" in note for note in policy.notes)
    assert torch.equal(
        policy.preprocess({"observation.state": np.ones(6, np.float32), "task": "go"})["observation.state"],
        torch.ones(1, 6),
    )


def test_the_newline_step_decides_about_the_newline(folder: Path) -> None:
    with_newline = SmolVLAPolicy.from_pretrained(folder).tokenizer
    assert torch.equal(with_newline.encode(["go"])[0], with_newline.encode(["go\n"])[0])
    edit_json(folder / PRE, lambda content: content["steps"].pop(2))
    plain = SmolVLAPolicy.from_pretrained(folder).tokenizer
    assert plain.encode(["go"])[1].sum() == with_newline.encode(["go"])[1].sum() - 1


def test_long_tasks_are_cut_on_the_side_the_tokenizer_names_as_transformers_does(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    task = (
        "Pick up the red cube, then place it into the box beside the blue cylinder and close the lid twice, slowly, "
        "then wave to the camera and rest"
    )
    for side in ("left", "right"):
        edit_json(folder / "vlm" / "tokenizer_config.json", functools.partial(dict.update, truncation_side=side))
        ids, mask = SmolVLAPolicy.from_pretrained(folder).tokenizer.encode([task, "short"])
        reference = transformers.AutoTokenizer.from_pretrained(folder / "vlm")
        expected = reference(
            [f"{task}\n", "short\n"],
            max_length=48,
            truncation=True,
            padding="max_length",
            padding_side="right",
            return_tensors="pt",
        )
        assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())
        assert mask[0].all()


# ---- damage that is named


def remove(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def config_of(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(fields))


def step_of(file: str, index: int, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, lambda content: content["steps"][index]["config"].update(fields))


def tensors_of(
    change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors"
) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / file, change)


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[VlaEdgeError], str]] = {
    "no model file": (remove("model.safetensors"), CheckpointError, r"model\.safetensors: missing"),
    "a model file in shards": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
        CheckpointError,
        "the weights are in shards, save them as one file",
    ),
    "a config without end": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        CheckpointError,
        r"config\.json: not valid JSON",
    ),
    "truncated model file": (truncate, CheckpointError, r"model\.safetensors: truncated or damaged"),
    "empty model file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        CheckpointError,
        "truncated or damaged",
    ),
    "no config": (remove("config.json"), CheckpointError, r"config\.json: missing"),
    "damaged config": (
        lambda folder: (folder / "config.json").write_text("{"),
        CheckpointError,
        r"config\.json: not valid JSON",
    ),
    "unknown policy type": (config_of(type="act"), CheckpointError, "policy type is 'act', supported is 'smolvla'"),
    "a tensor is missing": (tensors_of(lambda t: t.pop(TENSOR)), CheckpointError, rf"tensor {TENSOR} is missing"),
    "a tensor too many": (
        tensors_of(lambda t: t.update({"model.extra": torch.ones(1)})),
        CheckpointError,
        r"tensor model\.extra is not part",
    ),
    "a tensor of another shape": (
        tensors_of(lambda t: t.update({TENSOR: torch.ones(96, 71)})),
        CheckpointError,
        r"has shape \[96, 71\], config.json makes it \[96, 72\]",
    ),
    "a quantised tensor": (
        tensors_of(lambda t: t.update({TENSOR: torch.ones(96, 72, dtype=torch.int8)})),
        CheckpointError,
        "torch.int8",
    ),
    "statistics file missing": (remove(NORMALIZER), CheckpointError, rf"{NORMALIZER}: statistics are missing"),
    "statistics of the actions missing": (
        remove(UNNORMALIZER),
        CheckpointError,
        rf"{UNNORMALIZER}: statistics are missing",
    ),
    "statistics file damaged": (
        lambda folder: (folder / NORMALIZER).write_bytes(b"12345678"),
        CheckpointError,
        "truncated or damaged",
    ),
    "one statistic missing": (
        tensors_of(lambda t: t.pop("observation.state.std"), NORMALIZER),
        CheckpointError,
        "statistics of observation.state lack std",
    ),
    "a statistic of another shape": (
        tensors_of(lambda t: t.update({"action.mean": torch.ones(5)}), UNNORMALIZER),
        CheckpointError,
        r"action\.mean has shape \[5\]",
    ),
    "an infinite statistic": (
        tensors_of(lambda t: t["action.std"].fill_(float("inf")), UNNORMALIZER),
        CheckpointError,
        "action.std is not finite",
    ),
    "no processors and no buffers": (remove(PRE, POST), CheckpointError, "no statistics"),
    "one processor file missing": (remove(POST), CheckpointError, rf"{POST}: missing"),
    "unknown processor step": (
        lambda folder: edit_json(
            folder / PRE, lambda content: content["steps"].append({"registry_name": "flip_images"})
        ),
        CheckpointError,
        "step 6 is 'flip_images'",
    ),
    "a processor step twice": (
        lambda folder: edit_json(folder / PRE, lambda content: content["steps"].append(content["steps"][0])),
        CheckpointError,
        "step 6 is a second rename_observations_processor",
    ),
    "a normaliser that leaves the state out": (
        lambda folder: edit_json(
            folder / PRE, lambda content: content["steps"][5]["config"]["features"].pop("observation.state")
        ),
        ConfigError,
        r"normalizer_processor\.features must list observation\.state",
    ),
    "a normaliser for chosen keys": (
        step_of(PRE, 5, normalize_observation_keys=["observation.images.laptop"]),
        ConfigError,
        "normalize_observation_keys",
    ),
    "no list of steps": (
        lambda folder: edit_json(folder / PRE, lambda content: content.pop("steps")),
        CheckpointError,
        rf"{PRE}: steps are missing",
    ),
    "another normalisation of pictures": (
        step_of(PRE, 5, norm_map={"VISUAL": "MEAN_STD", "STATE": "MEAN_STD"}),
        ConfigError,
        "VISUAL",
    ),
    "unknown normalisation mode": (step_of(PRE, 5, norm_map={"STATE": "LOG"}), ConfigError, "'LOG'"),
    "half precision inputs": (step_of(PRE, 4, float_dtype="float16"), ConfigError, "float_dtype is 'float16'"),
    "no truncation": (step_of(PRE, 3, truncation=False), ConfigError, "truncation"),
    "unknown padding": (step_of(PRE, 3, padding="both"), ConfigError, "padding is 'both'"),
    "two cameras on one source": (
        step_of(PRE, 0, rename_map={"observation.images.phone": "observation.images.laptop"}),
        ConfigError,
        "gives observation.images.phone to both",
    ),
    "no tokenizer": (remove("vlm/tokenizer.json"), CheckpointError, "tokenizer.json.*not found"),
    "a pad token that is not there": (
        lambda folder: edit_json(
            folder / "vlm" / "tokenizer_config.json", lambda content: content.update(pad_token="<nothing>")
        ),
        CheckpointError,
        "pad_token '<nothing>' is not in the vocabulary",
    ),
    "another backbone": (
        lambda folder: edit_json(folder / "vlm" / "config.json", lambda c: c.update(model_type="qwen")),
        ConfigError,
        "model_type is 'qwen'",
    ),
    "another activation": (
        lambda folder: edit_json(
            folder / "vlm" / "config.json", lambda c: c["vision_config"].update(hidden_act="gelu")
        ),
        ConfigError,
        "vision_config.hidden_act is 'gelu'",
    ),
    "another attention mode": (config_of(attention_mode="sliding"), ConfigError, "attention_mode is 'sliding'"),
    "joint deltas of an aloha": (
        config_of(use_delta_joint_actions_aloha=True),
        ConfigError,
        "use_delta_joint_actions_aloha",
    ),
    "aloha joints on six joints": (config_of(adapt_to_pi_aloha=True), ConfigError, "adapt_to_pi_aloha"),
    "more steps than the chunk has": (config_of(n_action_steps=51), ConfigError, "n_action_steps is 51"),
    "an endless chunk": (config_of(chunk_size=10**9), ConfigError, "chunk_size is 1000000000, must be at most 10000"),
    "a million empty cameras": (
        config_of(empty_cameras=10**6),
        ConfigError,
        "empty_cameras is 1000000, must be at most 32",
    ),
    "an endless prefix": (
        config_of(prefix_length=10**9),
        ConfigError,
        "prefix_length is 1000000000, must be at most 8192",
    ),
    "a feature of no type": (
        lambda folder: edit_json(
            folder / "config.json", lambda c: c["input_features"]["observation.images.phone"].update(type="IMAGE")
        ),
        ConfigError,
        r"observation\.images\.phone\.type is 'IMAGE', must be one of STATE, VISUAL",
    ),
    "a million steps": (config_of(num_steps=10**6), ConfigError, "num_steps is 1000000, must be at most 256"),
    "an endless expert": (config_of(expert_width_multiplier=1e9), ConfigError, "expert_width_multiplier"),
    "an endless period": (config_of(max_period=float("inf")), ConfigError, "max_period is inf"),
    "a state without end": (
        config_of(input_features={"observation.state": {"type": "STATE", "shape": [10**9]}}),
        ConfigError,
        "sides may be 16384 at most",
    ),
    "a text as number": (config_of(num_steps="10"), ConfigError, "num_steps is '10', must be a whole number"),
    "no cache": (config_of(use_cache=False), ConfigError, "use_cache"),
    "two observation steps": (config_of(n_obs_steps=2), ConfigError, "n_obs_steps"),
    "pictures of no square": (
        config_of(resize_imgs_with_padding=[128, 64]),
        ConfigError,
        "pixel shuffle needs a square",
    ),
    "no camera": (
        config_of(input_features={"observation.state": {"type": "STATE", "shape": [6]}}),
        ConfigError,
        "no camera",
    ),
    "state wider than allowed": (config_of(max_state_dim=5), ConfigError, "max_state_dim is 5"),
    "an odd expert": (config_of(expert_width_multiplier=0.055), ConfigError, "makes the expert 5 wide, must be even"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_that_names_the_file_or_field(name: str, folder: Path) -> None:
    damage, kind, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(kind, match=words) as caught:
        SmolVLAPolicy.from_pretrained(folder)
    assert type(caught.value) in (CheckpointError, ConfigError) and "\n" not in str(caught.value)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ["config.json", PRE, POST, "vlm/config.json", "vlm/tokenizer_config.json"])
def test_a_wrong_type_in_any_json_field_is_never_a_traceback(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    original = (folder / name).read_text()
    wrong: tuple[Any, ...] = (None, -5, "x", [], {"a": 1}, True)
    for index, path in enumerate(leaves(json.loads(original))):
        content = json.loads(original)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong[index % len(wrong)]
        (folder / name).write_text(json.dumps(content))
        with contextlib.suppress(VlaEdgeError):
            SmolVLAPolicy.from_pretrained(folder)


def test_a_field_nobody_knows_is_reported(folder: Path) -> None:
    config_of(use_relative_actions=True)(folder)
    assert any("use_relative_actions" in note for note in SmolVLAPolicy.from_pretrained(folder).notes)


def test_steps_that_are_absent_and_inputs_that_are_not_read_are_reported(folder: Path) -> None:
    edit_json(folder / PRE, lambda content: content["steps"].pop(5))
    edit_json(folder / POST, lambda content: content["steps"].pop(0))
    edit_json(
        folder / "config.json",
        lambda content: content["input_features"].update({"observation.force": {"type": "ENV", "shape": [3]}}),
    )
    policy = SmolVLAPolicy.from_pretrained(folder)
    for words in (
        "no normalizer_processor: observation.state passes unchanged",
        "no unnormalizer_processor: action passes",
        "does not read the input observation.force",
    ):
        assert any(words in note for note in policy.notes), words
    assert torch.equal(policy.postprocess(torch.ones(6)), torch.ones(6))


# ---- saving


def test_saving_keeps_names_types_values_and_config(folder: Path, tmp_path: Path) -> None:
    SmolVLAPolicy.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    for name in ("config.json", PRE, POST):
        assert json.loads((tmp_path / "saved" / name).read_text()) == json.loads((folder / name).read_text()), name
    for name in (NORMALIZER, UNNORMALIZER):
        first, second = load_numpy(folder / name), load_numpy(tmp_path / "saved" / name)
        assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    assert torch.equal(
        chunk(SmolVLAPolicy.from_pretrained(tmp_path / "saved")), chunk(SmolVLAPolicy.from_pretrained(folder))
    )
    with pytest.raises(CheckpointError, match="exists already"):
        SmolVLAPolicy.from_pretrained(folder).save_pretrained(tmp_path / "saved")


def test_what_training_changed_is_saved_without_loss(folder: Path, tmp_path: Path) -> None:
    policy = SmolVLAPolicy.from_pretrained(folder)
    weight = dict(policy.named_parameters())[TENSOR]
    with torch.no_grad():
        weight.add_(1e-6)
    policy.save_pretrained(tmp_path / "saved")
    assert torch.equal(load_file(tmp_path / "saved" / "model.safetensors")[TENSOR], weight.detach())


def test_saving_without_the_backbones_files_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    policy = SmolVLAPolicy.from_pretrained(folder)
    shutil.rmtree(folder / "vlm")
    with pytest.raises(CheckpointError, match="gone since the policy was loaded"):
        policy.save_pretrained(tmp_path / "saved")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["policy"]


def test_the_digest_is_the_files_sha256(folder: Path) -> None:
    import hashlib

    assert (
        SmolVLAPolicy.from_pretrained(folder).digest
        == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )


# ---- random policies


def test_a_random_policy_is_the_same_for_the_same_seed_and_differs_for_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_policy(tmp_path / name, RandomPolicy(seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_a_random_policy_in_published_types_has_lerobots_tensors(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(dtype="bfloat16"))
    ours, theirs = load_file(tmp_path / "policy" / "model.safetensors"), load_file(GOLDEN / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in theirs.items()
    }


def test_the_command_writes_a_policy_with_the_options_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--cameras",
        "top",
        "--cls",
        "--delta",
        "--set",
        "prefix_length",
        "70",
        "--rename",
        "observation.images.front",
        "observation.images.top",
    ]
    assert main(["--out", str(tmp_path / "policy"), *options]) == 0
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "policy")
    assert policy.config.use_cls_head and policy.config.train_delta_expert and policy.config.prefix_length == 70
    assert policy.settings.cameras[0].source == "observation.images.front"


def test_nothing_is_left_behind_when_a_random_policy_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_random_policy(tmp_path / "policy", RandomPolicy(config={"attention_mode": "sliding"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_full_size_random_policy_has_the_500_tensors_of_the_published_base(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(size="full", dtype="bfloat16"))
    lines = (GOLDEN.parent / "smolvla_base_tensors.txt").read_text().splitlines()
    expected = {tuple(line.split("\t")) for line in lines if not line.startswith("#")}
    types = {torch.float32: "F32", torch.bfloat16: "BF16"}
    ours = load_file(tmp_path / "policy" / "model.safetensors")
    assert {(name, str(list(tensor.shape)), types[tensor.dtype]) for name, tensor in ours.items()} == expected
    assert sum(tensor.numel() for tensor in ours.values()) == 450_046_176
