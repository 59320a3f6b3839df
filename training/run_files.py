# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for people: `metrics.jsonl` (one line per logged step) and `status.json` (the newest state).

Both are whole at any moment: a line is appended in one write, the status is
replaced as a whole. Times are wall clock (seconds since 1970).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_edge.command_line import answer
from vla_edge.errors import CheckFailed, TrainingError
from vla_edge.fields import build, read_object
from vla_edge.files import json_text, write_json, write_text

METRICS = "metrics.jsonl"
STATUS = "status.json"
NEWEST = 3
"""Lines of the log that a status shows."""


@dataclass(frozen=True, slots=True)
class Status:
    """`state`: running, done, failed or interrupted. `best`: lowest validation loss and its step. `process` on `host`
    wrote it."""

    state: str
    step: int
    steps: int
    loss: float | None = None
    lr: float | None = None
    seconds_per_step: float | None = None
    eta_s: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    error: str | None = None
    updated: float = 0.0
    process: int = 0
    host: str = ""
    device: str = ""


def write_status(run: Path, status: Status) -> None:
    write_json(
        run / STATUS, {**asdict(status), "updated": time.time(), "process": os.getpid(), "host": socket.gethostname()}
    )


def append_metrics(run: Path, row: Mapping[str, Any]) -> None:
    """Append one line; the keys are `step`, `loss`, `lr`, `grad_norm`, `s_per_step` and what the mode adds."""
    with (run / METRICS).open("a") as file:
        file.write(json_text(row) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines; a torn last line of a killed run is left out."""
    file = run / METRICS
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def cut_metrics(run: Path, step: int) -> dict[str, Any]:
    """Drop what was logged after `step`, so that a resumed run does not log a step twice. The newest row kept, or
    {}."""
    rows = [row for row in read_metrics(run) if row["step"] <= step]
    write_text(run / METRICS, "".join(json_text(row) + "\n" for row in rows))
    return rows[-1] if rows else {}


def run_folder(path: Path) -> Path:
    """The run that `path` is, or that its `checkpoints/last` is in. TrainingError: it is an older checkpoint of a
    run."""
    if path.parent.name != "checkpoints":
        return path
    run = path.parent.parent
    if path.resolve() != (path.parent / "last").resolve():
        raise TrainingError(f"{path}: not the run's newest checkpoint; give the run, {run}")
    return run


def read_status(run: Path) -> Status:
    """The newest status of the run; TrainingError when `run` is none."""
    file, advice = run / STATUS, f"look at {METRICS} instead"
    content = read_object(file, TrainingError, advice, "missing; give the output folder of a vla-train run")
    return build(Status, content, file, TrainingError, advice)


def checkpoints_of(run: Path) -> list[str]:
    """Names of the run's whole checkpoints, oldest first."""
    folder = run / "checkpoints"
    return sorted(item.name for item in folder.iterdir() if item.name.isdigit()) if folder.is_dir() else []


def describe(run: Path) -> str:
    """What `vla-train status RUN` prints: step, loss, lr, s/step, time left, checkpoints, last error."""
    status = read_status(run)
    names, size = checkpoints_of(run), checkpoint_bytes(run)
    best = f"{status.best_loss:.5f} at step {status.best_step}" if status.best_loss is not None else "none yet"
    return "\n".join(
        [
            f"state        {status.state}{_gone(status)}",
            f"step         {status.step} of {status.steps}",
            f"loss         {_number(status.loss, '.5f')}",
            f"lr           {_number(status.lr, '.3g')}",
            f"s/step       {_number(status.seconds_per_step, '.3f')}",
            f"time left    {_duration(status.eta_s)}",
            f"best         {best}",
            f"checkpoints  {', '.join(names) if names else 'none'}{f' ({size / 1e6:.0f} MB)' if size else ''}",
            f"device       {status.device or '–'}",
            f"last error   {status.error or 'none'}",
            *(f"log          {_log_line(row)}" for row in read_metrics(run)[-NEWEST:]),
        ]
    )


def checkpoint_bytes(run: Path) -> int:
    """What the run's checkpoints take on the disk."""
    files = (file for file in (run / "checkpoints").rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_size for file in files)


def _log_line(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value:.5g}" for name, value in row.items() if isinstance(value, (int, float)))


def has_ended(run: Path) -> bool:
    """Whether `run` says that it is done; a lost or damaged status says nothing."""
    try:
        return read_status(run).state == "done"
    except TrainingError:
        return False


def trained_by_other(run: Path) -> int:
    """The living process of this host that says it is training `run`, 0 for none; this process does not count."""
    try:
        status = read_status(run)
    except TrainingError:
        return 0
    here = status.state == "running" and status.host == socket.gethostname() and status.process != os.getpid()
    return status.process if here and _alive(status.process) else 0


def _killed(status: Status) -> bool:
    """Whether it says "running" of a process of this host that is no more."""
    return status.state == "running" and status.host == socket.gethostname() and not _alive(status.process)


def _gone(status: Status) -> str:
    """What to add to "running" when the process that wrote it was killed, or has been silent for ten minutes."""
    if status.state != "running":
        return ""
    if _killed(status):
        return f" until process {status.process} was killed; continue with `vla-train resume`"
    age = time.time() - status.updated
    return f" (no news for {age // 60:.0f} min: the process may be gone)" if age > 600 else ""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60:02d} s"


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run, or its checkpoints/last")


def run_status(arguments: argparse.Namespace) -> int:
    """CheckFailed (exit code 1): the run failed, or its process was killed."""
    run = run_folder(arguments.run)
    print(describe(run))
    status = read_status(run)
    killed, size, log = _killed(status), checkpoint_bytes(run), read_metrics(run)[-NEWEST:]
    shown = {**asdict(status), "checkpoints": checkpoints_of(run), "checkpoint_bytes": size, "log": log}
    answer({**shown, "state": "killed" if killed else status.state})
    if killed or status.state == "failed":
        why = f"process {status.process} was killed" if killed else status.error or "it failed"
        way = f"continue with `vla-train resume {run}`" if shown["checkpoints"] else "no checkpoint yet: start it again"
        raise CheckFailed(f"{run}: {why}; {way}")
    return 0
