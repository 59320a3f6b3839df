# SPDX-License-Identifier: Apache-2.0
"""What is measured, each in a process of its own: bundles on a backend, and the torch policy in LeRobot's order.

The parent tells a subject which case to run next, so that cases of different
subjects take turns; memory and cold start are those of one process.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vla_edge.benchmarks.host import memory_mb
from vla_edge.benchmarks.subject import FRESH, Run, Subject, SubjectSpec
from vla_edge.errors import CheckFailed, ConfigError, VlaEdgeError


class SubjectProcess:
    """The parent's end. CheckFailed when the process ended; its own errors are told on."""

    def __init__(self, spec: SubjectSpec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(spec, other), daemon=True)
        start = time.perf_counter()
        self._process.start()
        other.close()
        first = self._answer()
        self.cold_start_s = time.perf_counter() - start
        self.facts: dict[str, Any] = first["facts"]
        self.cases: tuple[str, ...] = first["cases"]

    def run(self, case: str, number: int) -> Run:
        """Run one case and wait for it."""
        self._pipe.send(("run", case, number))
        run: Run = self._answer()
        return run

    def actions(self, number: int) -> np.ndarray:
        self._pipe.send(("actions", "", number))
        found: np.ndarray = self._answer()
        return found

    def memory_mb(self) -> dict[str, float]:
        """Resident memory so far, loading included, and now."""
        return memory_mb(self._process.pid or 0)

    def close(self) -> None:
        if self._process.is_alive():
            self._pipe.send(("end", "", 0))
            self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise CheckFailed(
                f"{self.spec.name}: its process ended with code {self._process.exitcode}; free memory, or run it alone"
            ) from None
        if isinstance(answer, VlaEdgeError):
            raise answer
        return answer


def open_subject(spec: SubjectSpec) -> Subject:
    """Load it in this process."""
    if spec.kind == "bundle":
        from vla_edge.benchmarks.bundle_subject import BundleSubject

        return BundleSubject(spec)
    if spec.kind == "torch":
        from vla_edge.benchmarks.torch_subject import TorchSubject

        return TorchSubject(spec)
    if spec.kind == "lerobot":
        from vla_edge.benchmarks.lerobot_subject import LerobotSubject

        return LerobotSubject(spec)
    raise ConfigError(f"unknown subject {spec.kind!r}; known: bundle, torch, lerobot")


def _serve(spec: SubjectSpec, pipe: Connection) -> None:
    try:
        subject = open_subject(spec)
        subject.run(FRESH, 0)
        pipe.send({"facts": subject.facts, "cases": subject.cases})
        while True:
            kind, case, number = pipe.recv()
            if kind == "end":
                return
            if kind == "actions":
                pipe.send(subject.actions(number))
                continue
            cpu, start = time.process_time(), time.perf_counter()
            graphs_ms = subject.run(case, number)
            pipe.send(Run((time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3, graphs_ms))
    except VlaEdgeError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        return  # The parent is gone: nobody is left to be told.
