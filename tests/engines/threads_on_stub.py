# SPDX-License-Identifier: Apache-2.0
"""Real cuda-bindings, the C core and the captured loop on the stub driver library, on two threads.

    LD_LIBRARY_PATH=FOLDER python threads_on_stub.py BUNDLE FOLDER/libcuda.so.1 [one-flag]

`one-flag`: whether the context was entered is remembered for all threads together, as it was once.

Run by test_tensorrt.py in a process of its own, because cuda-bindings loads the
process's libcuda.so.1 once.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cuda.bindings import driver  # noqa: E402
from tests.engines.emulated_gpu import BindingsOnStub, onnxruntime_tensorrt  # noqa: E402
from tests.engines.test_tensorrt import observation  # noqa: E402

from vla_edge import _core  # noqa: E402
from vla_edge.bundle import Bundle, open_bundle  # noqa: E402
from vla_edge.engines.tensorrt import trt_engine  # noqa: E402
from vla_edge.engines.tensorrt.engine_build import BuildOptions, build_engines, load_compiler  # noqa: E402
from vla_edge.engines.tensorrt.trt_engine import TrtEngine  # noqa: E402
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession  # noqa: E402


def chunk(bundle: Bundle, engine: TrtEngine) -> np.ndarray:
    result = PolicySession(bundle, engine).infer(InferenceRequest(observation(bundle), 0))
    assert result is not None
    return result.latent


def main(bundle: Bundle, library: Path, one_flag: bool) -> None:
    trt_engine._driver = lambda: _core.CudaDriver(str(library))
    cuda = BindingsOnStub(library, driver)
    if one_flag:
        cuda._thread = SimpleNamespace()  # type: ignore[assignment]
    sys.modules["tensorrt"] = onnxruntime_tensorrt(cuda)
    build_engines(bundle, BuildOptions(), lambda step: None, cuda)
    engine = TrtEngine("tensorrt", cuda, load_compiler())
    first = chunk(bundle, engine)
    print("main")
    made: list[np.ndarray] = []
    worker = threading.Thread(target=lambda: made.append(chunk(bundle, engine)))
    worker.start()
    worker.join()
    print("worker" if made else "failed")
    print("same" if made and (made[0] == first).all() else "different")


if __name__ == "__main__":
    main(open_bundle(sys.argv[1]), Path(sys.argv[2]), "one-flag" in sys.argv)
