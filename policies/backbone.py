"""The vision-language backbone's numbers and where its files lie.

`vlm_model_name` of a policy names a folder (given as is, or relative to the
checkpoint) or a repository of the model hub, which is looked up in the hub's
local cache by path. Nothing is downloaded. Missing fields of the backbone's
config.json take the defaults of transformers' LlamaConfig and
SmolVLMVisionConfig, because published configs rely on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import CheckpointError, ConfigError

VLM_FOLDER = "vlm"
"""Where a self-contained checkpoint keeps its backbone's config and tokenizer."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP tower. `image_size` in pixels gives the size of the position table, not of the pictures."""

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    patch_size: int
    image_size: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Llama-style text model. `layers` counts the backbone's own layers; a policy may keep fewer."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    rms_norm_eps: float


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Vision tower, text model and the pixel-shuffle factor between them."""

    vision: VisionConfig
    text: TextConfig
    scale_factor: int


def find_file(name: str, checkpoint: Path, files: tuple[str, ...]) -> Path:
    """The folder that holds all of `files` for the backbone or tokenizer `name`.

    Looked for in this order: `name` relative to the checkpoint, `name` as given,
    the checkpoint's `vlm` folder, the hub's cache. CheckpointError lists the places.
    """
    places = [checkpoint / name, Path(name).expanduser(), checkpoint / VLM_FOLDER, *_cached_snapshots(name)]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    tried = ", ".join(str(place) for place in places)
    raise CheckpointError(
        f"{checkpoint}: {' and '.join(files)} of {name!r} not found in {tried} or the hub's cache; "
        f"copy that folder to {checkpoint / VLM_FOLDER} or download {name} once with the hub's own tool"
    )


def _cached_snapshots(name: str) -> list[Path]:
    if name.count("/") != 1 or name.startswith((".", "/")):
        return []
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        return [repository / "snapshots" / reference.read_text().strip()]
    snapshots = repository / "snapshots"
    return sorted(snapshots.iterdir()) if snapshots.is_dir() else []


def hub_cache() -> Path:
    """Where the model hub's client keeps its files on this machine."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def read_backbone(folder: Path) -> BackboneConfig:
    """Parse `folder/config.json`. CheckpointError: unreadable. ConfigError: a value this code does not compute."""
    file = folder / "config.json"
    content = read_json(file)
    if content.get("model_type", "smolvlm") not in ("smolvlm", "idefics3"):
        raise ConfigError(f"{file}: model_type is {content['model_type']!r}, supported is 'smolvlm'; choose another backbone")
    return backbone_from_json(content, file)


def backbone_from_json(content: Mapping[str, Any], file: Path) -> BackboneConfig:
    """The backbone of a config.json's `content`; `file` is named in errors."""
    text, vision = content.get("text_config"), content.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise CheckpointError(f"{file}: needs text_config and vision_config; give the config of a SmolVLM2 model")
    for where, part, key, allowed in (
        ("text_config", text, "model_type", ("llama",)),
        ("text_config", text, "hidden_act", ("silu",)),
        ("text_config", text, "attention_bias", (False,)),
        ("text_config", text, "mlp_bias", (False,)),
        ("text_config", text, "qk_layer_norms", (False,)),
        ("text_config", text, "rope_interleaved", (False,)),
        ("vision_config", vision, "hidden_act", ("gelu_pytorch_tanh",)),
        ("vision_config", vision, "num_channels", (3,)),
    ):
        if part.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{file}: {where}.{key} is {part[key]!r}, supported is {allowed[0]!r}; this backbone cannot be run")
    hidden, heads = int(text.get("hidden_size", 4096)), int(text.get("num_attention_heads", 32))
    return BackboneConfig(
        vision=VisionConfig(
            hidden_size=int(vision.get("hidden_size", 1152)),
            layers=int(vision.get("num_hidden_layers", 12)),
            heads=int(vision.get("num_attention_heads", 16)),
            mlp_size=int(vision.get("intermediate_size", 3072)),
            patch_size=int(vision.get("patch_size", 32)),
            image_size=int(vision.get("image_size", 224)),
            layer_norm_eps=float(vision.get("layer_norm_eps", 1e-6)),
        ),
        text=TextConfig(
            vocab_size=int(text.get("vocab_size", 32000)),
            hidden_size=hidden,
            layers=int(text.get("num_hidden_layers", 32)),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            mlp_size=int(text.get("intermediate_size", 11008)),
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        ),
        scale_factor=int(content.get("scale_factor", 2)),
    )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; CheckpointError when it is missing, damaged or not an object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; give the folder that save_pretrained wrote") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, must be an object; copy the checkpoint again")
    return content
