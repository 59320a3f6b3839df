# SPDX-License-Identifier: Apache-2.0
"""The real control loop on an arm without a bus, and cameras a test can freeze or point elsewhere."""

from __future__ import annotations

import threading
import time

import pytest
from tests.runtime.control.control_rig import EVENT_S

from vla_edge.contract import Frame
from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits, LoopFiles
from vla_edge.runtime.control.run_folder import RunFolder, listen

PATIENT = {"patience_min_ns": 10**12, "patience_max_ns": 10**12}
"""Settings with which the wait for a chunk does not latch: starting inference takes long on a busy machine."""


class Control:
    """The real control loop on an arm without a bus, in a thread that holds no interpreter lock.

    ticks: it stops by itself after so many, and starts with `run` only. The rest are fields of ControlSettings.
    """

    def __init__(self, folder: RunFolder, digest: str, hz=30.0, armed=True, ticks=0, joints=6, **settings):
        core = pytest.importorskip("vla_edge._core")
        limits = tuple(JointLimits(0, 4095, scale=4096 / 360, offset=2048, name=f"axis_{i}") for i in range(joints))
        self.settings = ControlSettings(limits, round(1e9 / hz), session=7, bundle_digest=digest, **settings)
        self.listener = listen(folder)
        self.files = LoopFiles(
            folder.ring,
            folder.state,
            folder.record,
            record_cells=1 << 13,
            socket_fd=self.listener.fileno(),
            priority=0,
            arm_at_start=armed,
            stop_after_ticks=ticks,
        )
        self.core, self.folder = core, folder
        self.thread = threading.Thread(target=self.run, daemon=True)
        if not ticks:
            self.thread.start()

    def run(self):
        self.core.control_run(StillArm([2048] * len(self.settings.limits)), self.settings, self.files)

    def reader(self):
        """The newest status, None before the first."""
        return self.core.StateReader(self.folder.state).read() if self.folder.state.exists() else None

    def wait(self, what):
        """The first status for which `what` holds."""
        wait_until(lambda: (told := self.reader()) is not None and what(told))
        return self.reader()

    def stop(self):
        from vla_edge.runtime.control.operator import ask

        ask(self.folder, "stop", timeout_s=EVENT_S)
        self.thread.join(EVENT_S)
        self.listener.close()
        assert not self.thread.is_alive()


class Switch:
    """A camera that can be frozen, or shown another picture."""

    def __init__(self, name, image):
        self.name, self.exempt_from_freshness, self.frozen = name, False, False
        self.image, self._last = image, None

    def newest(self):
        if self._last is None or not self.frozen:
            now = time.monotonic_ns()
            self._last = Frame(self.name, self.image, now, now)
        return self._last

    def close(self):
        pass


def wait_until(condition):
    """For an event, however long a busy machine takes to come to it."""
    deadline = time.monotonic() + EVENT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
