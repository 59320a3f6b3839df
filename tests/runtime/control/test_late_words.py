# SPDX-License-Identifier: Apache-2.0
"""A word whose asker gave up before control came to read it: nothing moves later that nobody waits for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.runtime.control.inference_rig import Control

from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.run_folder import open_run_folder

WAITS, GAVE_UP, KILLED = "waits", "gave up", "killed"


def states_after(word: str, who: str, path: Path) -> list[str]:
    """The states of ten ticks of a loop that finds `word` in its socket, from somebody who still waits, who took its
    socket away, or who was killed: then the socket's name is still there."""
    folder = open_run_folder(path)
    control = Control(folder, "0" * 64, armed=False, ticks=10)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.bind(str(path / "asker"))
        asker.sendto(word.encode(), str(folder.socket))
        if who == GAVE_UP:
            (path / "asker").unlink()
        if who == KILLED:
            asker.close()
            assert (path / "asker").exists()
        control.run()
    control.listener.close()
    return [tick["state"] for tick in ticks_of(open_record(folder.record))]


@pytest.mark.parametrize("who", [WAITS, GAVE_UP, KILLED])
def test_arm_counts_only_while_somebody_waits_for_its_answer(tmp_path: Path, who: str) -> None:
    assert ("planning" in states_after("arm", who, tmp_path / "run")) == (who == WAITS)


@pytest.mark.parametrize("who", [WAITS, GAVE_UP, KILLED])
def test_stop_counts_always(tmp_path: Path, who: str) -> None:
    assert len(states_after("stop", who, tmp_path / "run")) < 10
