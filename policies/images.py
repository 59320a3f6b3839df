# SPDX-License-Identifier: Apache-2.0
"""Pictures to the network's input, as docs/policy.md §1.1."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from vla_edge.errors import ObservationError


def to_unit(image: Tensor, name: str) -> Tensor:
    """uint8 HWC, CHW or a batch of either, or float 0..1 CHW → float32 [B, 3, h, w] in 0..1. ObservationError names the
    camera."""
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[3]):
        raise ObservationError(
            f"{name}: picture has shape {list(image.shape)}, must be [height, width, 3] uint8 or [3, height, width] "
            "float"
        )
    if batch.dtype == torch.uint8:
        channels_first = batch if batch.shape[1] == 3 else batch.permute(0, 3, 1, 2)
        return channels_first.float() / 255
    if not batch.is_floating_point() or batch.shape[1] != 3:
        raise ObservationError(
            f"{name}: picture has type {image.dtype}, must be uint8 or float in 0..1 with channels first"
        )
    return batch.float()


def resize_with_pad(images: Tensor, width: int, height: int) -> Tensor:
    """[B, 3, h, w] → [B, 3, height, width]: largest size of the same aspect, zeros on the left and on top."""
    ratio = max(images.shape[3] / width, images.shape[2] / height)
    size = (int(images.shape[2] / ratio), int(images.shape[3] / ratio))
    resized = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=False)
    return functional.pad(resized, (max(0, width - size[1]), 0, max(0, height - size[0]), 0))


def prepare_image(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """[B, 3, h, w] in 0..1 → network input in −1..1; `size` is (width, height) or None for no resizing."""
    if size is not None:
        images = resize_with_pad(images, *size)
    return images * 2.0 - 1.0
