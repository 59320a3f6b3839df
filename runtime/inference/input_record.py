# SPDX-License-Identifier: Apache-2.0
"""The record of inputs (`--record-inputs FILE`): what each inference was given, exactly, so that it can be run again.

Entries one behind the other: `VLAI`, u32 bytes of the head, u64 bytes of the arrays, u32 CRC of both, head (JSON),
arrays. Written by a thread of its own; a disk that is full or a limit that is reached ends the recording with one line
and touches nothing else. What was written until then is a whole record.
"""

from __future__ import annotations

import json
import queue
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import Frame
from vla_edge.errors import RecordError
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession

_ENTRY = struct.Struct("<4sIQI")
_MAGIC = b"VLAI"
_HEAD_LIMIT = 1 << 20
_WAITING_BYTES = 256 << 20
"""Pictures that may wait for the disk; beyond it entries are left out and a gap is recorded."""
PICTURE = "picture/"
_KINDS = ("f4", "f8", "i4", "i8", "u1")


@dataclass(frozen=True, slots=True)
class Entry:
    """head: `kind` is session, inference, reset, picture or gap, and what belongs to it. arrays by name."""

    head: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class InputRecorder:
    """Takes entries from any thread without waiting. RecordError: the file cannot be made, or exists already.

    say: is told once when the recording had to stop.
    """

    def __init__(self, path: Path, limit_bytes: int, say: Callable[[str], None]) -> None:
        self._path, self._limit, self._say = path, limit_bytes, say
        self._written = 0
        self._holds_something = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            why = "exists already" if path.exists() else (error.strerror or str(error))
            raise RecordError(f"{path}: {why}; name another file for the record of inputs") from None
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._left_out = 0
        self.stopped = ""
        self._thread = threading.Thread(target=self._write_all, name="input-record", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Write it when the disk has time; left out, and the gap recorded, when too much waits."""
        size = sum(array.nbytes for array in entry.arrays.values())
        with self._lock:
            if self.stopped:
                return
            if self._waiting + size > _WAITING_BYTES:
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
            self._waiting += size
        if left_out:
            self._queue.put(Entry({"kind": "gap", "entries": left_out}, {}))
        self._queue.put(entry)

    def picture(self, frame: Frame) -> None:
        """A camera's picture beside the inferences, for an exported episode."""
        head = {"kind": "picture", "camera": frame.camera, "captured_ns": frame.captured_ns, "sequence": frame.sequence}
        self.put(Entry(head, {PICTURE + frame.camera: frame.image}))

    def close(self) -> None:
        """Write what waits. A record without an inference or a picture leaves no file."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()
        if not self._holds_something:
            self._path.unlink(missing_ok=True)

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            data = pack(entry)
            with self._lock:
                self._waiting -= sum(array.nbytes for array in entry.arrays.values())
            if self.stopped:
                continue
            if self._written + len(data) > self._limit:
                self._stop(f"the limit of {self._limit >> 20} MB is reached; the record ends here, inference goes on")
                continue
            try:
                self._write(data)
                self._written += len(data)
                self._holds_something |= entry.head["kind"] in ("inference", "picture")
            except OSError as error:
                self._file.truncate(self._written)
                self._stop(f"{error.strerror}; the record ends here, inference goes on")

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) or 0 :]

    def _stop(self, why: str) -> None:
        with self._lock:
            self.stopped = why
        self._say(f"recording of inputs to {self._path} stopped: {why}")


class RecordedSession:
    """The observer of one policy session on an engine: every inference with what it was given and what came of it."""

    def __init__(self, recorder: InputRecorder, number: int, session: PolicySession, engine: str, threads: int) -> None:
        self._recorder, self._number = recorder, number
        made = {"kind": "session", "session": number, "engine": engine, "threads": threads}
        recorder.put(Entry({**made, **session.facts()}, {}))

    def inferred(
        self, session: PolicySession, request: InferenceRequest, result: InferenceResult | None, audit: bool
    ) -> None:
        observation = request.observation
        arrays: dict[str, NDArray[Any]] = {PICTURE + name: frame.image for name, frame in observation.frames.items()}
        arrays["state"] = np.array(observation.joints.positions)
        if request.queued is not None:
            arrays["queued"] = np.array(request.queued)
        if request.inpaint is not None:
            arrays |= {
                "inpaint/target": np.array(request.inpaint.target),
                "inpaint/weights": np.array(request.inpaint.weights),
            }
        head: dict[str, Any] = {
            "kind": "inference",
            "session": self._number,
            "sequence": observation.sequence,
            "task": observation.task,
            "now_ns": request.now_ns,
            "tick": observation.joints.tick,
            "reading_ns": observation.joints.time_ns,
            "captured_ns": {name: frame.captured_ns for name, frame in observation.frames.items()},
            "audit": audit,
            "adopt": session.went_over and not audit,
            "beside": request.beside,
            "moved": request.moved,
            "abandoned": result is None,
            "gate": None if session.cache.settings is None else asdict(session.cache.settings),
        }
        if result is not None:
            head |= {"steps": result.steps, "reason": result.decision.reason.value}
            arrays |= {"latent": result.latent, "actions": result.actions}
            if result.noise is not None:
                arrays["noise"] = result.noise
        self._recorder.put(Entry(head, arrays))

    def was_reset(self) -> None:
        self._recorder.put(Entry({"kind": "reset", "session": self._number}, {}))


def pack(entry: Entry) -> bytes:
    """The bytes of one entry."""
    arrays = {name: np.ascontiguousarray(array) for name, array in entry.arrays.items()}
    described = [[name, array.dtype.str[1:], list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({**entry.head, "arrays": described}).encode()
    payload = b"".join(array.tobytes() for array in arrays.values())
    return _ENTRY.pack(_MAGIC, len(head), len(payload), zlib.crc32(payload, zlib.crc32(head))) + head + payload


def read_inputs(path: Path) -> Iterator[Entry]:
    """Every whole entry, oldest first; a last one that was cut off is left out. RecordError: damage before the end."""
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}; give the file of --record-inputs") from None
    with file:
        while True:
            at = file.tell()
            start = file.read(_ENTRY.size)
            if len(start) < _ENTRY.size:
                return
            magic, head_bytes, payload_bytes, checksum = _ENTRY.unpack(start)
            if magic != _MAGIC or head_bytes > _HEAD_LIMIT:
                raise RecordError(f"{path}: no entry at byte {at}; it is not a record of inputs, or it is damaged")
            if at + _ENTRY.size + head_bytes + payload_bytes > size:
                return
            head, payload = file.read(head_bytes), file.read(payload_bytes)
            if zlib.crc32(payload, zlib.crc32(head)) != checksum:
                raise RecordError(
                    f"{path}: the entry at byte {at} is damaged; what lies before it can be read from a copy cut there"
                )
            yield _unpacked(path, at, head, payload)


def _unpacked(path: Path, at: int, head: bytes, payload: bytes) -> Entry:
    arrays = {}
    try:
        content = json.loads(head)
        place = 0
        for name, dtype, shape in content.pop("arrays"):
            if dtype not in _KINDS:
                raise ValueError(f"array of dtype {dtype}")
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            arrays[name] = np.frombuffer(payload[place : place + size], dtype).reshape(shape)
            place += size
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: the entry at byte {at} is not of this version ({error})") from None
    return Entry(content, arrays)
