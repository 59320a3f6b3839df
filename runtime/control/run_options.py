# SPDX-License-Identifier: Apache-2.0
"""Options of a run as frozen dataclasses: read from the command line once, handed to child processes as flags."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from vla_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RobotOptions:
    """The arm, and how it may be moved. robot: its description's name or path. joints: its calibration file.
    joint_units: None where the bundle says them. hz: ticks a second, None: as the bus allows. handover: None, the
    policy's own. speed: share of the velocity limits. servo_limits: those of the servos, not the gentler ones.
    park_after: minutes without a plan until the arm parks."""

    bundle: Path
    robot: str
    port: str | None
    joints: Path | None
    joint_units: str | None
    hz: float | None
    handover: str | None
    inpaint_horizon: int | None
    speed: float
    servo_limits: bool
    park_after: float
    shadow: bool


@dataclass(frozen=True, slots=True)
class ControlOptions(RobotOptions):
    """Everything the control process is told. seconds: 0, until stopped. attended: a supervisor's
    heartbeat is there. parent: stop when that process dies."""

    run_dir: Path | None
    arm_at_start: bool
    seconds: float
    attended: bool
    parent: int | None
    json: bool


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What the policy shall do and how it is computed. task: None where none was given; an empty one is an instruction
    too. cache: None, as the bundle allows. flow_steps, least_flow_steps: None, the policy's own. replan_s: least time
    between two plans while moving. audit: share of cache hits computed again. record_fps: pictures a second, 0: none.
    """

    task: str | None
    without: list[str]
    trust_cameras: bool
    backend: str
    threads: int
    cache: str | None
    refresh: str
    flow_steps: int | None
    least_flow_steps: int | None
    replan_s: float
    audit: float
    seed: int
    noise: str
    nice: int
    record_inputs: Path | None
    record_fps: float
    record_mb: int

    def __post_init__(self) -> None:
        if self.record_fps > 0 and self.record_inputs is None:
            raise ConfigError("--record-fps needs --record-inputs FILE")


@dataclass(frozen=True, slots=True)
class InferenceOptions(PolicyOptions):
    """Everything the inference process is told. camera: NAME=DEVICE, one for each camera of the policy."""

    bundle: Path
    run_dir: Path | None
    camera: list[str]
    handover: str | None
    inpaint_horizon: int | None
    seconds: float
    parent: int | None
    json: bool


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything a supervised run is told. simulated: the arm is, and `arm` says which. video: film of it."""

    robot: RobotOptions
    policy: PolicyOptions
    simulated: bool
    arm: str
    no_arm: bool
    seconds: float
    camera: list[str]
    video: Path | None
    run_dir: Path | None
    json: bool


Options = TypeVar("Options")


def options_of_arguments(kind: type[Options], arguments: argparse.Namespace, **given: Any) -> Options:
    """The fields of `kind` by their names on the command line; `given` ones are no flags."""
    names = [field.name for field in fields(kind) if field.name not in given]  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in names}, **given)


def control_words(robot: RobotOptions, folder: Path) -> list[str]:
    """How to start the control process of a run: the arguments after the interpreter."""
    return _words("control", robot, run_dir=folder, attended=True, parent=os.getpid(), json=True)


def inference_words(policy: PolicyOptions, robot: RobotOptions, folder: Path, cameras: list[str]) -> list[str]:
    """How to start the inference process of a run."""
    shared = {name: getattr(robot, name) for name in ("bundle", "handover", "inpaint_horizon")}
    return _words("inference", policy, **shared, run_dir=folder, camera=cameras, parent=os.getpid(), json=True)


def _words(subcommand: str, options: Any, **more: Any) -> list[str]:
    """The command line that `options_of_arguments` reads as these options: False and None are left out."""
    words = ["-m", "vla_edge.runtime.command", subcommand]
    for name, value in ({field.name: getattr(options, field.name) for field in fields(options)} | more).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
    return words
