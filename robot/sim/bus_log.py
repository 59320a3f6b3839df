# SPDX-License-Identifier: Apache-2.0
"""The emulator's log on disk: JSON lines, one per event of `EmulatedBus`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_edge.robot.sim.emulated_bus import Log


@contextmanager
def open_log(path: Path | None) -> Iterator[Log]:
    """JSON lines at `path`, each written through at once so that the log survives a kill; None: nowhere."""
    if path is None:
        yield lambda entry: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", buffering=1, encoding="utf-8") as file:

        def log(entry: Mapping[str, Any]) -> None:
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")

        yield log


def read_log(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """The log's entries of these kinds (all without any), in order; a last line cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            entry = json.loads(line)
            if not kinds or entry["kind"] in kinds:
                entries.append(entry)
    return entries
