# SPDX-License-Identifier: Apache-2.0
"""Three items of `vla-doctor deploy` that hold the runtime's arithmetic against formulas of their own (docs/policy.md
§1): pictures, state, and the way back of actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, NormalizationSpec
from vla_edge.runtime.inference.units import ACTION, STATE, normalizer, read_tables, remarks
from vla_edge.trials.deployment import NOT_RUN, Deployment, Item

ARITHMETIC_TOLERANCE = 1e-5
"""float32 rounding of one bilinear sample or one division."""


def check_pictures(deployment: Deployment) -> Item:
    """The runtime's pictures equal the policy's definition (docs/policy.md §1.1), computed here in float64."""
    policy, worst = deployment.bundle.manifest.policy, 0.0
    images = deployment.scenes[0].images
    for slot, camera in enumerate(deployment.bundle.manifest.cameras):
        if camera.source not in images:
            continue  # declared, and not in the data: the policy sees it masked
        image = images[camera.source]
        pixels = np.empty((1, 3, policy.image_height, policy.image_width), np.float32)
        deployment.session.preparer.picture(slot, image, pixels)
        expected = reference_picture(image, (policy.image_height, policy.image_width), policy.resize_with_padding)
        if camera.name in {item.feature for item in deployment.bundle.manifest.normalization}:
            expected = channels_normalised(deployment.bundle, camera.name, (expected + 1) / 2)
        worst = max(worst, float(np.abs(pixels[0] - expected).max()))
    found = f"largest difference {worst:.1e} over {len(images)} cameras (limit {ARITHMETIC_TOLERANCE:.0e})"
    return Item.judged(
        "image preprocessing",
        worst <= ARITHMETIC_TOLERANCE,
        found,
        "the bundle and this runtime disagree: export with this version",
    )


def check_state(deployment: Deployment) -> Item:
    """The state is normalised as (x − mean)/(std + ε), or to −1..1, and zero-padded."""
    policy, tables = deployment.bundle.manifest.policy, read_tables(deployment.bundle)
    if policy.adapt_to_pi_aloha:
        return _turned("state normalisation")
    worst = 0.0
    for scene in deployment.scenes:
        out = np.empty((1, policy.max_state_dim), np.float32)
        deployment.session.preparer.state(scene.state, out)
        expected = np.zeros(policy.max_state_dim)
        expected[: policy.state_dim] = normalised(scene.state, STATE, _spec(deployment.bundle, STATE), tables)
        worst = max(worst, float((np.abs(out[0] - expected) / np.maximum(1, np.abs(expected))).max()))
    found = f"largest relative difference {worst:.1e} (limit {ARITHMETIC_TOLERANCE:.0e})"
    resting = [remark for remark in remarks(deployment.bundle, tables) if remark.startswith(STATE)]
    return Item.judged(
        "state normalisation",
        worst <= ARITHMETIC_TOLERANCE and not resting,
        "; ".join([found, *resting]),
        "train again on other statistics" if resting else "the statistics in the bundle are damaged: export again",
    )


def check_round_trip(deployment: Deployment) -> Item:
    """Un-normalised actions, normalised again by the formula, give back what the network said."""
    policy, tables = deployment.bundle.manifest.policy, read_tables(deployment.bundle)
    if policy.adapt_to_pi_aloha:
        return _turned("action round trip")
    latent = np.random.default_rng(1).standard_normal((policy.chunk_size, policy.max_action_dim), np.float32)
    deployment.session.preparer.state(
        np.zeros(policy.state_dim, np.float32), np.empty((1, policy.max_state_dim), np.float32)
    )
    actions, _ = deployment.session.preparer.actions(latent)
    spec = _spec(deployment.bundle, ACTION)
    back = normalised(actions, ACTION, NormalizationSpec(spec.feature, spec.mode, 0.0), tables)
    # A joint that never moved (std 0) has no way back: what matters is that it stays where it was recorded.
    moving = _moving(spec, tables, policy.action_dim)
    worst = float(np.abs(back - latent[:, : policy.action_dim])[:, moving].max(initial=0.0))
    found = (
        f"largest difference {worst:.1e} over {int(moving.sum())} moving joints (limit 1e-4: float32 at joint values "
        "in the hundreds)"
    )
    said = [remark for remark in remarks(deployment.bundle, tables) if not remark.startswith(STATE)]
    return Item.judged(
        "action round trip",
        worst <= 1e-4,
        "; ".join([found, *said]),
        "the statistics in the bundle are damaged: export again",
    )


def _turned(name: str) -> Item:
    return Item(name, NOT_RUN, "the policy turns Aloha's joints too", "compare with the export's parity report")


def reference_picture(image: NDArray[np.uint8], target: tuple[int, int], pad: bool) -> NDArray[np.float64]:
    """float64 [3, h, w] in −1..1 of a uint8 [H, W, 3] picture: scale, bilinear without antialias, pad left and top."""
    values = image.astype(np.float64).transpose(2, 0, 1) / 255
    if pad:
        ratio = max(values.shape[2] / target[1], values.shape[1] / target[0])
        values = _bilinear(_bilinear(values, 1, int(values.shape[1] / ratio)), 2, int(values.shape[2] / ratio))
        values = np.pad(values, ((0, 0), (target[0] - values.shape[1], 0), (target[1] - values.shape[2], 0)))
    return values * 2 - 1


def channels_normalised(bundle: Bundle, camera: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [3, h, w] in 0..1, channel by channel as the camera's statistics say."""
    by = normalizer(bundle, read_tables(bundle), camera, 3)
    offset, divisor = (array.astype(np.float64)[:, None, None] for array in (by.offset, by.divisor))
    return (values - offset) / divisor * float(by.gain) + float(by.bias)


def _bilinear(values: NDArray[np.float64], axis: int, size: int) -> NDArray[np.float64]:
    length = values.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, None)
    first = np.minimum(places.astype(int), length - 1)
    second = np.minimum(first + 1, length - 1)
    weight = (places - first).reshape([-1 if i == axis else 1 for i in range(3)])
    return np.take(values, first, axis) * (1 - weight) + np.take(values, second, axis) * weight


def normalised(
    values: NDArray[np.float32], feature: str, spec: NormalizationSpec, tables: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The formula of docs/policy.md §1.4 in float64."""
    if spec.mode == "MEAN_STD":
        with np.errstate(divide="ignore", invalid="ignore"):  # no spread: the caller leaves such dimensions out
            return (values.astype(np.float64) - tables[f"{feature}.mean"]) / (
                tables[f"{feature}.std"].astype(np.float64) + spec.eps
            )
    if spec.mode == "MIN_MAX":
        low, high = (tables[f"{feature}.{name}"].astype(np.float64) for name in ("min", "max"))
        return 2 * (values - low) / np.where(high == low, max(spec.eps, 1e-8), high - low) - 1
    return values.astype(np.float64)


def _moving(spec: NormalizationSpec, tables: Mapping[str, NDArray[np.float32]], dim: int) -> NDArray[np.bool_]:
    if spec.mode == "MEAN_STD":
        return tables[f"{ACTION}.std"] > 0
    if spec.mode == "MIN_MAX":
        return tables[f"{ACTION}.max"] > tables[f"{ACTION}.min"]
    return np.ones(dim, bool)


def _spec(bundle: Bundle, feature: str) -> NormalizationSpec:
    return next(
        (spec for spec in bundle.manifest.normalization if spec.feature == feature),
        NormalizationSpec(feature, "IDENTITY", 0.0),
    )
