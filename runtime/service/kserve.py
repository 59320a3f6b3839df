# SPDX-License-Identifier: Apache-2.0
"""KServe's v2 inference protocol over HTTP, with Triton's binary tensor extension: bytes in, bytes out, no I/O.

A request body is JSON, and behind it (its length in `Inference-Header-Content-Length`) the bytes of the inputs whose
`parameters.binary_data_size` names them, in order. BYTES tensors are elements of 4 bytes length (little endian) and
text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Manifest
from vla_edge.errors import WireError

MODEL = "policy"
HEADER_LENGTH = "Inference-Header-Content-Length"
HEADER_LIMIT = 1 << 20
"""Bytes of JSON taken: noise as numbers needs some."""

_DTYPES = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_INPUTS_MAX = 32


@dataclass(frozen=True, slots=True)
class InferRequest:
    """inputs: arrays by name; a text is an array of dtype U. sequence: 0 without one. outputs: name → asked for as
    binary; empty: all of them, `binary` says how."""

    id: str
    inputs: Mapping[str, NDArray[Any]]
    sequence: int
    start: bool
    end: bool
    outputs: Mapping[str, bool]
    binary: bool


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Names, types and shapes of what the model takes and gives."""
    policy = manifest.policy
    pictures = [
        {"name": camera.source, "datatype": "UINT8", "shape": [camera.height, camera.width, 3]}
        for camera in manifest.cameras
    ]
    return {
        "name": MODEL,
        "versions": ["1"],
        "platform": "vla-edge",
        "inputs": [
            *pictures,
            {"name": "observation.state", "datatype": "FP32", "shape": [policy.state_dim]},
            *([{"name": "task", "datatype": "BYTES", "shape": [1]}] if manifest.reads_text else []),
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [policy.chunk_size, policy.action_dim]}
            for name in ("action", "action_normalized")
        ],
    }


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """WireError names what is wrong. header_length: of the JSON part, as the HTTP header says; None: all of the
    body."""
    size = len(body)
    if header_length is not None:
        if (
            not header_length.isascii()
            or not header_length.isdigit()
            or len(header_length) > 12
            or int(header_length) > len(body)
        ):
            raise WireError(f"{HEADER_LENGTH} is {header_length!r:.20}, the body has {len(body)} bytes")
        size = int(header_length)
    if size > HEADER_LIMIT:
        raise WireError(
            f"the JSON part has {size} bytes, at most {HEADER_LIMIT} are taken; send pictures as binary data"
        )
    try:
        content = json.loads(body[:size])
    except (ValueError, RecursionError) as error:
        raise WireError(f"the request is not JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise WireError("the request has no list of inputs")
    entries = content["inputs"]
    if len(entries) > _INPUTS_MAX:
        raise WireError(f"the request has {len(entries)} inputs, at most {_INPUTS_MAX} are taken")
    inputs: dict[str, NDArray[Any]] = {}
    rest = memoryview(body)[size:]
    for entry in entries:
        name, array, used = _input(entry, rest)
        if name in inputs:
            raise WireError(f"input {name!r:.60} is given twice")
        inputs[name] = array
        rest = rest[used:]
    if len(rest):
        raise WireError(f"{len(rest)} bytes lie behind the last input; give each input its binary_data_size")
    parameters = _object(content.get("parameters", {}), "parameters")
    return InferRequest(
        id=str(content.get("id", ""))[:64],
        inputs=inputs,
        sequence=_sequence(parameters.get("sequence_id", 0)),
        start=parameters.get("sequence_start") is True,
        end=parameters.get("sequence_end") is True,
        outputs=_outputs(content.get("outputs", [])),
        binary=parameters.get("binary_data_output") is True,
    )


def response(
    request: InferRequest, results: Mapping[str, NDArray[np.float32]], timing_ms: Mapping[str, float]
) -> tuple[bytes, int]:
    """(body, length of its JSON part). WireError: an output that does not exist was asked for."""
    wanted = request.outputs or dict.fromkeys(results, request.binary)
    outputs: list[dict[str, Any]] = []
    tail = b""
    for name, binary in wanted.items():
        if name not in results:
            raise WireError(f"there is no output {name!r:.60}; there are {', '.join(results)}")
        array = np.ascontiguousarray(results[name], "<f4")
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            entry["data"] = [float(value) for value in array.reshape(-1)]
        outputs.append(entry)
    content = {
        "model_name": MODEL,
        "model_version": "1",
        "id": request.id,
        "outputs": outputs,
        "parameters": dict(timing_ms),
    }
    head = json.dumps(content).encode()
    return head + tail, len(head)


def _input(entry: Any, rest: memoryview) -> tuple[str, NDArray[Any], int]:
    """(name, array, binary bytes used)."""
    entry = _object(entry, "an input")
    name, shape, datatype = entry.get("name"), entry.get("shape"), entry.get("datatype")
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise WireError(f"an input's name is {name!r:.60}; give a text")
    if not isinstance(shape, list) or len(shape) > 8 or any(type(size) is not int or size < 0 for size in shape):
        raise WireError(f"input {name}: shape is {shape!r:.60}; give at most 8 sizes of 0 or more")
    size = _object(entry.get("parameters", {}), f"input {name}: parameters").get("binary_data_size")
    count = math.prod(shape)
    if size is None:
        return name, _from_numbers(name, datatype, shape, entry.get("data"), count), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise WireError(f"input {name}: binary_data_size is {size!r:.20}, {len(rest)} bytes are left in the body")
    return name, _from_bytes(name, datatype, shape, bytes(rest[:size]), count), size


def _from_bytes(name: str, datatype: Any, shape: list[int], data: bytes, count: int) -> NDArray[Any]:
    if datatype == "BYTES":
        if count != 1 or len(data) < 4 or int.from_bytes(data[:4], "little") != len(data) - 4:
            raise WireError(f"input {name}: BYTES holds one text, 4 bytes of its length and its bytes")
        return _text(name, data[4:])
    dtype = _dtype(name, datatype)
    if len(data) != count * dtype.itemsize:
        raise WireError(
            f"input {name}: shape {shape} of {datatype} needs {count * dtype.itemsize} bytes, {len(data)} were sent"
        )
    if dtype.kind == "b" and data.strip(b"\x00\x01"):
        raise WireError(f"input {name}: BOOL holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _from_numbers(name: str, datatype: Any, shape: list[int], data: Any, count: int) -> NDArray[Any]:
    values: list[Any] = []
    stack = [data] if isinstance(data, list) else []
    while stack:  # rows may be nested as the shape is
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
        else:
            values.append(item)
    if len(values) != count:
        raise WireError(f"input {name}: shape {shape} needs {count} values, {len(values)} were sent")
    if datatype == "BYTES":
        if count != 1 or not isinstance(values[0], str):
            raise WireError(f"input {name}: BYTES holds one text")
        return np.array([values[0]])
    dtype = _dtype(name, datatype)
    kinds = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}[dtype.kind]
    if any(type(value) not in kinds for value in values):
        raise WireError(f"input {name}: a value is not {datatype}")
    try:
        return np.array(values, dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise WireError(f"input {name}: a value does not fit {datatype}") from None


def _text(name: str, data: bytes) -> NDArray[Any]:
    try:
        return np.array([data.decode("utf-8")])
    except UnicodeDecodeError:
        raise WireError(f"input {name}: the text is not UTF-8") from None


def _dtype(name: str, datatype: Any) -> np.dtype[Any]:
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise WireError(
            f"input {name}: datatype is {datatype!r:.20}; known: {', '.join(_DTYPES)}, and BYTES for the task"
        )
    return np.dtype(_DTYPES[datatype])


def _sequence(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise WireError(f"sequence_id is {value!r:.30}; give a whole number, 0 for none")
    return value


def _outputs(entries: Any) -> dict[str, bool]:
    if not isinstance(entries, list) or len(entries) > _INPUTS_MAX:
        raise WireError("outputs is no short list")
    wanted = {}
    for entry in entries:
        entry = _object(entry, "an output")
        name = entry.get("name")
        if not isinstance(name, str):
            raise WireError(f"an output's name is {name!r:.60}; give a text")
        wanted[name] = _object(entry.get("parameters", {}), f"output {name:.60}: parameters").get("binary_data") is True
    return wanted


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{what} is {type(value).__name__}, not an object")
    return value
