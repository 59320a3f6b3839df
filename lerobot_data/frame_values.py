# SPDX-License-Identifier: Apache-2.0
"""What the writer takes: features it can store, values that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Feature


def check_features(features: Mapping[str, Feature]) -> None:
    """Raises DatasetError naming the feature that v3.0 cannot hold."""
    reserved = sorted(set(features) & set(INDEX_FEATURES))
    if reserved or not features:
        raise DatasetError(
            f"features {reserved or 'are empty'}: the writer fills {list(INDEX_FEATURES)} itself; give the others"
        )
    for key, feature in features.items():
        if "/" in key or not key:
            raise DatasetError(f"feature name {key!r} is empty or holds '/'; LeRobot uses dots")
        if feature.is_camera:
            height, width, channels = feature.shape
            if channels != 3:
                raise DatasetError(f"feature {key} has shape {list(feature.shape)}; cameras are (height, width, 3)")
            if feature.dtype == "video" and (height % 2 or width % 2):
                raise DatasetError(
                    f"feature {key} is {width}x{height}; video needs even sizes: crop, or store dtype image"
                )
        elif feature.dtype not in layout.VALUE_DTYPES:
            raise DatasetError(
                f"feature {key} has dtype {feature.dtype!r}; known are image, video, {', '.join(layout.VALUE_DTYPES)}"
            )


def checked_value(key: str, feature: Feature, value: Any) -> Any:
    """`value` as a new array of the feature's shape and dtype (texts as they are).

    Raises DatasetError for another shape, a type that would lose its kind, or numbers that are not finite.
    """
    if feature.dtype == "string":
        if not isinstance(value, str):
            raise DatasetError(f"feature {key} is {type(value).__name__}, a text is expected")
        return value
    array = np.asarray(value)
    wanted = np.dtype(np.uint8) if feature.is_camera else feature.numpy_dtype
    if array.shape != feature.shape and not (feature.shape == (1,) and array.shape == ()):
        raise DatasetError(f"feature {key} has shape {list(array.shape)}, {list(feature.shape)} is expected")
    if (feature.is_camera and array.dtype != wanted) or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise DatasetError(f"feature {key} is {array.dtype}, {wanted} is expected")
    array = np.array(array, dtype=wanted).reshape(feature.shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DatasetError(f"feature {key} is not finite; leave the frame out or mend its source")
    return array


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """image: uint8 [height, width, 3], RGB. PNG keeps every bit."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()
