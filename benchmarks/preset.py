# SPDX-License-Identifier: Apache-2.0
"""`vla-bench --preset orin-nano`: one bundle under the contract of a public row, as one JSON row to set beside it.

Needs nothing but what runs on the robot, so that it can be measured there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vla_edge.benchmarks.host import host_facts
from vla_edge.benchmarks.subject import CACHED, FRESH, Run, SubjectSpec
from vla_edge.benchmarks.subjects import SubjectProcess
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Contract:
    """What must be equal for two rows to be comparable. rows: of the prefix, with the state's."""

    cameras: int
    picture: tuple[int, int]
    rows: int
    steps: int


@dataclass(frozen=True, slots=True)
class Preset:
    """A contract and the public row that was measured under it, in ms and MB."""

    contract: Contract
    public: Mapping[str, float]
    where: str


PRESETS = {
    "orin-nano": Preset(
        Contract(2, (512, 512), 177, 10),
        {"p50_ms": 189.9, "vision_ms": 91.2, "decode_ms": 59.3, "resident_mb": 1871},
        "Jetson Orin Nano, nine graphs on ONNX Runtime with TensorRT in half precision, everything computed",
    )
}


def print_row(name: str, specs: Sequence[SubjectSpec], rounds: int, out: Path | None) -> int:
    """Measure the one bundle and print its row, adding it to `out`/NAME.jsonl. ConfigError: several bundles."""
    if len(specs) != 1:
        raise ConfigError("--preset measures one bundle alone; give one --bundle")
    with Console(stderr=True).status("starting") as status:
        row = json.dumps(measured(name, specs[0], rounds, status.update))
    if out is not None:
        with (out / f"{name}.jsonl").open("a") as file:
            file.write(row + "\n")
    print(row)
    return 0


def contract_of(bundle: Bundle) -> Contract:
    """The contract a bundle runs under."""
    policy = bundle.manifest.policy
    size = policy.image_height, policy.image_width
    return Contract(len(bundle.manifest.cameras), size, policy.prefix_rows + 1, policy.num_steps)


def measured(name: str, spec: SubjectSpec, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The row. ConfigError: the bundle has another contract."""
    preset, bundle = PRESETS[name], open_bundle(spec.path)
    ours, theirs = contract_of(bundle), preset.contract
    for field, wanted in asdict(theirs).items():
        found = getattr(ours, field)
        if found != wanted:
            raise ConfigError(
                f"{spec.path}: {field} is {found}, the public row of {name} has {wanted}; export a policy with "
                f"{theirs.cameras} cameras, pictures of {theirs.picture[0]}×{theirs.picture[1]}, 48 words and "
                f"{theirs.steps} steps, or leave out --preset"
            )
    host = host_facts()
    tell(f"load {spec.name}")
    subject = SubjectProcess(spec)
    try:
        runs: dict[str, list[Run]] = {FRESH: [], CACHED: []}
        for number in range(-3, rounds):
            tell(f"warm-up {number + 4} of 3" if number < 0 else f"round {number + 1} of {rounds}")
            for case, taken in runs.items():
                run = subject.run(case, number + 3)
                if number >= 0:
                    taken.append(run)
        memory = subject.memory_mb()
    finally:
        subject.close()
    return {
        "preset": name,
        "contract": asdict(theirs),
        "public": {**preset.public, "where": preset.where},
        "bundle": bundle.digest,
        "precision": bundle.manifest.precision.get("requested"),
        "backend": spec.backend,
        "detail": subject.facts["detail"],
        "mode": host["power_mode"],
        "clocks": host["gpu"],
        "host": host,
        "rounds": rounds,
        "fresh": _figures(runs[FRESH], ours.cameras),
        "cached": _figures(runs[CACHED], 0),
        "resident_mb": memory["now"],
        "peak_mb": memory["peak"],
    }


def _figures(runs: list[Run], cameras: int) -> dict[str, float]:
    """p50 and p95 of the whole inference, p50 of its graphs; vision of all cameras."""
    wall = np.array([run.wall_ms for run in runs])
    graphs = {name: float(np.median([run.graphs_ms[name] for run in runs])) for name in ("prefix", "state", "loop")}
    vision = float(np.median([run.graphs_ms["vision"] for run in runs])) * cameras
    found = {"p50_ms": float(np.quantile(wall, 0.5)), "p95_ms": float(np.quantile(wall, 0.95)), "vision_ms": vision}
    return {
        name: round(value, 3) for name, value in {**found, **{f"{key}_ms": ms for key, ms in graphs.items()}}.items()
    }
