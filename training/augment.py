# SPDX-License-Identifier: Apache-2.0
"""Image augmentation for training, off by default: colour, sharpness and small shifts.

Each image draws its transforms and strengths from its own generator, so that a
resumed run, or one with another number of loader workers, augments alike.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.training.run_config import AugmentConfig

Image = NDArray[np.uint8]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def augment(image: Image, config: AugmentConfig, generator: np.random.Generator) -> Image:
    """uint8 [height, width, 3] RGB → the same shape, changed by up to `config.most` transforms."""
    transforms = (_brightness, _contrast, _saturation, _hue, _sharpness, _shift)
    chosen = generator.permutation(len(transforms))[: config.most]
    values = image.astype(np.float32)
    for index in chosen:
        values = np.clip(transforms[index](values, config, generator), 0, 255)
    return np.rint(values).astype(np.uint8)


def _factor(spread: float, generator: np.random.Generator) -> float:
    return float(generator.uniform(1 - spread, 1 + spread))


def _brightness(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    return image * _factor(config.brightness, generator)


def _contrast(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    mean = float((image @ LUMA).mean())
    return mean + (image - mean) * _factor(config.contrast, generator)


def _saturation(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    grey = (image @ LUMA)[..., None]
    return grey + (image - grey) * _factor(config.saturation, generator)


def _hue(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    turned = cv2.cvtColor(image / np.float32(255), cv2.COLOR_RGB2HSV)
    turned[..., 0] = (turned[..., 0] + 360 * generator.uniform(-config.hue, config.hue)) % 360
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB) * 255


def _sharpness(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    blurred = cv2.GaussianBlur(image, (3, 3), 0)
    return blurred + (image - blurred) * _factor(config.sharpness, generator)


def _shift(image: NDArray, config: AugmentConfig, generator: np.random.Generator) -> NDArray:
    height, width = image.shape[:2]
    dx, dy = generator.uniform(-config.shift, config.shift, 2) * (width, height)
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
