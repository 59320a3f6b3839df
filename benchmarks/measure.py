# SPDX-License-Identifier: Apache-2.0
"""Rounds in which all subjects take turns, and what follows from them: percentiles, ratios, errors, fractions,
verdicts."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vla_edge.benchmarks.ceilings import Ceilings, measure_ceilings
from vla_edge.benchmarks.host import host_facts
from vla_edge.benchmarks.subject import CACHED, FRESH, OBSERVATIONS, ONE_CAMERA, Run, SubjectSpec
from vla_edge.benchmarks.subjects import SubjectProcess
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.action_error import action_error, joint_spans
from vla_edge.calibration.precision.counting import work_of

SCHEMA = 1
TICK_MS = 1000 / 30

TIMED_AS = {"vision": "vision", "prefix": "prefix", "state": "state", "expert": "step"}
"""Graph → what times one run of it."""

Array = NDArray[np.float32]

Samples = dict[str, dict[str, list[Run]]]
"""Runs by subject and case."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """rounds: measured; warm_up: rounds before them that are thrown away."""

    rounds: int
    warm_up: int = 1


def measure(specs: Sequence[SubjectSpec], rounds: Rounds, threads: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything a result file holds. The first torch subject is the baseline, else the first subject."""
    for spec in specs:
        if spec.kind == "bundle":
            open_bundle(spec.path).manifest.policy.checked_steps(spec.steps)
    host = host_facts()
    tell("ceilings of the machine")
    ceilings = measure_ceilings(threads)
    subjects: dict[str, SubjectProcess] = {}
    try:
        for spec in specs:
            tell(f"load {spec.name}")
            subjects[spec.name] = SubjectProcess(spec)
            if spec.kind == "bundle":
                subjects[spec.name].facts["work"] = _work(spec.path)
        samples = _take(subjects, rounds, tell)
        tell("action errors")
        chunks = {
            name: np.stack([subject.actions(number) for number in range(OBSERVATIONS)])
            for name, subject in subjects.items()
        }
        memory = {name: subject.memory_mb() for name, subject in subjects.items()}
    finally:
        for subject in subjects.values():
            subject.close()
    baseline = next((spec.name for spec in specs if spec.kind == "torch"), specs[0].name)
    spans = joint_spans(open_bundle(specs[0].inputs))
    ratios = _ratios(samples, baseline)
    return {
        "schema": SCHEMA,
        "host": host,
        "ceilings": asdict(ceilings),
        "baseline": baseline,
        "rounds": asdict(rounds),
        "subjects": {
            name: {
                **subject.facts,
                "kind": subject.spec.kind,
                "backend": subject.spec.backend,
                "threads": subject.spec.threads,
                "cold_start_s": round(subject.cold_start_s, 3),
                "peak_rss_mb": memory[name]["peak"],
                "resident_mb": memory[name]["now"],
                "cases": {case: _case(runs) for case, runs in samples[name].items()},
                "fractions": _fractions(subject.facts, samples[name], ceilings),
                "verdicts": _verdicts(subject.facts, samples[name]),
            }
            for name, subject in subjects.items()
        },
        "ratios": ratios,
        "errors": {
            name: action_error(*shared(found, chunks[baseline]), spans).facts()
            for name, found in chunks.items()
            if name != baseline
        },
    }


def shared(found: Array, reference: Array) -> tuple[Array, Array]:
    """The actions that both have: a bundle may hold the first ones of a chunk alone."""
    rows = min(found.shape[1], reference.shape[1])
    return found[:, :rows], reference[:, :rows]


def _take(subjects: Mapping[str, SubjectProcess], rounds: Rounds, tell: Callable[[str], None]) -> Samples:
    samples: Samples = {name: {case: [] for case in subject.cases} for name, subject in subjects.items()}
    order = random.Random(0)
    for number in range(-rounds.warm_up, rounds.rounds):
        tell(
            f"warm-up {number + rounds.warm_up + 1} of {rounds.warm_up}"
            if number < 0
            else f"round {number + 1} of {rounds.rounds}"
        )
        names = list(subjects)
        order.shuffle(names)
        for name in names:
            for case in subjects[name].cases:
                run = subjects[name].run(case, number + rounds.warm_up)
                if number >= 0:
                    samples[name][case].append(run)
    return samples


def _work(path: Path) -> dict[str, Any]:
    """Counted here and not in the measured process, which is to hold nothing but what runs on a robot."""
    bundle = open_bundle(path)
    return {name: asdict(work_of(onnx.load_from_string(bundle.graph(name).model))) for name in bundle.manifest.graphs}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and max."""
    found = {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}
    return {name: round(value, 4) for name, value in {**found, "max": max(values)}.items()}


def _case(runs: Sequence[Run]) -> dict[str, Any]:
    graphs = {name for run in runs for name in run.graphs_ms}
    return {
        "whole_tick_ms": percentiles([run.wall_ms for run in runs]),
        "cpu_ms": percentiles([run.cpu_ms for run in runs]),
        "graphs_ms": {name: percentiles([run.graphs_ms.get(name, 0.0) for run in runs]) for name in sorted(graphs)},
        "raw_ms": [round(run.wall_ms, 3) for run in runs],
        "raw_cpu_ms": [round(run.cpu_ms, 3) for run in runs],
    }


def _ratios(samples: Samples, baseline: str) -> dict[str, Any]:
    """Medians over rounds, of wall-clock and, as a check that neighbours did not decide, of CPU time."""
    base = samples[baseline][FRESH]
    found: dict[str, Any] = {}
    for name, cases in samples.items():
        if name == baseline:
            continue
        found[name] = {}
        for clock in ("wall_ms", "cpu_ms"):
            ratio = {
                case: statistics.median(getattr(one, clock) / getattr(run, clock) for one, run in zip(base, runs))
                for case, runs in cases.items()
            }
            entry = {case: round(value, 4) for case, value in ratio.items() if case in (FRESH, CACHED)}
            if ONE_CAMERA in cases:
                saved = statistics.median(
                    1 - getattr(one, clock) / getattr(fresh, clock)
                    for one, fresh in zip(cases[ONE_CAMERA], cases[FRESH])
                )
                entry["one_camera_saved"] = round(saved, 4)
            found[name][clock.removesuffix("_ms")] = entry
    return found


def _fractions(facts: Mapping[str, Any], cases: Mapping[str, Sequence[Run]], ceilings: Ceilings) -> dict[str, Any]:
    """Operations a second of each graph, and their share of the ceiling of the type that most of it runs in."""
    found: dict[str, Any] = {}
    for graph, work in facts.get("work", {}).items():
        if graph not in TIMED_AS:
            continue
        took = min(run.graphs_ms[TIMED_AS[graph]] for run in cases[FRESH])
        achieved = 2e-6 * work["multiply_adds"] / took
        kind = "int8" if facts["precision"].get(graph, "fp32").startswith("int8") else "float32"
        memory_ms = 1e-6 * work["weight_bytes"] / ceilings.memory
        compute_ms = 2e-6 * work["multiply_adds"] / getattr(ceilings, kind)
        found[graph] = {
            "gops": round(achieved, 1),
            "ceiling": kind,
            "fraction": round(achieved / getattr(ceilings, kind), 3),
            "floor_ms": round(max(memory_ms, compute_ms), 2),
            "best_ms": round(took, 2),
        }
    return found


def _verdicts(facts: Mapping[str, Any], cases: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """30 Hz both ways: replanning in every tick, and actions from a queue that is refilled before it is empty."""
    if "executed" not in facts:
        return {}
    worst = {case: float(np.percentile([run.wall_ms for run in runs], 99)) for case, runs in cases.items()}
    queue_ms = facts["executed"] * TICK_MS
    return {
        "replan_every_tick": {case: value <= TICK_MS for case, value in worst.items()},
        "action_output_with_chunks": {case: value <= queue_ms for case, value in worst.items()},
        "p99_ms": {case: round(value, 2) for case, value in worst.items()},
        "tick_ms": round(TICK_MS, 2),
        "queue_ms": round(queue_ms, 1),
    }
