"""Which of the flow loops runs a bundle's sessions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_edge.engines.ort_native import NativeSession
from vla_edge.engines.tensorrt.captured_loop import CudaGraphLoop
from vla_edge.engines.tensorrt.trt_engine import TrtSession
from vla_edge.runtime.inference.flow_loop import FlowLoop, NativeLoop, PythonLoop
from vla_edge.runtime.inference.graphs import Stages


def flow_loop(stages: Stages, tables: Mapping[str, NDArray[np.float32]]) -> FlowLoop:
    """The native loop where the sessions are native, CUDA graphs where they are TensorRT's, else the Python loop."""
    kinds = {type(stages.session(name)) for name in ("prefix", "state", "expert")}
    if kinds == {TrtSession}:
        return CudaGraphLoop(stages, tables)
    return NativeLoop(stages, tables) if kinds == {NativeSession} else PythonLoop(stages, tables)
