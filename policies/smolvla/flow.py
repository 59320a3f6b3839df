# SPDX-License-Identifier: Apache-2.0
"""Flow matching: from prepared inputs to a chunk of normalised actions.

The prefix (pictures, language) fills a cache; the state token adds one row to
it; the expert then walks from noise to actions in Euler steps. Because no
other prefix row sees the state token, running it by itself is exact.
Arithmetic: docs/policy.md §1.6–1.12 and §2. Symbols: B batch, P prefix rows
without the state, H text width, E expert width, C chunk, A max_action_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vla_edge.errors import ConfigError
from vla_edge.policies.smolvla.backbone import BackboneConfig
from vla_edge.policies.smolvla.config import SmolVLAConfig
from vla_edge.policies.smolvla.expert import expert_width
from vla_edge.policies.smolvla.smolvlm import SmolVLMWithExpert
from vla_edge.policies.smolvla.text import KeyValue, float32_kept, join
from vla_edge.policies.smolvla.vision import tokens_per_image


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens put around a picture when `add_image_special_tokens` is on."""

    start: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True)
class Inputs:
    """What the model reads: one entry of `images` per slot, [B, 3, h, w] in −1..1 or the tower's tokens [B, N, H], with
    its mask bool [B];
    token_ids int64 [B, T] and token_mask bool [B, T]; state [B, max_state_dim], normalised and zero-padded. scene: what
    pictures and language make of it, where that was computed before: `images` is empty then."""

    images: tuple[Tensor, ...]
    image_masks: tuple[Tensor, ...]
    token_ids: Tensor
    token_mask: Tensor
    state: Tensor
    scene: Prefix | None = None


@dataclass(frozen=True)
class Prefix:
    """Keys and values of prefix rows for every text layer, [B, rows, kv_heads, head_dim], and which rows are valid.

    hidden: the last text layer's output of these rows before the text model's norm.
    """

    cache: list[KeyValue]
    mask: Tensor
    hidden: Tensor


class ClsProjection(nn.Module):
    """Two linear maps with a ReLU between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, tokens, width] → [B, tokens, out]."""
        return self.fc2(torch.relu(self.fc1(tokens)))


def new_cls_tokens(count: int, width: int) -> nn.Parameter:
    """(1, count, width) drawn from N(0, 1)·0.02."""
    return nn.Parameter(torch.randn(1, count, width) * 0.02)


class FlowMatching(nn.Module):
    """The policy's weights and the parts of an inference; `SmolVLAPolicy.model`."""

    def __init__(self, config: SmolVLAConfig, backbone: BackboneConfig, special: SpecialTokens) -> None:
        super().__init__()
        self.config = config
        self.special = special
        if config.resized_to is not None:
            tokens_per_image(backbone, *config.resized_to)
        self.vlm_with_expert = SmolVLMWithExpert(config, backbone)
        width, expert = backbone.text.hidden_size, expert_width(config, backbone.text)
        if expert % 2:
            raise ConfigError(
                f"expert_width_multiplier {config.expert_width_multiplier} makes the expert {expert} wide, must be even"
            )
        self.state_proj = nn.Linear(config.max_state_dim, width)
        self.action_in_proj = nn.Linear(config.max_action_dim, expert)
        self.action_out_proj = nn.Linear(expert, config.max_action_dim)
        self.action_time_mlp_in = nn.Linear(2 * expert, expert)
        self.action_time_mlp_out = nn.Linear(expert, expert)
        if config.has_delta:
            self.delta_action_in_proj = nn.Linear(config.max_action_dim, expert)
            self.delta_action_out_proj = nn.Linear(expert, config.max_action_dim)
            self.delta_action_time_mlp_in = nn.Linear(2 * expert, expert)
            self.delta_action_time_mlp_out = nn.Linear(expert, expert)
        if config.use_cls_head:
            self.pre_cls_param = new_cls_tokens(config.num_cls_prefix, width)
            self.suf_cls_param = new_cls_tokens(config.num_cls_suffix, expert)
            self.obs_cls_proj = ClsProjection(width, width, expert)
            self.act_cls_proj = ClsProjection(expert, width, expert)

    # ---- prefix

    def embed_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Each slot's picture → tokens [B, N, H], scaled by √H; what is [B, N, H] already is only scaled."""
        found = [image if image.ndim == 3 else self.vlm_with_expert.embed_image(image) for image in images]
        return [self._scaled(tokens) for tokens in found]

    def embed_prefix(
        self, tokens: Sequence[Tensor], image_masks: Sequence[Tensor], token_ids: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows [B, P, H] and mask bool [B, P]: per slot [start] picture [end], then language. `tokens` as
        `embed_images`
        gives them. Start and end tokens are neither scaled nor masked, even for an empty camera."""
        batch = token_ids.shape[0]
        rows: list[Tensor] = []
        masks: list[Tensor] = []
        for image, present in zip(tokens, image_masks, strict=True):
            picture = (image, present[:, None].expand(batch, image.shape[1]))
            parts = [picture]
            if self.config.add_image_special_tokens:
                parts = [
                    self._special(self.special.start, token_mask),
                    picture,
                    self._special(self.special.end, token_mask),
                ]
            rows.extend(row for row, _ in parts)
            masks.extend(mask for _, mask in parts)
        rows.append(self._scaled(self.vlm_with_expert.embed_tokens(token_ids)))
        masks.append(token_mask)
        return torch.cat(rows, dim=1), torch.cat(masks, dim=1)

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows * math.sqrt(rows.shape[-1])

    def _special(self, ids: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        token_ids = torch.tensor([ids], device=like.device).expand(like.shape[0], -1)
        return self.vlm_with_expert.embed_tokens(token_ids), torch.ones_like(token_ids, dtype=torch.bool)

    def embed_state(self, state: Tensor) -> Tensor:
        """[B, max_state_dim] → the state's row [B, 1, H]."""
        return self.state_proj(state)[:, None]

    def run_prefix(self, rows: Tensor, mask: Tensor) -> Prefix:
        """Pictures and language through the text model, each valid row seeing every valid row."""
        visible = mask[:, :, None] & mask[:, None, :]
        hidden, cache = self.vlm_with_expert.vlm.model.text_model(rows, visible, positions_of(mask))
        return Prefix(cache, mask, hidden)

    def run_state(self, prefix: Prefix, state: Tensor) -> Prefix:
        """The state's row against the prefix's cache: the prefix with that row appended. Exact (docs/policy.md §2)."""
        row = self.embed_state(state)
        valid = torch.ones_like(prefix.mask[:, :1])
        mask = torch.cat((prefix.mask, valid), dim=1)
        hidden, cache = self.vlm_with_expert.vlm.model.text_model(
            row, mask[:, None, :], positions_of(mask)[:, -1:], prefix.cache
        )
        joined = [join(earlier, later) for earlier, later in zip(prefix.cache, cache, strict=True)]
        return Prefix(joined, mask, torch.cat((prefix.hidden, hidden), dim=1))

    def run_together(self, rows: Tensor, mask: Tensor, state: Tensor) -> Prefix:
        """Prefix and state in one pass, as LeRobot runs them, `prefix_length` padding included: the reference that the
        split is checked against."""
        rows, mask, own_block = self.with_state(rows, mask, self.embed_state(state))
        hidden, cache = self.vlm_with_expert.vlm.model.text_model(
            rows, self.visible_together(mask, own_block), positions_of(mask)
        )
        return Prefix(cache, mask, hidden)

    def with_state(self, rows: Tensor, mask: Tensor, state_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append the state's row and pad to `prefix_length`. Third: bool [B, rows], true for the state's row."""
        batch, count = mask.shape
        own_block = functional.pad(torch.zeros_like(mask), (0, 1), value=True)
        rows, mask = torch.cat((rows, state_row), dim=1), functional.pad(mask, (0, 1), value=True)
        missing = max(0, self.config.prefix_length - count - 1)
        return (
            functional.pad(rows, (0, 0, 0, missing)),
            functional.pad(mask, (0, missing)),
            functional.pad(own_block, (0, missing)),
        )

    def visible_together(self, mask: Tensor, own_block: Tensor) -> Tensor:
        """bool [B, rows, rows]: a row sees valid rows of its own or an earlier block; the state starts a new block."""
        block = own_block.cumsum(dim=1)
        return (block[:, None, :] <= block[:, :, None]) & mask[:, None, :] & mask[:, :, None]

    def scene_of(self, inputs: Inputs) -> Prefix:
        """Pictures and language → their cache. Without gradients where the backbone has none to give."""
        if inputs.scene is not None:
            return inputs.scene
        trains = any(weight.requires_grad for weight in self.vlm_with_expert.vlm.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            rows, mask = self.embed_prefix(
                self.embed_images(inputs.images), inputs.image_masks, inputs.token_ids, inputs.token_mask
            )
            return self.run_prefix(rows, mask)

    def prefix_of(self, inputs: Inputs) -> Prefix:
        """Pictures, language and state → the cache the expert reads."""
        return self.run_state(self.scene_of(inputs), inputs.state)

    # ---- suffix

    def embed_suffix(self, actions: Tensor, time: Tensor) -> Tensor:
        """Noisy actions [B, C, A] at times [B] in 0..1 → rows [B, C, E]."""
        rows = self.action_in_proj(actions)
        rows = torch.cat((rows, self.embed_time(time, rows)), dim=2)
        return self.action_time_mlp_out(functional.silu(self.action_time_mlp_in(rows)))

    def embed_time(self, time: Tensor, like: Tensor) -> Tensor:
        """Times [B] → [B, C, E] in the shape and type of `like`: sine and cosine, computed in float64."""
        waves = time_waves(time, like.shape[-1], self.config.min_period, self.config.max_period)
        return waves.to(like.dtype)[:, None].expand_as(like)

    def denoise_step(self, prefix: Prefix, actions: Tensor, time: Tensor) -> Tensor:
        """The velocity float32 [B, C, A] at noisy actions [B, C, A] and times [B]."""
        rows = self.embed_suffix(actions, time)
        causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=rows.device).tril()[None]
        hidden = self.vlm_with_expert.lm_expert(rows, prefix.cache, prefix.mask, causal)
        with float32_kept(hidden):
            return self.action_out_proj(hidden.float())

    def integrate(self, prefix: Prefix, noise: Tensor, steps: int, times: Sequence[float] = ()) -> Tensor:
        """Euler from t = 1 (noise [B, C, A]) to t = 0 in `steps` equal steps, or from one of `times` to the next."""
        actions = noise
        for at, dt in flow_moments(steps, times):
            time = torch.full((noise.shape[0],), at, dtype=torch.float32, device=noise.device)
            actions = actions + dt * self.denoise_step(prefix, actions, time)
        return actions

    def losses(self, inputs: Inputs, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Squared error of the velocity, elementwise [B, C, A], at times [B] between actions and noise."""
        return self.losses_on(self.prefix_of(inputs), actions, noise, time)

    def losses_on(self, prefix: Prefix, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The same on a prefix that is there."""
        mix = time[:, None, None]
        velocity = self.denoise_step(prefix, mix * noise + (1 - mix) * actions, time)
        return functional.mse_loss(velocity, noise - actions, reduction="none")


def positions_of(mask: Tensor) -> Tensor:
    """int64 [B, rows]: a valid row's number among the valid rows, from 0."""
    return mask.cumsum(dim=1) - 1


def time_waves(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """float64 [B, width]: sines then cosines of 2π·time/period for width/2 periods in geometric progression."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = (1.0 / period * 2 * math.pi)[None, :] * time[:, None]
    return torch.cat((torch.sin(angle), torch.cos(angle)), dim=1)


def flow_moments(steps: int, times: Sequence[float] = ()) -> list[tuple[float, float]]:
    """(flow time it begins at, how far it goes) of each Euler step: `steps` equal ones, or between `times`, which fall
    from 1 to 0."""
    if times:
        return [(at, after - at) for at, after in zip(times, times[1:])]
    return [(1.0 + step * (-1.0 / steps), -1.0 / steps) for step in range(steps)]


def sample_time(batch: int, device: torch.device) -> Tensor:
    """Training times float32 [B] in 0.001..1: Beta(1.5, 1) stretched, so that noisy times are met more often."""
    beta = torch.distributions.Beta(1.5, 1.0).sample((batch,))
    return beta.to(device=device, dtype=torch.float32) * 0.999 + 0.001
