# SPDX-License-Identifier: Apache-2.0
"""A word whose asker gave up before control came to read it: nothing moves later that nobody waits for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits, LoopFiles
from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.run_folder import listen, open_run_folder

core = pytest.importorskip("vla_edge._core")


WAITS, GAVE_UP, KILLED = "waits", "gave up", "killed"


def states_after(word: str, who: str, path: Path) -> list[str]:
    """The states of ten ticks of a loop that finds `word` in its socket, from somebody who still waits, who took its
    socket away, or who was killed: then the socket's name is still there."""
    folder = open_run_folder(path)
    listener = listen(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.bind(str(path / "asker"))
        asker.sendto(word.encode(), str(folder.socket))
        if who == GAVE_UP:
            (path / "asker").unlink()
        if who == KILLED:
            asker.close()
            assert (path / "asker").exists()
        limits = tuple(JointLimits(0, 4095, scale=4096 / 360, offset=2048) for _ in range(6))
        settings = ControlSettings(limits, round(1e9 / 30), session=7, bundle_digest="0" * 64)
        files = LoopFiles(
            folder.ring,
            folder.state,
            folder.record,
            record_cells=1 << 8,
            socket_fd=listener.fileno(),
            priority=0,
            stop_after_ticks=10,
        )
        core.control_run(StillArm([2048] * 6), settings, files)
    listener.close()
    return [tick["state"] for tick in ticks_of(open_record(folder.record))]


@pytest.mark.parametrize("who", [WAITS, GAVE_UP, KILLED])
def test_arm_counts_only_while_somebody_waits_for_its_answer(tmp_path: Path, who: str) -> None:
    assert ("planning" in states_after("arm", who, tmp_path / "run")) == (who == WAITS)


@pytest.mark.parametrize("who", [WAITS, GAVE_UP, KILLED])
def test_stop_counts_always(tmp_path: Path, who: str) -> None:
    assert len(states_after("stop", who, tmp_path / "run")) < 10
