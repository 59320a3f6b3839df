# SPDX-License-Identifier: Apache-2.0
"""openpi's wire format: msgpack, arrays as maps of `__ndarray__`, `data`, `dtype`, `shape`. Bytes of strangers come in
here.

Format: the PyPI package `openpi-client` 0.1.2, which packs the map's keys as bytes. Only plain numbers cross (dtype
kinds b, i, u, f): nothing here can name a type, a file or code. What a message may cost is bounded before it is read.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import WireError

_DTYPES = {
    f"{order}{kind}{size}"
    for order in ("", "<", "=", "|", ">")
    for kind, sizes in (("b", (1,)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("f", (2, 4, 8)))
    for size in sizes
}
_ARRAY = {"__ndarray__", "data", "dtype", "shape"}
_SCALAR = {"__npgeneric__", "data", "dtype"}


CONTAINERS = 4096
"""Lists and maps of one message in all, so that a small message cannot become many objects."""
ITEMS, TEXT_BYTES, DIMENSIONS = 256, 65_536, 8
"""Of one list or map, of one text, of one array."""


def decode(message: bytes, most_bytes: int) -> Any:
    """The value of one message; arrays are read-only views of it. WireError names what is wrong."""
    if len(message) > most_bytes:
        raise WireError(
            f"the message has {len(message)} bytes, at most {most_bytes} are taken; send pictures of the policy's size"
        )
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        if count > CONTAINERS:
            raise WireError(f"the message holds over {CONTAINERS} lists and maps; send an observation")

    def map_of(pairs: list[tuple[Any, Any]]) -> Any:
        counted()
        return _map(pairs)

    def list_of(values: list[Any]) -> list[Any]:
        counted()
        return values

    try:
        return msgpack.unpackb(
            message,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=map_of,
            list_hook=list_of,
            max_str_len=TEXT_BYTES,
            max_bin_len=most_bytes,
            max_array_len=ITEMS,
            max_map_len=ITEMS,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:  # FormatError, StackError are ValueErrors
        raise WireError(
            f"the message is not msgpack we take ({error or type(error).__name__}); send one map of names to arrays "
            "and texts"
        ) from None


def encode(value: Any) -> bytes:
    """The message of `value`: maps, lists, texts, numbers, None and arrays of plain numbers."""
    return bytes(msgpack.packb(value, default=_packed))


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        array = np.ascontiguousarray(value)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} does not cross the wire")


def _map(pairs: list[tuple[Any, Any]]) -> Any:
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in pairs}
    if len(fields) != len(pairs):
        raise WireError("a map holds one name twice; give each name once")
    if "__ndarray__" in fields:
        return _array(fields)
    if "__npgeneric__" in fields:
        return _scalar(fields)
    return fields


def _dtype(text: Any) -> np.dtype[Any]:
    if not isinstance(text, str) or text not in _DTYPES:
        raise WireError(f"an array has dtype {text!r:.40}; send bool, integer or float numbers")
    return np.dtype(text)


def _array(fields: dict[str, Any]) -> NDArray[Any]:
    if set(fields) != _ARRAY or fields["__ndarray__"] is not True:
        raise WireError(
            f"an array's map holds {', '.join(sorted(map(str, fields)))[:80]}; it must hold {', '.join(sorted(_ARRAY))}"
        )
    dtype, shape, data = _dtype(fields["dtype"]), fields["shape"], fields["data"]
    plain = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not plain or len(shape) > DIMENSIONS:
        raise WireError(f"an array has shape {shape!r:.60}; send at most {DIMENSIONS} sizes of 0 or more")
    wanted = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        held = len(data) if isinstance(data, bytes) else f"{type(data).__name__}, not"
        raise WireError(
            f"an array of shape {shape!r:.60} and dtype {dtype.str} needs {wanted} bytes, its data has {held} bytes"
        )
    if dtype.kind == "b" and data.strip(b"\x00\x01"):
        raise WireError("a bool array holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(fields: dict[str, Any]) -> Any:
    if set(fields) != _SCALAR or fields["__npgeneric__"] is not True:
        raise WireError(f"a number's map must hold {', '.join(sorted(_SCALAR))}")
    dtype, value = _dtype(fields["dtype"]), fields["data"]
    if type(value) not in (bool, int, float):
        raise WireError(f"a number is {type(value).__name__}; send a bool, an integer or a float")
    try:
        return dtype.newbyteorder("=").type(value)
    except (OverflowError, ValueError):
        raise WireError(f"a number does not fit its dtype {dtype.str}; send one that does") from None
