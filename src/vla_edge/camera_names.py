# SPDX-License-Identifier: Apache-2.0
"""Camera name ↔ feature key: people say `laptop`, LeRobot's files say `observation.images.laptop`.

A name may hold anything but `=`, `,` and `/` (top-cam, "left wrist"). The keys of policies with one camera
(`observation.image`, `pixels`) have no shorter name.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from vla_edge.errors import ConfigError

PREFIX = "observation.images."
EMPTY_CAMERA = f"{PREFIX}empty_camera_"
"""Before the number of a camera that a SmolVLA's `empty_cameras` adds: a picture may be given for it, or none."""
_WHOLE = ("observation.image", "pixels")


def feature_key(name: str, known: Collection[str] = ()) -> str:
    """`laptop` → `observation.images.laptop`; a name that is a key already, or one of the `known` keys, stays."""
    return name if name in known or is_camera_key(name) else PREFIX + name


def short_name(key: str) -> str:
    """`observation.images.laptop` → `laptop`; `feature_key` gives the key back."""
    short = key.removeprefix(PREFIX)
    return key if is_camera_key(short) or not short else short


def is_camera_key(key: str) -> bool:
    """Whether a feature is a picture by its key alone."""
    return key.startswith(PREFIX) or key in _WHOLE


def add_camera_pairs(parser: argparse._ActionsContainer) -> None:
    """`--camera` of commands that read a dataset's pictures; what was given goes through `camera_pairs`."""
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DATASET_NAME",
        help="a camera of the policy whose name differs in the dataset, e.g. laptop=front",
    )


def camera_pairs(texts: Sequence[str]) -> dict[str, str]:
    """`--camera NAME=DATASET_NAME`, short names or keys on both sides: the policy's key → the dataset's."""
    pairs = {}
    for text in texts:
        policy, equals, dataset = text.partition("=")
        if not equals or not policy or not dataset:
            raise ConfigError(
                f"--camera {text}: give NAME=DATASET_NAME, a camera of the policy and the dataset's name for it, for "
                "example laptop=front"
            )
        pairs[feature_key(policy)] = feature_key(dataset)
    return pairs


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a line about an unknown camera: the known one that is spelt like it, or which there are."""
    shorts = [short_name(key) for key in known]
    near = get_close_matches(short_name(name), shorts, 1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(shorts) or 'none'}"
