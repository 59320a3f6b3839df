# SPDX-License-Identifier: Apache-2.0
"""The emulated servo bus as a process of its own, started and ended by whoever needs one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import BusError
from vla_edge.robot.sim.bus_log import read_log

STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class EmulatorProcess:
    """port: what a driver opens. log: JSON lines of everything accepted (see `EmulatedBus`)."""

    port: Path
    log: Path
    process: subprocess.Popen[str]

    def event(self, words: str) -> None:
        """Make one event of the emulator's grammar, e.g. ``overload 3``, happen; it has when this returns."""
        assert self.process.stdin is not None
        with self.log.open(encoding="utf-8") as log:
            log.seek(0, os.SEEK_END)
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()
            printed = ""
            while '"kind":"event"' not in printed and self.process.poll() is None:
                time.sleep(0.001)
                printed += log.read()

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """The log so far, of these kinds."""
        return read_log(self.log, *kinds)


@contextmanager
def emulator_process(folder: Path, *arguments: str) -> Iterator[EmulatorProcess]:
    """Run the emulator with `--link folder/port --log folder/bus.jsonl` and more `arguments` until the block ends."""
    port, log = folder / "port", folder / "bus.jsonl"
    words = [sys.executable, "-m", "vla_edge.robot.sim.emulator", "--link", str(port), "--log", str(log), "--commands"]
    with subprocess.Popen([*words, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BusError(
                    f"the servo bus emulator did not start (exit code {process.wait()}); its message stands above"
                )
            yield EmulatorProcess(port, log, process)
        finally:
            assert process.stdin is not None
            try:
                process.stdin.close()  # the end of its commands ends it
                process.wait(STOP_S)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                process.kill()
