# SPDX-License-Identifier: Apache-2.0
"""A run on a bare NVIDIA machine: torch, onnx, onnxruntime, cuda-bindings, gcc, Python 3.10+; no network, no pip.

    python3 scripts/device_run.py --out FOLDER [--steps facts,core,tests,memcheck,export,full,compiled,run,train]
    [--within SECONDS]

Each step is a process of its own with a hard time limit; what it finds goes to FOLDER/results.jsonl, a JSON object a
line, what it prints to FOLDER/log.txt. Where TensorRT is not installed, torch's kernels run in its place
(tests/engines/torch_kernels.py), which every line says: capture, launches, streams and copies are then real, the
kernels are not NVIDIA's compiler's. `--kernels tensorrt-rtx` takes TensorRT-RTX. What is not there is named and left
out. The steps:

    facts     card, driver, versions, copy and half-precision GEMM ceilings
    core      the C core built in place
    tests     tests marked gpu, on tiny bundles: graphs and chunk against ONNX Runtime's, capture against steps, A/B
              refresh × 200, threads
    memcheck  the captured loop and its refresh under compute-sanitizer
    export    a policy of full size with random weights, exported (unproven: random weights) in fp32, in fp16, and in
              fp16 with the first actions of its chunk alone
    full      full size, fresh, cached, as on the robot, with inpaint, uncaptured, 1, 2 and 10 steps; the same of a
              chunk's first actions; torch eager and in a CUDA graph in turn with it
    compiled  the same against torch.compile
    run       control's loop and the inference loop as on the robot, prefixes made beside the plans: plans a second, age
              of plan and of prefix, missed ticks, at ten steps and at one, pictures at rest and changing
    train     loss and gradient beside the CPU's, losses in each precision, memory and seconds a step at full size
              (needs PyAV)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "device"
LIMITS = {
    "facts": 60, "core": 90, "tests": 210, "race": 120, "memcheck": 120, "export": 200, "full": 150, "compiled": 230,
    "run": 150, "train": 280,
}  # fmt: skip
"""Seconds a step may take before it is ended."""
STEPS = [step for step in LIMITS if step != "race"]
"""What runs when nothing is asked for; `race` is what memcheck runs, for a longer look."""
FIRST = 16
"""Actions of the bundle that holds a chunk's first ones alone."""
RACE_ROUNDS = 200
Tell = Callable[..., None]
"""Told one line of results, by name."""


def main() -> int:
    parser = argparse.ArgumentParser(description="A run on a bare NVIDIA machine.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=WORK / "out", help="folder of results.jsonl and log.txt")
    parser.add_argument("--steps", default=",".join(STEPS), help="which steps, in order")
    parser.add_argument("--within", type=float, default=3600, metavar="SECONDS", help="for all steps together")
    parser.add_argument("--kernels", choices=("auto", "torch", "tensorrt", "tensorrt-rtx"), default="auto")
    parser.add_argument("--rounds", type=int, default=60, help="measured rounds of the steps full and compiled")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the exported policy")
    parser.add_argument("--step", help="run one step in this process")
    arguments = parser.parse_args()
    if arguments.step:
        return run_step(arguments)
    if unknown := set(arguments.steps.split(",")) - set(LIMITS):
        parser.error(f"no step {min(unknown)}; known: {', '.join(LIMITS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.within
    failed = [step for step in arguments.steps.split(",") if not supervised(step, arguments, end)]
    print(f"failed: {', '.join(failed)}" if failed else "all steps done", flush=True)
    return 1 if failed else 0


def supervised(step: str, arguments: argparse.Namespace, end: float) -> bool:
    """Run a step as a process of its own until its limit; False when it failed."""
    tell = teller(arguments.out, step)
    limit = min(LIMITS[step], end - time.monotonic())
    if limit < 5:
        tell(step_ended=False, why="no time is left for it")
        return False
    words = [sys.executable, __file__, "--step", step, "--out", str(arguments.out), "--kernels", arguments.kernels]
    words += ["--rounds", str(arguments.rounds), "--size", arguments.size]
    start = time.monotonic()
    with (arguments.out / "log.txt").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment(), start_new_session=True)
        try:
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"ended at its limit of {limit:.0f} s"
    tell(step_ended=True, status=status, seconds=round(time.monotonic() - start, 1))
    return status == 0


def environment() -> dict[str, str]:
    path = f"{ROOT / 'src'}:{ROOT}" + (f":{os.environ['PYTHONPATH']}" if "PYTHONPATH" in os.environ else "")
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def teller(out: Path, step: str) -> Tell:
    def tell(**row: Any) -> None:
        line = json.dumps({"step": step, "t": round(time.time(), 1), **row}, default=str)
        print(line, flush=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    return tell


def run_step(arguments: argparse.Namespace) -> int:
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    tell = teller(arguments.out, arguments.step)
    steps: dict[str, Callable[[argparse.Namespace, Tell], int]] = {
        "facts": facts, "core": core, "tests": gpu_tests, "race": race, "memcheck": memcheck, "export": export,
        "full": full, "compiled": compiled, "run": run_on_gpu, "train": train,
    }  # fmt: skip
    try:
        return steps[arguments.step](arguments, tell)
    except Exception as error:  # noqa: BLE001 -- the next steps still run, and the reason is kept
        tell(error=f"{type(error).__name__}: {error}", where=traceback.format_exc()[-2000:])
        return 1


# ---- facts and core


def facts(arguments: argparse.Namespace, tell: Tell) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "onnx", "onnxruntime", "numpy", "cuda-bindings", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    tell(python=platform.python_version(), packages=found, cpus=os.cpu_count())
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory,pcie.link.gen.current"
    if shutil.which("nvidia-smi"):
        ran = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        tell(nvidia_smi=ran.stdout.strip() or ran.stderr.strip())
    from vla_edge.engines.tensorrt.cuda import open_cuda

    tell(cuda=str(open_cuda().facts))
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    seconds = event_seconds(lambda: target.copy_(source))
    tell(copy_TB_s=round(2 * source.numel() / seconds / 1e12, 2))
    seconds = event_seconds(lambda: square @ square)
    tell(gemm_fp16_TFLOP_s=round(2 * 8192**3 / seconds / 1e12))
    # As the expert's largest product: 50 rows by its weights, which the memory bounds.
    rows, weights = square[:50, :720].contiguous(), square[:720, :4096].contiguous()
    tell(gemm_50_rows_us=round(event_seconds(lambda: rows @ weights, 200) * 1e6, 1))
    return 0


def event_seconds(work: Callable[[], object], times: int = 10) -> float:
    """Seconds of one `work` on the GPU, the mean of `times` after a warm-up."""
    import torch

    for _ in range(3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def core(arguments: argparse.Namespace, tell: Tell) -> int:
    ran = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j", "8"], cwd=ROOT)
    if ran.returncode == 0:
        from vla_edge import _core

        tell(driver=_core.CudaDriver().version)
    return ran.returncode


# ---- TensorRT or what stands in for it


def take_kernels(arguments: argparse.Namespace, tell: Tell) -> Any:
    """The compiler whose kernels run, installed as the module `tensorrt` where it is torch."""
    import importlib.util

    from vla_edge.engines.tensorrt.engine_build import RTX, load_compiler

    if arguments.kernels == RTX:
        made = load_compiler(RTX)
    else:
        real = arguments.kernels == "tensorrt" or (
            arguments.kernels == "auto" and importlib.util.find_spec("tensorrt") is not None
        )
        if not real:
            from tests.engines.torch_kernels import torch_tensorrt

            sys.modules["tensorrt"] = torch_tensorrt()
        made = load_compiler()
        made = made if real else replace(made, version="torch's kernels in its place")
    tell(kernels=f"{made.name} {made.version}")
    return made


def gpu_tests(arguments: argparse.Namespace, tell: Tell) -> int:
    from xml.etree import ElementTree

    report = arguments.out / "tests.xml"
    plugin = ["-p", "tests.engines.torch_kernels"] if arguments.kernels in ("auto", "torch") else []
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=--import-mode=importlib", *plugin, "-q"]
    words += ["-k", "not sanitizer", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/engines/test_gpu.py"]
    ran = subprocess.run(words, cwd=ROOT, env=environment())
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            fault = next((item for item in case if item.tag in ("failure", "error", "skipped")), None)
            verdict = "passed" if fault is None else fault.tag
            said = "" if fault is None else (fault.get("message") or "")[:600]
            tell(test=case.get("name"), verdict=verdict, said=said, seconds=float(case.get("time") or 0))
        report.unlink()
    return ran.returncode


def race(arguments: argparse.Namespace, tell: Tell) -> int:
    """A short life of the captured loop: fresh, steps, refresh beside the loop, tie; for compute-sanitizer."""
    import numpy as np
    from scripts.device_full import opened, request_of

    from vla_edge.engines.flow_loop import FlowRequest, Inpaint
    from vla_edge.export.assemble import ExportRequest, export_unproven

    source = WORK / "race"
    if not source.exists():
        export_unproven(ExportRequest(ROOT / "examples" / "reach-cube" / "checkpoint", source), print)
    session, _ = opened(source, take_kernels(arguments, tell))
    for seed in range(2):
        session.infer(request_of(session, seed))
    policy, loop = session.policy, session.loop
    shape = (policy.chunk_size, policy.max_action_dim)
    noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    tie = Inpaint(noise * 0.5, np.linspace(1, 0, shape[0], dtype=np.float32))
    flow = FlowRequest(policy.num_steps, noise, tie, np.zeros(1, np.int32))
    rounds = min(arguments.rounds, RACE_ROUNDS)
    for _ in range(rounds):
        loop.encode(True)
        alone = loop.denoise(flow).latent
        loop.start_refresh()
        assert (loop.denoise(flow).latent == alone).all(), "the loop's result changed beside a refresh"
        loop.adopt()
        loop.encode(False)
        assert (loop.denoise(flow).latent == alone).all(), "the refreshed side differs"
    tell(rounds=rounds, same_bits=True)
    return 0


def memcheck(arguments: argparse.Namespace, tell: Tell) -> int:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        tell(memcheck="not run: no compute-sanitizer on this machine")
        return 0
    # torch and cuda-bindings ask the driver for functions it lacks: refused calls are no memory errors.
    words = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "3"]
    words += [sys.executable, __file__, "--step", "race", "--rounds", "2"]
    words += ["--out", str(arguments.out), "--kernels", arguments.kernels]
    ran = subprocess.run(words, env=environment(), capture_output=True)
    said = (ran.stdout + ran.stderr).decode(errors="replace")
    print(said, flush=True)
    summary = [line.strip("= ") for line in said.splitlines() if "SUMMARY" in line]
    tell(memcheck=summary[-1] if summary else "no summary", status=ran.returncode)
    return ran.returncode


# ---- full size


def export(arguments: argparse.Namespace, tell: Tell) -> int:
    """Checkpoint, fp32 and fp16 bundle under build/device/SIZE. Nothing is proven: the weights are random."""
    from tests.random_policy import RandomPolicy, write_random_policy

    from vla_edge.export.assemble import ExportRequest, export_unproven
    from vla_edge.export.precision import PrecisionRequest, requantise_unproven

    place = WORK / arguments.size
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    start = time.monotonic()

    def say(step: str) -> None:
        print(f"{time.monotonic() - start:.1f} s: {step}", flush=True)

    write_random_policy(place / "policy", RandomPolicy(size=arguments.size, dtype="bfloat16"))
    say("policy written")
    export_unproven(ExportRequest(checkpoint=place / "policy", out=place / "fp32"), say)
    half = PrecisionRequest("fp16", "tensorrt", frames=1, held_out=1)
    requantise_unproven(place / "fp32", place / "fp16", half, say)
    export_unproven(ExportRequest(checkpoint=place / "policy", out=place / "first-fp32", chunk_size=FIRST), say)
    requantise_unproven(place / "first-fp32", place / "first", half, say)
    sizes = {
        name: sum(file.stat().st_size for file in (place / name / "graphs").rglob("*.bin")) for name in ("fp32", "fp16")
    }
    tell(size=arguments.size, seconds=round(time.monotonic() - start, 1), weights_bytes=sizes)
    return 0


def full(arguments: argparse.Namespace, tell: Tell) -> int:
    from scripts.device_full import Ours, Torch, in_turn, used_mb

    compiler = take_kernels(arguments, tell)
    place = WORK / arguments.size
    ours = Ours(place / "fp16", compiler, tell)
    cases = {f"ours fp16, {name}": case for name, case in ours.cases().items()}
    short = Ours(place / "first", compiler, tell)
    cases |= {f"ours fp16, first {FIRST} actions, {name}": case for name, case in short.cases().items()}
    baseline = Torch(place / "policy", ours.session)
    cases |= baseline.cases("torch fp16") | baseline.graph_cases("torch fp16", tell)
    in_turn(cases, arguments.rounds, tell)
    in_turn({"ours fp16, uncaptured": ours.uncaptured}, max(3, arguments.rounds // 10), tell)
    single = Ours(place / "fp32", compiler, tell)
    in_turn({f"ours fp32, {name}": case for name, case in single.cases().items()}, max(3, arguments.rounds // 3), tell)
    tell(memory_used_mb=used_mb())
    return 0


def compiled(arguments: argparse.Namespace, tell: Tell) -> int:
    from scripts.device_full import Ours, Torch, in_turn

    compiler = take_kernels(arguments, tell)
    place = WORK / arguments.size
    ours = Ours(place / "fp16", compiler, tell)
    torch_policy = Torch(place / "policy", ours.session)
    torch_policy.compile()
    cases = torch_policy.cases("torch.compile fp16")
    for name, case in cases.items():
        start = time.monotonic()
        in_turn({name: case}, 0, tell)
        tell(case=name, compiled_in_s=round(time.monotonic() - start, 1))
    in_turn({"ours fp16, fresh": ours.fresh, "ours fp16, cached": ours.cached, **cases}, arguments.rounds, tell)
    return 0


def run_on_gpu(arguments: argparse.Namespace, tell: Tell) -> int:
    """Each run takes a third of a second a measured round."""
    from scripts.device_full import built

    from vla_edge.benchmarks.flow.replanning import CALM, CHANGING, REST, run_itself

    bundle, engine = built(WORK / arguments.size / "fp16", take_kernels(arguments, tell))
    for steps in (bundle.manifest.policy.num_steps, 1):
        for pictures in (CALM, REST, CHANGING):
            found = run_itself(bundle, engine(), steps, pictures, arguments.rounds / 3)
            tell(run=f"{steps} steps, {pictures}", **found)
    return 0


def train(arguments: argparse.Namespace, tell: Tell) -> int:
    import importlib.util

    if importlib.util.find_spec("av") is None:
        tell(train="not run: no PyAV on this machine, which datasets are read and written with")
        return 0
    from scripts.device_train import arithmetic, full_cases, small_cases
    from tests.random_policy import RandomPolicy, write_random_policy

    work = WORK / "train"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    made = RandomPolicy(size="tiny")
    write_random_policy(work / "tiny", made)
    good = arithmetic(work / "tiny", made.cameras, tell)
    small_cases(work, work / "tiny", made.cameras, tell)
    policy = WORK / arguments.size / "policy"
    if not policy.exists():
        write_random_policy(policy, RandomPolicy(size=arguments.size, dtype="bfloat16"))
    full_cases(work, policy, made.cameras, min(arguments.rounds, 12), tell)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
