# SPDX-License-Identifier: Apache-2.0
"""Joint state to the policy's numbers and back: normalisation and the pi-Aloha convention (docs/policy.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from vla_edge.bundle import TABLES, Bundle
from vla_edge.errors import BundleError

STATE = "observation.state"
ACTION = "action"

_ALOHA_FLIPPED = (1, 2, 8, 9)
_ALOHA_GRIPPERS = (6, 13)


@dataclass(frozen=True, slots=True)
class Normalizer:
    """normalised = (x − offset) / divisor · gain + bias; x = (normalised − bias) / gain · factor + offset.

    Arrays are float32 [dim]. MEAN_STD: divisor std + eps, factor std alone, gain 1, bias 0. MIN_MAX maps min..max to
    −1..1: divisor and factor are the range (eps where it is zero), gain 2, bias −1. Without statistics, and for
    IDENTITY, values pass unchanged. The order of operations is LeRobot's, so that a range of zero gives its values.
    """

    offset: NDArray[np.float32]
    divisor: NDArray[np.float32]
    factor: NDArray[np.float32]
    gain: np.float32 = np.float32(1)
    bias: np.float32 = np.float32(0)

    def normalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((values - self.offset) / self.divisor * self.gain + self.bias, np.float32)

    def unnormalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((values - self.bias) / self.gain * self.factor + self.offset, np.float32)


def read_tables(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """The arrays of `tables.safetensors`: statistics and time-bias tables. BundleError: it is no such file."""
    try:
        return dict(load(bytes(bundle.read(TABLES))))
    except SafetensorError as error:
        raise BundleError(f"{bundle.path / TABLES}: damaged ({error}); export the bundle again") from None


def normalizer(bundle: Bundle, tables: dict[str, NDArray[np.float32]], feature: str, dim: int) -> Normalizer:
    """The normaliser of `feature` with `dim` dimensions. BundleError: unknown mode, statistics of another size."""
    spec = next((item for item in bundle.manifest.normalization if item.feature == feature), None)
    zero, one = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}
    if spec is None or spec.mode == "IDENTITY":
        return Normalizer(zero, one, one)
    if spec.mode not in names:
        raise BundleError(f"{bundle.path}: {feature} is normalised by {spec.mode!r}; known: {', '.join(names)}")
    found = [tables.get(f"{feature}.{stat}") for stat in names[spec.mode]]
    if all(array is None for array in found):
        return Normalizer(zero, one, one)
    for stat, array in zip(names[spec.mode], found):
        if array is None or array.shape != (dim,) or not np.isfinite(array).all():
            shape = "missing" if array is None else f"of shape {array.shape}, or not finite"
            raise BundleError(f"{bundle.path}: statistics {feature}.{stat} are {shape}; expected [{dim}]; export again")
    first, second = (np.asarray(array, np.float32) for array in found)
    eps = np.float32(spec.eps)
    if spec.mode == "MEAN_STD":
        return Normalizer(first, second + eps, second)
    span = np.where(second == first, eps, second - first)
    return Normalizer(first, span, span, np.float32(2), np.float32(-1))


RESTING = 1e-5
"""A spread below this, in any joint unit, is no joint's motion: a hundredth of a degree becomes a thousand spreads."""


def resting(low: NDArray[np.float32], high: NDArray[np.float32], mode: str) -> tuple[int, ...]:
    """Indices of the dimensions whose statistics divide by next to nothing. `low` and `high`: mean and std, or the ends
    of the range, as `mode` MEAN_STD or MIN_MAX says; IDENTITY divides by nothing."""
    if mode == "IDENTITY":
        return ()
    return tuple(int(index) for index in np.flatnonzero((high if mode == "MEAN_STD" else high - low) < RESTING))


def remarks(bundle: Bundle, tables: dict[str, NDArray[np.float32]]) -> list[str]:
    """What a person should know about a bundle's joint values before an arm moves; a sentence each."""
    manifest, found = bundle.manifest, []
    modes = {spec.feature: spec.mode for spec in manifest.normalization}
    if modes.get(ACTION) == "IDENTITY":
        found.append("the policy's outputs are taken for joint values as they are: its actions have no statistics")
    mode = modes.get(STATE, "IDENTITY")
    ends = [tables.get(f"{STATE}.{name}") for name in (("mean", "std") if mode == "MEAN_STD" else ("min", "max"))]
    if ends[0] is not None and ends[1] is not None:
        for index in resting(ends[0], ends[1], mode):
            found.append(
                resting_sentence(manifest.joints[index] if index < len(manifest.joints) else f"dimension {index}")
            )
    return found


def resting_sentence(joint: str) -> str:
    """Why a state joint with next to no spread is dangerous, and what mends it."""
    return (
        f"{STATE}: {joint} has no spread in the statistics, so that a hundredth of a degree of it changes the whole "
        "chunk; write them anew with `vla-data stats DATASET --write`, train again, and keep that joint where it rests"
    )


def joint_ranges(tables: dict[str, NDArray[np.float32]], dim: int) -> NDArray[np.float32] | None:
    """Each joint's range in the data the policy learnt from, float32 [dim] in joint units: max − min of the actions,
    else six standard deviations; None without statistics. A joint that never moved has a range of infinity: no error
    of it counts as a share."""
    if f"{ACTION}.min" in tables and f"{ACTION}.max" in tables:
        span = tables[f"{ACTION}.max"] - tables[f"{ACTION}.min"]
    elif f"{ACTION}.std" in tables:
        span = 6 * tables[f"{ACTION}.std"]
    else:
        return None
    return np.where(span > 0, span, np.inf).astype(np.float32) if span.shape == (dim,) else None


def aloha_state(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """State [≥ 14] in the pi models' convention: four joints flipped, grippers from linear to angular.

    LeRobot's `adapt_to_pi_aloha` (0.4.4) applies it after normalisation. Constants: puppet gripper 0.01844..0.058 m,
    arm 0.036 m, horn 0.022 m, angular range 0.4..1.5 rad.
    """
    out = state.copy()
    out[list(_ALOHA_FLIPPED)] *= -1
    grippers = list(_ALOHA_GRIPPERS)
    length = out[grippers] * (0.05800 - 0.01844) + 0.01844
    ratio = (0.022**2 + length**2 - 0.036**2) / (2 * 0.022 * length)
    out[grippers] = (np.arcsin(np.clip(ratio, -1, 1)) - 0.4) / (1.5 - 0.4)
    return out


def aloha_actions(actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Actions [n, ≥ 14] back from the pi models' convention, before un-normalising (range −0.6213..1.491 rad)."""
    out = actions.copy()
    out[:, list(_ALOHA_FLIPPED)] *= -1
    grippers = list(_ALOHA_GRIPPERS)
    out[:, grippers] = (out[:, grippers] * (1.5 - 0.4) + 0.4 + 0.6213) / (1.4910 + 0.6213)
    return out
