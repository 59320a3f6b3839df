# SPDX-License-Identifier: Apache-2.0
"""The policy as PyTorch users know it: load, predict, train, save.

Batches are what LeRobot's preprocessor makes: `observation.images.NAME` float
[B, 3, h, w] in 0..1, `observation.state` normalised [B, n],
`observation.language.tokens` int64 and `.attention_mask` bool [B, T]; for
training `action` normalised [B, C, n] and `action_is_pad` bool [B, C].
`preprocess` and `postprocess` make them from raw values and back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_edge.errors import CheckpointError, ConfigError, ObservationError, TrainingError
from vla_edge.files import new_folder
from vla_edge.policies.checkpoint import MODEL_FILE, load_weights, read_weights, write_weights
from vla_edge.policies.checkpoint_folder import (
    find_folder,
    given_folder,
    resolve_checkpoint,
    vlm_of_base,
    write_backbone,
)
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.images import prepare_image, to_unit
from vla_edge.policies.processing import ProcessorSettings, read_processing
from vla_edge.policies.processor_files import write_processors
from vla_edge.policies.scaling import normalize, pad_last, to_absolute, unnormalize
from vla_edge.policies.smolvla.aloha import decode_state, encode_actions, encode_actions_inverse
from vla_edge.policies.smolvla.backbone import BackboneConfig, read_backbone
from vla_edge.policies.smolvla.cls import observe, settle_heads, similarity
from vla_edge.policies.smolvla.config import SmolVLAConfig, read_config, write_config
from vla_edge.policies.smolvla.delta import correct_chunk, delta_parameters, training_step
from vla_edge.policies.smolvla.distill import step_starts
from vla_edge.policies.smolvla.flow import FlowMatching, Inputs, Prefix, SpecialTokens, sample_time
from vla_edge.policies.smolvla.losses import masked_loss
from vla_edge.policies.smolvla.text import KeyValue
from vla_edge.policies.tokenizer import TaskTokenizer
from vla_edge.policies.tokenizer_settings import TokenizerSettings, special_token_names, token_id

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
SCENE, SCENE_MASK = "scene.rows", "scene.mask"
"""In a batch, instead of pictures: what the prefix made of them and the instruction, computed before (`_scene`)."""


class SmolVLAPolicy(nn.Module):
    """A SmolVLA policy. `model` holds the weights under LeRobot's names; `settings` what happens around them."""

    family = "smolvla"
    trains_whole = False

    def __init__(self, config: SmolVLAConfig, backbone: BackboneConfig, settings: ProcessorSettings) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.settings = settings
        assert settings.tokenizer is not None  # SmolVLA's configuration always implies one
        self.tokenizer = TaskTokenizer(settings.tokenizer)
        self.model = FlowMatching(config, backbone, special_tokens(config, settings.tokenizer))
        self.backbone_folder = settings.tokenizer.folder
        self.stored_types: dict[str, torch.dtype] = {}
        self.digest = ""
        set_trainable(self.model)
        self.reset()

    @classmethod
    def from_pretrained(cls, folder: Path | str, vlm: Path | None = None, base: Path | None = None) -> SmolVLAPolicy:
        """The policy that `folder` leads to (`resolve_checkpoint`), float32 on the CPU, in eval mode. `vlm`: where the
        backbone's config.json and tokenizer lie, `base`: the policy that a LoRA folder adapts, each None to look where
        the checkpoint says. Errors: CheckpointError, ConfigError."""
        folder = resolve_checkpoint(Path(folder))
        config, weights = settle_heads(read_config(folder), read_weights(folder, base))
        vlm = vlm or vlm_of_base(config.vlm_model_name, folder, weights.base)
        place = (
            find_folder(config.vlm_model_name, folder, ("config.json",))
            if vlm is None
            else given_folder(vlm, ("config.json",))
        )
        settings = read_processing(folder, config, weights.statistics, vlm)
        with torch.device("meta"):
            policy = cls(config, read_backbone(place), settings)
        policy.backbone_folder = place
        load_weights(policy, weights)
        return policy.eval()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the policy to `folder` (which must not exist) in LeRobot's layout. Tensors keep the type they were read
        with where it holds their values exactly; what training changed is written as float32."""
        with new_folder(folder, CheckpointError) as place:
            self.write(place)

    def write(self, folder: Path, marks: Mapping[str, Any] | None = None) -> None:
        """The same into a folder that is there. marks: fields of config.json that training has found out:
        `cls_trained`, without which a CLS head is no gate, and `delta_relative_error`."""
        write_config(folder, replace(self.config, **(marks or {})))
        write_processors(folder, self.config, self.settings)
        write_backbone(folder, self.backbone_folder, self.tokenizer.settings.folder)
        write_weights(self, folder / MODEL_FILE, self.stored_types)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about this checkpoint: ignored keys, features without statistics."""
        return (*self.config.notes, *self.settings.notes)

    def reset(self) -> None:
        """Forget queued actions and the CLS reference: call at the start of an episode.

        last_similarity: cosine [B] of the last comparison, None before there was one. should_cache: bool [B] of the
        last decision. cache_reason: "no_history" or "similarity".
        """
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self._reference: Tensor | None = None
        self.last_similarity: Tensor | None = None
        self.should_cache: Tensor | None = None
        self.cache_reason = "no_history"

    # ---- around the network

    def preprocess(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Raw values → a batch of one: cameras uint8 [h, w, 3] by the names before `rename_map`, `observation.state`
        [n] in robot units, `task` text. ObservationError names what is missing or wrong."""
        renamed = {self.settings.rename_map.get(name, name): value for name, value in observation.items()}
        for name in (STATE, "task"):
            if name not in renamed:
                raise ObservationError(f"the observation has no {name}; it holds {', '.join(observation) or 'nothing'}")
        batch: dict[str, Any] = {
            name: to_unit(torch.as_tensor(renamed[name]), name) for name in self.config.pictures if name in renamed
        }
        state = torch.as_tensor(renamed[STATE], dtype=torch.float32)
        if state.shape != (self.config.state_dim,):
            raise ObservationError(f"{STATE} has shape {list(state.shape)}, the policy takes [{self.config.state_dim}]")
        batch[STATE] = normalize(state[None], self.settings.state)
        batch[TOKENS], batch[TOKEN_MASK] = self.tokenizer.encode([renamed["task"]])
        return batch

    def postprocess(self, actions: Tensor, state: Tensor | None = None) -> Tensor:
        """Normalised actions [..., n] → robot units. state: [B, n] in robot units, the chunk's own observation; only a
        policy of relative actions needs it."""
        return to_absolute(unnormalize(actions, self.settings.action), state, self.settings.relative)

    def prepare(self, batch: Mapping[str, Any]) -> Inputs:
        """A batch → the network's inputs: cameras in order, missing ones skipped, empty ones appended, state padded."""
        images, masks = ((), ()) if SCENE in batch else self.prepare_images(batch)
        state = batch[STATE][:, -1] if batch[STATE].ndim > 2 else batch[STATE]
        if self.config.adapt_to_pi_aloha:
            state = decode_state(state)
        token_mask = batch[TOKEN_MASK].to(torch.bool)
        scene = self._scene(batch[SCENE], batch[SCENE_MASK]) if SCENE in batch else None
        return Inputs(images, masks, batch[TOKENS], token_mask, pad_last(state, self.config.max_state_dim), scene)

    def _scene(self, rows: Tensor, mask: Tensor) -> Prefix:
        """Keys and values [B, layers, 2, rows, kv_heads·head_dim] and mask bool [B, rows] → the scene's prefix."""
        heads = rows.unflatten(-1, (self.backbone.text.kv_heads, -1))
        cache = [KeyValue(heads[:, layer, 0], heads[:, layer, 1]) for layer in range(rows.shape[1])]
        return Prefix(cache, mask, rows.new_zeros(len(rows), 0, self.backbone.text.hidden_size))

    def prepare_images(self, batch: Mapping[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Network pictures and their masks bool [B], one per slot."""
        images: list[Tensor] = []
        masks: list[Tensor] = []
        present = [name for name in self.config.pictures if name in batch]
        for name in present:
            value = batch[name]
            image = value  # [B, N, H]: the vision tower's tokens, computed before
            if value.ndim != 3:
                unit = to_unit(value[:, -1] if value.ndim == 5 else value, name)
                image = prepare_image(unit, self.config.resize_imgs_with_padding)
            images.append(image)
            given = batch.get(f"{name}_padding_mask")
            masks.append(
                torch.ones(image.shape[0], dtype=torch.bool, device=image.device) if given is None else given.bool()
            )
        if not images:
            names = ", ".join(camera.name for camera in self.config.cameras)
            raise ObservationError(f"no camera of the policy is in the observation; it takes {names}")
        for _ in range(min(self.config.empty_cameras, len(self.config.pictures) - len(present))):
            images.append(torch.full_like(images[-1], -1.0))
            masks.append(torch.zeros_like(masks[-1]))
        return tuple(images), tuple(masks)

    # ---- inference

    @torch.no_grad()
    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, compute_cls_similarity: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Normalised actions [B, C, n] for a batch; noise [B, C, A] or drawn here.

        With `compute_cls_similarity` also the projected observation tokens [B, tokens, E] and `should_cache` bool [B]:
        whether the scene is so like the one of the kept reference that its chunk may be reused.
        """
        self.eval()
        inputs = self.prepare(batch)
        scene = self.model.scene_of(inputs)
        chunk = self.model.integrate(
            self.model.run_state(scene, inputs.state), self._noise(inputs, noise), self.config.num_steps
        )
        actions = self.real_actions(chunk)
        if not compute_cls_similarity:
            return actions
        if not self.config.use_cls_head:
            raise ConfigError(
                "compute_cls_similarity needs a CLS head and this policy has none; train one or leave it out"
            )
        tokens = observe(self.model, scene)
        return actions, tokens, self._decide(tokens)

    def _decide(self, tokens: Tensor) -> Tensor:
        """Compare with the reference, per sample; where the scene changed, the new tokens become the reference."""
        if self._reference is None or self._reference.shape != tokens.shape:
            self._reference, self.last_similarity, self.cache_reason = tokens, None, "no_history"
            self.should_cache = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
            return self.should_cache
        self.last_similarity = similarity(tokens, self._reference)
        self.should_cache = self.last_similarity > self.config.cls_similarity_threshold
        self.cache_reason = "similarity"
        self._reference = torch.where(self.should_cache[:, None, None], self._reference, tokens)
        return self.should_cache

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next action [B, n], normalised; plans a new chunk when the queue of `n_action_steps` is empty."""
        if not self._queue:
            actions = self.predict_action_chunk(batch, noise)
            assert isinstance(actions, Tensor)
            self._queue.extend(actions.transpose(0, 1)[: self.config.n_action_steps])
        return self._queue.popleft()

    @torch.no_grad()
    def correct_action_chunk(self, batch: Mapping[str, Any], queued: Tensor) -> Tensor:
        """The queued chunk [B, C, A], normalised, corrected by the delta expert for this observation: [B, C, A]."""
        if not self.config.has_delta:
            raise ConfigError("this policy has no delta expert; train one with train_delta_expert")
        self.eval()
        return correct_chunk(self.model, self.model.prefix_of(self.prepare(batch)), queued)

    def real_actions(self, actions: Tensor) -> Tensor:
        """[B, C, A] → the real dimensions [B, C, n], turned back to an Aloha's joints where the policy asks for it."""
        actions = actions[:, :, : self.config.action_dim]
        return encode_actions(actions) if self.config.adapt_to_pi_aloha else actions

    def _noise(self, inputs: Inputs, noise: Tensor | None) -> Tensor:
        shape = (inputs.state.shape[0], self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            return torch.randn(shape, device=inputs.state.device)
        if tuple(noise.shape) != shape:
            raise ObservationError(f"noise has shape {list(noise.shape)}, must be {list(shape)}")
        return noise.float()

    # ---- training

    def train(self, mode: bool = True) -> SmolVLAPolicy:
        """Training mode for what trains; everything frozen stays in eval mode."""
        super().train(mode)
        for module in self.modules():
            weights = list(module.parameters(recurse=False))
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self

    def forward(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, time: Tensor | None = None, share: float = 1.0
    ) -> tuple[Tensor, dict[str, Any]]:
        """The training loss and what it was made of: means over real dimensions and steps inside the episode.

        share: what the errors are multiplied by, where the batch is one of several that make a step (`step_shares`).

        Flow matching: noise [B, C, A] and times [B] are drawn here unless given; loss_dict holds
        `losses_after_forward` [B, C, A], `losses_after_in_ep_bound`, `losses_after_rm_padding` [B, C, n], `loss`.
        Delta mode (`train_delta_expert`): the same under `delta_`, with `loss` the sum of `delta_loss` and the weighted
        `cls_loss`; `delta_loss_of_none` is the error of predicting zero, `delta_loss_relative` the share of it. With
        `delta_target` "stale" the
        batch holds `delta_context` [B, C, A] and `delta_context_is_pad` bool [B, C], as `shift_chunk` makes them.
        """
        inputs = self.prepare(batch)
        noise = self._noise(inputs, noise)
        if self.config.train_delta_expert:
            return self._delta_loss(batch, inputs, noise, share)
        actions = batch[ACTION]
        if self.config.adapt_to_pi_aloha:
            actions = encode_actions_inverse(actions)
        actions = pad_last(actions, self.config.max_action_dim)
        time = sample_time(actions.shape[0], actions.device) if time is None else time
        losses = self.model.losses(inputs, actions, noise, time)
        return masked_loss(losses, batch.get("action_is_pad"), self.config.action_dim, share)

    def distilling_loss(
        self, batch: Mapping[str, Any], teacher: FlowMatching, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a policy that is distilled to its `num_steps` from `teacher`, a model on the same backbone: how
        far its velocity is from the straight way to the teacher's chunk where its steps begin."""
        inputs, config = self.prepare(batch), self.config
        noise = self._noise(inputs, noise)
        prefix = self.model.prefix_of(inputs)
        with torch.no_grad():
            chunk = teacher.integrate(prefix, noise, config.distilled["teacher_steps"])
        losses = self.model.losses_on(prefix, chunk, noise, step_starts(config.num_steps, len(noise), noise.device))
        # A step after the first reads what the one before it left in the padding.
        return masked_loss(losses, None, config.max_action_dim if config.num_steps > 1 else config.action_dim)

    def _delta_loss(
        self, batch: Mapping[str, Any], inputs: Inputs, noise: Tensor, share: float
    ) -> tuple[Tensor, dict[str, Any]]:
        stale = None
        if self.config.delta_target == "stale":
            if "delta_context" not in batch:
                raise TrainingError(
                    "delta_target 'stale' needs delta_context in the batch: the chunk predicted k frames earlier, "
                    "shifted by k"
                )
            stale = (batch["delta_context"], batch["delta_context_is_pad"])
        step = training_step(self.model, inputs, (noise, torch.randn_like(noise)), stale)
        outside = ~step.valid if batch.get("action_is_pad") is None else ~step.valid | batch["action_is_pad"]
        denoise, parts = masked_loss(step.losses, outside, self.config.action_dim, share)
        zero, _ = masked_loss(step.target_power, outside, self.config.action_dim, share)
        loss = denoise if step.cls_loss is None else denoise + self.config.vicreg_weight * step.cls_loss
        report = {f"delta_{name}": value for name, value in parts.items()}
        report |= {"loss": loss.item(), "delta_loss_relative": (denoise / zero.clamp(min=1e-12)).item()}
        report["delta_loss_of_none"] = zero.item()
        if step.cls_loss is not None:
            report["cls_loss"] = step.cls_loss.item()
        return loss, report


FAMILY_POLICY = SmolVLAPolicy


def special_tokens(config: SmolVLAConfig, tokenizer: TokenizerSettings) -> SpecialTokens:
    """Ids of the tokens around pictures; none where the policy does not use them."""
    if not config.add_image_special_tokens:
        return SpecialTokens((), ())
    folder = tokenizer.folder
    around, whole = (token_id(folder, name, "image token") for name in special_token_names(folder))
    return SpecialTokens((around, whole), (around,))


def set_trainable(model: FlowMatching) -> None:
    """Set `requires_grad` everywhere.

    Delta mode: only what `delta_parameters` names. Otherwise as LeRobot 0.6.1: `train_expert_only` freezes the
    backbone, `freeze_vision_encoder` its vision tower, `train_state_proj` decides about the state's projection. Of a
    trained backbone `lm_head`, the text norm and the last text layer stay frozen, with fewer expert layers the last
    two (0.4.4 meant to and did not); so do delta and CLS weights.
    """
    config, backbone = model.config, model.vlm_with_expert.vlm
    ours = [parameter for _, parameter in delta_parameters(model)]
    if config.train_delta_expert:
        model.requires_grad_(False)
        for parameter in ours:
            parameter.requires_grad_(True)
        return
    model.requires_grad_(True)
    for parameter in ours:
        parameter.requires_grad_(False)
    backbone.requires_grad_(not config.train_expert_only)
    backbone.lm_head.requires_grad_(False)
    text = backbone.model.text_model
    text.norm.requires_grad_(False)
    for layer in text.layers[-1 if len(text.layers) == len(model.vlm_with_expert.lm_expert.layers) else -2 :]:
        layer.requires_grad_(False)
    if config.freeze_vision_encoder:
        backbone.model.vision_model.requires_grad_(False)
    model.state_proj.requires_grad_(config.train_state_proj)
