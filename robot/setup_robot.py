# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime setup`: finds the arm's port, its calibration and the cameras, asks for the rest, writes `robot.yaml`.

What the file holds stands in robot/robot_file.py. Servos are only read: no torque, no register is written.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from vla_edge.bundle import open_bundle
from vla_edge.camera_names import short_name
from vla_edge.command_line import answer, file_to_write
from vla_edge.errors import BusError, CameraError, ConfigError
from vla_edge.files import write_text
from vla_edge.robot.arm_description import DEFAULT_ARM, ArmDescription, arm_names, load_arm
from vla_edge.robot.camera_options import parse_cameras
from vla_edge.robot.camera_report import list_v4l2, report_cameras
from vla_edge.robot.joint_calibration import LEROBOT, JointUnits, lerobot_files, load_joint_calibration
from vla_edge.robot.port import BY_ID
from vla_edge.robot.robot_file import ROBOT_FILE, RobotFile, read_robot_file
from vla_edge.robot.servo_bus import ServoBus

SERIAL = ("/dev/ttyACM*", "/dev/ttyUSB*")
"""Serial ports of USB adapters, where no path by id is there."""
_HEAD = "# Read by vla-runtime from the folder it runs in; a flag on the command line stands above it.\n"


@dataclass(frozen=True, slots=True)
class Found:
    """Something that may be meant: its value for the file, and what a person knows it by."""

    value: str
    known_as: str


Ask = Callable[[str, Sequence[Found]], str]
"""A question and what may be meant (none: any text) → the value; "" where the person leaves it out."""


def ask_person(question: str, choices: Sequence[Found]) -> str:
    """Ask on the terminal. ConfigError: nobody is there."""
    for number, choice in enumerate(choices, 1):
        print(f"  {number}  {choice.value}  {choice.known_as}")
    hint = f"1 to {len(choices)}, or nothing to leave it out" if choices else "or nothing to leave it out"
    while True:
        print(f"{question} ({hint}): ", end="", flush=True)
        text = sys.stdin.readline()
        if not text:
            raise ConfigError("nobody answers on standard input; run setup in a terminal, or give its flags")
        text = text.strip()
        if not choices or not text:
            return text
        if text.isdigit() and 1 <= int(text) <= len(choices):
            return choices[int(text) - 1].value
        if text in [choice.value for choice in choices]:
            return text
        print(f"{text!r} is none of them")


def ask_nobody(question: str, choices: Sequence[Found]) -> str:
    """Without a terminal: the only possible answer, or none."""
    return choices[0].value if len(choices) == 1 else ""


def serial_ports() -> list[str]:
    """Serial ports of USB adapters, by their stable path where they have one."""
    if BY_ID.is_dir():
        return sorted(str(link) for link in BY_ID.iterdir())
    return sorted(path for pattern in SERIAL for path in glob.glob(pattern))


def follower(arm: ArmDescription) -> str:
    """What a person calls the arm that is driven."""
    return f"{arm.title} follower"


def what_answers(port: str, arms: Sequence[ArmDescription]) -> str:
    """What stands behind a serial port, in words, `follower` where it is one of `arms`; nothing is written."""
    reason = "no servo answers; is the arm's power on?"
    for arm in arms:
        try:
            bus = ServoBus(port, arm)
        except BusError as error:
            return str(error)
        try:
            found = bus.ping()
        except BusError as error:
            reason = str(error)
            continue
        finally:
            bus.close()
        models = {joint: answered[0] for joint, answered in found.items() if answered is not None}
        if models == arm.models:
            return follower(arm)
        if models:
            names = [arm.servo_name(model) for model in dict.fromkeys(models.values())]
            leader = set(models.values()) <= set(arm.leader_servos.values())
            return f"{f'{arm.title} leader' if leader else 'another arm'}: {len(models)} servos, {', '.join(names)}"
    return reason


def calibration_files(arm: ArmDescription, environment: Mapping[str, str]) -> list[Found]:
    """LeRobot's calibration files of such arms, of this user."""
    return [Found(str(file), f"LeRobot's {file.parent.name} {file.stem}") for file in lerobot_files(arm, environment)]


def find_port(arms: Sequence[ArmDescription], ask: Ask) -> Found | None:
    """The follower's port. One that is a follower is taken, else the person says which."""
    candidates = [Found(port, what_answers(port, arms)) for port in serial_ports()]
    followers = [candidate for candidate in candidates if candidate.known_as in map(follower, arms)]
    if len(followers) == 1:
        return followers[0]
    for candidate in candidates:
        print(f"  {candidate.value}: {candidate.known_as}")
    chosen = ask("Which port is the follower's?", followers or candidates) if candidates else ""
    return next((candidate for candidate in candidates if candidate.value == chosen), None)


def find_arm(known_as: str, ask: Ask) -> str:
    """The arm that a person calls so; where several have the same servos, or none answered, the person says which."""
    arms = {name: load_arm(name) for name in arm_names()}
    found = next((arm for arm in arms.values() if follower(arm) == known_as), None)
    alike = [Found(name, arm.title) for name, arm in arms.items() if found is None or arm.models == found.models]
    why = "None was recognised" if found is None else "Their servos are the same"
    chosen = ask(f"Which arm is it? {why}.", alike) if len(alike) > 1 else ""
    return chosen or (found.name if found is not None else DEFAULT_ARM)


def find_cameras(names: Sequence[str], sheet: Path, ask: Ask) -> dict[str, str]:
    """Device by name for each camera of the policy that there is; a picture of each device goes to `sheet`."""
    devices = [Found(device, name) for device, name in list_v4l2()]
    if not devices:
        return {}
    try:
        report_cameras([], sheet, 0.7)
        print(f"a picture of each camera: {sheet}")
    except CameraError as error:
        print(f"note: {error}")
    found: dict[str, str] = {}
    for name in names:
        left = [device for device in devices if device.value not in found.values()]
        device = ask(f"Which camera is {name!r}?", left) if left else ""
        if device:
            found[name] = device
    return found


def _distinct_arms() -> list[str]:
    """One arm of each kind of servos; of those that are alike the last by name, an SO-101 before an SO-100."""
    kinds = {tuple(load_arm(name).models.items()): name for name in arm_names()}
    return sorted(kinds.values())


def completed(given: RobotFile, sheet: Path, ask: Ask) -> RobotFile:
    """`given` with what was found and what a person said; pictures of the cameras go to `sheet`. Errors: BundleError,
    JointCalibrationError."""
    bundle = None if given.bundle is None else open_bundle(Path(given.bundle))
    names = [short_name(camera.name) for camera in bundle.manifest.cameras] if bundle else []
    found_port = None
    arms = [load_arm(name) for name in ([given.robot] if given.robot else _distinct_arms())]
    if given.port is None and given.robot and arms[0].buses > 1:
        raise ConfigError(
            f"which of the ports is the left one of {arms[0].title} cannot be told; give --port LEFT,RIGHT"
        )
    if given.port is None:
        found_port = find_port(arms, ask)
    elif given.robot is None:
        found_port = Found(given.port, what_answers(given.port, arms))
        print(f"  {found_port.value}: {found_port.known_as}")
    robot = given.robot or find_arm(found_port.known_as if found_port else "", ask)
    arm = load_arm(robot)
    port = given.port or (found_port.value if found_port else None)
    joints = given.joints or ask("Which joint calibration is this arm's?", calibration_files(arm, os.environ))
    if joints and (joints.startswith(LEROBOT) or Path(joints).exists()):
        load_joint_calibration(Path(joints), arm)
    found = find_cameras([name for name in names if name not in given.cameras], sheet, ask)
    return replace(
        given,
        robot=robot,
        port=port,
        joints=joints or None,
        cameras={**given.cameras, **found},
        task=given.task or ask("What shall the arm do, in a sentence?", []) or None,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=file_to_write, default=ROBOT_FILE, metavar="FILE", help="file to write")
    parser.add_argument("--replace", action="store_true", help="write it although it is there")
    parser.add_argument("--bundle", type=Path, help="folder written by export-engines: whose cameras are looked for")
    parser.add_argument(
        "--robot", metavar="ARM", help=f"{', '.join(arm_names())}, or a description's path (default: what answers)"
    )
    parser.add_argument("--port", help="serial port of the follower (default: the one where a follower answers)")
    parser.add_argument("--joints", type=Path, help="joint calibration (default: LeRobot's, where there is one)")
    parser.add_argument(
        "--joint-units", choices=[units.value for units in JointUnits], help="where the bundle does not say them"
    )
    parser.add_argument(
        "--camera", action="append", default=[], metavar="NAME=DEVICE", help="a camera that need not be looked for"
    )
    parser.add_argument("--task", help="what the arm shall do, in a sentence")
    parser.add_argument(
        "--sheet", type=file_to_write, default=Path("cameras.png"), metavar="FILE", help="pictures of the cameras found"
    )


def run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and not arguments.replace:
        raise ConfigError(f"{out} is there already; look at it, or write it anew with --replace")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out} must end in .yaml")
    cameras = zip(parse_cameras(arguments.camera), arguments.camera)
    given = RobotFile(
        robot=arguments.robot,
        port=arguments.port,
        joints=None if arguments.joints is None else str(arguments.joints),
        joint_units=arguments.joint_units,
        cameras={short_name(options.name): text.partition("=")[2] for options, text in cameras},
        bundle=None if arguments.bundle is None else str(arguments.bundle),
        task=arguments.task,
    )
    person = sys.stdin is not None and sys.stdin.isatty()
    found = completed(given, arguments.sheet, ask_person if person else ask_nobody)
    found = replace(
        found, joints=found.joints or str(out.with_name(f"{load_arm(found.robot or DEFAULT_ARM).name}.json"))
    )
    content = {name: value for name, value in asdict(found).items() if value}
    folder = out.absolute().parent
    for name in ("joints", "bundle"):
        path = Path(content.get(name, "")).absolute()
        if name in content and not content[name].startswith(LEROBOT):
            content[name] = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    write_text(out, _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000))
    read_robot_file(out)
    print(out.read_text(encoding="utf-8"), end="")
    answer({"file": str(out), **content})
    missing = [name for name in ("port", "cameras", "bundle", "task") if name not in content]
    if missing:
        print(f"not found: {', '.join(missing)}; add them to {out}, or give them as flags")
    joints = found.joints or ""
    if found.port and not joints.startswith(LEROBOT) and not Path(joints).is_file():
        print("next: vla-runtime calibrate-joints (with the arm in your hands), then vla-runtime --shadow")
    elif not missing:
        print("next: vla-runtime --shadow (computes everything, moves nothing), then vla-runtime")
    return 0
