# SPDX-License-Identifier: Apache-2.0
"""Everything TensorRT and CUDA: engine files built, checked, loaded, and the captured flow loop."""

from __future__ import annotations

from vla_edge.engines.dialect import Dialect, Treatment
from vla_edge.engines.engine import Backend, Engine, EngineOptions


def _open(options: EngineOptions) -> Engine:
    from vla_edge.engines.tensorrt.trt_engine import open_tensorrt

    return open_tensorrt(options)


def _open_rtx(options: EngineOptions) -> Engine:
    from vla_edge.engines.tensorrt.trt_engine import open_tensorrt_rtx

    return open_tensorrt_rtx(options)


def _open_pycuda(options: EngineOptions) -> Engine:
    from vla_edge.engines.tensorrt.trt_engine import open_tensorrt_pycuda

    return open_tensorrt_pycuda(options)


DIALECT = Dialect((Treatment.INT8_STATIC,), half=True, signed=True)
BACKENDS = (
    Backend("tensorrt", _open, device="cuda", dialect=DIALECT, builds=True),
    Backend("tensorrt-rtx", _open_rtx, device="cuda", dialect=DIALECT, builds=True),
    Backend("tensorrt-pycuda", _open_pycuda, device="cuda", builds=True),
)
