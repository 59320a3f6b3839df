# SPDX-License-Identifier: Apache-2.0
"""Registers of named joints over the C bus: the slow path of start-up, calibration and checks.

A lost or damaged reply is asked for again with more patience; the C bus makes
sure that it cannot be taken for another's. Every write is read back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from vla_edge.errors import BusError
from vla_edge.robot.arm_description import ArmDescription
from vla_edge.robot.arm_parts import Register
from vla_edge.robot.port import open_port

REPLIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Longest wait for a reply, try by try. The first is more than ten times what a slow USB adapter needs; on a busy
machine the kernel's ordinary workers bring it later."""
PING_S = 2.0
"""Servos that do not answer are waited for so long, all together."""


class BusResult(IntEnum):
    """`bus_result` of robot/bus/bus.h."""

    OK = 0
    TIMEOUT = 1
    CORRUPT = 2
    REFUSED = 3
    UNPLUGGED = 4


_MEANING = {
    BusResult.TIMEOUT: "does not answer; check its cable and the power supply",
    BusResult.CORRUPT: "answers with damaged packets; check the cables and that no id is used twice",
    BusResult.REFUSED: "refuses the request; switch torque off and try again",
}


class ServoBus:
    """joints: name → id, as described where left out; those on the second bus of two stand last, and a name that is not
    described is on the first. `native` is the C bus (`_core.ServoArm`)."""

    def __init__(
        self, path: str, arm: ArmDescription, joints: Mapping[str, int] | None = None, baud: int | None = None
    ) -> None:
        self.path = path
        self.arm = arm
        self.joints = arm.ids if joints is None else dict(joints)
        self._bus_of = {joint.name: joint.bus for joint in arm.joints}
        on_first = sum(self.bus_of(joint) == 0 for joint in self.joints)
        second = on_first if on_first < len(self.joints) else None
        self.native: Any = open_port(path, arm, list(self.joints.values()), baud, second)

    def close(self) -> None:
        self.native.close()

    def bus_of(self, joint: str) -> int:
        """Number of the bus that a joint is on."""
        return self._bus_of.get(joint, 0)

    def path_of(self, joint: str) -> str:
        """The port of a joint's bus."""
        return self.path.split(",")[self.bus_of(joint)]

    def beside(self, joint: str) -> list[str]:
        """The joints on the same bus, itself among them."""
        return [name for name in self.joints if self.bus_of(name) == self.bus_of(joint)]

    def fail(self, joint: str, result: int) -> BusError:
        """The error for `joint` after all tries."""
        if result == BusResult.UNPLUGGED:
            return BusError(f"the adapter at {self.path_of(joint)} is gone; plug it in and start again")
        return BusError(f"{joint} (id {self.joints[joint]}) {_MEANING[BusResult(result)]}")

    def ping(self, *asked: str) -> dict[str, tuple[int, int] | None]:
        """(model number, firmware) of the joints asked, of all by default; None where the servo does not answer.
        BusError: one does, but never whole."""
        found: dict[str, tuple[int, int] | None] = dict.fromkeys(asked or self.joints)
        failures: dict[str, int] = {}
        waited_s = 0.0
        for wait_s in REPLIES_S:
            for joint in [joint for joint, answer in found.items() if answer is None]:
                if failures.get(joint) == BusResult.TIMEOUT and waited_s > PING_S:
                    continue
                result, model, firmware = self.native.ping(self.joints[joint], wait_s, self.bus_of(joint))
                failures[joint] = result
                waited_s += wait_s if result == BusResult.TIMEOUT else 0.0
                if result == BusResult.OK:
                    found[joint] = int(model), int(firmware)
                elif result == BusResult.UNPLUGGED:
                    raise self.fail(joint, result)
                _let_silence_come(result, wait_s)
        for joint, answer in found.items():
            if answer is None and failures[joint] != BusResult.TIMEOUT:
                raise self.fail(joint, failures[joint])
        return found

    def read(self, joint: str, register: Register) -> int:
        """The register of one joint."""
        return self._ask(joint, register)[0]

    def _ask(self, joint: str, register: Register) -> tuple[int, int]:
        """The register of one joint, and its alert bits."""
        result: int = BusResult.TIMEOUT
        data = b""
        for wait_s in REPLIES_S:
            result, data, alert = self._sync_read([joint], register, wait_s)
            if result == BusResult.OK:
                return register.decode(data), alert[0]
            if result == BusResult.UNPLUGGED:
                break
            _let_silence_come(result, wait_s)
        raise self.fail(joint, result)

    def _sync_read(self, joints: Sequence[str], register: Register, wait_s: float) -> tuple[int, bytes, bytes]:
        """One question to joints of one bus."""
        ids = [self.joints[joint] for joint in joints]
        result, data, alerts = self.native.sync_read(
            ids, register.address, register.size, wait_s, self.bus_of(joints[0])
        )
        return int(result), data, alerts

    def errors(self, *asked: str) -> dict[str, int]:
        """Error bits of the joints asked, of all by default: of their register, or of what a servo says beside each
        answer."""
        if "error" in self.arm.roles:
            register = self.arm.at("error")
            return {joint: self.read(joint, register) for joint in asked} if asked else self.read_all(register)
        return {joint: self._ask(joint, self.arm.at("torque"))[1] for joint in asked or self.joints}

    def read_all(self, register: Register) -> dict[str, int]:
        """The register of every joint; asked one by one when the common question fails, so that the joint is known."""
        first, last = (self.beside(joint) for joint in (next(iter(self.joints)), next(reversed(self.joints))))
        found = self._read_bus(first, register)
        return found if last == first else found | self._read_bus(last, register)

    def _read_bus(self, joints: Sequence[str], register: Register) -> dict[str, int]:
        for wait_s in REPLIES_S[:3]:
            result, data, _alerts = self._sync_read(joints, register, wait_s)
            if result == BusResult.OK:
                break
            _let_silence_come(result, wait_s)
        else:
            return {joint: self.read(joint, register) for joint in joints}
        parts = (data[at : at + register.size] for at in range(0, len(data), register.size))
        return {joint: register.decode(part) for joint, part in zip(joints, parts)}

    def write(self, joint: str, register: Register, value: int) -> None:
        """Write one joint's register and read it back. EEPROM is refused by the servo while its torque is on."""
        result: int = BusResult.TIMEOUT
        for wait_s in REPLIES_S:
            result = self._write(joint, register, value, wait_s)
            if result == BusResult.UNPLUGGED:
                break
            if self.read(joint, register) == value:
                return
            if result == BusResult.REFUSED:
                break
        if result == BusResult.REFUSED or result == BusResult.OK:
            hint = f"check the servo in {self.arm.tool}"
            if register.address < self.arm.eeprom_end:
                hint = "it is EEPROM, written only without torque: hold the arm, switch the servos' power off and on"
            raise BusError(f"{joint} (id {self.joints[joint]}) does not take {register.name} = {value}; {hint}")
        raise self.fail(joint, result)

    def _write(self, joint: str, register: Register, value: int, wait_s: float) -> int:
        data = register.encode(value)
        return int(self.native.write(self.joints[joint], register.address, data, wait_s, self.bus_of(joint)))

    def start_anew(self, joint: str, wait_s: float) -> None:
        """Ask a servo to reboot; one that knows no reboot forgets what it shut down for without torque."""
        if self.native.reboot(self.joints[joint], wait_s, self.bus_of(joint)) == BusResult.REFUSED:
            self._write(joint, self.arm.at("torque"), 0, wait_s)

    def write_where_different(self, register: Register, values: Mapping[str, int]) -> list[str]:
        """Write the joints whose register differs from `values`; returns their names."""
        present = self.read_all(register)
        changed = [joint for joint, value in values.items() if present[joint] != value]
        for joint in changed:
            self.write(joint, register, values[joint])
        return changed


def _let_silence_come(result: int, wait_s: float) -> None:
    """After a damaged answer, which may be one to an earlier question that came late, with others behind it."""
    if result == BusResult.CORRUPT:
        time.sleep(wait_s)


def answers_at(path: str, arm: ArmDescription, servo_ids: Sequence[int], baud: int) -> int | None:
    """The first of `servo_ids` that answers a ping at another baud rate; the port must be free."""
    bus = ServoBus(path, arm, {str(servo_id): servo_id for servo_id in servo_ids}, baud)
    try:
        answers = bus.ping()
        return next((servo_id for servo_id in servo_ids if answers[str(servo_id)] is not None), None)
    finally:
        bus.close()
