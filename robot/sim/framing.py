# SPDX-License-Identifier: Apache-2.0
"""Dynamixel protocol 2.0 framing in Python, from the servo's side.

Written apart from the C driver's framing, so that one checks the other.
Source: Robotis e-Manual, "DYNAMIXEL Protocol 2.0".
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
PING, READ, WRITE, REBOOT, STATUS, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x08, 0x55, 0x82, 0x83
LONGEST = 1024


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


def encode(packet_id: int, instruction: int, body: bytes) -> bytes:
    """A whole packet; `body` is what follows the instruction, not yet stuffed."""
    stuffed = bytes([instruction]) + body
    if b"\xff\xff\xfd" in stuffed:
        stuffed = stuffed.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    packet = HEADER + bytes([packet_id]) + (len(stuffed) + 2).to_bytes(2, "little") + stuffed
    return packet + crc16(packet).to_bytes(2, "little")


def encode_status(packet_id: int, error: int, parameters: bytes) -> bytes:
    return encode(packet_id, STATUS, bytes([error]) + parameters)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One request: `parameters` are unstuffed."""

    id: int
    instruction: int
    parameters: bytes


class InstructionReader:
    """Bytes of the line in, whole instructions out; what is damaged is skipped in silence, as servos do."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Instruction]:
        self._buffer += data
        found: list[Instruction] = []
        while True:
            start = self._buffer.find(HEADER)
            if start < 0:
                del self._buffer[: max(0, len(self._buffer) - len(HEADER) + 1)]
                return found
            del self._buffer[:start]
            if len(self._buffer) < 7:
                return found
            length = int.from_bytes(self._buffer[5:7], "little")
            if not 3 <= length <= LONGEST:
                del self._buffer[0]
                continue
            if len(self._buffer) < 7 + length:
                return found
            packet = bytes(self._buffer[: 7 + length])
            if crc16(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
                del self._buffer[0]
                continue
            del self._buffer[: 7 + length]
            body = packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
            found.append(Instruction(packet[4], body[0], body[1:]))
