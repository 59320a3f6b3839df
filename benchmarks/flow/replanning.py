# SPDX-License-Identifier: Apache-2.0
"""Thirty plans a second at full size on two cores: what one plan takes, and how many a run makes.

    python -m vla_edge.benchmarks.flow.replanning [--against-lerobot] [--chunk-size N] [--work DIR] [--rounds N]
                                                  [--seconds S] [--out DIR]

Random weights, which cost what trained ones do. First one interleaved run: fresh and cached at 10, 4, 2 and 1 flow
steps, of the whole chunk and of its first actions alone, and the delta correction, INT8 on every CPU backend that is
here, beside LeRobot (where it is installed) and our torch policy in ten fresh steps, which are other work. Ceiling: the
time the step's products take at this machine's fastest INT8 product. Then the run itself, with the first actions on the
backend whose one cached step of them is faster: control's loop on an arm without a bus in a process of its own, the
inference loop beside it with pictures from memory, at rest and changing all the time, prefixes made beside the plans.
There a plan's time goes from the newest frames to the chunk in the ring: gate, preparation, hand-over and sending
included; it is judged where no prefix grows too old.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.benchmarks.bench_report import add_against_lerobot, backends_here, bench_parser, write_result
from vla_edge.benchmarks.bundle_subject import GATE
from vla_edge.benchmarks.host import REPOSITORY
from vla_edge.benchmarks.measure import Rounds, measure, percentiles
from vla_edge.benchmarks.reaction import Window, wait_for_motion
from vla_edge.benchmarks.subject import CACHED, FRESH, SubjectSpec
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.precision.synthetic import synthetic
from vla_edge.command_line import count, folder_to_write, positive, run_command
from vla_edge.core import load_core
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import CheckFailed
from vla_edge.export.assemble import ExportRequest, export_unproven
from vla_edge.export.precision import PrecisionRequest, requantise_unproven
from vla_edge.robot.cameras import FreshnessWatch
from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits, LoopFiles
from vla_edge.runtime.control.handover import HandOverOptions
from vla_edge.runtime.control.inference_loop import InferenceLoop, LoopOptions
from vla_edge.runtime.control.run_folder import listen, open_run_folder
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.refresh import Refresh
from vla_edge.runtime.inference.session import PolicySession, SessionOptions

FEWER = (4, 2, 1)
WHOLE, DELTA = "int8", "delta"
ONE = f"{CACHED}, 1 steps"
MOST_MS = {"p50": 30.0, "p99": 1000 / 30}
"""Of a plan of the run in which no prefix is made, from the newest frames to the chunk in the ring."""
LEAST = {"against_ten_cached": 7.0, "plans_a_second": 25.0}
HZ = 90.0
NEVER_S, MAX_AGE_S = 1e9, 10.0
"""A refresh beside the plans takes about 3 s here: a younger limit than 10 would make every plan wait for it."""
CALM, REST, CHANGING = "at rest, no prefix made", "at rest", "changing"


@dataclass(frozen=True, slots=True)
class Made:
    """What the bundles in a folder are of. delta: with a delta expert. first: so many actions, None the whole chunk."""

    size: Literal["full", "tiny"] = "full"
    delta: bool = False
    first: int | None = None


def prepare(work: Path, made: Made, threads: int, tell: Callable[[str], None]) -> dict[str, Path]:
    """The bundles in `work`, made where they are missing, by their names."""
    work.mkdir(parents=True, exist_ok=True)
    behind = "" if made.first is None else f"-first{made.first}"
    paths = {"checkpoint": work / "checkpoint", "float32": work / f"float32{behind}"}
    if not paths["checkpoint"].exists():
        tell("make a policy of full size")
        write_random_policy(paths["checkpoint"], RandomPolicy(size=made.size, dtype="bfloat16", delta=made.delta))
    if not paths["float32"].exists():
        whole = ExportRequest(paths["checkpoint"], paths["float32"], threads=threads, chunk_size=made.first)
        export_unproven(whole, tell)
    for backend in backends_here(("ort", "openvino"), threads, tell):
        paths[backend] = work / f"int8-{backend}{behind}"
        if not paths[backend].exists():
            request = PrecisionRequest(
                "int8", backend, frames=1, held_out=1, threads=threads, ranges_file=work / f"ranges{behind}.npz"
            )
            requantise_unproven(paths["float32"], paths[backend], request, tell)
    return paths


def specs_of(made: Mapping[str, Mapping[str, Path]], others: Sequence[str], threads: int) -> list[SubjectSpec]:
    """`others` (torch, lerobot) with the checkpoint, and on every backend the bundles by the names of what they are of;
    WHOLE among them, DELTA in its own steps alone, all others in every count of steps."""
    whole = made[WHOLE]
    inputs = whole["float32"]
    specs = [SubjectSpec(name, name, whole["checkpoint"], "torch", threads, inputs) for name in others]
    for backend in sorted(whole.keys() - {"checkpoint", "float32"}):
        for kind, bundles in made.items():
            fewer = () if kind == DELTA else FEWER
            specs.append(
                SubjectSpec(f"{kind} {backend}", "bundle", bundles[backend], backend, threads, inputs, fewer=fewer)
            )
    return specs


def headline(result: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Of a kind's bundles the better backend at one cached step, its times, and its share of the step's ceiling."""
    subjects = {name: subject for name, subject in result["subjects"].items() if name.rpartition(" ")[0] == kind}
    p50 = {
        name: {case: times["whole_tick_ms"]["p50"] for case, times in subject["cases"].items()}
        for name, subject in subjects.items()
    }
    best = min(p50, key=lambda name: p50[name][ONE])
    others = {
        f"against_{name}_fresh_in_ten_steps": subject["cases"][FRESH]["whole_tick_ms"]["p50"] / p50[best][ONE]
        for name, subject in result["subjects"].items()
        if subject["kind"] == name
    }
    return {
        "best": best,
        "one_step_p50_ms": p50[best][ONE],
        "one_step_p99_ms": subjects[best]["cases"][ONE]["whole_tick_ms"]["p99"],
        "against_ten_cached": p50[best][CACHED] / p50[best][ONE],
        **others,
        "step_share_of_ceiling": subjects[best]["fractions"]["expert"]["fraction"],
    }


def run_itself(bundle: Bundle, engine: Engine, steps: int, pictures: str, seconds: float) -> dict[str, Any]:
    """Control and inference as on the robot for `seconds` from the first motion on; what their logs say of them.
    pictures: CALM, REST or CHANGING."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = open_run_folder(Path(scratch) / "run")
        gate = replace(GATE, max_age_s=NEVER_S if pictures == CALM else MAX_AGE_S)
        options = SessionOptions(CacheMode.STILL, steps=steps, gate=gate, refresh=Refresh.BESIDE)
        session = PolicySession(bundle, engine, options)
        frames = synthetic(bundle, 1, 0).observations[0].frames
        cameras = {name: Window(name, frame.image) for name, frame in frames.items()}
        watches = {name: FreshnessWatch(name, noisy=False, exempt=True) for name in cameras}
        planning = LoopOptions("reach the red cube", HandOverOptions(), 1, 1, replan_s=0.0, audit=0.0)
        loop = InferenceLoop(session, cameras, watches, folder, planning)
        # Only now: an armed control latches when nobody tells it within two seconds how long to wait.
        control = context.Process(target=_control, args=(str(folder.path), bundle.digest), daemon=True)
        control.start()
        worker = threading.Thread(target=loop.run, args=(0, lambda line: None))
        worker.start()
        stop = threading.Event()
        show = threading.Thread(target=_change, args=(cameras, stop)) if pictures == CHANGING else None
        try:
            reader = wait_for_motion(folder.state)
            if show is not None:
                show.start()
            before, start_ns = reader.read(), time.monotonic_ns()
            time.sleep(seconds)
            after, end_ns = reader.read(), time.monotonic_ns()
        finally:
            stop.set()
            loop.stop()
            worker.join()
            control.terminate()
            control.join()
        lines = [json.loads(line) for line in (folder.path / "inference.jsonl").read_text().splitlines()]
        plans = [line for line in lines if "delay_ms" in line and start_ns <= line["time_ns"] < end_ns]
        return {**rates_of(plans, end_ns - start_ns), "missed_ticks": after["missed"] - before["missed"]}


def rates_of(plans: Sequence[Mapping[str, Any]], span_ns: int) -> dict[str, Any]:
    """Plans a second in all, and from one plan to the next while no prefix was made beside them and while one was; how
    old plan and prefix were; what went over."""
    sent = [plan for plan in plans if plan["outcome"] == "sent"]
    gaps: dict[str, list[float]] = {"between": [], "during": []}
    for before, plan in zip(sent, sent[1:]):
        kind = "during" if before["refreshing"] else "between"
        gaps[kind].append((plan["time_ns"] - before["time_ns"]) / 1e9)
    ages = [0.0 if plan["prefix"] else plan["age_s"] * 1e3 for plan in sent]
    return {
        "plans_a_second": len(sent) / span_ns * 1e9,
        **{f"plans_a_second_{kind}_refreshes": len(gap) / sum(gap) for kind, gap in gaps.items() if gap},
        "plan_age_ms": percentiles([plan["delay_ms"] for plan in sent]),
        "prefix_age_ms": percentiles(ages),
        "refreshes": sum(plan["adopted"] is not None for plan in sent),
    }


def _control(path: str, digest: str) -> None:
    folder = open_run_folder(Path(path))
    limits = tuple(JointLimits(0, 4095, scale=4096 / 360, offset=2048) for _ in range(6))
    listener = listen(folder)
    files = LoopFiles(
        folder.ring, folder.state, folder.record, record_cells=1 << 16, socket_fd=listener.fileno(), arm_at_start=True
    )
    load_core().control_run(
        StillArm([2048] * 6), ControlSettings(limits, round(1e9 / HZ), 7, digest, action_ns=round(1e9 / 30)), files
    )
    listener.close()


def _change(cameras: Mapping[str, Window], stop: threading.Event) -> None:
    """Another picture from every camera thirty times a second: the last one, moved by 16 columns."""
    while not stop.wait(1 / 30):
        for camera in cameras.values():
            picture: NDArray[np.uint8] = np.roll(camera.picture, 16, axis=1)
            camera.picture = picture


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Replanning at full size", "", "| subject | case | p50, ms | p99, ms |", "|---|---|---|---|"]
    for name, subject in result["subjects"].items():
        for case, times in subject["cases"].items():
            whole = times["whole_tick_ms"]
            lines.append(f"| {name} | {case} | {whole['p50']:.1f} | {whole['p99']:.1f} |")
    for kind, found in result["headlines"].items():
        lines += ["", f"## {kind}", "", *(f"- {name}: {value}" for name, value in found.items())]
    for name, found in result["runs"].items():
        lines += ["", f"## The run, pictures {name}", "", *(f"- {key}: {value}" for key, value in found.items())]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = bench_parser("flow.replanning", "thirty plans a second", cores=2)
    add_against_lerobot(parser)
    parser.add_argument(
        "--work",
        type=folder_to_write,
        default=REPOSITORY / "out" / "replanning",
        metavar="DIR",
        help="bundles, made once",
    )
    parser.add_argument(
        "--chunk-size", type=count, default=16, metavar="N", help="of the bundles that hold a chunk's first actions"
    )
    parser.add_argument("--rounds", type=count, default=100, help="measured rounds of the interleaved run")
    parser.add_argument("--seconds", type=positive, default=60.0, help="of each run")
    arguments = parser.parse_args(argv)
    cores, console = arguments.threads, Console()
    with console.status("starting") as status:
        first = f"{WHOLE}, first {arguments.chunk_size} actions"
        kinds = {WHOLE: Made(), first: Made(first=arguments.chunk_size), DELTA: Made(delta=True)}
        made = {
            kind: prepare(arguments.work / ("delta" if of.delta else "plain"), of, cores, status.update)
            for kind, of in kinds.items()
        }
        others = ["torch", "lerobot"] if arguments.against_lerobot else ["torch"]
        result = measure(specs_of(made, others, cores), Rounds(arguments.rounds, 2), cores, status.update)
        result["headlines"] = {kind: headline(result, kind) for kind in (WHOLE, first)}
        backend = result["headlines"][first]["best"].removeprefix(f"{first} ")
        bundle = open_bundle(made[first][backend])
        result["runs"] = {}
        for pictures in (CALM, REST, CHANGING):
            status.update(f"the run, pictures {pictures}")
            engine = load_engine(backend, EngineOptions(threads=cores, spin=False))
            result["runs"][pictures] = run_itself(bundle, engine, 1, pictures, arguments.seconds)
    write_result(arguments.out, "replanning", result, page(result))
    print(page(result))
    missed = missed_bars(result)
    if missed:
        raise CheckFailed(f"missed: {', '.join(missed)}; results are in {arguments.out / 'replanning.json'}")
    return 0


def missed_bars(result: Mapping[str, Any]) -> list[str]:
    """The bars that the result does not reach, each with what was found; the gain of one step is the whole chunk's."""
    runs, age = result["runs"], result["runs"][CALM]["plan_age_ms"]
    found = {**result["headlines"][WHOLE], "plans_a_second": runs[REST]["plans_a_second_between_refreshes"]}
    missed = [f"{name} of a plan {age[name]:.1f} ms" for name, bar in MOST_MS.items() if age[name] > bar]
    missed += [f"{name} {found[name]:.1f}" for name, bar in LEAST.items() if found[name] < bar]
    return missed + [f"{run['missed_ticks']} ticks, {name}" for name, run in runs.items() if run["missed_ticks"]]


if __name__ == "__main__":
    sys.exit(run_command(main))
