"""Inference's side of the run folder: control's status in, chunks and notices out, and when to give an inference up."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import IdentityError
from vla_edge.runtime.control import load_core
from vla_edge.runtime.flow import FlowSignal
from vla_edge.runtime.planning import ControlView, view_of
from vla_edge.runtime.run_folder import RunFolder

SILENT_NS = 1_000_000_000
"""A control process that wrote nothing for so long is gone."""


class ControlReader:
    """Reads control's status. Survives a control process that is not there yet or was restarted.

    IdentityError: control runs another bundle than `digest`.
    """

    def __init__(self, folder: RunFolder, digest: str) -> None:
        self._core = load_core()
        self._folder = folder
        self._digest = digest
        self._reader: Any = None

    def view(self) -> ControlView | None:
        """Control's newest status, None while it is silent for over a second."""
        if self._reader is None:
            try:
                self._reader = self._core.StateReader(self._folder.state)
            except OSError:
                return None
        status = self._reader.read()
        if status is None or time.monotonic_ns() - status["tick_ns"] > SILENT_NS:
            self._reader = None
            return None
        view = view_of(status)
        if view.bundle_digest != self._digest:
            raise IdentityError(f"control runs bundle {view.bundle_digest[:12]}, inference {self._digest[:12]}; start both with the same --bundle")
        return view


class AbandonWatch(threading.Thread):
    """While an inference runs: gives it up when control no longer takes the chunks of its session."""

    def __init__(self, reader: ControlReader) -> None:
        super().__init__(name="abandon-watch", daemon=True)
        self.signal = np.zeros(1, np.int32)
        self._reader = reader
        self._session: int | None = None
        self._ended = threading.Event()

    def begin(self, session: int) -> NDArray[np.int32]:
        """The signal of an inference for control session `session`."""
        self.signal[0] = FlowSignal.CONTINUE
        self._session = session
        return self.signal

    def end(self) -> None:
        self._session = None

    def give_up(self) -> None:
        """Abandon whatever runs."""
        self.signal[0] = FlowSignal.ABANDON

    def close(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            session = self._session
            if session is None:
                continue
            try:
                view = self._reader.view()
            except IdentityError:
                view = None  # the loop itself meets it too and says so
            if view is None or view.session != session or not view.takes_chunks:
                self.give_up()
