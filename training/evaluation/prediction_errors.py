# SPDX-License-Identifier: Apache-2.0
"""How far predicted chunks are from recorded ones: per joint, over the first step, the executed horizon, the chunk.

Numpy only; the same numbers for a checkpoint, a bundle or saved predictions.
All values are in the dataset's own units (after un-normalisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import TrainingError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HorizonError:
    """Errors over one horizon: arrays [joints]; `*_std` over frames and steps; `steps` counted (unpadded)."""

    mse: NDArray[np.float64]
    mse_std: NDArray[np.float64]
    mae: NDArray[np.float64]
    mae_std: NDArray[np.float64]
    steps: int

    def to_json(self) -> dict[str, object]:
        arrays = {name: [float(v) for v in getattr(self, name)] for name in ("mse", "mse_std", "mae", "mae_std")}
        return {**arrays, "mse_mean": float(self.mse.mean()), "mae_mean": float(self.mae.mean()), "steps": self.steps}


def chunk_errors(
    predicted: Floats, recorded: Floats, is_pad: NDArray[np.bool_], executed: int
) -> dict[str, HorizonError]:
    """Errors by horizon.

    predicted, recorded float32 [frames, chunk, joints]; is_pad bool [frames, chunk], True past the episode's end;
    executed: actions carried out before the next inference (n_action_steps).
    """
    if predicted.shape != recorded.shape:
        raise TrainingError(
            f"predictions have shape {predicted.shape}, recordings {recorded.shape}; evaluate on the same episodes"
        )
    if not np.isfinite(predicted).all():
        raise TrainingError("predictions hold values that are not finite; check the statistics and the weights")
    chunk = recorded.shape[1]
    ends = {"first step": 1, "executed": min(executed, chunk), "chunk": chunk}
    return {name: _horizon(predicted[:, :end], recorded[:, :end], is_pad[:, :end]) for name, end in ends.items()}


def baselines(last_actions: Floats, mean_action: Floats, chunk: int) -> dict[str, Floats]:
    """What needs no policy: hold the last action [frames, joints], or the training mean [joints], for the chunk."""
    return {
        "hold last action": np.repeat(last_actions[:, None], chunk, axis=1),
        "mean action": np.broadcast_to(mean_action, (len(last_actions), chunk, mean_action.shape[-1])).copy(),
    }


def markdown(errors: Mapping[str, Mapping[str, HorizonError]], joints: tuple[str, ...]) -> str:
    """One row per predictor and horizon: MSE, MAE ± std over all joints, then MAE per joint."""
    lines = ["| predictor | horizon | MSE | MAE ± std | " + " | ".join(joints) + " |", "|---" * (4 + len(joints)) + "|"]
    for name, by_horizon in errors.items():
        for horizon, error in by_horizon.items():
            per_joint = " | ".join(f"{value:.4f} ± {std:.4f}" for value, std in zip(error.mae, error.mae_std))
            lines.append(
                f"| {name} | {horizon} | {error.mse.mean():.5f} | {error.mae.mean():.4f} ± "
                f"{error.mae_std.mean():.4f} | {per_joint} |"
            )
    return "\n".join(lines)


def _horizon(predicted: Floats, recorded: Floats, is_pad: NDArray[np.bool_]) -> HorizonError:
    valid = ~is_pad
    if not valid.any():
        raise TrainingError("no step of the chosen frames lies inside its episode; choose longer episodes")
    difference = (predicted - recorded)[valid].astype(np.float64)
    squared, absolute = difference**2, np.abs(difference)
    return HorizonError(squared.mean(0), squared.std(0), absolute.mean(0), absolute.std(0), int(valid.sum()))
