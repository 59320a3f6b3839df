# SPDX-License-Identifier: Apache-2.0
"""The picture's way into tokens: SigLIP tower, pixel shuffle, connector.

Attribute names follow the checkpoint's keys. Arithmetic: docs/policy.md §1.5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vla_edge.errors import ConfigError
from vla_edge.policies.smolvla.backbone import BackboneConfig, VisionConfig


class Embeddings(nn.Module):
    """Patches of the picture, each a vector, plus a learnt vector per place."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in −1..1 → [B, patches, hidden], row by row."""
        patches = self.patch_embedding(pixels)
        positions = self.position_ids(patches.shape[2], patches.shape[3])
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(positions.to(pixels.device))

    def position_ids(self, rows: int, columns: int) -> Tensor:
        """int64 [rows·columns]. A picture of another size than the table reads the table at the same relative place,
        in whole numbers: floating point shifts some ids by one."""
        row = torch.arange(rows) * self.side // rows
        column = torch.arange(columns) * self.side // columns
        return (row[:, None] * self.side + column[None, :]).flatten()


class Attention(nn.Module):
    """Every patch attends to every patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, patches, hidden] → the same shape."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with a tanh-approximated GELU between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] → the same shape."""
        return self.fc2(functional.gelu(self.fc1(hidden), approximate="tanh"))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, patches, hidden] → the same shape."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class Encoder(nn.Module):
    """The layers, under the checkpoint's name."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers: list[EncoderLayer] = nn.ModuleList(  # type: ignore[assignment]  # iterated as its element type
            EncoderLayer(config) for _ in range(config.layers)
        )


class VisionModel(nn.Module):
    """SigLIP: pixels to one vector per patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in −1..1 → [B, patches, hidden]."""
        hidden = self.embeddings(pixels)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return self.post_layernorm(hidden)


class ModalityProjection(nn.Module):
    """The connector's only weights, under the checkpoint's name."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, text_width, bias=False)


class Connector(nn.Module):
    """Pixel shuffle: each factor×factor block of patches becomes one token of the text model's width."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.factor = config.scale_factor
        self.modality_projection = ModalityProjection(
            config.vision.hidden_size * self.factor**2, config.text.hidden_size
        )

    def forward(self, patches: Tensor) -> Tensor:
        """[B, side², hidden] → [B, (side/factor)², text width]."""
        return self.modality_projection.proj(pixel_shuffle(patches, self.factor))


def pixel_shuffle(patches: Tensor, factor: int) -> Tensor:
    """[B, side², C] → [B, (side/factor)², C·factor²]: blocks row by row; inside a block row by row, channel fastest."""
    batch, count, channels = patches.shape
    side = int(count**0.5)
    blocks = patches.view(batch, side // factor, factor, side // factor, factor, channels)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // factor) ** 2, factor**2 * channels)


def tokens_per_image(config: BackboneConfig, height: int, width: int) -> int:
    """Tokens the connector makes of one height×width picture. ConfigError when the patches form no square of blocks."""
    rows, columns = height // config.vision.patch_size, width // config.vision.patch_size
    if rows != columns or rows < 1 or rows % config.scale_factor:
        raise ConfigError(
            f"pictures of {width}×{height} pixels give {columns}×{rows} patches, pixel shuffle needs a square with "
            f"sides divisible by {config.scale_factor}; set resize_imgs_with_padding (in training --set image_size) to "
            f"a square such as [{config.vision.image_size},{config.vision.image_size}]"
        )
    return (rows // config.scale_factor) ** 2
