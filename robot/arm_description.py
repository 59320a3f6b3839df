# SPDX-License-Identifier: Apache-2.0
"""An arm as a description: its joints, registers, settings and limits, read from `robot/arms/NAME.yaml`.

Everything that differs from arm to arm stands there, and the driver (robot/servo_arm.py), the C core and the tools are
made from it; a new arm is such a file, given by its path. What a register does is told by the roles of
robot/bus/servo_arm.h. The digest goes into the facts of a run and into its flight record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.fields import build, read_object
from vla_edge.robot.registers import Register

ARMS = Path(__file__).resolve().parent / "arms"
DEFAULT_ARM = "koch"
"""The arm that is meant where nobody names one."""
JOINTS_MAX = 16
"""ARM_JOINTS_MAX of robot/bus/arm.h."""
ROLES = ("torque", "goal", "block", "load", "velocity", "position", "voltage", "temperature")
OPTIONAL_ROLES = ("error", "watchdog", "lock")
READ_MAX = 16
"""BUS_READ_MAX of robot/bus/bus.h; one byte of it is the driver's, to tell answers apart."""
_SIGNS = {"none": 0, "twos": -1, **{f"bit{bit}": bit for bit in range(1, 32)}}


@dataclass(frozen=True, slots=True)
class ServoKind:
    """model: its model number. volts: of each kind of supply it is made for, lowest and highest. max_celsius: at which
    it shuts down by itself."""

    model: int
    volts: Mapping[str, tuple[float, float]]
    max_celsius: int

    @property
    def tenths(self) -> tuple[int, int]:
        """Lowest and highest voltage of any kind, 0.1 V."""
        return round(10 * min(low for low, _ in self.volts.values())), round(
            10 * max(high for _, high in self.volts.values())
        )


@dataclass(frozen=True, slots=True)
class ArmJoint:
    """One joint. A name that ends in `gripper` is one: 0 to 100 in every unit. mode: of operation. gravity: counts its
    goal may lead by at rest. full_turn: it has no ends, its range is the whole turn."""

    name: str
    id: int
    servo: str
    mode: int
    gravity: int
    full_turn: bool = False


@dataclass(frozen=True, slots=True)
class RegisterPlace:
    """at: first address. sign: none, twos (complement) or bitN, which says minus above the magnitude."""

    at: int
    bytes: int
    sign: str = "none"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a register must hold whenever there is torque: on every servo (value), or on some (of: joint → value).
    at_most: the register that bounds it."""

    register: str
    value: int | None = None
    of: Mapping[str, int] = field(default_factory=dict)
    at_most: str | None = None


@dataclass(frozen=True, slots=True)
class Watchdog:
    """value: that its register is set to. tripped: that it reads when it has stopped the servo."""

    value: int
    tripped: int


@dataclass(frozen=True, slots=True)
class MotionLimits:
    """counts/s, counts/s², counts of lead; the gripper's lead, as what it holds keeps it from closing."""

    velocity: float
    acceleration: float
    tracking: int
    gripper_tracking: int


@dataclass(frozen=True, slots=True)
class ArmDescription:
    """A whole description; robot/arms/koch.yaml shows each field in use.

    title: in messages. lerobot_folders: of calibration files in LeRobot's home. baud_code: what
    the baud_rate register holds. joint_units: that are accepted; the first is LeRobot's default, and the only one is
    taken unasked. velocity_unit: counts/s of one unit of velocity. homing_sign: of the homing offset in the present
    position. same_firmware: on all servos. checked: calibration field → register that must hold it. cleared: register →
    bits that must be 0. truncates: LeRobot's counts of a joint value are cut, not rounded.
    """

    name: str
    title: str
    protocol: str
    baud: int
    tool: str
    joint_units: tuple[str, ...]
    counts_per_turn: int
    velocity_unit: float
    homing_sign: int
    servos: Mapping[str, ServoKind]
    modes: Mapping[int, str]
    joints: tuple[ArmJoint, ...]
    registers: Mapping[str, RegisterPlace]
    eeprom_end: int
    roles: Mapping[str, str]
    checked: Mapping[str, str]
    settings: tuple[Setting, ...]
    speed: str
    errors: Mapping[int, str]
    limits: MotionLimits
    servo_limits: MotionLimits
    baud_code: int | None = None
    factory_baud: int | None = None
    watchdog: Watchdog | None = None
    multi_turn: bool = False
    lerobot_folders: tuple[str, ...] = ()
    leader_servos: Mapping[str, int] = field(default_factory=dict)
    min_firmware: int = 0
    same_firmware: bool = False
    eeprom: Mapping[str, int] = field(default_factory=dict)
    cleared: Mapping[str, int] = field(default_factory=dict)
    refused_when_stopped: tuple[str, ...] = ()
    truncates: bool = False
    units_must_be_known: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        names = self.joint_names
        known = {*self.roles.values(), *self.checked.values(), *self.eeprom, *self.cleared, self.speed}
        known |= {setting.register for setting in self.settings}
        places = [
            self.registers[setting.register].at for setting in self.settings if setting.register in self.registers
        ]
        joints = {joint for setting in self.settings for joint in setting.of}
        for wrong, what in (
            (not 1 <= len(names) <= JOINTS_MAX, f"an arm has 1 to {JOINTS_MAX} joints, not {len(names)}"),
            (len(set(names)) < len(names), "two joints have one name"),
            (len({joint.id for joint in self.joints}) < len(names), "two joints have one id"),
            (set(self.roles) - {*ROLES, *OPTIONAL_ROLES}, f"roles are {', '.join((*ROLES, *OPTIONAL_ROLES))}"),
            (set(ROLES) - set(self.roles), f"these roles are needed: {', '.join(ROLES)}"),
            (known - set(self.registers), f"no register {', '.join(sorted(known - set(self.registers)))}"),
            (joints - set(names), f"no joint {', '.join(sorted(joints - set(names)))}"),
            ({joint.servo for joint in self.joints} - set(self.servos), "a joint's servo is not among the servos"),
            (places != sorted(places), "settings must stand by rising address"),
            (("watchdog" in self.roles) != (self.watchdog is not None), "a watchdog has a role and its values"),
            ({place.sign for place in self.registers.values()} - set(_SIGNS), f"signs are {', '.join(_SIGNS)}"),
        ):
            if wrong:
                raise ValueError(what)
        spans = {"block": self.at("block").size + 1}
        if "error" in self.roles:
            spans["torque to error"] = self.at("error").address + 1 - self.at("torque").address
        for name, length in spans.items():
            if not 1 <= length <= READ_MAX:
                raise ValueError(f"{name} is {length} bytes; {READ_MAX} can be read")

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def ids(self) -> dict[str, int]:
        return {joint.name: joint.id for joint in self.joints}

    @property
    def models(self) -> dict[str, int]:
        """Model number by joint."""
        return {joint.name: self.servos[joint.servo].model for joint in self.joints}

    @property
    def has_watchdog(self) -> bool:
        return self.watchdog is not None

    def joint(self, name: str) -> ArmJoint:
        return next(joint for joint in self.joints if joint.name == name)

    def kind(self, name: str) -> ServoKind:
        """The servo of a joint."""
        return self.servos[self.joint(name).servo]

    def register(self, name: str) -> Register:
        place = self.registers[name]
        return Register(name, place.at, place.bytes, _SIGNS[place.sign])

    def at(self, role: str) -> Register:
        """The register of a role."""
        return self.register(self.roles[role])

    def errors_in_words(self, value: int) -> str:
        """The names of the bits set in an error register or byte, e.g. ``overload``."""
        return " and ".join(name for bit, name in self.errors.items() if value & bit) or f"unknown (0x{value:02x})"

    def servo_name(self, model: int) -> str:
        """The name of a model number, as far as this arm's people meet it."""
        known = {kind.model: name for name, kind in self.servos.items()}
        known |= {number: name for name, number in self.leader_servos.items()}
        return known.get(model, "servo of another kind")


def arm_names() -> list[str]:
    """The arms that are described here."""
    return sorted(file.stem for file in ARMS.glob("*.yaml"))


@cache
def load_arm(name: str) -> ArmDescription:
    """An arm by its name, or from a description's path. ConfigError names the file and the field."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else ARMS / f"{name}.yaml"
    content = _content(file)
    text = json.dumps(content, sort_keys=True, default=str)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return build(ArmDescription, content, file, ConfigError, "mend the description")


def _content(file: Path) -> dict[str, Any]:
    """A description's fields; one that is `like` another arm has that one's where it says nothing."""
    missing = f"no such arm; known are {', '.join(arm_names())}, or give the path of a description"
    content = read_object(file, ConfigError, "mend the description", missing)
    like = content.pop("like", None)
    return content if like is None else {**_content(ARMS / f"{like}.yaml"), **content}
