# SPDX-License-Identifier: Apache-2.0
"""The servo languages in Python, from the servo's side: Dynamixel protocol 2.0 and Feetech protocol 0.

Written apart from the C driver's framing, so that one checks the other. Sources: Robotis e-Manual, "DYNAMIXEL Protocol
2.0"; Feetech, "SMS/STS communication protocol manual". Instructions have the same numbers in both.
"""

from __future__ import annotations

from dataclasses import dataclass

BROADCAST = 0xFE
PING, READ, WRITE, REBOOT, STATUS, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x08, 0x55, 0x82, 0x83
LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Instruction:
    """One request: `parameters` are unstuffed."""

    id: int
    instruction: int
    parameters: bytes


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
        table.append(crc)
    return table


_TABLE = _crc_table()


def crc16(data: bytes) -> int:
    """CRC-16, polynomial 0x8005, start 0, most significant bit first."""
    crc = 0
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return crc


class _Dynamixel2:
    """header: a packet's first bytes. head: bytes up to its length. address_bytes: of a register's address and of a
    length in a request."""

    header = b"\xff\xff\xfd\x00"
    head = 7
    address_bytes = 2

    def encode(self, packet_id: int, instruction: int, body: bytes) -> bytes:
        """A whole packet; `body` is what follows the instruction, not yet stuffed."""
        stuffed = bytes([instruction]) + body
        if b"\xff\xff\xfd" in stuffed:
            stuffed = stuffed.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
        packet = self.header + bytes([packet_id]) + (len(stuffed) + 2).to_bytes(2, "little") + stuffed
        return packet + crc16(packet).to_bytes(2, "little")

    def encode_status(self, packet_id: int, error: int, parameters: bytes) -> bytes:
        return self.encode(packet_id, STATUS, bytes([error]) + parameters)

    def size(self, head: bytes) -> int:
        """Bytes of the packet with this head; 0: there is none such."""
        length = int.from_bytes(head[5:7], "little")
        return self.head + length if 3 <= length <= LONGEST else 0

    def decode(self, packet: bytes) -> Instruction | None:
        """A packet of its right size; None: it is damaged."""
        if crc16(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
            return None
        body = packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        return Instruction(packet[4], body[0], body[1:])


class _Feetech0:
    """As `_Dynamixel2`."""

    header = b"\xff\xff"
    head = 4
    address_bytes = 1

    def encode(self, packet_id: int, instruction: int, body: bytes) -> bytes:
        packet = bytes([packet_id, len(body) + 2, instruction]) + body
        return self.header + packet + bytes([~sum(packet) & 0xFF])

    def encode_status(self, packet_id: int, error: int, parameters: bytes) -> bytes:
        return self.encode(packet_id, error, parameters)

    def size(self, head: bytes) -> int:
        return self.head + head[3] if head[2] != 0xFF and head[3] >= 2 else 0

    def decode(self, packet: bytes) -> Instruction | None:
        if ~sum(packet[2:-1]) & 0xFF != packet[-1]:
            return None
        return Instruction(packet[2], packet[4], packet[5:-1])


Language = _Dynamixel2 | _Feetech0
DYNAMIXEL2, FEETECH0 = _Dynamixel2(), _Feetech0()


class InstructionReader:
    """Bytes of the line in, whole instructions out; what is damaged is skipped in silence, as servos do."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Instruction]:
        language, buffer = self._language, self._buffer
        buffer += data
        found: list[Instruction] = []
        while (start := buffer.find(language.header)) >= 0:
            del buffer[:start]
            if len(buffer) < language.head:
                return found
            size = language.size(bytes(buffer[: language.head]))
            if len(buffer) < size:
                return found
            instruction = language.decode(bytes(buffer[:size])) if size else None
            if instruction is None:
                del buffer[0]
                continue
            del buffer[:size]
            found.append(instruction)
        del buffer[: max(0, len(buffer) - len(language.header) + 1)]
        return found
