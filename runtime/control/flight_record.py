# SPDX-License-Identifier: Apache-2.0
"""Reading a flight record: its ticks, its chunks, the latencies of the ticks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.core import load_core
from vla_edge.errors import ControlError
from vla_edge.runtime.control.faults import fault_of
from vla_edge.runtime.control.run_folder import RunFolder, last_run_folder

_TIMES = ("late_ns", "read_ns", "write_ns", "work_ns")
_QUANTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def add_record_argument(parser: argparse.ArgumentParser) -> None:
    """RECORD, the same in every command that reads one."""
    newest = RunFolder(last_run_folder()).record
    parser.add_argument(
        "record", type=Path, nargs="?", default=newest, help="a flight.record (default: the last run's)"
    )


def open_record(path: Path) -> Any:
    """A `RecordReader`; ControlError when there is none or it is of another build."""
    try:
        return load_core().RecordReader(path)
    except FileNotFoundError:
        raise ControlError(f"{path}: there is no such flight record; give a flight.record of a run folder") from None
    except OSError as error:
        raise ControlError(
            f"{path}: not a flight record of this build ({error.strerror}); give a flight.record of a run folder"
        ) from error


def _cells(reader: Any) -> Iterator[tuple[str, Mapping[str, Any]] | None]:
    """Every cell of the record, oldest first: its kind and content; None for a damaged one."""
    return map(reader.cell, range(*reader.range()))


def ticks_of(reader: Any) -> Iterator[Mapping[str, Any]]:
    """Every whole tick of the record, oldest first."""
    return (cell[1] for cell in _cells(reader) if cell is not None and cell[0] == "tick")


def ticks_after_damage(reader: Any) -> frozenset[int]:
    """The first whole tick behind each damaged cell: the ticks before it may have run, and cannot be read."""
    found, damaged = set(), False
    for cell in _cells(reader):
        damaged = damaged or cell is None
        if cell is not None and cell[0] == "tick":
            found |= {cell[1]["tick"]} if damaged else set()
            damaged = False
    return frozenset(found)


def faults_of(ticks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every fault and latched hold that nobody asked for: its first tick, state, and the sentence for a person."""
    found: list[dict[str, Any]] = []
    last = reason = ""
    for tick in ticks:
        fault = fault_of(tick) if tick["latched"] else ""
        if fault and reason == tick["reason"] == "reads_lost":
            found[-1]["fault"] = fault  # who is silent is asked again and again
        elif fault and fault != last:
            found.append({"tick": tick["tick"], "state": tick["state"], "fault": fault})
        last, reason = fault, tick["reason"] if fault else ""
    return found


def chunks_of(reader: Any) -> dict[int, Mapping[str, Any]]:
    """Every chunk that was taken and is still whole in the record, by its observation's sequence."""
    chunks = (cell[1] for cell in _cells(reader) if cell is not None and cell[0] == "chunk")
    return {chunk["observation_sequence"]: chunk for chunk in chunks}


def tick_times(reader: Any) -> dict[str, dict[str, float]]:
    """Microseconds: how late ticks started, bus reads, bus writes, whole ticks."""
    ticks = list(ticks_of(reader))
    if not ticks:
        return {}
    return {name[:-3]: quantiles(np.array([tick[name] for tick in ticks]) / 1e3) for name in _TIMES}


def quantiles(
    values: NDArray[np.float64] | Sequence[float], names: Sequence[str] = tuple(_QUANTILES)
) -> dict[str, float]:
    """The values' `names`: p50, p99, p99.9, max."""
    found = np.percentile(np.asarray(values), [_QUANTILES[name] for name in names])
    return dict(zip(names, found.tolist()))
