# SPDX-License-Identifier: Apache-2.0
"""The initialisers of an ONNX model that lie in external data, read from the model's bytes without the onnx package.

The robot's own computer has ONNX Runtime only. What is needed of the file is
little: GraphProto.initializer with its name, type, dimensions, and the file,
offset and length of its data. Source: onnx.proto (ModelProto.graph = 7,
GraphProto.initializer = 5, TensorProto.dims = 1, data_type = 2, name = 8,
external_data = 13, data_location = 14).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.errors import BundleError

DTYPES: Mapping[int, str] = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
"""numpy names of the ONNX element types a bundle may hold as external data."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """One initialiser: `length` bytes at `offset` of the external file `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def external_tensors(model: bytes) -> tuple[ExternalTensor, ...]:
    """Every initialiser of `model` with external data. BundleError: the bytes are not an ONNX model."""
    try:
        return tuple(_tensors(memoryview(model)))
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise BundleError(f"not a readable ONNX model ({error}); export the bundle again") from None


def external_arrays(graph: GraphFile) -> dict[str, NDArray[Any]]:
    """Every external initialiser of `graph` by name, read-only, where its verified file is mapped.

    BundleError: no ONNX model, a file the manifest does not list, or bytes that do not hold the tensor.
    """
    try:
        return _arrays(graph.model, graph.weights)
    except BundleError as error:
        raise BundleError(f"{graph.path}: {error}") from None


def _arrays(model: bytes, files: Mapping[str, memoryview]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for tensor in external_tensors(model):
        if tensor.file not in files:
            raise BundleError(
                f"initialiser {tensor.name} lies in {tensor.file}, which the manifest does not list; export the "
                "bundle again"
            )
        arrays[tensor.name] = external_array(tensor, files[tensor.file])
    return arrays


def external_array(tensor: ExternalTensor, data: memoryview) -> NDArray[Any]:
    """The tensor as a read-only array over `data`, the bytes of its file. BundleError: outside the file, or of another
    size."""
    count = int(np.prod(tensor.shape, dtype=np.int64))
    dtype = np.dtype(tensor.dtype)
    if tensor.offset < 0 or tensor.offset + tensor.length > len(data) or tensor.length != count * dtype.itemsize:
        raise BundleError(
            f"initialiser {tensor.name}: {tensor.length} bytes at {tensor.offset} of {tensor.file} ({len(data)} bytes) "
            f"do not hold {tensor.dtype} {list(tensor.shape)}; export the bundle again"
        )
    return np.frombuffer(data, dtype, count, tensor.offset).reshape(tensor.shape)


def with_inline_tensors(model: bytes, files: Mapping[str, memoryview]) -> bytes:
    """`model` with every external tensor put into it (TensorProto.raw_data = 9), for a reader that takes bytes only.

    BundleError: a file is missing or does not hold the tensor, or the result is beyond 2 GB.
    """
    arrays = _arrays(model, files)
    whole = b"".join(
        _rebuilt(memoryview(model), 7, lambda graph: _rebuilt(graph, 5, lambda tensor: _inlined(tensor, arrays)))
    )
    if len(whole) >= 1 << 31:
        raise BundleError(
            f"the graph has {len(whole) / 1e9:.1f} GB with its tensors, 2 GB is the format's limit; choose a smaller "
            "precision"
        )
    return whole


def _rebuilt(content: memoryview, wanted: int, rebuild: Callable[[memoryview], Iterator[bytes]]) -> Iterator[bytes]:
    """The message with every field `wanted` replaced by what `rebuild` makes of it."""
    for field, value, raw in _raw_fields(content):
        if field != wanted:
            yield bytes(raw)
            continue
        yield message_field(wanted, b"".join(rebuild(value)))


def _inlined(content: memoryview, arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    fields = list(_raw_fields(content))
    name = next((bytes(value).decode() for field, value, _ in fields if field == 8), "")
    for field, _, raw in fields:
        if name not in arrays or field not in (13, 14):
            yield bytes(raw)
    if name in arrays:
        yield message_field(9, arrays[name].tobytes())


def message_field(field: int, content: bytes) -> bytes:
    """One field of a protobuf message that holds bytes, text or another message."""
    return _varint_bytes(field << 3 | BYTES) + _varint_bytes(len(content)) + content


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(found) + bytes([value])


def _tensors(model: memoryview) -> Iterator[ExternalTensor]:
    for field, graph in _fields(model):
        if field == 7:
            for inner, tensor in _fields(_message(graph)):
                if inner == 5:
                    yield from _tensor(_message(tensor))


def _tensor(content: memoryview) -> Iterator[ExternalTensor]:
    shape: list[int] = []
    kind, name, location = 0, "", 0
    where: dict[str, str] = {}
    for field, value in _fields(content):
        if field == 1:
            shape.extend([value] if isinstance(value, int) else _packed(value))
        elif field == 2:
            kind = _number(value)
        elif field == 8:
            name = _text(value)
        elif field == 13:
            entry = dict(_fields(_message(value)))
            where[_text(entry[1])] = _text(entry[2])
        elif field == 14:
            location = _number(value)
    if location == EXTERNAL:
        if kind not in DTYPES:
            raise ValueError(f"initialiser {name} has element type {kind}")
        dtype = DTYPES[kind]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        yield ExternalTensor(
            name, dtype, tuple(shape), where["location"], int(where.get("offset", 0)), int(where.get("length", size))
        )


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs of one protobuf message: int for numbers, memoryview for everything else."""
    return ((field, value) for field, value, _ in _raw_fields(content))


def _raw_fields(content: memoryview) -> Iterator[tuple[int, Any, memoryview]]:
    """The same with the field's own bytes, tag and length included."""
    position = 0
    while position < len(content):
        start = position
        tag, position = _varint(content, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(content, position)
            yield tag >> 3, value, content[start:position]
            continue
        if kind == BYTES:
            length, position = _varint(content, position)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(content):
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, content[position : position + length], content[start : position + length]
        position += length


def _packed(content: memoryview) -> Iterator[int]:
    position = 0
    while position < len(content):
        value, position = _varint(content, position)
        yield value


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number longer than 64 bits")
