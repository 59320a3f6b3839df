# SPDX-License-Identifier: Apache-2.0
"""Emulated servos on one line: requests in, statuses out, a log of what was accepted.

No I/O and no clock of its own: bytes, the line's baud rate and the time are arguments. Every accepted goal and torque
switch is an entry of the log; safety tests judge by it, not by what the driver says of itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_edge.robot.sim import framing
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_servo import EmulatedServo
from vla_edge.robot.sim.plant import Plant

STEP_NS = 2_000_000
CATCH_UP_NS = 100_000_000
ERROR_INSTRUCTION, ERROR_LENGTH = 0x02, 0x05
Log = Callable[[Mapping[str, Any]], None]


class EmulatedBus:
    """`servos`, of one language, share one line; `plant` is what their shafts turn; `log` takes one mapping per event.

    Log entries have `t` (CLOCK_MONOTONIC ns) and `kind`: `goal` (goals and present positions by id), `torque` (id, on),
    `write` (id, address, hex), `refused` (id, address, error), `watchdog` (id), `reboot` (id), `answer` (positions by
    id, as put on the line), `motion` (positions by id, when one changed), `registers` (all by id and name, see `dump`),
    `event` (words, see emulator.py) when it has happened.
    """

    def __init__(self, servos: Sequence[EmulatedServo], plant: Plant, faults: Faults, log: Log) -> None:
        self.servos = list(servos)
        self.dead: set[int] = set()
        self.silent_until_ns = 0
        self._plant = plant
        self._faults = faults
        self._log = log
        self._language = self.servos[0].LANGUAGE
        self._reader = framing.InstructionReader(self._language)
        self._now_ns: int | None = None
        self._pending: list[tuple[int, int, bytes]] = []
        self._sequence = 0
        self._stall_ns = 0
        self._shown: list[int] = []

    def advance(self, now_ns: int) -> None:
        """Run firmware and plant up to `now_ns`. Of a longer absence only the end is made up for: a host that is too
        slow for the physics sees it run slower, instead of falling further behind with every look at the clock."""
        if self._now_ns is None:
            self._now_ns = now_ns
            self._step_plant(now_ns)
        self._now_ns = max(self._now_ns, now_ns - CATCH_UP_NS)
        while self._now_ns < now_ns:
            step_ns = min(STEP_NS, now_ns - self._now_ns)
            self._now_ns += step_ns
            for servo in self.servos:
                due_ns = servo.watchdog_due_ns()
                if due_ns is not None and due_ns <= self._now_ns:
                    servo.trip_watchdog()
                    self._log({"t": due_ns, "kind": "watchdog", "id": servo.id})
                servo.advance_profile(step_ns / 1e9)
            self._step_plant(self._now_ns)

    def _step_plant(self, now_ns: int) -> None:
        state = self._plant.step([servo.plant_setpoint for servo in self.servos], now_ns)
        for servo, raw, velocity, current in zip(self.servos, state.positions, state.velocities, state.currents):
            servo.show(raw, velocity, current)
        shown = [servo.position for servo in self.servos]
        if shown != self._shown:
            self._shown = shown
            self._log({"t": now_ns, "kind": "motion", "positions": self._by_id(self.servos, shown)})

    @staticmethod
    def _by_id(servos: Sequence[EmulatedServo], values: Sequence[int]) -> dict[str, int]:
        return {str(servo.id): value for servo, value in zip(servos, values)}

    def receive(self, data: bytes, baud: int, now_ns: int) -> None:
        """Bytes from the host at `baud`; answers become due for `take_output`."""
        self.advance(now_ns)
        for request in self._reader.feed(data):
            if now_ns >= self.silent_until_ns and self._faults.request_is_heard():
                self._handle(request, baud, now_ns)

    def dump(self, now_ns: int) -> None:
        """Every register of every servo into the log."""
        held = {
            str(servo.id): {name: servo.get(known) for name, known in servo.REGISTERS.items()} for servo in self.servos
        }
        self._log({"t": now_ns, "kind": "registers", "servos": held})

    def take_output(self, now_ns: int) -> bytes:
        """The bytes that are due on the line by now, in order."""
        out = bytearray()
        while self._pending and self._pending[0][0] <= now_ns:
            out += heapq.heappop(self._pending)[2]
        return bytes(out)

    def next_due_ns(self) -> int | None:
        return self._pending[0][0] if self._pending else None

    def _hearing(self, baud: int, now_ns: int) -> dict[int, EmulatedServo]:
        return {
            servo.id: servo
            for servo in self.servos
            if servo.id not in self.dead and servo.baud == baud and now_ns >= servo.reboot_until_ns
        }

    def _answer(self, servo: EmulatedServo, error: int, parameters: bytes, now_ns: int) -> None:
        """One status. now_ns: when it would leave a servo without a return delay."""
        now_ns += servo.return_delay_ns
        error = servo.refusal(error) | servo.alert
        for delay_ns, data in self._faults.deliver(self._language, servo.id, error, parameters):
            self._sequence += 1
            heapq.heappush(self._pending, (now_ns + self._stall_ns + delay_ns, self._sequence, data))

    def _handle(self, request: framing.Instruction, baud: int, now_ns: int) -> None:
        hearing = self._hearing(baud, now_ns)
        self._stall_ns = self._faults.stall_ns()
        if request.instruction == framing.SYNC_READ and request.id == framing.BROADCAST:
            self._sync_read(request.parameters, hearing, now_ns)
        elif request.instruction == framing.SYNC_WRITE and request.id == framing.BROADCAST:
            self._sync_write(request.parameters, hearing, now_ns)
        elif request.id == framing.BROADCAST:
            for servo in hearing.values():
                self._single(servo, request, now_ns, broadcast=True)
        elif request.id in hearing:
            self._single(hearing[request.id], request, now_ns, broadcast=False)

    def _single(self, servo: EmulatedServo, request: framing.Instruction, now_ns: int, broadcast: bool) -> None:
        servo.last_heard_ns = now_ns
        parameters, error, answer, least_level = request.parameters, 0, b"", 2
        level, width = servo.status_level, self._language.address_bytes
        if request.instruction == framing.PING:
            answer = servo.ping_answer()
            least_level = 0
        elif request.instruction == framing.READ and not broadcast:
            least_level = 1
            if len(parameters) == 2 * width:
                error, answer = servo.read(*self._registers(parameters))
            else:
                error = ERROR_LENGTH
            self._log_answer([servo], parameters, now_ns)
        elif request.instruction == framing.WRITE:
            if len(parameters) > width:
                address = int.from_bytes(parameters[:width], "little")
                error = self._write([servo], address, [parameters[width:]], now_ns)[0]
            else:
                error = ERROR_LENGTH
        elif request.instruction == framing.REBOOT and self._language is framing.DYNAMIXEL2:
            self._log({"t": now_ns, "kind": "reboot", "id": servo.id})
            servo.reboot(now_ns)
        else:
            error = ERROR_INSTRUCTION
        if level >= least_level and (not broadcast or request.instruction == framing.PING):
            self._answer(servo, error, answer, now_ns)

    def _registers(self, parameters: bytes) -> tuple[int, int]:
        """(address, length), with which the parameters of a read begin."""
        width = self._language.address_bytes
        return int.from_bytes(parameters[:width], "little"), int.from_bytes(parameters[width : 2 * width], "little")

    def _sync_read(self, parameters: bytes, hearing: dict[int, EmulatedServo], now_ns: int) -> None:
        head = 2 * self._language.address_bytes
        if len(parameters) <= head:
            return
        address, length = self._registers(parameters)
        answering = []
        for servo_id in parameters[head:]:
            if servo_id not in hearing:
                break  # each servo waits for the one before it: behind a dead one nobody speaks
            answering.append(hearing[servo_id])
        for servo_id in parameters[head:]:
            if servo_id in hearing:
                hearing[servo_id].last_heard_ns = now_ns
        due_ns = now_ns
        for servo in answering:
            if servo.status_level >= 1:
                self._answer(servo, *servo.read(address, length), due_ns)
                due_ns += servo.return_delay_ns
        self._log_answer(answering, parameters, now_ns)

    def _log_answer(self, servos: Sequence[EmulatedServo], parameters: bytes, now_ns: int) -> None:
        address, length = self._registers(parameters)
        present = self.servos[0].PRESENT
        if address <= present.address and address + length >= present.address + present.size:
            positions = [servo.position for servo in servos]
            self._log({"t": now_ns, "kind": "answer", "positions": self._by_id(servos, positions)})

    def _sync_write(self, parameters: bytes, hearing: dict[int, EmulatedServo], now_ns: int) -> None:
        head = 2 * self._language.address_bytes
        if len(parameters) < head:
            return
        address, length = self._registers(parameters)
        if length < 1 or (len(parameters) - head) % (1 + length):
            return
        servos, values = [], []
        for at in range(head, len(parameters), 1 + length):
            servo = hearing.get(parameters[at])
            if servo is not None:
                servo.last_heard_ns = now_ns
                servos.append(servo)
                values.append(parameters[at + 1 : at + 1 + length])
        self._write(servos, address, values, now_ns)

    def _write(self, servos: Sequence[EmulatedServo], address: int, values: Sequence[bytes], now_ns: int) -> list[int]:
        """Write and log; the error number per servo."""
        errors, goals, present = [], {}, {}
        for servo, data in zip(servos, values):
            servo_id = servo.id  # before the write: it may change the id
            covers = range(address, address + len(data))
            if servo.ignored.intersection(covers):
                errors.append(0)
                continue
            error = servo.write(address, data)
            errors.append(error)
            if error:
                self._log({"t": now_ns, "kind": "refused", "id": servo_id, "address": address, "error": error})
            elif servo.GOAL.address in covers:
                goals[str(servo_id)] = servo.goal
                present[str(servo_id)] = servo.position
            elif servo.TORQUE.address in covers:
                self._log({"t": now_ns, "kind": "torque", "id": servo_id, "on": servo.get(servo.TORQUE)})
            else:
                self._log({"t": now_ns, "kind": "write", "id": servo_id, "address": address, "data": data.hex()})
        if goals:
            self._log({"t": now_ns, "kind": "goal", "goals": goals, "present": present})
        return errors
