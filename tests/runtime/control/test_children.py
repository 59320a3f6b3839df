# SPDX-License-Identifier: Apache-2.0
"""Child processes of a run: they end with us, and no wait for one is without an end."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, cast

import pytest

from vla_edge.runtime.command import main
from vla_edge.runtime.control.children import Child, end, start
from vla_edge.runtime.control.run_options import (
    PolicyOptions,
    RobotOptions,
    control_words,
    inference_words,
    options_of_arguments,
)

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


def test_children_read_back_the_options_that_the_run_has() -> None:
    line = ["--bundle", "b", "--task", "stack it", "--trust-cameras", "--seed=3", "--record-inputs", "file", "--shadow"]
    arguments = main.parser("run").parse_args([*line, "--hz=45", "--port", "p", "--joints", "j.json", "--speed=0.5"])
    robot, policy = options_of_arguments(RobotOptions, arguments), options_of_arguments(PolicyOptions, arguments)
    assert policy.trust_cameras and policy.record_inputs == Path("file") and robot.shadow and robot.hz == 45
    for word, given, words in (
        ("control", robot, control_words(robot, Path("folder"))),
        ("inference", policy, inference_words(policy, robot, Path("folder"), ["a=0", "b=1"])),
    ):
        assert words[:3] == ["-m", "vla_edge.runtime.command", word]
        told = main.parser(word).parse_args(words[3:])
        assert {field.name: getattr(told, field.name) for field in fields(given)} == asdict(given)
        assert (told.bundle, told.run_dir, told.parent, told.json) == (Path("b"), Path("folder"), os.getpid(), True)
    assert told.camera == ["a=0", "b=1"]
