# SPDX-License-Identifier: Apache-2.0
"""The one file that holds every graph's large tensors (ONNX external data)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vla_edge.calibration.precision.linear import external_tensor

INLINE_BYTES = 256
"""Tensors up to this size stand in the graph itself: an external entry would take as much."""

_ALIGNMENT = 64
_PAGE = 4096
"""Large tensors start on a page, so that a reader may map them."""


class WeightFile:
    """Appends tensors to a new file, each content once, whichever graphs use it.

    Use as a context manager; `tensor` may be called until it is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, name: str, array: NDArray[np.generic]) -> TensorProto:
        """An initializer named `name`; its bytes lie here, or inline when they are few. OSError when the disk is
        full."""
        array = np.asarray(array, order="C")  # a scalar stays one
        if array.nbytes <= INLINE_BYTES:
            return onnx.numpy_helper.from_array(array, name)
        return external_tensor(name, array, self.path.name, self._place(array))

    def _place(self, array: NDArray[np.generic]) -> int:
        data = array.reshape(-1).view(np.uint8).data
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            alignment = _PAGE if len(data) >= 1 << 20 else _ALIGNMENT
            position = self._file.tell()
            offset = position + -position % alignment
            self._file.write(bytes(offset - position))
            self._file.write(data)
            self._places[key] = offset
        return self._places[key]
