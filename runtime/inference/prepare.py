# SPDX-License-Identifier: Apache-2.0
"""An observation as the numbers the graphs take (docs/policy.md), without torch and without a buffer made per
inference.

The prefix has static rows: for every slot [start tokens] image tokens [end tokens], then the language. Slots are the
policy's cameras in order and then `empty_cameras` empty ones. LeRobot leaves a missing camera out and moves later
tokens up; here its rows stay and are masked, which is the same because positions count valid rows only. A bundle whose
empty cameras may be given a picture has them among its cameras, and as many empty slots at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, CameraSpec, PolicySpec
from vla_edge.camera_names import EMPTY_CAMERA
from vla_edge.errors import BundleError, ObservationError
from vla_edge.runtime.inference.picture import ChannelNormalizer, PictureScaler
from vla_edge.runtime.inference.units import ACTION, STATE, aloha_actions, aloha_state, normalizer, read_tables

MAX_SIDE, MAX_ASPECT = 16384, 16
"""Pixels of a picture's side, and its longer side over its shorter: beyond them the scaling buffers fill the memory, or
nothing is left of the shorter side."""
SAME_ASPECT = 0.02
"""Share by which width over height may differ: sizes are whole pixels."""


@dataclass(frozen=True, slots=True)
class Layout:
    """mask float32 [R] (1 a valid row; row P is the state token's, what lies behind it padding), positions float32 [P]
    (valid rows before, cumsum(mask) − 1), state_position and first_position (of the first action) as counts of rows."""

    mask: NDArray[np.float32]
    positions: NDArray[np.float32]
    state_position: int
    first_position: int


def lay_out(
    policy: PolicySpec, present: Sequence[bool], prompt_mask: NDArray[np.float32], placeholders: int = 0
) -> Layout:
    """Rows and positions of the prefix. `present`: one flag a camera, `placeholders` of which are empty cameras that
    may be given a picture; the slots after them are empty ones.

    The start and end tokens of an empty slot stay valid (docs/policy.md), those of a missing camera do not. There are
    never more empty slots than cameras without a picture.
    """
    missing = len(present) - sum(present) + policy.empty_cameras - placeholders
    slots = [(seen, seen) for seen in present]
    slots += [(index < missing, False) for index in range(policy.empty_cameras)]
    mask: list[float] = []
    for marked, seen in slots:
        mask += (
            [marked] * policy.image_start_tokens + [seen] * policy.tokens_per_image + [marked] * policy.image_end_tokens
        )
    rows = np.concatenate([np.asarray(mask, np.float32), prompt_mask, np.ones(1, np.float32)])
    positions = np.cumsum(rows) - 1
    padding = np.zeros(policy.kv_rows - len(rows), np.float32)
    return Layout(
        np.concatenate([rows, padding]), positions[:-1].astype(np.float32), int(positions[-1]), int(positions[-1]) + 1
    )


class Preparer:
    """Pictures, state and actions of one bundle. Owns the scaling buffers, one set for each camera, made anew when its
    pictures change size, and the state from which relative actions count: that of the last `state`."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.policy = manifest.policy
        self.cameras = manifest.cameras
        # A key that `rename_map` renames means its new name; any other key means itself.
        self._by_name = {camera.name: camera for camera in self.cameras}
        self._by_name |= {camera.source: camera for camera in self.cameras}
        self.placeholders = sum(camera.placeholder for camera in manifest.cameras)
        self.tables = read_tables(bundle)
        self._state = normalizer(bundle, self.tables, STATE, self.policy.state_dim)
        self._action = normalizer(bundle, self.tables, ACTION, self.policy.action_dim)
        target = (self.policy.image_height, self.policy.image_width)
        pad = self.policy.resize_with_padding
        for camera in self.cameras:
            if not pad and (camera.height, camera.width) != target:
                raise BundleError(
                    f"manifest: camera {camera.name} is {camera.height}×{camera.width}, without resize it must be "
                    f"{target[0]}×{target[1]}"
                )
        if self.policy.adapt_to_pi_aloha and min(self.policy.state_dim, self.policy.action_dim) < 14:
            raise BundleError(
                "manifest: adapt_to_pi_aloha needs 14 joints; correct the checkpoint's config and export again"
            )
        normalised = {item.feature for item in manifest.normalization}
        self._scalers = [
            ChannelNormalizer(target, normalizer(bundle, self.tables, camera.name, 3))
            if camera.name in normalised
            else PictureScaler((camera.height, camera.width), target, pad)
            for camera in self.cameras
        ]
        self._masks = bool(self.policy.prefix_rows)
        self._anchor = np.zeros(self.policy.action_dim, np.float32)

    def slots(self, images: Mapping[str, NDArray[Any]]) -> list[NDArray[np.uint8] | None]:
        """The picture of each camera slot, None where the camera is missing.

        Keys are LeRobot's, before or after `rename_map`. ObservationError: unknown camera, one camera under two names,
        wrong type or size, no camera at all, or one missing where the policy has no mask for it.
        """
        names = self._by_name
        found: dict[str, NDArray[np.uint8]] = {}
        for key, image in images.items():
            camera = names.get(key)
            if camera is None:
                if key.startswith(EMPTY_CAMERA):
                    raise ObservationError(
                        f"this bundle has no room for a picture of {key!r}; export it again with --take-empty-cameras"
                    )
                raise ObservationError(f"unknown camera {key!r}; the policy sees {', '.join(sorted(names))}")
            if camera.name in found:
                raise ObservationError(
                    f"camera {camera.name} is given twice, as {camera.source!r} and {camera.name!r}; give one of them"
                )
            check_picture(key, image, camera, self.policy.resize_with_padding)
            found[camera.name] = image
        if not found:
            raise ObservationError(
                f"no camera picture; give at least one of {', '.join(camera.source for camera in self.cameras)}"
            )
        missing = [camera.source for camera in self.cameras if camera.name not in found]
        if missing and not self._masks:
            raise ObservationError(f"no picture of camera {missing[0]!r}; this policy needs all its cameras")
        return [found.get(camera.name) for camera in self.cameras]

    def picture(self, slot: int, image: NDArray[np.uint8], pixels: NDArray[np.float32]) -> None:
        """Scale the checked picture of camera `slot` into `pixels` float32 [1, 3, h, w]."""
        if image.shape[:2] != self._scalers[slot].source:
            self._scalers[slot] = PictureScaler(image.shape[:2], self._scalers[slot].target, True)
        self._scalers[slot].into(image, pixels)

    def state(self, positions: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Normalise joint positions [state_dim] (joint units) into `out` float32 [1, max_state_dim], zero-padded."""
        array = np.asarray(positions)
        if array.dtype.kind not in "fiu" or array.shape != (self.policy.state_dim,):
            raise ObservationError(
                f"observation.state is {array.dtype} {list(array.shape)}; expected float32 [{self.policy.state_dim}]"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ObservationError(
                "observation.state has a value that is not finite in float32 at index "
                f"{int(np.argmin(np.isfinite(array)))}; check the joint reading"
            )
        joints = list(self.policy.relative_joints)
        self._anchor[joints] = array[joints]
        normalized = self._state.normalize(array)
        if self.policy.adapt_to_pi_aloha:
            normalized = aloha_state(normalized)
        out.fill(0)
        out[0, : self.policy.state_dim] = normalized

    def actions(self, latent: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(actions in joint units, normalised actions), both float32 [n, action_dim], of a flow result [n,
        max_action_dim]."""
        normalized = latent[:, : self.policy.action_dim].astype(np.float32)
        if self.policy.adapt_to_pi_aloha:
            normalized = aloha_actions(normalized)
        actions = self._action.unnormalize(normalized)
        return (actions + self._anchor if self.policy.relative_joints else actions), normalized

    def anchored(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Flow values [n, max_action_dim] of the last observation as values that count from no state: what a later
        observation's `unanchored` takes. The values themselves where no action is relative."""
        return self._shifted(latent, np.float32(1))

    def unanchored(self, latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of `anchored` as flow values of the last observation."""
        return self._shifted(latent, np.float32(-1))

    def _shifted(self, latent: NDArray[np.float32], sign: np.float32) -> NDArray[np.float32]:
        if not self.policy.relative_joints:
            return latent
        moved, factor = latent.copy(), self._action.factor
        offset = np.divide(self._anchor, factor, out=np.zeros_like(factor), where=factor != 0)
        moved[:, : self.policy.action_dim] += sign * offset * self._action.gain
        return moved


def other_aspects(
    cameras: Sequence[CameraSpec], pictures: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, CameraSpec]]:
    """A fact for each picture (by its camera's name before or after `rename_map`) of another aspect than those the
    policy learnt from: another size is scaled, another aspect shows the scene in another place."""
    known = {name: camera for camera in cameras for name in (camera.name, camera.source) if camera.seen}
    for name, picture in pictures.items():
        if (
            name in known
            and picture.ndim == 3
            and picture.size
            and picture.shape[:2] != (known[name].height, known[name].width)
        ):
            camera = known[name]
            aspect = picture.shape[1] / picture.shape[0] / (camera.width / camera.height)
            if not 1 - SAME_ASPECT < aspect < 1 + SAME_ASPECT:
                fact = f"camera {name} gives {picture.shape[1]}x{picture.shape[0]}, the policy's data has "
                yield fact + f"{camera.width}x{camera.height}", camera


def check_picture(key: str, image: NDArray[Any], camera: CameraSpec, any_size: bool) -> None:
    """ObservationError when `image` is not uint8 [height, width, 3]; of the camera's size unless `any_size`."""
    expected = (camera.height, camera.width, 3)
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not fits or not (_scalable(*image.shape[:2]) if any_size else image.shape == expected):
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        size = f"1 to {MAX_SIDE} a side, at most {MAX_ASPECT}:1" if any_size else "the policy does not resize"
        raise ObservationError(f"{key} is {kind}; expected uint8 {list(expected)} (height, width, RGB; {size})")


def _scalable(height: int, width: int) -> bool:
    shorter, longer = sorted((height, width))
    return shorter >= 1 and longer <= min(MAX_SIDE, MAX_ASPECT * shorter)
