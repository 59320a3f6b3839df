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


class Control:
    """The real control loop on an arm without a bus, in a thread that holds no interpreter lock."""

    def __init__(self, folder: RunFolder, digest: str, hz=30.0, **settings):
        core = pytest.importorskip("vla_edge._core")
        limits = tuple(JointLimits(0, 4095, scale=4096 / 360, offset=2048) for _ in range(6))
        self.settings = ControlSettings(limits, round(1e9 / hz), session=7, bundle_digest=digest, **settings)
        self.listener = listen(folder)
        files = LoopFiles(
            folder.ring,
            folder.state,
            folder.record,
            record_cells=1 << 12,
            socket_fd=self.listener.fileno(),
            priority=0,
            arm_at_start=True,
        )
        self.core, self.folder = core, folder
        arm = StillArm([2048] * 6)
        self.thread = threading.Thread(target=core.control_run, args=(arm, self.settings, files), daemon=True)
        self.thread.start()

    def reader(self):
        return self.core.StateReader(self.folder.state).read() if self.folder.state.exists() else None

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
