# SPDX-License-Identifier: Apache-2.0
"""Child processes of a run: they end with us, and no wait for one is without an end."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, cast

import pytest

from vla_edge.runtime.command import main
from vla_edge.runtime.control.children import Child, end, start
from vla_edge.runtime.control.run_options import InferenceOptions, flags_of, options_of_arguments

WAITS = "import sys; print('here', flush=True); sys.stdin.read()"


def never(seconds: float) -> bool:
    return False


def test_a_child_that_ends_with_us_does_so_when_we_are_killed() -> None:
    parent = (
        "import time\nfrom vla_edge.runtime.control.children import start, wait_until\n"
        f"child = start('child', ['-c', {WAITS!r}], ends_with_us=True)\n"
        "wait_until(lambda: bool(child.lines()), 60, child)\nprint(child.process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    poller = select.poll()
    poller.register(child)
    assert poller.poll(60_000), "the child outlived its parent"
    os.close(child)


def test_a_child_that_does_not_listen_is_killed_as_soon_as_somebody_is_in_a_hurry() -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(600)"
    )
    child = start("deaf", ["-c", deaf])
    while not child.lines():
        child.check()
    assert end(child, lambda seconds: True, patience_s=600) == {}
    assert child.process.returncode == -signal.SIGKILL


class Unkillable:
    """A process that the kernel does not end."""

    pid, returncode = 2**22 + 1, None

    def poll(self) -> None:
        return None

    def terminate(self) -> None: ...

    kill = terminate

    def wait(self, timeout: float) -> int:
        raise subprocess.TimeoutExpired("unkillable", timeout)


def test_a_child_that_outlives_sigkill_is_told_of_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    output = cast(IO[bytes], io.BytesIO(b'{"ran": 1}\n'))
    told = end(Child("control", cast(Any, Unkillable()), output), never, patience_s=0.0)
    assert told == {"ran": 1} and "did not end 5 s after SIGKILL" in capsys.readouterr().err


def test_a_parent_reads_back_the_options_it_gave() -> None:
    parser = main.parser("inference")
    line = ["--bundle", "b", "--task", "stack it", "--camera", "a=0", "--camera", "b=1", "--trust-cameras", "--seed=3"]
    given = options_of_arguments(InferenceOptions, parser.parse_args([*line, "--record-inputs", "file"]))
    assert given.camera == ["a=0", "b=1"] and given.trust_cameras and given.record_inputs == Path("file")
    assert options_of_arguments(InferenceOptions, parser.parse_args(flags_of(given))) == given
