# SPDX-License-Identifier: Apache-2.0
"""ACT's network, from normalised pictures and joints to a chunk of normalised actions, under LeRobot's tensor names.

The work has two halves, which are also the cuts of its export: `encode_picture`, once a camera and reusable while that
camera's picture stays the same, and `decode`, from picture tokens, joints and a latent to the chunk. Training adds a
small encoder that makes the latent from the demonstrated chunk; at inference the latent is 0.
Source: Learning Fine-Grained Bimanual Manipulation (Zhao et al., 2023), and LeRobot's ACT for names and details.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla_edge.policies.act.config import ACTConfig
from vla_edge.policies.act.dinov2 import SIZES, DINOv2
from vla_edge.policies.act.resnet import ResNet

_TURN = 2 * math.pi


class EncoderLayer(nn.Module):
    """Self-attention and two linear maps: x [B, N, D] → the same shape.

    position [B or 1, N, D] is added to queries and keys only. padding [B, N]: True where a token is not to be seen.
    """

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.self_attn = nn.MultiheadAttention(width, config.n_heads, config.dropout, batch_first=True)
        self.linear1 = nn.Linear(width, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = nn.functional.relu if config.feedforward_activation == "relu" else nn.functional.gelu
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None = None) -> Tensor:
        inner = self.norm1(x) if self.pre_norm else x
        keys = inner + position
        x = x + self.dropout(self.self_attn(keys, keys, inner, key_padding_mask=padding, need_weights=False)[0])
        x = x if self.pre_norm else self.norm1(x)
        inner = self.norm2(x) if self.pre_norm else x
        x = x + self.dropout(self.linear2(self.dropout(self.activation(self.linear1(inner)))))
        return x if self.pre_norm else self.norm2(x)


class Encoder(nn.Module):
    """Encoder layers in a row, with a layer norm at the end where norms come first."""

    def __init__(self, config: ACTConfig, layers: int) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(EncoderLayer(config) for _ in range(layers))
        self.norm: Any = nn.LayerNorm(config.dim_model) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, position, padding)
        normed: Tensor = self.norm(x)
        return normed


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's tokens, two linear maps: x [B, chunk, D] → the same shape."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.self_attn = nn.MultiheadAttention(width, config.n_heads, config.dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, config.n_heads, config.dropout, batch_first=True)
        self.linear1 = nn.Linear(width, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = nn.functional.relu if config.feedforward_activation == "relu" else nn.functional.gelu
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, position: Tensor, tokens: Tensor, token_position: Tensor) -> Tensor:
        inner = self.norm1(x) if self.pre_norm else x
        keys = inner + position
        x = x + self.dropout(self.self_attn(keys, keys, inner, need_weights=False)[0])
        x = x if self.pre_norm else self.norm1(x)
        inner = self.norm2(x) if self.pre_norm else x
        seen = self.multihead_attn(inner + position, tokens + token_position, tokens, need_weights=False)[0]
        x = x + self.dropout(seen)
        x = x if self.pre_norm else self.norm2(x)
        inner = self.norm3(x) if self.pre_norm else x
        x = x + self.dropout(self.linear2(self.dropout(self.activation(self.linear1(inner)))))
        return x if self.pre_norm else self.norm3(x)


class Decoder(nn.Module):
    """Decoder layers in a row, and a layer norm at the end."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(self, x: Tensor, position: Tensor, tokens: Tensor, token_position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position, tokens, token_position)
        normed: Tensor = self.norm(x)
        return normed


def backbone_of(config: ACTConfig) -> ResNet | DINOv2:
    """The network that looks at a picture."""
    if config.vision_backbone in SIZES:
        return DINOv2(config.backbone_width, SIZES[config.vision_backbone][1])
    return ResNet(config.vision_backbone, config.replace_final_stride_with_dilation, config.backbone_width)


class ACT(nn.Module):
    """The whole network. Pictures are float32 [B, 3, H, W], normalised; joints [B, state_dim], normalised."""

    vae_encoder_pos_enc: Tensor

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim_model
        if config.use_vae:
            self.vae_encoder = Encoder(config, config.n_vae_encoder_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, width)
            self.vae_encoder_robot_state_input_proj = nn.Linear(config.state_dim, width)
            self.vae_encoder_action_input_proj = nn.Linear(config.action_dim, width)
            self.vae_encoder_latent_output_proj = nn.Linear(width, 2 * config.latent_dim)
            self.register_buffer("vae_encoder_pos_enc", sinusoids(config.chunk_size + 2, width)[None])
        self.backbone = backbone_of(config)
        self.encoder = Encoder(config, config.n_encoder_layers)
        self.decoder = Decoder(config)
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, width)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, width)
        self.encoder_img_feat_input_proj = nn.Conv2d(self.backbone.channels, width, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, width)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, width)
        self.action_head = nn.Linear(width, config.action_dim)

    def encode_picture(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """One camera's picture → its tokens [B, h·w, D] and their positions [1, h·w, D], row by row."""
        features = self.backbone(picture)
        position = grid_positions(features.shape[-2], features.shape[-1], self.config.dim_model)
        tokens = self.encoder_img_feat_input_proj(features)
        return tokens.flatten(2).transpose(1, 2), position.to(tokens)

    def decode(self, pictures: Sequence[tuple[Tensor, Tensor]], state: Tensor, latent: Tensor | None = None) -> Tensor:
        """Picture tokens, joints [B, S] and latent [B, Z] (None: zeros) → chunk [B, chunk, A]."""
        batch = len(state)
        if latent is None:
            latent = state.new_zeros(batch, self.config.latent_dim)
        first = torch.stack((self.encoder_latent_input_proj(latent), self.encoder_robot_state_input_proj(state)), 1)
        tokens = torch.cat((first, *(tokens for tokens, _ in pictures)), 1)
        position = torch.cat((self.encoder_1d_feature_pos_embed.weight[None], *(place for _, place in pictures)), 1)
        seen = self.encoder(tokens, position)
        start = state.new_zeros(batch, self.config.chunk_size, self.config.dim_model)
        chunk: Tensor = self.action_head(self.decoder(start, self.decoder_pos_embed.weight[None], seen, position))
        return chunk

    def encode_chunk(self, state: Tensor, actions: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
        """Joints [B, S] and a demonstrated chunk [B, chunk, A] → mean and log variance [B, Z] of the latent.

        is_pad: bool [B, chunk], True where the episode had ended.
        """
        start = self.vae_encoder_cls_embed.weight.expand(len(state), 1, -1)
        joints = self.vae_encoder_robot_state_input_proj(state)[:, None]
        tokens = torch.cat((start, joints, self.vae_encoder_action_input_proj(actions)), 1)
        padding = nn.functional.pad(is_pad, (2, 0), value=False)
        seen = self.vae_encoder(tokens, self.vae_encoder_pos_enc, padding)
        mean, log_variance = self.vae_encoder_latent_output_proj(seen[:, 0]).chunk(2, -1)
        return mean, log_variance

    def forward(self, pictures: Sequence[Tensor], state: Tensor, latent: Tensor | None = None) -> Tensor:
        """Pictures in the cameras' order and joints → chunk of normalised actions [B, chunk, A]."""
        return self.decode([self.encode_picture(picture) for picture in pictures], state, latent)


def loss(
    network: ACT, pictures: Sequence[Tensor], state: Tensor, actions: Tensor, is_pad: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Training loss of a batch, and its two parts: mean absolute error over valid steps, and the latent's divergence.

    noise: [B, Z] for the latent's sample; None with a network without a VAE, whose divergence is 0.
    """
    latent, divergence = None, actions.new_zeros(())
    if noise is not None:
        mean, log_variance = network.encode_chunk(state, actions, is_pad)
        latent = mean + (log_variance / 2).exp() * noise
        divergence = (-0.5 * (1 + log_variance - mean**2 - log_variance.exp())).sum(-1).mean()
    valid = ~is_pad[..., None]
    error = (actions - network(pictures, state, latent)).abs() * valid
    absolute = error.sum() / (valid.sum() * actions.shape[-1]).clamp_min(1)
    return absolute + network.config.kl_weight * divergence, absolute, divergence


def sinusoids(positions: int, width: int) -> Tensor:
    """Fixed position embedding [positions, width]: sine in even columns, cosine in odd ones, base 10000."""
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (columns // 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()


def grid_positions(rows: int, columns: int, width: int) -> Tensor:
    """Position embedding of a picture's grid [1, rows·columns, width]: half for the row, half for the column.

    Counted from 1 and stretched to one turn at the last; the ε is the original code's, which nothing needs.
    """
    half = width // 2
    frequency = 10000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

    def embed(count: int) -> Tensor:
        place = torch.arange(1, count + 1, dtype=torch.float32)
        angles = (place / (place[-1] + 1e-6) * _TURN)[:, None] / frequency
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), -1).flatten(1)

    down, across = embed(rows), embed(columns)
    grid = torch.cat((down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)), -1)
    return grid.reshape(1, rows * columns, width)
