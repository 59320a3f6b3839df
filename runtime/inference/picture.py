# SPDX-License-Identifier: Apache-2.0
"""One camera picture to the pixels of the vision graph, as docs/policy.md defines it, without torch.

uint8 RGB, divided by 255, resized with the aspect ratio kept (bilinear, `align_corners=False`, no antialias), padded
left and top with 0, then ·2 − 1. OpenCV's own bilinear resize was measured and is not used: it places its samples in
double precision, torch in float32 with a fused multiply-add, and at sizes whose ratio is not a short fraction the
pictures differ by up to 8e-5. Here the sample positions are torch's, so only the rounding of the two interpolations
remains (4e-7 on a −1..1 picture).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_edge.core import load_core
from vla_edge.errors import CoreError
from vla_edge.runtime.inference.units import Normalizer

Samples = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]
"""Two source indices and the weight of the second, for each target index."""


def resized_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """(height, width) in pixels of a picture that fits the target with its aspect ratio kept, truncated to integers."""
    ratio = max(width / target_width, height / target_height)
    return int(height / ratio), int(width / ratio)


class PictureScaler:
    """Scales pictures of one fixed size into one fixed target. The C core does it (runtime/core/policy/picture.c) with
    the buffers made here, numpy with the same bits where there is none.

    pad: False leaves out both resize and padding (`resize_imgs_with_padding` null): source and target are one size.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], pad: bool) -> None:
        height, width = source
        self.source = source
        self.target = target
        self.inner = resized_size(height, width, *target) if pad else source
        self._samples = [_samples(*sizes) for sizes in zip(source, self.inner)]
        self._row = np.empty(3 * width, np.float32)
        try:
            self._scale = load_core().scale_picture
        except CoreError:
            self._scale = None

    def into(self, image: NDArray[np.uint8], pixels: NDArray[np.float32]) -> None:
        """Write `image` (uint8 [height, width, 3] of the source size) to `pixels` (float32 [1, 3, h, w], −1..1)."""
        if self._scale is None:
            self._scale_in_numpy(image, pixels)
        else:
            self._scale(np.ascontiguousarray(image), pixels, self._row, *self._samples[0], *self._samples[1])

    def _scale_in_numpy(self, image: NDArray[np.uint8], pixels: NDArray[np.float32]) -> None:
        planes = image.transpose(2, 0, 1) / np.float32(255)
        for axis, (first, second, weight) in zip((1, 2), self._samples):
            share = weight[:, None] if axis == 1 else weight
            planes = planes.take(first, axis) * (np.float32(1) - share) + planes.take(second, axis) * share
        height, width = self.inner
        pixels.fill(-1)
        pixels[0, :, pixels.shape[2] - height :, pixels.shape[3] - width :] = planes * np.float32(2) - np.float32(1)


class ChannelNormalizer:
    """Normalises pictures of one fixed size, channel by channel, as LeRobot does; nothing is resized."""

    def __init__(self, source: tuple[int, int], by: Normalizer) -> None:
        self.source = self.target = source
        self._offset, self._divisor = by.offset[:, None, None], by.divisor[:, None, None]
        self._gain, self._bias = by.gain, by.bias

    def into(self, image: NDArray[np.uint8], pixels: NDArray[np.float32]) -> None:
        """Write `image` (uint8 [height, width, 3] of the source size) to `pixels` (float32 [1, 3, h, w])."""
        planes = pixels[0]
        np.divide(image.transpose(2, 0, 1), np.float32(255), out=planes)
        planes -= self._offset
        planes /= self._divisor
        if self._gain != 1 or self._bias != 0:
            planes *= self._gain
            planes += self._bias


def _samples(source: int, target: int) -> Samples:
    """Two source indices and the weight of the second for each target index.

    The position is fma(scale, index + ½, −½) in float32 with a float32 scale: what torch's build with fused
    multiply-add computes. One rounding of the exact product is that fma.
    """
    scale = np.float64(np.float32(source) / np.float32(target))
    position = (scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int32), source - 1)
    second = np.minimum(first + 1, source - 1)
    weight = np.clip(position - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, second, weight
