# SPDX-License-Identifier: Apache-2.0
"""`robot.yaml`: what every command must know of one robot, written once and read where the command line is silent.

    robot: koch   (or so100, so101, the path of a description)
    port: /dev/serial/by-id/usb-...   (LEFT,RIGHT of two arms that are one)
    joints: koch.json
    cameras:
      laptop: /dev/v4l/by-id/usb-...-video-index0
    bundle: my-bundle
    task: put the cube in the box

`vla-runtime setup` writes it. Paths are relative to the file. A flag on the command line stands above it, and what was
taken from it is printed: nothing about the arm is assumed in silence.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from vla_edge.camera_names import feature_key, short_name
from vla_edge.command_parser import CommandParser
from vla_edge.errors import ConfigError
from vla_edge.fields import build, read_object
from vla_edge.robot.arm_description import DEFAULT_ARM, arm_names
from vla_edge.robot.joint_calibration import LEROBOT

ROBOT_FILE = Path("robot.yaml")
_ADVICE = "write it anew with `vla-runtime setup --replace`, or mend it by hand"
FLAGS = ("--robot", "--port", "--joints", "--joint-units", "--camera", "--bundle", "--task", "--hz")
OF_THE_ARM = ("--port", "--joints", "--joint-units", "--camera", "--hz")
"""What a simulated arm has of its own."""


@dataclass(frozen=True, slots=True)
class RobotFile:
    """A whole file; what is left out stands on the command line or has the command's default. cameras: the policy's
    name → device, with the options of `--camera`. joints, bundle: paths, relative to the file. hz: control ticks a
    second."""

    robot: str | None = None
    port: str | None = None
    joints: str | None = None
    joint_units: str | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    bundle: str | None = None
    task: str | None = None
    hz: float | None = None


def read_robot_file(file: Path) -> list[tuple[str, str]]:
    """The flags that a robot file stands for, with their values. ConfigError names the file and the field."""
    missing = "no such file; write one with `vla-runtime setup`"
    content = build(RobotFile, read_object(file, ConfigError, _ADVICE, missing), file, ConfigError, _ADVICE)
    pairs = []
    for item in fields(content):
        value = getattr(content, item.name)
        if item.name == "cameras":
            pairs += [("--camera", f"{short_name(name)}={_beside(file, device)}") for name, device in value.items()]
        elif value is not None:
            is_path = item.name in ("port", "joints", "bundle") and not str(value).startswith(LEROBOT)
            is_path = is_path or (item.name == "robot" and str(value).endswith((".yaml", ".yml")))
            parts = str(value).split(",") if item.name == "port" else [str(value)]
            text = ",".join(str(file.parent / part) if is_path else part for part in parts)
            pairs.append((f"--{item.name.replace('_', '-')}", text))
    return pairs


def _beside(file: Path, camera: str) -> str:
    """A camera's device with its options; a video or frames file that is named from the robot file's folder, whole."""
    device, comma, options = camera.partition(",")
    kind, colon, path = device.partition(":")
    if kind in ("file", "sim") and path:
        device = f"{kind}{colon}{file.parent / path}"
    elif not device.isdigit() and (file.parent / device).exists():
        device = str(file.parent / device)
    return f"{device}{comma}{options}"


def add_arm(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--robot` of a command that talks to an arm."""
    known = ", ".join(arm_names())
    parser.add_argument(
        "--robot", default=DEFAULT_ARM, metavar="ARM", help=f"the arm: {known}, or a description's path"
    )


def add_port(parser: argparse.ArgumentParser) -> None:
    """`--port` of a command that cannot do without."""
    parser.add_argument(
        "--port", required=True, help="serial port of the follower; LEFT,RIGHT of two arms that are one"
    )


def add_robot_file(parser: argparse.ArgumentParser, by_itself: bool = True) -> None:
    """`--robot-file`. by_itself: the command looks for robot.yaml in the present folder without being told to."""
    assert isinstance(parser, CommandParser)
    here = " (default: robot.yaml in this folder, where there is one)" if by_itself else ""
    parser.add_argument(
        "--robot-file",
        type=Path,
        metavar="FILE",
        help="port, joints, cameras, units, bundle and task that the command line leaves out" + here,
    )

    def expanded(words: Sequence[str]) -> list[str]:
        wanted = [flag for flag in FLAGS if parser.knows(flag)]
        return _expanded(words, wanted, ROBOT_FILE if by_itself else None)

    parser.expand = expanded


def _expanded(words: Sequence[str], wanted: Sequence[str], default: Path | None) -> list[str]:
    """The command line with the robot file's flags in front of it: what stands later counts."""
    named = _values(words, "--robot-file")
    file = Path(named[-1]) if named else default if default is not None and default.is_file() else None
    if file is None or {"-h", "--help", "--version"} & set(words):
        return list(words)
    pairs = read_robot_file(file)
    simulated = (_values(words, "--robot") or [value for flag, value in pairs if flag == "--robot"])[-1:] == ["sim"]
    cameras = {feature_key(text.partition("=")[0]) for text in _values(words, "--camera")}
    taken = [
        (flag, value)
        for flag, value in pairs
        if flag in wanted
        and not (simulated and flag in OF_THE_ARM)
        and not (feature_key(value.partition("=")[0]) in cameras if flag == "--camera" else _values(words, flag))
    ]
    if taken:
        print(f"{file}: {' '.join(f'{flag} {shlex.quote(value)}' for flag, value in taken)}", file=sys.stderr)
    return [*(word for pair in taken for word in pair), *words]


def _values(words: Sequence[str], flag: str) -> list[str]:
    """What a command line gives to a flag, before it is parsed."""
    found = []
    for word, after in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        found += [value if equals else after] if name == flag else []
    return found
