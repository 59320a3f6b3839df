# SPDX-License-Identifier: Apache-2.0
"""DINOv2 without a head: picture → feature map of its patches, under transformers' tensor names (`Dinov2Model`).

DINOv2: Learning Robust Visual Features without Supervision (Oquab et al., 2023). LeRobot's ACT has no such backbone;
forks of it call it by the names of Meta's torch.hub, and so do we. Without registers, which transformers keeps as
another model, and without the giant one, whose layers are others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZES = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24)}
"""Width and layers."""
PATCH = 14
"""Pixels of a patch's side; a picture's sides are multiples of it."""
HEAD_WIDTH = 64
TABLE_SIDE = 37
"""Rows and columns of the table of places, of pictures of 518 × 518."""


class Patches(nn.Module):
    """Picture → one vector a patch: `projection` under transformers' name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, PATCH)


class Embeddings(nn.Module):
    """Patches in rows behind the class token, each with the vector of its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = Patches(width)
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + TABLE_SIDE**2, width))

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 1 + patches, width]."""
        patches = self.patch_embeddings.projection(picture)
        rows = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), 1)
        return rows + self.places(patches.shape[2], patches.shape[3])

    def places(self, rows: int, columns: int) -> Tensor:
        """Vectors of the class token and of a grid's patches [1, 1 + rows·columns, width]: the table stretched to the
        grid (bicubic), as it is where the grid has its size."""
        if rows == columns == TABLE_SIDE:
            return self.position_embeddings
        table = self.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (TABLE_SIDE, TABLE_SIDE))
        grid = functional.interpolate(table, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((self.position_embeddings[:, :1], grid.flatten(2).transpose(1, 2)), 1)


class SelfAttention(nn.Module):
    """Every row attends to every row: x [B, N, width] → the same shape, before the output's map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The attention's last map: `dense` under transformers' name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)


class Attention(nn.Module):
    """Attention with its output's map: x [B, N, width] → the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width)
        self.output = Output(width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.output.dense(self.attention(x))
        return mixed


class Scale(nn.Module):
    """A learnt factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class MLP(nn.Module):
    """Two linear maps, four times the width between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        raised: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return raised


class Layer(nn.Module):
    """Attention and MLP, a norm before and a scale behind each: x [B, N, width] → the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.layer_scale1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)
        self.layer_scale2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        seen: Tensor = x + self.layer_scale2(self.mlp(self.norm2(x)))
        return seen


class Layers(nn.Module):
    """The layers in a row, as `layer` under transformers' name."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layer: Any = nn.ModuleList(Layer(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class DINOv2(nn.Module):
    """Picture [B, 3, H, W], normalised by ImageNet's mean and deviation → feature map [B, `channels`, H/14, W/14]: the
    normed rows of the patches, without the class token's."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.channels = width
        self.embeddings = Embeddings(width)
        self.encoder = Layers(width, depth)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a picture's feature map."""
        return height // PATCH, width // PATCH

    def tokens(self, picture: Tensor) -> Tensor:
        """All rows [B, 1 + patches, channels], the class token's first: transformers' `last_hidden_state`."""
        rows: Tensor = self.layernorm(self.encoder(self.embeddings(picture)))
        return rows

    def forward(self, picture: Tensor) -> Tensor:
        return self.tokens(picture)[:, 1:].transpose(1, 2).unflatten(2, self.grid(*picture.shape[2:]))

    @torch.no_grad()
    def draw(self) -> None:
        """Random weights as transformers draws them."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                nn.init.trunc_normal_(weight, std=0.02)
            elif name.endswith("bias"):
                weight.zero_()
            else:
                weight.fill_(1)
