# SPDX-License-Identifier: Apache-2.0
"""The device run's own code on the CPU: tiny sizes, torch's kernels on an emulated driver. What it measures needs the
device; that it runs, and what it writes down, does not."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import device_full, device_train
from tests.engines.emulated_gpu import FACTS, EmulatedCuda, stub_driver
from tests.engines.torch_kernels import torch_tensorrt

from vla_edge import _core
from vla_edge.engines.tensorrt import cuda as cuda_module
from vla_edge.engines.tensorrt import trt_engine

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "device_run.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, on an emulated device."""
    spec = importlib.util.spec_from_file_location("device_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = stub_driver(tmp_path)
    cuda = EmulatedCuda(library, replace(FACTS, memory=64 << 30))
    monkeypatch.setattr(trt_engine, "_driver", lambda: _core.CudaDriver(str(library)))
    monkeypatch.setattr(cuda_module, "open_cuda", lambda: cuda)
    monkeypatch.setattr("tests.engines.torch_kernels.torch_tensorrt", lambda: torch_tensorrt("cpu", cuda.put))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    module.WORK = tmp_path / "work"
    monkeypatch.setattr(device_full, "DEVICE", "cpu")
    monkeypatch.setattr(device_full, "used_mb", lambda: 0)
    monkeypatch.setattr(device_full.Torch, "wait", lambda self: None)
    torch.set_num_threads(1)
    yield module
    cuda.close()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_step_on_bundles_runs_and_writes_its_lines(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_full.Torch, "compile", lambda self: None)
    out = tmp_path / "out"
    for step in ("race", "export", "full", "compiled", "run"):
        arguments = argparse.Namespace(step=step, out=out, kernels="torch", rounds=3, size="tiny")
        assert run.run_step(arguments) == 0, rows(out)[-1]
    found = rows(out)
    assert [row for row in found if "same_bits" in row][0]["rounds"] == 3
    assert all("torch's kernels" in row["kernels"] for row in found if "kernels" in row)
    cases = {(row["case"], row.get("part")) for row in found if "case" in row}
    ours = ("fresh", "cached", "cached, inpaint", "first 16 actions, cached")
    for case in (*(f"ours fp16, {name}" for name in ours), "ours fp32, cached"):
        assert (case, "total") in cases
    assert {("ours fp16, steps", f"{count} steps") for count in (1, 2, 10)} <= cases
    assert ("torch.compile fp16, cached", "total") in cases
    runs = {row["run"]: row for row in found if "run" in row}
    assert len(runs) == 6 and all(row["plans_a_second"] > 0 for row in runs.values())
    # A CUDA graph of torch's cannot be made here: told, and the rest goes on.
    errors = [row for row in found if "error" in row]
    assert all("CUDA" in row["error"] or "cuda" in row["error"] or "NVIDIA" in row["error"] for row in errors)


@pytest.fixture
def small_training(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step `train` on the CPU: few steps and frames, and a GPU's memory as torch would tell of it."""
    for name, value in {"DEVICE": "cpu", "FRAMES": 4, "SIDE": 64, "STEPS": 4, "BEYOND": 4}.items():
        monkeypatch.setattr(device_train, name, value)
    monkeypatch.setattr(device_train, "SMALL_CASES", (("float32", False), ("bf16", True)))
    monkeypatch.setattr(device_train, "FULL_CASES", (("float32", 2, False),))
    for name in ("reset_peak_memory_stats", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, lambda *given: None)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 3 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))


def trained(run: Any, out: Path) -> tuple[int, list[dict[str, Any]]]:
    arguments = argparse.Namespace(step="train", out=out, kernels="torch", rounds=5, size="tiny")
    status = run.run_step(arguments)
    return status, rows(out)


def test_the_training_step_compares_one_sample_resumes_and_tells_of_memory(
    run: Any, small_training: None, tmp_path: Path
) -> None:
    status, found = trained(run, tmp_path / "out")
    assert status == 0, found[-1]
    samples = {row["one_sample"]: row for row in found if "one_sample" in row}
    assert list(samples) == ["cpu", "float32", "bf16", "fp16"]
    assert samples["float32"]["loss"] == samples["cpu"]["loss"] and samples["float32"]["gradient_cosine"] > 1 - 1e-6
    assert all(row["within"] for row in samples.values()) and samples["bf16"]["loss_difference"] > 0
    assert [(row["small"], row["cached"]) for row in found if "small" in row] == [("float32", False), ("bf16", True)]
    resumed = next(row for row in found if "resumed" in row)
    assert resumed["resumed"] == 0 and resumed["losses"][0] == resumed["losses"][1]
    assert [row["memory_mb"] for row in found if "memory_mb" in row] == [3]
    assert found[-1] == {**found[-1], "memory_of_4_GB": "4 samples in float32 fitted"}


def test_a_loss_that_is_not_the_cpus_fails_the_training_step(
    run: Any, small_training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("small_cases", "full_cases"):
        monkeypatch.setattr(device_train, name, lambda *given: None)
    monkeypatch.setitem(device_train.BOUNDS, "bf16", (0.0, 1.0))
    status, found = trained(run, tmp_path / "out")
    assert status == 1 and [row["one_sample"] for row in found if not row["within"]] == ["bf16"]


def test_a_step_that_takes_too_long_is_ended_and_the_next_one_runs(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time\nprint(sys.argv[2], flush=True)\nif sys.argv[2] == 'facts':\n    time.sleep(600)\n"
    )
    monkeypatch.setattr(run, "__file__", str(slow))
    monkeypatch.setitem(run.LIMITS, "facts", 6)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["device_run.py", "--out", str(out), "--steps", "facts,core"])
    assert run.main() == 1
    first, second = rows(out)
    assert first["status"] == "ended at its limit of 6 s" and second["status"] == 0
    assert (out / "log.txt").read_text().split() == ["facts", "core"]


def test_without_a_device_each_step_says_what_is_missing(tmp_path: Path) -> None:
    try:
        cuda_module.require_gpu()
    except cuda_module.EngineError:
        pass
    else:
        pytest.skip("this machine has a working driver")
    words = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--steps", "facts", "--within", "100"]
    assert subprocess.run(words, capture_output=True).returncode == 1
    assert any("no NVIDIA driver" in row.get("error", "") for row in rows(tmp_path))
