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
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.fields import build, read_object
from vla_edge.robot.arm_parts import (
    READ_MAX,
    SIGNS,
    ArmJoint,
    MotionLimits,
    Register,
    RegisterPlace,
    ServoKind,
    Setting,
    Watchdog,
    must,
    named,
    one_of,
    within,
)

ARMS = Path(__file__).resolve().parent / "arms"
DEFAULT_ARM = "koch"
"""The arm that is meant where nobody names one."""
JOINTS_MAX = 16
"""ARM_JOINTS_MAX of robot/bus/arm.h."""
SIDES = ("left_", "right_")
"""What the joints' names on each of two buses begin with."""
ROLES = ("torque", "goal", "block", "load", "velocity", "position", "voltage", "temperature")
OPTIONAL_ROLES = ("error", "watchdog", "lock")
SETTINGS_MAX = 24
"""SERVO_SETTINGS_MAX of robot/bus/servo_arm.h."""
LAST_ADDRESS = {"dynamixel2": 0xFFFF, "feetech0": 0xFF}
"""The servo languages of robot/bus, each with the highest address that it can ask for."""
JOINT_UNITS = ("range_m100_100", "degrees")
"""`JointUnits` of robot/joint_calibration.py by name."""
NEEDED_CHECKS, OTHER_CHECKS = ("homing_offset", "range_min", "range_max"), ("drive_mode",)
"""Fields of a calibration file that registers hold."""


@dataclass(frozen=True, slots=True)
class ArmDescription:
    """A whole description; robot/arms/koch.yaml shows each field in use.

    title: in messages. lerobot_folders: of calibration files in LeRobot's home. baud_code: what
    the baud_rate register holds. joint_units: that are accepted; the first is LeRobot's default, and the only one is
    taken unasked. velocity_unit: counts/s of one unit of velocity. homing_sign: of the homing offset in the present
    position. same_firmware: on all servos. checked: calibration field → register that must hold it. cleared: register →
    bits that must be 0. truncates: LeRobot's counts of a joint value are cut, not rounded. parking: groups of joints
    that park one behind the other, then the joints that are in none.
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
    parking: tuple[tuple[str, ...], ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_joints()
        self._check_registers()
        self._check_values()

    def _check_words(self) -> None:
        named("name", self.name)
        for name in ("title", "tool"):
            must(bool(getattr(self, name).strip()), f"{name} is empty")
        one_of("protocol", self.protocol, LAST_ADDRESS)
        for name in ("baud", "factory_baud"):
            if (baud := getattr(self, name)) is not None:
                within(name, baud, 9_600, 10_000_000)
        must(bool(self.joint_units), f"joint_units is empty; there are {', '.join(JOINT_UNITS)}")
        for place, units in enumerate(self.joint_units):
            one_of(f"joint_units[{place}]", units, JOINT_UNITS)
        for folder in self.lerobot_folders:
            must("/" not in folder and bool(folder), f"lerobot_folders has {folder!r:.60}, must be names of folders")
        within("counts_per_turn", self.counts_per_turn, 256, 1 << 20)
        within("velocity_unit", self.velocity_unit, 1e-3, 1e3)
        must(self.homing_sign in (-1, 1), f"homing_sign is {self.homing_sign!r:.20}, must be -1 or 1")
        within("min_firmware", self.min_firmware, 0, 0xFFFF)
        within("eeprom_end", self.eeprom_end, 0, 0xFFFF)
        for number, word in self.errors.items():
            within("errors: a key", number, 1, 255)
            must(bool(word), f"errors.{number} is empty")
        for number, word in self.modes.items():
            must(bool(word), f"modes.{number} is empty")

    def _check_joints(self) -> None:
        must(bool(self.servos), "servos is empty; a joint's servo is one of them")
        names, ids = self.joint_names, [(joint.bus, joint.id) for joint in self.joints]
        must(1 <= len(names) <= JOINTS_MAX, f"joints has {len(names)} items, an arm has 1 to {JOINTS_MAX}")
        for place, joint in enumerate(self.joints):
            where = f"joints[{place}]"
            must(names.index(joint.name) == place, f"{where}.name is {joint.name}, as an earlier joint's")
            must(ids.index(ids[place]) == place, f"{where}.id is {joint.id}, as an earlier joint's")
            one_of(f"{where}.servo", joint.servo, self.servos)
            must(joint.mode in self.modes, f"{where}.mode is {joint.mode!r:.20}, which has no name among modes")
        buses = [joint.bus for joint in self.joints]
        must(buses[0] == 0 and buses == sorted(buses), "joints: those on bus 0 stand first, then those on bus 1")
        for place, joint in enumerate(self.joints):
            fits = self.buses == 1 or joint.name.startswith(SIDES[joint.bus])
            must(
                fits,
                f"joints[{place}].name is {joint.name}, on bus {joint.bus} of two it begins with {SIDES[joint.bus]}",
            )
        must(all(self.parking), "parking has an empty group; each names the joints that park together")
        grouped = [name for group in self.parking for name in group]
        for name in grouped:
            must(name in names, f"parking names {name!r:.60}, which is no joint")
            must(grouped.count(name) == 1, f"parking names {name} twice")

    def _check_registers(self) -> None:
        for role in self.roles:
            one_of("roles: a key", role, (*ROLES, *OPTIONAL_ROLES))
        for role in ROLES:
            must(role in self.roles, f"roles.{role} is missing")
        for name in self.checked:
            one_of("checked: a key", name, (*NEEDED_CHECKS, *OTHER_CHECKS))
        for name in NEEDED_CHECKS:
            must(name in self.checked, f"checked.{name} is missing")
        used = {f"roles.{role}": register for role, register in self.roles.items()}
        used |= {f"checked.{name}": register for name, register in self.checked.items()}
        used |= {f"eeprom: {name}": name for name in self.eeprom} | {f"cleared: {name}": name for name in self.cleared}
        for place, setting in enumerate(self.settings):
            used[f"settings[{place}].register"] = setting.register
            if setting.at_most is not None:
                used[f"settings[{place}].at_most"] = setting.at_most
        always = ["operating_mode", *(["baud_rate"] if self.baud_code is not None else [])]
        for where, register in (used | {f"registers.{name}": name for name in always}).items():
            must(register in self.registers, f"{where} is {register!r:.60}, which is not among registers")
        block = self.roles["block"]
        for name, lies in self.registers.items():
            must(
                name == block or lies.bytes in (1, 2, 4),
                f"registers.{name}.bytes is {lies.bytes}, must be 1, 2 or 4 (roles.block alone may be longer)",
            )
            must(
                lies.at + lies.bytes - 1 <= LAST_ADDRESS[self.protocol],
                f"registers.{name}.at is {lies.at}, beyond {self.protocol}'s last address",
            )
        ordered = sorted((lies.at, name) for name, lies in self.registers.items() if name != block)
        for (at, name), (_, before) in zip(ordered[1:], ordered):
            end = self.registers[before].at + self.registers[before].bytes
            must(at >= end, f"registers.{name}.at is {at}, where {before} lies")
        inside = self.registers[block]
        for role in ("load", "velocity", "position"):
            lies = self.registers[self.roles[role]]
            must(
                inside.at <= lies.at and lies.at + lies.bytes <= inside.at + inside.bytes,
                f"roles.{role} lies outside roles.block, with which it is read",
            )
        if "error" in self.roles:
            span = self.at("error").address + 1 - self.at("torque").address
            must(1 <= span <= READ_MAX, f"from roles.torque to roles.error are {span} bytes; {READ_MAX} can be read")
        must(("watchdog" in self.roles) == (self.watchdog is not None), "watchdog needs its role and its values")

    def _check_values(self) -> None:
        order = [setting.register for setting in self.settings]
        must(len(order) <= SETTINGS_MAX, f"settings has {len(order)} items, {SETTINGS_MAX} can be kept")
        places = [self.registers[register].at for register in order]
        must(places == sorted(set(places)), "settings must stand by rising address, each once")
        must(self.speed in order, f"speed is {self.speed!r:.60}, which is not among settings")
        for place, register in enumerate(self.refused_when_stopped):
            what = f"refused_when_stopped[{place}] is {register!r:.60}, which is not among settings"
            must(register in order, what)
        held = {f"eeprom.{name}": (name, value) for name, value in self.eeprom.items()}
        held |= {f"cleared.{name}": (name, value) for name, value in self.cleared.items()}
        if self.baud_code is not None:
            held["baud_code"] = ("baud_rate", self.baud_code)
        held |= {f"joints[{place}].mode": ("operating_mode", joint.mode) for place, joint in enumerate(self.joints)}
        for place, setting in enumerate(self.settings):
            for joint, value in setting.of.items():
                must(joint in self.joint_names, f"settings[{place}].of names {joint!r:.60}, which is no joint")
                held[f"settings[{place}].of.{joint}"] = (setting.register, value)
            if setting.value is not None:
                held[f"settings[{place}].value"] = (setting.register, setting.value)
        for where, (register, value) in held.items():
            numbers = self.registers[register].numbers
            within(where, value, numbers[0], numbers[-1])

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def buses(self) -> int:
        """How many ports it has."""
        return self.joints[-1].bus + 1

    def park_turn(self, name: str) -> int:
        """Which group a joint parks with, 0 for the first."""
        return next((turn for turn, group in enumerate(self.parking) if name in group), len(self.parking))

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
        return Register(name, place.at, place.bytes, SIGNS[place.sign])

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


def arms_called(robot_type: str) -> list[ArmDescription]:
    """The arms that are described here and that LeRobot calls so in a dataset."""
    names = robot_type, f"{robot_type}_follower"
    arms = [load_arm(name) for name in arm_names()]
    return [arm for arm in arms if any(fnmatch(name, kind) for name in names for kind in arm.lerobot_folders)]


@cache
def load_arm(name: str) -> ArmDescription:
    """An arm by its name, or from a description's path. ConfigError names the file and the field."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else ARMS / f"{name}.yaml"
    if file != Path(name) and name not in arm_names():
        known = ", ".join(arm_names())
        raise ConfigError(
            f"no arm is called {name!r:.60}; known are {known}, or give the path of a description (.yaml)"
        )
    content = _content(file)
    text = json.dumps(content, sort_keys=True, default=str)
    content["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return build(ArmDescription, content, file, ConfigError, "mend the description")


def _content(file: Path) -> dict[str, Any]:
    """A description's fields; one that is `like` another arm has that one's where it says nothing."""
    missing = f"no such description; give its path, or one of {', '.join(arm_names())}"
    content = read_object(file, ConfigError, "mend the description", missing)
    like = content.pop("like", None)
    if like is None:
        return content
    if like not in arm_names():
        raise ConfigError(
            f"{file}: like is {like!r:.60}, must be one of {', '.join(arm_names())}; mend the description"
        )
    return {**_content(ARMS / f"{like}.yaml"), **content}
