# SPDX-License-Identifier: Apache-2.0
"""Everything TensorRT and CUDA: engine files built, checked, loaded, and the captured flow loop."""

from __future__ import annotations

from functools import partial

from vla_edge.engines.dialect import Dialect, Treatment
from vla_edge.engines.engine import Backend, Engine, EngineOptions


def _open(name: str, options: EngineOptions) -> Engine:
    from vla_edge.engines.tensorrt.trt_engine import open_tensorrt

    return open_tensorrt(name)


DIALECT = Dialect((Treatment.INT8_STATIC,), half=True, signed=True)
BACKENDS = tuple(
    Backend(name, partial(_open, name), device="cuda", dialect=dialect, builds=True)
    for name, dialect in (("tensorrt", DIALECT), ("tensorrt-rtx", DIALECT), ("tensorrt-pycuda", None))
)
