# SPDX-License-Identifier: Apache-2.0
"""What one owner has on the device (memory, streams, events, graphs), given back together, the newest first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vla_edge.engines.tensorrt.cuda import Cuda, Pinned
from vla_edge.errors import EngineError


class Holdings:
    """Allocations through one `Cuda`. `close` may be called from any thread and twice."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._undo: list[Callable[[], object]] = []

    def keep(self, undo: Callable[[], object]) -> None:
        """Call `undo` at the end."""
        self._undo.append(undo)

    def stream(self, high_priority: bool) -> int:
        """A stream; at the end its work is waited for."""
        made = self._cuda.stream(high_priority)
        self.keep(partial(self._cuda.destroy_stream, made))
        self.keep(partial(self._cuda.synchronize, made))
        return made

    def event(self) -> int:
        made = self._cuda.event()
        self.keep(partial(self._cuda.destroy_event, made))
        return made

    def allocate(self, size: int) -> int:
        """Device memory, not cleared."""
        made = self._cuda.allocate(size)
        self.keep(partial(self._cuda.free, made))
        return made

    def zeroed(self, size: int, stream: int) -> int:
        """Device memory of `size` zero bytes, complete when this returns."""
        made = self.allocate(size)
        self._cuda.zero(made, size, stream)
        self._cuda.synchronize(stream)
        return made

    def pinned(self, size: int) -> Pinned:
        made = self._cuda.pinned(size)
        self.keep(partial(self._cuda.free_pinned, made.host))
        return made

    def close(self) -> None:
        """Give everything back. A driver that fails here has failed before, and said so; the rest is still tried."""
        while self._undo:
            try:
                self._undo.pop()()
            except EngineError:
                continue
