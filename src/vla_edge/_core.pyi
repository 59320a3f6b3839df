"""The C extension: control core, servo bus, native engine sessions. Sources in runtime/core and robot/bus."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class OrtRuntime:
    """ONNX Runtime opened from its shared library: one environment, one thread pool for all sessions.

    RuntimeError: ONNX Runtime's own message. threads: 0 lets it choose. spin: workers wait busily between runs.
    """

    version: str

    def __init__(self, library: str, threads: int = 0, spin: bool = True) -> None: ...
    def session(
        self, model: bytes, files: dict[str, Any], shared: dict[str, NDArray[Any]], folder: str | None = None
    ) -> OrtSession:
        """files: external data by the name the model gives it, copied by ONNX Runtime. shared: initialisers used where
        they lie, packed once for all sessions; they must stay unchanged. folder: where the external data lies."""

class OrtSession:
    def binding(self) -> OrtBinding: ...

class OrtBinding:
    """Buffers of one session, C-contiguous, held as long as the binding."""

    def bind_input(self, name: str, array: NDArray[Any]) -> None: ...
    def bind_output(self, name: str, array: NDArray[Any]) -> None: ...
    def run(self) -> None: ...

class Flow:
    """The flow loop over bound graphs, without the interpreter (runtime/core/flow.h).

    state_rows: pairs (K or V tensor [heads, rows, width], state row [heads, 1, width]); the row becomes the tensor's last.
    """

    def __init__(
        self,
        prefix: OrtBinding | None,
        state: OrtBinding,
        step_even: OrtBinding,
        step_odd: OrtBinding,
        state_rows: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
        x: NDArray[np.float32],
        x_next: NDArray[np.float32],
        time_bias: NDArray[np.float32],
        dt: NDArray[np.float32],
    ) -> None: ...
    def encode(self, prefix: bool) -> tuple[int, int]:
        """Run [prefix and] state; their nanoseconds."""
    def denoise(
        self,
        noise: NDArray[np.float32],
        bias_rows: NDArray[np.float32],
        steps: int,
        target: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
        signal: NDArray[np.int32] | None = None,
    ) -> tuple[bool, tuple[int, ...]]:
        """(abandoned, nanoseconds of each step that ran); the result lies in x after an even number of steps."""
