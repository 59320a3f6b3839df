# SPDX-License-Identifier: Apache-2.0
"""A running `vla-runtime serve` for tests, and the observation it is asked about."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden" / "koch-bfloat16.npz"
MAKE_CERTIFICATE = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
MAKE_CERTIFICATE += ["-days", "2", "-subj", "/CN=localhost"]
START_S = 240
"""Two cores may be busy with other tests."""


@dataclass(frozen=True)
class Served:
    """url: without the slash at the end."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        return self.send("GET", path, headers=headers)

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=240) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def status(self) -> dict[str, Any]:
        code, body = self.get("/status.json")
        assert code == 200
        shown: dict[str, Any] = json.loads(body, parse_constant=_no_number)  # as strict as a browser
        return shown

    def memory_kb(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1])


def _no_number(word: str) -> None:
    raise AssertionError(f"{word} in JSON")


@contextmanager
def served(bundle: Path | None, run_dir: Path, words: Sequence[str] = ()) -> Iterator[Served]:
    """The service on a free port, ready; without a bundle the robot's status alone. It is ended when the block ends."""
    command = [sys.executable, "-m", "vla_edge.runtime.command", "serve", "--run-dir", str(run_dir)]
    command += [] if bundle is None else ["--bundle", str(bundle)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", "--nice", "0", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        assert line.startswith("http"), f"the service did not start: {line!r}"
        running = Served(line.rstrip("/"), process)
        deadline = time.monotonic() + START_S
        while line.startswith("http:") and running.get("/healthz")[0] != 200:
            assert time.monotonic() < deadline, "the service was not ready in time"
            time.sleep(0.05)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(240)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def golden_observation() -> dict[str, Any]:
    """The recorded observation of tests/golden with a noise of its own: names → arrays, `task` a text."""
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        fields: dict[str, Any] = {
            name.removeprefix("raw/image/"): recorded[name] for name in recorded.files if name.startswith("raw/image/")
        }
        fields["observation.state"] = recorded["raw/state"].astype(np.float32)
        fields["task"] = str(recorded["raw/task"])
    fields["noise"] = np.random.default_rng(5).standard_normal((50, 32)).astype(np.float32)
    return fields
