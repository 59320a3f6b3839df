# SPDX-License-Identifier: Apache-2.0
"""The precision plan: the cheapest choice by group whose action error stays under a bound, found by measuring.

Whole plans are tried first, cheapest first, unfolded and with folded scales.
When none is good enough, the best of them is mended: every group is measured
in float32 alone, and groups are raised in the order of error removed for work
added, until the bound holds. For a GPU the search begins with everything in half
precision, INT8 goes where reading weights is what a step waits for, and mending
goes back to half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from vla_edge.calibration.precision.action_error import ActionError, ActionErrorBound
from vla_edge.calibration.precision.variant import FLOAT32, HALF, Choice, Group, Plan
from vla_edge.engines.dialect import Dialect, Treatment

COST = {
    Treatment.FLOAT32: 1.0,
    Treatment.FLOAT16: 0.6,
    Treatment.INT8_DYNAMIC: 0.47,
    Treatment.INT8_WEIGHTS: 0.45,
    Treatment.INT8_STATIC: 0.4,
}
"""Time of a multiply-add against float32's, as measured on full-size graphs (benchmarks/LOG.md); only orders the
search."""

READ_S = {Treatment.FLOAT32: 4 / 102e9, Treatment.FLOAT16: 2 / 102e9, Treatment.INT8_STATIC: 1 / 102e9}
PRODUCT_S = {Treatment.FLOAT32: 1 / 1e12, Treatment.FLOAT16: 1 / 8.4e12, Treatment.INT8_STATIC: 1 / 16.7e12}
"""Seconds a weight read and a multiply-add take on a Jetson Orin Nano Super, from its data sheet: 102 GB/s; 67 trillion
INT8 operations a second with sparsity, so 16.7e12 multiply-adds without, half of it in half precision, 1e12 float32
ones outside its tensor cores. Arithmetic, not a measurement."""
READERS = ("moment", "step", "correct")
"""Graphs of few rows, which wait for weights; those of pictures and prefix wait for products."""

OUTLIER_RATIO = 4.0
"""A channel four times the median one's largest magnitude is an outlier: Gaussian activations stay below two."""

OUTLIER_COST = 0.05
"""What a thin float product beside the INT8 one adds, of the float32 time."""


@dataclass(frozen=True)
class Candidate:
    """A plan with a name for people. folded: with scale folding."""

    name: str
    plan: Plan
    folded: bool


@dataclass(frozen=True)
class Trial:
    """One measured plan; cost as a share of float32's time, by `COST`, or by what a GPU reads and multiplies."""

    candidate: Candidate
    cost: float
    error: ActionError


@dataclass(frozen=True)
class Search:
    """The plan that was found (None: not even the mended ones hold the bound) and everything that was tried."""

    chosen: Trial | None
    tried: tuple[Trial, ...]


@dataclass(frozen=True)
class Weighted:
    """A group with how often it runs in one inference, and the place of its graph in the programme."""

    group: Group
    runs: int
    role: str

    def cost(self, choice: Choice, on_gpu: bool) -> float:
        """Comparable between groups and choices of one search."""
        kind, group = choice.treatment, self.group
        apart = OUTLIER_COST if choice.outlier_ratio else 0.0
        if not on_gpu:
            return self.runs * group.multiply_adds * (COST[kind] + apart)
        needed, seconds = (
            (group.weights, READ_S) if self.role in READERS and not group.products else (group.multiply_adds, PRODUCT_S)
        )
        return self.runs * needed * (seconds[kind] + apart * seconds[Treatment.FLOAT32])


Measure = Callable[[Candidate], ActionError]


def search(groups: Sequence[Weighted], dialect: Dialect, bound: ActionErrorBound, measure: Measure) -> Search:
    """Try, mend, and return the cheapest plan within `bound`."""
    tried: list[Trial] = []

    def cost(candidate: Candidate) -> float:
        return cost_of(candidate, groups, dialect.half)

    def attempt(candidate: Candidate) -> Trial:
        trial = Trial(candidate, cost(candidate), measure(candidate))
        tried.append(trial)
        return trial

    if dialect.half and not attempt(all_half(groups)).error.within(bound):
        return Search(None, tuple(tried))
    for candidate in sorted(candidates(groups, dialect), key=cost):
        trial = attempt(candidate)
        if trial.error.within(bound):
            return Search(trial, tuple(tried))
    best = min(tried[1:] if dialect.half else tried, key=lambda trial: trial.error.relative)
    mended = _mend(best, groups, bound, attempt, HALF if dialect.half else FLOAT32)
    return Search(mended, tuple(tried))


def all_half(groups: Sequence[Weighted]) -> Candidate:
    """Everything in half precision."""
    return Candidate(f"all {HALF}", {item.group.name: HALF for item in groups}, folded=False)


def candidates(groups: Sequence[Weighted], dialect: Dialect) -> Iterator[Candidate]:
    """Whole plans of a dialect: one treatment for all, or the cheap one for pictures alone; beside half precision, INT8
    in the steps, in the text model's MLP and for the state, fewer and fewer of them. All folded or with outliers
    apart."""
    shapes: list[tuple[str, Callable[[Weighted], Treatment]]] = [
        (treatment.value, lambda item, treatment=treatment: treatment)  # type: ignore[misc]
        for treatment in dialect.int8
    ]
    if dialect.half:
        int8 = dialect.int8[0]
        shapes = [
            (f"{int8.value} in {', '.join(WHERE[:number])}", partial(_beside_half, int8=int8, number=number))
            for number in range(1, len(WHERE) + 1)
        ]
    elif len(dialect.int8) > 1:
        cheap, fine = dialect.int8[0], dialect.int8[-1]
        shapes.append(
            (f"pictures {cheap.value}, the rest {fine.value}", lambda item: cheap if item.role == "camera" else fine)
        )
    for name, treatment_of in shapes:
        plan = {item.group.name: _choice(item, treatment_of(item), dialect) for item in groups}
        yield Candidate(name, plan, folded=False)
        yield Candidate(f"{name}, folded", plan, folded=True)
        apart = {item.group.name: _choice(item, treatment_of(item), dialect, OUTLIER_RATIO) for item in groups}
        yield Candidate(f"{name}, outliers apart", apart, folded=False)


WHERE = ("steps", "the scene's MLP", "state")
"""Where INT8 pays beside half precision, most first (docs/jetson.md). The scene's keys and values stay in half: their
error is read in every step; so do pictures."""


def _beside_half(item: Weighted, int8: Treatment, number: int) -> Treatment:
    in_mlp = item.group.name.split("/")[1] == "mlp"
    place = {"step": 0, "correct": 0, "scene": 1 if in_mlp else len(WHERE), "moment": 2}.get(item.role, len(WHERE))
    return int8 if place < number and not item.group.products else Treatment.FLOAT16


def cost_of(candidate: Candidate, groups: Sequence[Weighted], on_gpu: bool) -> float:
    """Share of the all-float32 time."""
    total = sum(item.cost(FLOAT32, on_gpu) for item in groups)
    return sum(item.cost(candidate.plan.get(item.group.name, FLOAT32), on_gpu) for item in groups) / total


def _mend(
    start: Trial,
    groups: Sequence[Weighted],
    bound: ActionErrorBound,
    attempt: Callable[[Candidate], Trial],
    back: Choice,
) -> Trial | None:
    """Raise groups to `back`, the most helpful for its work first. None when nothing but that is left."""
    base = start.candidate
    gains = []
    for item in groups:
        name = item.group.name
        if base.plan.get(name, FLOAT32) in (FLOAT32, back):
            continue
        trial = attempt(Candidate(f"{base.name}; {name} in {back}", {**base.plan, name: back}, base.folded))
        if trial.error.within(bound):
            return trial
        removed = start.error.relative**2 - trial.error.relative**2
        gains.append((removed / max(trial.cost - start.cost, 1e-9), name))
    plan = dict(base.plan)
    raised: list[str] = []
    for _, name in sorted(gains, reverse=True)[:-1]:
        plan[name] = back
        raised.append(name)
        if len(raised) == 1:
            continue
        trial = attempt(Candidate(f"{base.name}; {len(raised)} groups in {back}", dict(plan), base.folded))
        if trial.error.within(bound):
            return trial
    return None


def _choice(item: Weighted, treatment: Treatment, dialect: Dialect, outlier_ratio: float = 0.0) -> Choice:
    if treatment is Treatment.FLOAT16:
        return HALF
    if item.group.convolution:
        return Choice(Treatment.INT8_STATIC) if treatment.is_int8 else FLOAT32
    if item.group.products:
        quantised = dialect.products and treatment is Treatment.INT8_STATIC and item.role == "camera"
        return Choice(treatment) if quantised else FLOAT32
    return Choice(treatment, outlier_ratio)
