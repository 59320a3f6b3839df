# SPDX-License-Identifier: Apache-2.0
"""Joint conventions of the Aloha arms, for policies with `adapt_to_pi_aloha`.

As in LeRobot's SmolVLA the maps act on normalised values: on the state after
normalisation, on actions before un-normalisation. Constants: Interbotix'
gripper geometry in metres and the ranges measured on a Trossen arm, as LeRobot
lists them (modeling_smolvla.py, `aloha_gripper_*`).
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLIPPED = (1, 2, 8, 9)
_GRIPPERS = (6, 13)
_LINEAR = (0.01844, 0.05800)
_ANGULAR = (0.4, 1.5)
_JOINT = (-0.6213, 1.4910)
_ARM_LENGTH = 0.036
_HORN_RADIUS = 0.022


def decode_state(state: Tensor) -> Tensor:
    """Aloha's joints [..., n ≥ 14] → the policy's: four joints flipped, gripper openings to angles."""
    opening = _from_unit(_grippers(state), _LINEAR)
    sine = (_HORN_RADIUS**2 + opening**2 - _ARM_LENGTH**2) / (2 * _HORN_RADIUS * opening)
    return _with(state, _to_unit(torch.arcsin(sine.clamp(-1.0, 1.0)), _ANGULAR))


def encode_actions(actions: Tensor) -> Tensor:
    """The policy's joints [..., n ≥ 14] → Aloha's."""
    return _with(actions, _to_unit(_from_unit(_grippers(actions), _ANGULAR), _JOINT))


def encode_actions_inverse(actions: Tensor) -> Tensor:
    """Undo `encode_actions`: recorded actions become training targets."""
    return _with(actions, _to_unit(_from_unit(_grippers(actions), _JOINT), _ANGULAR))


def _grippers(values: Tensor) -> Tensor:
    return values[..., list(_GRIPPERS)]


def _with(values: Tensor, grippers: Tensor) -> Tensor:
    result = values.clone()
    result[..., list(_FLIPPED)] = -values[..., list(_FLIPPED)]
    result[..., list(_GRIPPERS)] = grippers
    return result


def _to_unit(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return (values - limits[0]) / (limits[1] - limits[0])


def _from_unit(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return values * (limits[1] - limits[0]) + limits[0]
