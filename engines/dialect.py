# SPDX-License-Identifier: Apache-2.0
"""How a linear map may run, and which of these ways a backend is fast with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Treatment(Enum):
    """FLOAT32: untouched. FLOAT16: the graph's linear maps and attention in half precision. INT8_DYNAMIC: activations
    quantised in the graph by their own range of this very run. INT8_STATIC: activations quantised by recorded ranges
    (QuantizeLinear/DequantizeLinear). INT8_WEIGHTS: only the weights are stored in 8 bits."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    INT8_WEIGHTS = "int8-weights"

    @property
    def is_int8(self) -> bool:
        return self in (Treatment.INT8_DYNAMIC, Treatment.INT8_STATIC, Treatment.INT8_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one backend runs fast. `int8`: its INT8 treatments, cheapest first. half: it has half-precision products.
    signed: activations are signed and symmetric (TensorRT) instead of unsigned with a zero point (x86, where u8·s8 has
    an instruction and s8·s8 has not). products: vision's attention products are static INT8 too (TensorRT fuses
    attention in half precision instead). INT8 beside half precision: where it pays there, its search begins with all
    in half."""

    int8: tuple[Treatment, ...]
    half: bool = False
    signed: bool = False
    products: bool = False
