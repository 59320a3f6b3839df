# SPDX-License-Identifier: Apache-2.0
"""A new policy on a pretrained backbone: the expert starts random, the backbone never does. Besides, what a policy
whose backbone is made here too begins with: the backbone's files with a small tokenizer, and the published types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.hub import local_folder
from vla_edge.policies.checkpoint_folder import given_folder, write_json
from vla_edge.policies.families import Beginning
from vla_edge.policies.processing import default_processing
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.config import config_from_json, expert_crosses
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

VLM = "model.vlm_with_expert.vlm."
INITIALIZER_RANGE = 0.02
"""Standard deviation of new expert weights (the backbone's own `initializer_range`)."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
)

_TEXT = """Pick up the cube and put it into the box. Place the bracelet into the box. Grasp the red block, lift it and
stack it on the blue one. Push the green cylinder to the left. Open the drawer, close the drawer. Move the gripper
to the yellow target. Put the pen into the cup. Wipe the table with the sponge. Hand over the screwdriver."""


def from_scratch(beginning: Beginning) -> SmolVLAPolicy:
    """A policy with fresh expert and projections. CheckpointError: backbone files or weights are missing."""
    if not beginning.backbone:
        raise ConfigError("--family smolvla needs --backbone DIR, the folder of SmolVLM2 with its weights")
    files, given = ("config.json", "tokenizer.json", "tokenizer_config.json"), Path(beginning.backbone)
    folder = given_folder(local_folder(given, "model", files=(*files, "*.safetensors")), files)
    loaded = _backbone_weights(folder)
    content = {
        "type": "smolvla",
        **beginning.features,
        "vlm_model_name": str(given) if folder != given.expanduser() else str(folder.resolve()),
        "load_vlm_weights": False,  # they are all in the checkpoint, and the backbone's own may move away
        **beginning.fields,
    }
    config = config_from_json(content, "policy options")
    torch.manual_seed(beginning.seed)
    settings = default_processing(folder, config, beginning.statistics)
    policy = SmolVLAPolicy(config, read_backbone(folder), settings)
    for module in policy.model.vlm_with_expert.lm_expert.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, INITIALIZER_RANGE)
    own = {name: value for name, value in policy.state_dict().items() if name.startswith(VLM)}
    absent = sorted(set(own) - set(loaded))
    if absent == [f"{VLM}lm_head.weight"]:
        loaded[absent[0]] = loaded[f"{VLM}model.text_model.embed_tokens.weight"]
    elif absent:
        raise CheckpointError(
            f"{folder}: backbone weight {absent[0].removeprefix(VLM)} is missing; training from scratch needs all of "
            "them"
        )
    wrong = [name for name, value in own.items() if loaded[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"{folder}: backbone weight {wrong[0].removeprefix(VLM)} has shape {list(loaded[wrong[0]].shape)}, "
            f"config.json makes it {list(own[wrong[0]].shape)}"
        )
    policy.load_state_dict({name: loaded[name].float() for name in own}, strict=False)
    policy.stored_types = {name: loaded[name].dtype for name in own}
    policy.backbone_folder = folder
    return policy


def _backbone_weights(folder: Path) -> dict[str, Tensor]:
    """The backbone's own weights (`model.safetensors`, or its shards) under the policy's names.

    CheckpointError when they are missing or damaged: random backbone weights are never used instead.
    """
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (FileNotFoundError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / name}: backbone weights cannot be read ({error}); training from scratch needs them, "
                "copy or download the whole SmolVLM2 folder"
            ) from None
    return {f"{VLM}{name}": tensor for name, tensor in tensors.items()}


def write_vlm(folder: Path, backbone: dict[str, Any]) -> None:
    """Write the backbone's config.json, a byte-level BPE tokenizer learnt from a few instructions, and the processor's
    files, without which LeRobot does not open the folder."""
    folder.mkdir()
    vocabulary = backbone["text_config"]["vocab_size"]
    text = {"model_type": "llama", "pad_token_id": 2, "rope_theta": 100000, **backbone["text_config"]}
    vision = {"model_type": "smolvlm_vision", **backbone["vision_config"]}
    content = {
        "model_type": "smolvlm",
        "scale_factor": backbone["scale_factor"],
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", {**content, "text_config": text, "vision_config": vision})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 512), special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    extra = {
        "fake_image_token": SPECIAL[3],
        "image_token": SPECIAL[4],
        "global_image_token": SPECIAL[5],
        "end_of_utterance_token": SPECIAL[6],
    }
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[6],
        "unk_token": SPECIAL[0],
        "pad_token": SPECIAL[2],
    }
    write_json(
        folder / "tokenizer_config.json",
        {**names, "truncation_side": "left", "model_max_length": 8192, "extra_special_tokens": extra},
    )
    image = backbone["vision_config"]
    tokens = (image["image_size"] // image["patch_size"] // backbone["scale_factor"]) ** 2
    write_json(folder / "processor_config.json", {"processor_class": "SmolVLMProcessor", "image_seq_len": tokens})
    write_json(folder / "preprocessor_config.json", _preprocessor(image["image_size"]))


def _preprocessor(size: int) -> dict[str, Any]:
    """Transformers' image processor of the published backbone, for its own tiles; no policy runs it."""
    video = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": size}}
    done = dict.fromkeys(
        ("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad", "do_rescale", "do_resize"), True
    )
    scale = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 4 * size},
    }
    return {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "max_image_size": {"longest_edge": size},
        "video_sampling": video,
        **done,
        **scale,
    }


def round_to_published(policy: SmolVLAPolicy) -> dict[str, torch.dtype]:
    """Round the weights that published checkpoints keep in bfloat16 and return their types: all but `state_proj`,
    `action_*` and the k_proj and v_proj of cross-attending expert layers."""
    crossing = {
        f"model.vlm_with_expert.lm_expert.layers.{index}.self_attn.{part}_proj.weight"
        for index in range(len(policy.model.vlm_with_expert.lm_expert.layers))
        if expert_crosses(policy.config, index)
        for part in "kv"
    }
    types = {}
    for name, tensor in policy.state_dict().items():
        if name.startswith("model.vlm_with_expert.") and name not in crossing:
            tensor.copy_(tensor.to(torch.bfloat16))
            types[name] = torch.bfloat16
    return types
