# SPDX-License-Identifier: Apache-2.0
"""Does the robot stand as it did in the data: where its cameras look, and the pose an episode begins in.

Two items of `vla-doctor deploy`. A camera is held against the median of the first pictures of recorded episodes, which
keeps what stands still. The move between the two (shift and turn) is the one that correlates them best (Evangelidis and
Psarakis, 2008, doi 10.1109/TPAMI.2008.113), which neither light nor a few moved objects change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.camera_names import short_name
from vla_edge.errors import VlaEdgeError
from vla_edge.lerobot_data.observations import STATE, cameras_in
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.camera_options import CameraOptions
from vla_edge.robot.camera_report import look_at
from vla_edge.robot.joint_calibration import load_joint_calibration, unit_from_counts
from vla_edge.robot.servo_bus import ServoBus
from vla_edge.runtime.control.identity import units_of
from vla_edge.runtime.inference.units import read_tables
from vla_edge.trials.deployment import FAILED, NOT_RUN, PASSED, Item

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset

EPISODES = 16
"""Episodes whose first pictures are taken, spread over the dataset."""
WIDTH = 160
MOST_MOVED = 0.03
"""Share of the picture's width that its farthest corner may have moved by; more where the data's own camera moved."""
LEAST_LIKE = 0.5
"""Correlation below which two pictures do not show the same place."""
POSE_MARGIN = 0.1
"""Share of a joint's range in the data by which a start may lie outside the recorded ones."""
SETTLE_S = 0.7


@dataclass(frozen=True, slots=True)
class Move:
    """What takes a picture to another. right, down: shift of its content, shares of its width; turn_deg: clockwise;
    farthest: how far its farthest corner moves, share of its width; likeness: correlation after it, −1 to 1."""

    right: float
    down: float
    turn_deg: float
    farthest: float
    likeness: float


def check_cameras(
    bundle: Bundle, dataset: Path | None, cameras: Sequence[CameraOptions], tolerance_s: float = TOLERANCE_S
) -> Item:
    """Every camera given looks from where it looked in the data."""
    name = "camera place"
    if dataset is None or not cameras:
        return Item(name, NOT_RUN, "needs cameras and the data", "give --camera NAME=DEVICE of each, and --dataset")
    from vla_edge.lerobot_data.reader import open_dataset

    found, bad = [], []
    with open_dataset(dataset, tolerance_s=tolerance_s) as data:
        keys = cameras_in(data, bundle.manifest.cameras, {}, all_of_them=False)
        sources = {key: item.source for item in bundle.manifest.cameras for key in (item.name, item.source)}
        for options in cameras:
            key, short = keys.get(sources.get(options.name, "")), short_name(options.name)
            if key is None:
                found.append(f"{short} is not in the data")
                continue
            report = look_at(options, "", SETTLE_S)
            if report.picture is None:
                bad.append(report.fault)
                continue
            verdict, good = camera_verdict(first_pictures(data, key), report.picture)
            (found if good else bad).append(f"{short} {verdict}")
    if bad:
        fix = "move the camera until its picture is that of the data (`vla-runtime cameras` shows it), or record anew"
        return Item(name, FAILED, "; ".join(bad), fix)
    return Item(name, PASSED, "; ".join(found))


def check_start_pose(
    bundle: Bundle, dataset: Path | None, robot: str, port: str | None, joints: Path | None, told_units: str | None
) -> Item:
    """The arm stands within the poses that recorded episodes began in. Reads positions only."""
    name = "start pose"
    if dataset is None or port is None or joints is None:
        return Item(name, NOT_RUN, "needs the arm and the data", "give --port, --joints and --dataset")
    from vla_edge.lerobot_data.reader import open_dataset

    try:
        pose = arm_pose(load_arm(robot), port, joints, bundle, told_units)
    except VlaEdgeError as error:
        return Item(name, NOT_RUN, str(error), "mend that, then run it again")
    with open_dataset(dataset) as data:
        states = np.asarray(data.column(STATE), np.float64)
        starts = states[[episode.from_index for episode in data.episodes]]
    if states.shape[1:] != (len(pose),):
        return Item(name, NOT_RUN, f"the data's state has the shape {list(states.shape[1:])}", "give this robot's data")
    outside = pose_outside(pose, starts, states)
    if outside:
        return Item(name, FAILED, "; ".join(outside), "bring the arm there by hand or with `vla-runtime move`")
    return Item(name, PASSED, f"all {len(pose)} joints where the {len(starts)} episodes began")


def arm_pose(arm: ArmDescription, port: str, joints: Path, bundle: Bundle, told_units: str | None) -> dict[str, float]:
    """Joint → its position in the bundle's units. Errors: JointCalibrationError, BusError, IdentityError."""
    calibration = load_joint_calibration(joints, arm)
    units = units_of(bundle, told_units, arm, read_tables(bundle), calibration)[0]
    bus = ServoBus(port, arm, {joint.name: joint.id for joint in calibration.joints})
    try:
        counts = bus.read_all(arm.at("position"))
    finally:
        bus.close()
    return {joint.name: unit_from_counts(joint, units, counts[joint.name]) for joint in calibration.joints}


def pose_outside(pose: Mapping[str, float], starts: NDArray[np.float64], states: NDArray[np.float64]) -> list[str]:
    """A sentence for each joint outside. starts, states: [episodes, joints], [frames, joints], in the pose's order."""
    low, high = starts.min(axis=0), starts.max(axis=0)
    margin = POSE_MARGIN * np.ptp(states, axis=0) + 1e-6
    return [
        f"{joint} stands at {value:.1f}, episodes began between {low[at]:.1f} and {high[at]:.1f}"
        for at, (joint, value) in enumerate(pose.items())
        if not low[at] - margin[at] <= value <= high[at] + margin[at]
    ]


def first_pictures(data: Dataset, camera: str) -> list[NDArray[np.uint8]]:
    """The first picture of episodes spread over the dataset, uint8 [height, width, 3]."""
    numbers = np.unique(np.linspace(0, len(data.episodes) - 1, EPISODES).round().astype(int))
    return [data.image(camera, data.episodes[number].from_index) for number in numbers]


def camera_verdict(recorded: Sequence[NDArray[np.uint8]], picture: NDArray[np.uint8]) -> tuple[str, bool]:
    """What there is to say about a camera's present picture, and whether it looks from where it did."""
    seen = np.stack([_small(image) for image in recorded])
    usual = np.median(seen, axis=0).astype(np.float32)
    own = [move_between(usual, image) for image in seen]
    allowed = MOST_MOVED + max((move.farthest for move in own if move.likeness >= LEAST_LIKE), default=0.0)
    like = min(LEAST_LIKE, 0.8 * min(move.likeness for move in own))
    now = _small(picture)
    if now.shape != usual.shape:
        return f"has another shape of picture ({picture.shape[1]}x{picture.shape[0]}) than the data", False
    move = move_between(usual, now)
    if move.likeness < like:
        return f"shows something else than in the data (correlation {move.likeness:.2f}, at least {like:.2f})", False
    verdict = f"moved by {move.farthest:.1%} of the picture's width (at most {allowed:.1%})"
    if move.farthest <= allowed:
        return verdict, True
    sides = (("right", "left", move.right), ("down", "up", move.down))
    parts = [f"{abs(share):.1%} to the {one if share > 0 else other}" for one, other, share in sides[:1]]
    parts += [f"{abs(share):.1%} {one if share > 0 else other}" for one, other, share in sides[1:]]
    turn = f", turned by {abs(move.turn_deg):.1f}° {'clockwise' if move.turn_deg > 0 else 'anticlockwise'}"
    return f"{verdict}: what it shows lies {' and '.join(parts)}{turn}", False


def move_between(usual: NDArray[np.float32], picture: NDArray[np.float32]) -> Move:
    """The shift and turn that take `usual` to `picture`, both float32 [height, WIDTH]."""
    height, width = usual.shape
    (right, down), _ = cv2.phaseCorrelate(
        usual.astype(np.float64), picture.astype(np.float64), cv2.createHanningWindow((width, height), cv2.CV_64F)
    )
    best = Move(0.0, 0.0, 0.0, 0.0, -1.0)
    everywhere = np.full(usual.shape, 255, np.uint8)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    for start in ((0.0, 0.0), (right, down)):
        warp = np.array([[1, 0, start[0]], [0, 1, start[1]]], np.float32)
        try:
            likeness, found = cv2.findTransformECC(usual, picture, warp, cv2.MOTION_EUCLIDEAN, stop, everywhere, 5)
        except cv2.error:  # nothing in common that could be led to
            continue
        if likeness > best.likeness:
            best = _move(np.asarray(found, np.float64), height, width, float(likeness))
    return best


def _move(warp: NDArray[np.float64], height: int, width: int, likeness: float) -> Move:
    """warp: [2, 3], pixel of the usual picture → pixel of the other."""
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    moved = corners @ warp.T - corners[:, :2]
    middle = np.array([width / 2, height / 2, 1.0]) @ warp.T - (width / 2, height / 2)
    turn = float(np.degrees(np.arctan2(warp[1, 0], warp[0, 0])))
    farthest = float(np.linalg.norm(moved, axis=1).max())
    return Move(float(middle[0]) / width, float(middle[1]) / width, turn, farthest / width, likeness)


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey, WIDTH pixels wide, 0 to 1."""
    height = max(8, round(image.shape[0] * WIDTH / image.shape[1]))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (WIDTH, height), interpolation=cv2.INTER_AREA) / 255, np.float32)
