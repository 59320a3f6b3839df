"""What a flight record says: latencies of the ticks, and whether its goals can be computed again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import CheckFailed, ControlError
from vla_edge.runtime.control import load_core

_TIMES = ("late_ns", "read_ns", "write_ns", "work_ns")
_QUANTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=Path, help="a flight.record")
    parser.add_argument("--json", action="store_true", help="one machine-readable line")


def run(arguments: argparse.Namespace) -> int:
    reader = open_record(arguments.record)
    result = reader.replay()
    times = tick_times(reader)
    if arguments.json:
        print(json.dumps({**result, "times_us": times}))
    else:
        print(f"{result['ticks']} ticks and {result['chunks']} chunks computed again from tick {result['first_tick']}")
        for name, quantiles in times.items():
            print(f"{name:<6}" + "  ".join(f"{key} {value:.0f} µs" for key, value in quantiles.items()))
    if result["differing"]:
        raise CheckFailed(
            f"{arguments.record}: {result['differing']} ticks differ, the first at tick {result['differing_at']}; replay with the build that recorded it"
        )
    if result["first_tick"] < 0:
        raise CheckFailed(f"{arguments.record}: neither its start nor an arming is left in it; nothing could be computed again")
    return 0


def open_record(path: Path) -> Any:
    """A `RecordReader`; ControlError when there is none or it is of another build."""
    try:
        return load_core().RecordReader(path)
    except OSError as error:
        raise ControlError(f"{path}: not a flight record of this build ({error.strerror}); give a flight.record of a run folder") from error


def ticks_of(reader: Any) -> Iterator[Mapping[str, Any]]:
    """Every whole tick of the record, oldest first."""
    first, end = reader.range()
    for index in range(first, end):
        cell = reader.cell(index)
        if cell is not None and cell[0] == "tick":
            yield cell[1]


def tick_times(reader: Any) -> dict[str, dict[str, float]]:
    """Microseconds: how late ticks started, bus reads, bus writes, whole ticks."""
    ticks = list(ticks_of(reader))
    if not ticks:
        return {}
    return {name[:-3]: quantiles(np.array([tick[name] for tick in ticks]) / 1e3) for name in _TIMES}


def quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(np.percentile(values, share)) for name, share in _QUANTILES.items()}
