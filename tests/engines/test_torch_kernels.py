# SPDX-License-Identifier: Apache-2.0
"""The stand-in for TensorRT that a device run uses where TensorRT is not there, on the CPU: its arithmetic is ONNX
Runtime's, and the captured loop runs on it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engines.emulated_gpu import FACTS, EmulatedCuda, stub_driver
from tests.engines.test_tensorrt import observation
from tests.engines.torch_kernels import torch_tensorrt

from vla_edge import _core
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.action_error import ActionErrorBound
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.tensorrt import trt_engine
from vla_edge.engines.tensorrt.engine_build import BuildOptions, build_engines, load_compiler
from vla_edge.engines.tensorrt.trt_engine import TrtEngine
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

TOLERANCE = {"fp32": 1e-4, "fp16": 3e-3, "int8": 6e-2}
"""Share of the chunk's largest value: other summation orders; ONNX Runtime's CPU computes half products in float32; an
INT8 rounding that tips over is one step of its scale, and between products in half more of them do (seen 4.2e-2)."""


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    library = stub_driver(tmp_path)
    made = EmulatedCuda(library, replace(FACTS, memory=64 << 30))
    monkeypatch.setitem(sys.modules, "tensorrt", torch_tensorrt("cpu", made.put))
    monkeypatch.setattr(trt_engine, "_driver", lambda: _core.CudaDriver(str(library)))
    torch.set_num_threads(1)
    yield made
    made.close()


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_captured_chunk_on_torchs_kernels_is_onnx_runtimes(
    golden_bundle: Path, tmp_path: Path, cuda: EmulatedCuda, precision: str
) -> None:
    path = tmp_path / precision
    if precision == "fp32":
        shutil.copytree(golden_bundle, path)
    else:
        bound = ActionErrorBound(joint_p95=0.1, cosine=0.99)
        request = PrecisionRequest(precision, "tensorrt", bound=bound, frames=2, held_out=1, threads=1)
        requantise(golden_bundle, path, request, lambda step: None)
    bundle = open_bundle(path)
    build_engines(bundle, BuildOptions(), lambda step: None, cuda)
    ours = PolicySession(bundle, TrtEngine("tensorrt", cuda, load_compiler()), SessionOptions(seed=3))
    options = EngineOptions(threads=1, spin=False, fuse=False)
    theirs = PolicySession(bundle, load_engine("ort-python", options), SessionOptions(seed=3))
    for seed in range(2):
        request_of = InferenceRequest(observation(bundle, seed), seed)
        found, wanted = ours.infer(request_of), theirs.infer(request_of)
        assert found is not None and wanted is not None
        assert np.abs(found.latent - wanted.latent).max() <= TOLERANCE[precision] * np.abs(wanted.latent).max()
