# SPDX-License-Identifier: Apache-2.0
"""`frames.NAME`: the newest picture of a simulated camera, in a file both processes map.

One writer, any number of readers. Three slots are written in turn, so a reader has two pictures' time to copy the
newest; each slot carries the sequence number before and behind the picture and a checksum, so that a torn copy is
noticed and taken again. Layout (little endian): magic 8 bytes, height u32, width u32, newest sequence u64, 40 bytes
reserved; then per slot sequence u64, captured_ns i64, crc32 u32, 4 bytes, pixels, sequence u64.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import Frame
from vla_edge.errors import CameraError
from vla_edge.files import written_beside

MAGIC = b"VLAFRAM1"
_HEADER = struct.Struct("<8sIIQ40x")
_NEWEST = struct.Struct("<Q")
_NEWEST_AT = 16
_SLOT = struct.Struct("<QqI4x")
_SLOTS = 3
_TRIES = 20


class FrameWriter:
    """Creates the file (replacing an old one) and writes pictures of one size into it. OSError: no space for it."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._shape = (height, width, 3)
        self._slot_size = _slot_size(height, width)
        with written_beside(path, flush=False) as partial, partial.open("w+b") as file:
            # Not a file with holes: on a full disk the write into a mapped hole would kill the process.
            os.posix_fallocate(file.fileno(), 0, _HEADER.size + _SLOTS * self._slot_size)
            self._map = mmap.mmap(file.fileno(), 0)
            _HEADER.pack_into(self._map, 0, MAGIC, height, width, 0)
        self._sequence = 0

    def write(self, image: NDArray[np.uint8], captured_ns: int) -> None:
        """Publish `image` (uint8 [height, width, 3], RGB) taken at `captured_ns` (CLOCK_MONOTONIC)."""
        assert image.shape == self._shape
        self._sequence += 1
        start = _HEADER.size + self._sequence % _SLOTS * self._slot_size
        pixels = image.tobytes()
        _SLOT.pack_into(self._map, start, self._sequence, captured_ns, zlib.crc32(pixels))
        self._map[start + _SLOT.size : start + _SLOT.size + len(pixels)] = pixels
        _NEWEST.pack_into(self._map, start + self._slot_size - _NEWEST.size, self._sequence)
        _NEWEST.pack_into(self._map, _NEWEST_AT, self._sequence)

    def close(self) -> None:
        """Unmap; the file stays for the readers."""
        self._map.close()


class SimCamera:
    """Reads the newest picture of `frames.NAME`. Errors: CameraError when the file is missing, foreign or empty."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.exempt_from_freshness = False
        self._path = path
        self._last: Frame | None = None
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CameraError(f"camera {name}: {path} does not exist; start the simulated arm first") from None
        except ValueError:
            raise CameraError(f"camera {name}: {path} is empty; it is not a frames file") from None
        if len(self._map) < _HEADER.size or self._map[:8] != MAGIC:
            raise CameraError(f"camera {name}: {path} is not a frames file; give the one the simulated arm writes")
        _, height, width, _ = _HEADER.unpack_from(self._map, 0)
        self._shape = (height, width, 3)
        self._slot_size = _slot_size(height, width)
        if len(self._map) != _HEADER.size + _SLOTS * self._slot_size:
            raise CameraError(
                f"camera {name}: {path} has {len(self._map)} bytes, not those of {width}x{height} pictures; start "
                "the arm again"
            )

    def newest(self) -> Frame:
        """The newest picture, a copy, the same until there is a newer one. CameraError when none was written yet or
        none could be read whole."""
        size = int(np.prod(self._shape))
        for _ in range(_TRIES):
            (sequence,) = _NEWEST.unpack_from(self._map, _NEWEST_AT)
            if sequence == 0:
                raise CameraError(f"camera {self.name}: no picture yet in {self._path}; wait for the simulated arm")
            if self._last is not None and self._last.sequence == sequence:
                return self._last
            start = _HEADER.size + sequence % _SLOTS * self._slot_size
            first, captured_ns, checksum = _SLOT.unpack_from(self._map, start)
            pixels = self._map[start + _SLOT.size : start + _SLOT.size + size]
            (last,) = _NEWEST.unpack_from(self._map, start + self._slot_size - _NEWEST.size)
            if first == last == sequence and zlib.crc32(pixels) == checksum:
                image = np.frombuffer(pixels, np.uint8).reshape(self._shape)
                self._last = Frame(self.name, image, captured_ns, sequence)
                return self._last
        raise CameraError(
            f"camera {self.name}: no whole picture in {_TRIES} tries at {self._path}; is the file damaged?"
        )

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def _slot_size(height: int, width: int) -> int:
    return -(-(_SLOT.size + height * width * 3 + _NEWEST.size) // 64) * 64
