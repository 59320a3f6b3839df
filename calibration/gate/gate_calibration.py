# SPDX-License-Identifier: Apache-2.0
"""`vla-calibrate gate`: thresholds of the prefix cache from recorded episodes, with a bound on the action error."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vla_edge.bundle import TRAIN_DELTA, Bundle, CorrectionSpec, file_sha256, open_bundle, write_manifest
from vla_edge.calibration.gate.gate_data import Recorded
from vla_edge.calibration.gate.gate_limits import GROSS, Limits, choose
from vla_edge.calibration.gate.gate_pairs import Measured, PairPlan, kept_alone, measure, planned_pairs
from vla_edge.calibration.gate.gate_plot import GATE_PLOT, draw
from vla_edge.calibration.gate.gate_replay import Replay, ReplayPlan, frames_of, replay
from vla_edge.camera_names import add_camera_pairs, camera_pairs
from vla_edge.command_line import answer, count, folder_to_write, inner_share, positive, whole
from vla_edge.engines.engine import Engine, EngineOptions, add_engine_arguments, load_engine
from vla_edge.errors import BundleError, CheckFailed, ConfigError, DatasetError
from vla_edge.files import link_or_copy, new_folder
from vla_edge.lerobot_data.meta import Episode
from vla_edge.lerobot_data.observations import cameras_in
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.tolerance import add_tolerance
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings

HELD_OUT = 0.25
"""Share of the episodes, the last ones, on which the chosen limits are replayed and on which none was chosen."""
MOST_TIGHTENINGS = 6
HARDLY = 0.1
"""Share of held-out inferences; with fewer reused the episodes are said to hold no rest worth the name."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GateRequest:
    """bound: share of a joint's range. max_reuse, max_age_s: limits that are set, not measured; pairs cover that age.
    period_s: between two inferences of the replay. pairs: how much is measured."""

    bound: float = 0.01
    max_reuse: int = 10
    period_s: float = 0.25
    pairs: PairPlan = PairPlan()


@dataclass(frozen=True)
class GateResult:
    """settings: for the runtime. tightened: how often the replay on held-out episodes halved the first choice. replays:
    by cache mode, on the held-out episodes under the final limits."""

    settings: GateSettings
    limits: Limits
    measured: Measured
    tightened: int
    replays: Mapping[CacheMode, Replay]
    data: Mapping[str, Any]


def split_episodes(episodes: Sequence[Episode]) -> tuple[Sequence[Episode], Sequence[Episode]]:
    """(to choose on, held out). DatasetError: fewer than two episodes."""
    if len(episodes) < 2:
        raise DatasetError(
            "gate calibration needs at least 2 episodes, one of them to check the limits on; record more"
        )
    border = len(episodes) - max(1, round(HELD_OUT * len(episodes)))
    return episodes[:border], episodes[border:]


def calibrate_gate(
    bundle: Bundle, engine: Engine, recorded: Recorded, request: GateRequest, bar: Progress
) -> GateResult:
    """Measure pairs, choose the loosest limits within the bound, replay them on held-out episodes and halve them until
    their error is within it too.

    CheckFailed: no reuse keeps the bound on these episodes. DatasetError: too few of them.
    """
    chosen_on, held_out = split_episodes(recorded.dataset.episodes)
    pairs = planned_pairs(recorded, chosen_on, request.pairs)
    tries = len(pairs) * (1 + len(kept_alone(bundle, recorded)))
    count = len({index for pair in pairs for index in pair}) + len({reference for reference, _ in pairs}) + tries
    task = bar.add_task("measuring pairs", total=count)
    measured = measure(bundle, engine, recorded, pairs, lambda: bar.advance(task))
    limits = choose(measured.pairs, request.bound)
    if limits is None:
        raise CheckFailed(
            f"no reuse keeps the action error under {request.bound:.2%} of the joints' ranges on these episodes; "
            "record still phases too, or raise --bound"
        )
    chosen = limits.similarity, limits.threshold, limits.still_mean, limits.still_worst
    settings = GateSettings(*chosen, request.max_reuse, request.pairs.max_age_s, request.bound)
    inferences = sum(map(len, frames_of(recorded, held_out, request.period_s)))
    for tightened in range(MOST_TIGHTENINGS + 1):
        replays = {}
        for policy in (CacheMode.STILL, CacheMode.GATED) if bundle.manifest.programme.scene else (CacheMode.STILL,):
            task = bar.add_task(f"replaying, {policy.value}", total=inferences)
            plan = ReplayPlan(policy, settings, request.period_s)
            replays[policy] = replay(bundle, engine, recorded, held_out, plan, partial(bar.advance, task))
        if all(
            run.joint_p95 <= request.bound and run.error.max(initial=0.0) <= GROSS * request.bound
            for run in replays.values()
        ):
            break
        if tightened == MOST_TIGHTENINGS:
            raise CheckFailed(
                f"limits halved {tightened} times still exceed {request.bound:.2%} on held-out episodes; record more "
                "varied ones, or raise --bound"
            )
        settings = settings.tightened()
    if not bundle.manifest.why_not_delta:
        task = bar.add_task("replaying, delta", total=inferences)
        plan = ReplayPlan(CacheMode.DELTA, settings, request.period_s)
        replays[CacheMode.DELTA] = replay(bundle, engine, recorded, held_out, plan, partial(bar.advance, task))
    data = {
        "name": recorded.dataset.root.name,
        "digest": recorded.digest,
        "cameras": dict(recorded.cameras),
        "fps": recorded.dataset.fps,
        "chosen_on_episodes": len(chosen_on),
        "held_out_episodes": len(held_out),
        "pairs": len(pairs),
    }
    return GateResult(settings, limits, measured, tightened, replays, data)


def gate_facts(bundle: Bundle, result: GateResult) -> dict[str, Any]:
    """`manifest.gate`: the limits and their evidence."""
    facts: dict[str, Any] = {"kind": bundle.manifest.gate["kind"], **asdict(result.settings)}
    facts["auroc"] = {name: None if value is None else round(value, 4) for name, value in result.limits.auroc.items()}
    facts["thresholds"] = {name: round(value, 6) for name, value in result.limits.thresholds.items()}
    facts["pairs_within_still"], facts["pairs_stable"] = round(result.limits.allowed, 4), round(result.limits.stable, 4)
    facts["tightened"] = result.tightened
    facts["replay"] = {policy.value: run.facts() for policy, run in result.replays.items()}
    facts["data"] = dict(result.data)
    return facts


def correction_after(bundle: Bundle, result: GateResult) -> CorrectionSpec | None:
    """What is known of the delta expert now: the worse of its training's held-out error and the one on these episodes,
    so that `--cache delta` refuses an expert that does not help here."""
    known, run = bundle.manifest.correction, result.replays.get(CacheMode.DELTA)
    if known is None or run is None or run.correction is None:
        return known
    return replace(known, relative_error=max(known.relative_error or 0.0, run.correction))


def write_calibrated(bundle: Bundle, result: GateResult, out: Path) -> str:
    """A new bundle `out`: hard links to the same files (copies on another file system), the manifest with the gate, and
    the plot. Returns its digest. BundleError: `out` exists, or a file of the old one is damaged."""
    bundle.verify()
    with new_folder(out, BundleError) as folder:
        for name in bundle.manifest.files:
            if name != GATE_PLOT:
                link_or_copy(bundle.path / name, folder / name)
        draw(result.measured.pairs, result.settings, result.limits, folder / GATE_PLOT)
        files = {**bundle.manifest.files, GATE_PLOT: file_sha256(folder / GATE_PLOT)}
        gate, correction = gate_facts(bundle, result), correction_after(bundle, result)
        return write_manifest(folder, replace(bundle.manifest, files=files, gate=gate, correction=correction))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plan, request = PairPlan(), GateRequest()
    parser.add_argument("--bundle", type=Path, required=True, help="folder written by export-engines")
    parser.add_argument(
        "--dataset",
        type=Path,
        required=True,
        help="LeRobot dataset, its folder or a Hub id: still and moving phases, and moments in which objects are moved",
    )
    add_tolerance(parser)
    parser.add_argument("--out", type=folder_to_write, required=True, help="new bundle with the limits in its manifest")
    add_camera_pairs(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--bound",
        type=inner_share,
        default=request.bound,
        help="allowed action error, share of a joint's range (95th percentile)",
    )
    limits.add_argument("--max-reuse", type=count, default=request.max_reuse, help="reuses of one prefix")
    limits.add_argument(
        "--max-age-s", type=positive, default=plan.max_age_s, help="age of a prefix; pairs are measured up to it"
    )
    limits.add_argument(
        "--period-s", type=positive, default=request.period_s, help="between two inferences, for the replay"
    )
    pairs = parser.add_argument_group("how much is measured")
    pairs.add_argument(
        "--references", type=count, default=plan.references, help="frames whose prefix is kept and tried later"
    )
    pairs.add_argument("--lags", type=count, default=plan.lags, help="later frames tried for each")
    pairs.add_argument("--others", type=whole, default=plan.others, help="frames of other episodes tried for each")
    add_engine_arguments(pairs)


def run(arguments: argparse.Namespace) -> int:
    request = GateRequest(
        arguments.bound, arguments.max_reuse, arguments.period_s,
        PairPlan(arguments.references, arguments.lags, arguments.others, arguments.max_age_s),
    )  # fmt: skip
    if arguments.out.exists():
        raise ConfigError(f"--out {arguments.out} exists already; bundles are never changed, choose another folder")
    bundle = open_bundle(arguments.bundle)
    engine = load_engine(arguments.backend, EngineOptions(threads=arguments.threads))
    with (
        open_dataset(arguments.dataset, tolerance_s=arguments.tolerance) as dataset,
        Progress(console=Console(stderr=True)) as bar,
    ):
        recorded = Recorded(dataset, cameras_in(dataset, bundle.manifest.cameras, camera_pairs(arguments.camera)))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
        result = calibrate_gate(bundle, engine, recorded, request, bar)
    digest = write_calibrated(bundle, result, arguments.out)
    facts = gate_facts(bundle, result)
    print("\n".join([*report(result), *_delta_report(bundle, result)]))
    print(f"written: {arguments.out} (digest {digest[:12]}, plot {GATE_PLOT})")
    answer({"bundle": str(arguments.out), "digest": digest, **facts})
    return 0


def _delta_report(bundle: Bundle, result: GateResult) -> list[str]:
    """How corrected chunks did, or why they are refused; nothing without a delta expert."""
    if not bundle.manifest.programme.correct:
        return []
    why, run_ = bundle.manifest.why_not_delta, result.replays.get(CacheMode.DELTA)
    if why or run_ is None:
        return [f"correction   not measured: {why}; {TRAIN_DELTA}, or run with --cache still"]
    if run_.correction is None:
        return ["correction   no chunk was corrected on these episodes; --cache delta goes by its training's error"]
    verdict = "" if run_.correction < 1 else "; worse than none: --cache delta refuses it, run with --cache still"
    return [f"correction   corrected chunks have {run_.correction:.2f} of the error of uncorrected ones{verdict}"]


def report(result: GateResult) -> list[str]:
    """What a person wants to know, a line each."""
    settings, limits = result.settings, result.limits
    similarities = ", ".join(
        f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in limits.auroc.items()
    )
    lines = [
        f"still        mean {settings.still_mean:.3g}, worst block {settings.still_worst:.3g} grey levels; "
        f"{limits.allowed:.0%} of {len(result.measured.pairs)} pairs within the first choice",
        "similarity   none: this policy has no prefix that a gate could judge, each camera's tokens are kept while its "
        "picture is still"
        if settings.similarity == NO_SIMILARITY
        else f"similarity   {settings.similarity} above {settings.threshold:.6f}; AUROC {similarities}",
        f"bound        {settings.bound:.2%} of a joint's range; limits halved {result.tightened} times on held-out "
        "episodes",
        f"inference    {result.measured.fresh_ms:.1f} ms fresh, {result.measured.reused_ms:.1f} ms on what was kept",
    ]
    for policy, run_ in result.replays.items():
        lines.append(
            f"{policy.value:<13}{run_.hit_rate:.0%} of {len(run_.hit)} held-out inferences reused something, "
            f"{run_.kept:.0%} of the pictures; error p95 {run_.joint_p95:.2%}, time saved {run_.saved:.0%}"
        )
    if result.replays[CacheMode.STILL].hit_rate < HARDLY:
        lines.append(
            f"note         hardly anything is reused: the picture stayed the same in {limits.allowed:.1%} of pairs, "
            "so these limits say little; record episodes in which the arm also rests for seconds, and calibrate again"
        )
    return lines
