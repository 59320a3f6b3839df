# SPDX-License-Identifier: Apache-2.0
"""What the prefix cache buys and what it costs, on simulated episodes with still and moving phases.

    python -m vla_edge.benchmarks.cache_tradeoff --bundle CALIBRATED --out benchmarks/results

CALIBRATED comes from `vla-calibrate gate`. The episodes are recorded here, from seeds that no calibration saw. Ceiling:
with every inference a hit, 1 − (time on a kept prefix) / (time of a fresh inference) is saved; `max_reuse` allows n of
n + 1. Two parts: the cache along the episodes, by phase and policy; a cube that is moved while the arm rests, looked at
live. Besides, the error of a prefix kept while the arm moves, by its age.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.benchmarks.moving_episodes import move_cube, record_phases
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.gate.gate_data import Recorded
from vla_edge.calibration.gate.gate_limits import Pairs
from vla_edge.calibration.gate.gate_pairs import REUSE_ALL, measure
from vla_edge.calibration.gate.gate_replay import Replay, ReplayPlan, replay
from vla_edge.command_line import count, run_command
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.lerobot_data.observations import cameras_in
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.runtime.inference.cache import CacheMode, Reason
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings, read_gate
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.trials.lockstep import observe
from vla_edge.trials.reach_expert import instruction
from vla_edge.trials.reach_task import other_colour, wanted_colour

EPISODE_SEED, MOVE_SEED = 300_000, 310_000
PERIOD_S = 0.1
LEAST_STILL_HITS = 0.90
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Moves:
    """Cubes moved while the arm rests. noticed: looks until the pictures were found changed, 0 where the prefix was
    never refreshed for them within max_reuse; changed: whether the gate then called the scene changed."""

    noticed: tuple[int, ...]
    changed: tuple[bool, ...]

    @property
    def missed(self) -> int:
        return self.noticed.count(0)


def calibrated_gate(bundle: Bundle) -> GateSettings:
    """The bundle's limits. ConfigError: it has none, or judges no prefix."""
    settings = read_gate(bundle)
    if settings is None:
        raise ConfigError(f"{bundle.path}: not calibrated; run vla-calibrate gate first")
    if settings.similarity == NO_SIMILARITY:
        raise ConfigError(f"{bundle.path}: its policy has no prefix to judge; give a bundle of one that has, a SmolVLA")
    return settings


def policies(bundle: Bundle, settings: GateSettings) -> dict[str, ReplayPlan]:
    """Stillness alone, and with the gate on each similarity that calibration found a threshold for."""
    plans = {
        "still": ReplayPlan(CacheMode.STILL, settings, PERIOD_S),
        f"still + {settings.similarity}": ReplayPlan(CacheMode.GATED, settings, PERIOD_S),
    }
    for name, threshold in bundle.manifest.gate["thresholds"].items():
        if name != settings.similarity:
            plans[f"still + {name}"] = ReplayPlan(
                CacheMode.GATED, replace(settings, similarity=name, threshold=threshold), PERIOD_S
            )
    return plans


def phase_facts(run: Replay, chosen: Array) -> dict[str, float]:
    """Hit rate and error of the inferences of one phase, `chosen` bool [inferences]."""
    share = run.share[chosen[run.hit]]
    p95 = float(np.percentile(share, 95, axis=(0, 1)).max()) if len(share) else 0.0
    return {"inferences": int(chosen.sum()), "hit_rate": float(run.hit[chosen].mean()), "error_joint_p95": p95}


def planted_moves(
    bundle: Bundle, engine: Engine, settings: GateSettings, policy: CacheMode, count: int, named: bool
) -> Moves:
    """`count` scenes at rest: the cache warms up, a cube is moved (the named one, or another), the cache looks on."""
    sizes = {camera.source: (camera.height, camera.width) for camera in bundle.manifest.cameras}
    height, width = next(iter(sizes.values()))
    arm = SimulatedArm(random_scene(0), SimOptions(height, width))
    session = PolicySession(bundle, engine, SessionOptions(policy, gate=replace(settings, max_age_s=1e6)))
    noticed, changed = [], []
    for seed in track(
        range(MOVE_SEED, MOVE_SEED + count), f"planted moves, {policy.value}", console=Console(stderr=True)
    ):
        arm.reset(random_scene(seed))
        session.reset()
        colour = wanted_colour(seed)
        task = instruction(colour)
        for look in range(3):
            session.infer(InferenceRequest(observe(arm, look, look, task, sizes), look))
        move_cube(arm, colour if named else other_colour(seed), np.random.default_rng(seed))
        at, known = 0, False
        for look in range(1, settings.max_reuse + 1):
            result = session.infer(InferenceRequest(observe(arm, 3 + look, 3 + look, task, sizes), 3 + look))
            assert result is not None
            if result.decision.prefix:
                at = look if result.decision.reason is Reason.PICTURE_CHANGED else 0
                known = result.verdict is not None and result.verdict.value == "changed"
                break
        noticed.append(at)
        changed.append(known)
    arm.close()
    return Moves(tuple(noticed), tuple(changed))


def moving_pairs(recorded: Recorded, references: int) -> list[tuple[int, int]]:
    """Pairs of one episode in which the arm moves at the later frame and no cube was moved in between, up to 2 s."""
    data = recorded.dataset
    moving, moves = data.column("moving").reshape(-1) > 0, data.column("moves").reshape(-1)
    ends = np.array([data.episode_of(index).to_index for index in range(len(data))])
    frames = [index for index in range(len(data)) if moving[min(index + 1, len(data) - 1)]]
    chosen = [frames[place] for place in np.linspace(0, len(frames) - 1, min(references, len(frames))).astype(int)]
    lags = (1, 2, 3, 5, 8, 12, 20)
    return [
        (a, a + lag)
        for a in sorted(set(chosen))
        for lag in lags
        if a + lag < ends[a] and moving[a + lag] and moves[a + lag] == moves[a]
    ]


def over_age(pairs: Pairs) -> dict[str, list[float]]:
    """Error of a kept prefix by its age, whatever the pictures say."""
    ages = np.unique(pairs.lag_s)
    return {"age_s": ages.tolist()} | {
        f"p{q}": [float(np.percentile(pairs.error[pairs.lag_s == age], q)) for age in ages] for q in (50, 95)
    }


def costs(bundle: Bundle, engine: Engine, rounds: int) -> dict[str, float]:
    """Least time of a fresh inference and of one on a kept prefix, ms, in turn on grey pictures, and what a hit
    saves."""
    session = PolicySession(bundle, engine, SessionOptions(CacheMode.STILL, gate=REUSE_ALL))
    frames = {
        camera.name: Frame(camera.name, np.full((camera.height, camera.width, 3), 90, np.uint8), 0, 0)
        for camera in bundle.manifest.cameras
    }
    observation = Observation(
        0, frames, JointReading(0, 0, np.zeros(bundle.manifest.policy.state_dim, np.float32)), instruction("red")
    )
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds + 2):
        if number % 2 == 0:
            session.reset()
        result = session.infer(InferenceRequest(observation, number))
        assert result is not None
        if number >= 2:  # the first pair warms up
            took[result.decision.hit].append(result.timings.total)
    return {
        "fresh_ms": min(took[False]),
        "reused_ms": min(took[True]),
        "saved_by_a_hit": 1 - min(took[True]) / min(took[False]),
    }


def measure_all(bundle: Bundle, engine: Engine, episodes: int, moves: int, references: int) -> dict[str, Any]:
    """Everything this benchmark tells, as JSON values."""
    settings = calibrated_gate(bundle)
    line: dict[str, Any] = {
        "bundle": bundle.digest,
        "gate": {
            name: bundle.manifest.gate[name]
            for name in (
                "similarity",
                "threshold",
                "still_mean",
                "still_worst",
                "max_reuse",
                "max_age_s",
                "bound",
                "auroc",
                "thresholds",
                "tightened",
            )  # fmt: skip
        },
    }
    camera = bundle.manifest.cameras[0]
    with tempfile.TemporaryDirectory() as scratch:
        arm = SimulatedArm(random_scene(0), SimOptions(camera.height, camera.width))
        record_phases(Path(scratch) / "data", arm, range(EPISODE_SEED, EPISODE_SEED + episodes))
        arm.close()
        with open_dataset(Path(scratch) / "data") as data:
            recorded = Recorded(data, cameras_in(data, bundle.manifest.cameras, {}))
            moving = data.column("moving").reshape(-1) > 0
            line["replay"] = {}
            for name, plan in policies(bundle, settings).items():
                run = replay(bundle, engine, recorded, data.episodes, plan)
                phases = {
                    "still": phase_facts(run, ~moving[run.frames]),
                    "moving": phase_facts(run, moving[run.frames]),
                }
                line["replay"][name] = {**run.facts(), **phases}
            measured = measure(bundle, engine, recorded, moving_pairs(recorded, references))
    line["fresh_ms"], line["reused_ms"] = measured.fresh_ms, measured.reused_ms
    saved = 1 - measured.reused_ms / measured.fresh_ms
    line["ceiling_time_saved"] = saved * settings.max_reuse / (settings.max_reuse + 1)
    line["moving_over_age"] = over_age(measured.pairs)
    line["planted"] = {}
    for what, named in (("named cube", True), ("another cube", False)):
        found = planted_moves(bundle, engine, settings, CacheMode.GATED, moves, named)
        looks = [look for look in found.noticed if look]
        line["planted"][what] = {
            "count": moves,
            "missed": found.missed,
            "looks_until_noticed_max": max(looks, default=0),
            "gate_said_changed": sum(found.changed),
        }
    return line


def report(line: dict[str, Any]) -> list[str]:
    lines = [
        f"ceiling: {line['ceiling_time_saved']:.0%} of the time saved ({line['fresh_ms']:.1f} ms fresh, "
        f"{line['reused_ms']:.1f} ms on a kept prefix, {line['gate']['max_reuse']} reuses)"
    ]
    for name, run in line["replay"].items():
        still, moving = run["still"], run["moving"]
        lines.append(
            f"{name:<16} still {still['hit_rate']:.0%} hits, error p95 {still['error_joint_p95']:.2%}; moving "
            f"{moving['hit_rate']:.0%} hits, error p95 {moving['error_joint_p95']:.2%}; "
            f"time saved {run['time_saved']:.0%}"
        )
    for what, row in line["planted"].items():
        lines.append(
            f"{what} moved: missed {row['missed']} of {row['count']}, noticed at look "
            f"{row['looks_until_noticed_max']} at the latest; gate said changed {row['gate_said_changed']} times"
        )
    if "other_network" in line:
        row = line["other_network"]
        lines.append(
            f"the other network: {row['fresh_ms']:.0f} ms fresh, {row['reused_ms']:.0f} ms on a kept prefix: a hit "
            f"saves {row['saved_by_a_hit']:.0%}"
        )
    return lines


def main(argv: Sequence[str]) -> int:
    about = "hit rate, action error and time saved of the prefix cache"
    parser = bench_parser("cache_tradeoff", about, "calibrated bundle of the reaching task")
    parser.add_argument("--episodes", type=count, default=8)
    parser.add_argument("--moves", type=count, default=100, help="planted moves of each kind")
    parser.add_argument("--references", type=count, default=80, help="moving frames whose prefix is kept")
    parser.add_argument(
        "--cost-bundle", type=Path, help="another bundle whose times are told too, of full size for instance"
    )
    parser.add_argument("--name", default="cache_tradeoff", help="of the file")
    options = parser.parse_args(argv)
    engine = load_engine("ort", EngineOptions(threads=options.threads))
    line = measure_all(open_bundle(options.bundle), engine, options.episodes, options.moves, options.references)
    if options.cost_bundle is not None:
        line["other_network"] = costs(open_bundle(options.cost_bundle), engine, 3)
    write_result(options.out, options.name, line)
    print("\n".join(report(line)))
    print(json.dumps(line))
    gated = line["replay"][f"still + {line['gate']['similarity']}"]
    if (
        line["planted"]["named cube"]["missed"]
        or gated["still"]["hit_rate"] < LEAST_STILL_HITS
        or gated["error_joint_p95"] > line["gate"]["bound"]
    ):
        raise CheckFailed(
            "the named cube was missed, or fewer than 90 % hits while still, or an error above the bound; calibrate "
            "with more episodes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
