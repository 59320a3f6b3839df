"""The precision plan: the cheapest choice by group whose action error stays under a bound, found by measuring.

Whole plans are tried first, cheapest first, unfolded and with folded scales.
When none is good enough, the best of them is mended: every group is measured
in float32 alone, and groups are raised in the order of error removed for work
added, until the bound holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vla_edge.calibration.precision.action_error import ActionError, ActionErrorBound
from vla_edge.calibration.precision.variant import FLOAT32, Choice, Group, Plan
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
    """One measured plan; cost as a share of float32's multiply-adds, weighted by `COST`."""

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
    """A group with how often it runs in one inference."""

    group: Group
    runs: int

    @property
    def work(self) -> int:
        return self.group.multiply_adds * self.runs


Measure = Callable[[Candidate], ActionError]


def search(groups: Sequence[Weighted], dialect: Dialect, bound: ActionErrorBound, measure: Measure) -> Search:
    """Try, mend, and return the cheapest plan within `bound`."""
    tried: list[Trial] = []

    def attempt(candidate: Candidate) -> Trial:
        trial = Trial(candidate, cost_of(candidate, groups), measure(candidate))
        tried.append(trial)
        return trial

    for candidate in sorted(candidates(groups, dialect), key=lambda candidate: cost_of(candidate, groups)):
        trial = attempt(candidate)
        if trial.error.within(bound):
            return Search(trial, tuple(tried))
    best = min(tried, key=lambda trial: trial.error.relative)
    mended = _mend(best, groups, bound, attempt, Choice(Treatment.FLOAT16) if dialect.half else FLOAT32)
    return Search(mended, tuple(tried))


def candidates(groups: Sequence[Weighted], dialect: Dialect) -> Iterator[Candidate]:
    """Whole plans of a dialect: one treatment for all; the cheap one for vision alone; both folded or with outliers
    apart."""
    names = [item.group for item in groups]
    shapes: list[tuple[str, Callable[[Group], Treatment]]] = [
        (treatment.value, lambda group, treatment=treatment: treatment)  # type: ignore[misc]
        for treatment in dialect.int8
    ]
    if len(dialect.int8) > 1:
        cheap, fine = dialect.int8[0], dialect.int8[-1]
        shapes.append(
            (f"vision {cheap.value}, the rest {fine.value}", lambda group: cheap if group.graph == "vision" else fine)
        )
    for name, treatment_of in shapes:
        plan = {group.name: _choice(group, treatment_of(group), dialect) for group in names}
        yield Candidate(name, plan, folded=False)
        yield Candidate(f"{name}, folded", plan, folded=True)
        apart = {group.name: _choice(group, treatment_of(group), dialect, OUTLIER_RATIO) for group in names}
        yield Candidate(f"{name}, outliers apart", apart, folded=False)


def cost_of(candidate: Candidate, groups: Sequence[Weighted]) -> float:
    """Share of the all-float32 time, by `COST`."""
    total = sum(item.work for item in groups)
    spent = sum(item.work * _cost(candidate.plan.get(item.group.name, FLOAT32)) for item in groups)
    return spent / total


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


def _choice(group: Group, treatment: Treatment, dialect: Dialect, outlier_ratio: float = 0.0) -> Choice:
    if group.products:
        return (
            Choice(treatment)
            if dialect.products and treatment is Treatment.INT8_STATIC and group.graph == "vision"
            else FLOAT32
        )
    return Choice(treatment, outlier_ratio)


def _cost(choice: Choice) -> float:
    return COST[choice.treatment] + (OUTLIER_COST if choice.outlier_ratio else 0.0)
