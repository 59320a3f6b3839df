# SPDX-License-Identifier: Apache-2.0
"""ResNet without its head: picture → feature map, under torchvision's tensor names.

Deep Residual Learning (He et al., 2015), with batch norms that no longer learn: their statistics are buffers of the
checkpoint and become one scale and one shift a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Residual blocks of the four stages."""
FIRST_WIDTH = 64
"""Channels of the first stage."""
SHALLOW = ("resnet18", "resnet34")
"""Of blocks that cannot be dilated."""


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics: x [B, C, H, W] → the same shape. ε is 1e-5."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Basic(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut; `expansion` is output channels over width."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, _dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside a shortcut; the stride lies on the middle one."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = FrozenBatchNorm(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(inner)))))
        return torch.relu(inner + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Picture [B, 3, H, W], normalised → feature map [B, `channels`, H/32, W/32] (H/16 with dilation), sizes rounded
    up."""

    def __init__(self, name: str, dilate_last: bool, first_width: int = FIRST_WIDTH) -> None:
        super().__init__()
        self._step = 16 if dilate_last else 32
        self.conv1 = nn.Conv2d(3, first_width, 7, 2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(first_width)
        block = Basic if name in SHALLOW else Bottleneck
        channels = first_width
        for index, depth in enumerate(DEPTHS[name]):
            width = first_width * 2**index
            last = dilate_last and index == 3
            stride = 1 if index == 0 or last else 2
            blocks: list[nn.Module] = []
            for place in range(depth):
                # A dilated stage widens its view from its second block on.
                dilation = 2 if last and place > 0 else 1
                blocks.append(block(channels, width, stride if place == 0 else 1, dilation))
                channels = width * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.channels = channels

    def forward(self, picture: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(picture))), 3, 2, padding=1)
        for index in range(4):
            x = getattr(self, f"layer{index + 1}")(x)
        return x

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a picture's feature map."""
        return -(-height // self._step), -(-width // self._step)

    def draw(self) -> None:
        """Random weights for training from nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if channels == out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), FrozenBatchNorm(out))
