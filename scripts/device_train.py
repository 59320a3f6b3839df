# SPDX-License-Identifier: Apache-2.0
"""What training takes on an NVIDIA GPU: loss and gradient beside a CPU's, a small policy's losses in each precision,
memory and seconds a step at full size.

A part of scripts/device_run.py, which says on what machine it runs. Needs PyAV beside what that names.
"""

from __future__ import annotations

import gc
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Tell = Callable[..., None]
"""Told one line of results, by name."""
DEVICE = "cuda"
FRAMES, EPISODES, SIDE = 48, 4, 256
STEPS = 20
"""of each run of the small policy"""
BOUNDS = {"float32": (1e-4, 0.9999), "bf16": (0.05, 0.98), "fp16": (0.01, 0.99)}
"""(largest relative difference of the loss, smallest cosine of the gradient) beside the CPU's float32"""
SMALL_CASES = (("float32", False), ("float32", True), ("bf16", False), ("fp16", False))
"""(precision, with kept picture tokens) of the small policy."""
FULL_CASES = (
    ("float32", 8, False), ("bf16", 8, False), ("bf16", 32, False), ("bf16", 64, False), ("bf16", 64, True),
    ("bf16", 8, True), ("fp16", 32, False),
)  # fmt: skip
"""(precision, batch, with kept picture tokens) of a full-size policy."""
BEYOND = 64
"""The batch that 4 GB do not hold at full size in float32."""


def run(out: Path, checkpoint: Path, dataset: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of the log of `vla-train fine-tune` in this process. RuntimeError when it ends in an error."""
    from vla_edge.training.command import main

    shutil.rmtree(out, ignore_errors=True)
    words = ("fine-tune", "--checkpoint", str(checkpoint), "--dataset", str(dataset), "--out", str(out), "--log-every",
             "1", "--device", DEVICE, *words)  # fmt: skip
    if status := main(words):
        raise RuntimeError(f"vla-train ended with {status}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def arithmetic(policy_folder: Path, cameras: Sequence[str], tell: Tell) -> bool:
    """Loss and gradient of one sample with given noise beside the CPU's in float32; False: out of BOUNDS."""
    import torch

    from vla_edge.policies.features import ACTION, STATE
    from vla_edge.policies.smolvla.policy import SmolVLAPolicy

    generator = torch.Generator().manual_seed(0)
    policy = SmolVLAPolicy.from_pretrained(policy_folder).eval()
    config = policy.config
    pictures = {f"observation.images.{name}": torch.randint(0, 256, (3, 64, 64), generator=generator).float() / 255
                for name in cameras}  # fmt: skip
    prepared = policy.preprocess({**pictures, STATE: torch.randn(6, generator=generator), "task": "stack"})
    actions = torch.randn(1, config.chunk_size, config.action_dim, generator=generator)
    noise = torch.randn(1, config.chunk_size, config.max_action_dim, generator=generator)
    found: dict[str, tuple[float, Any]] = {}
    good = True
    for name, place, kind in (("cpu", "cpu", None), ("float32", DEVICE, None), ("bf16", DEVICE, torch.bfloat16),
                              ("fp16", DEVICE, torch.float16)):  # fmt: skip
        policy.to(place).zero_grad(set_to_none=True)
        batch = {key: value.to(place) if torch.is_tensor(value) else value
                 for key, value in {**prepared, ACTION: actions}.items()}  # fmt: skip
        with torch.autocast(place, kind, enabled=kind is not None):
            loss, _ = policy(batch, noise=noise.to(place), time=torch.tensor([0.4], device=place))
        loss.backward()
        value = float(loss.detach())
        rows = [weight.grad.flatten().cpu() for weight in policy.parameters() if weight.grad is not None]
        found[name] = value, torch.cat(rows)
        away = abs(value - found["cpu"][0]) / found["cpu"][0]
        cosine = float(torch.nn.functional.cosine_similarity(found[name][1], found["cpu"][1], dim=0))
        difference, agreement = BOUNDS.get(name, (0.0, 1 - 1e-6))
        within = away <= difference and cosine >= agreement
        good &= within
        tell(one_sample=name, on=place, loss=value, loss_difference=away, gradient_cosine=cosine, within=within)
    return good


def small_cases(work: Path, policy: Path, cameras: Sequence[str], tell: Tell) -> None:
    """Some steps of a small policy in each precision, the first kind being what the others are compared with (torch
    draws other noise on a GPU than on a CPU); and a run that was ended and resumed."""
    import torch
    from tests.random_data import write_random_data

    from vla_edge.training.command import main

    data = write_random_data(work / "small_data", cameras, (64, 64), EPISODES, FRAMES, "image")
    same = ("--steps", str(STEPS), "--batch-size", "8", "--workers", "0", "--no-save")
    first: list[float] = []
    for precision, cache in SMALL_CASES:
        kept = ("--cache-vision", str(work / "kept")) if cache else ()
        rows = run(work / "gpu", policy, data, *same, "--precision", precision, *kept)
        first = first or [row["loss"] for row in rows]
        away = max(abs(row["loss"] - loss) / loss for row, loss in zip(rows, first))
        tell(small=precision, cached=cache, worst_loss_difference=away, last=rows[-1]["loss"])
    run(work / "whole", policy, data, *same[:-1], "--save-every", str(STEPS // 2))
    cut = work / "cut"
    shutil.rmtree(cut, ignore_errors=True)
    shutil.copytree(work / "whole", cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / f"{STEPS:06}")
    (cut / "checkpoints" / "last").unlink()
    (cut / "checkpoints" / "last").symlink_to(f"{STEPS // 2:06}")
    status = main(["resume", str(cut)])
    last = [json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for place in
            (work / "whole", cut)]  # fmt: skip
    tell(resumed=status, losses=last, deterministic=torch.are_deterministic_algorithms_enabled())


def full_cases(work: Path, policy: Path, cameras: Sequence[str], rounds: int, tell: Tell) -> None:
    """Seconds a step (median) and the largest memory of a full-size policy, and a real lack of memory."""
    import torch
    from tests.random_data import write_random_data

    data = write_random_data(work / "data", cameras, (SIDE, SIDE), EPISODES, FRAMES, "image")
    for precision, batch, cache in FULL_CASES:
        kept = ("--cache-vision", str(work / f"kept_{precision}")) if cache else ()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        rows = run(work / "full", policy, data, "--steps", str(rounds), "--batch-size", str(batch),
                   "--precision", precision, "--no-save", "--workers", "4", *kept)  # fmt: skip
        seconds = [row["s_per_step"] for row in rows[3:]]
        tell(
            precision=precision, batch=batch, cached=cache, median_s=round(statistics.median(seconds), 4),
            smallest_s=round(min(seconds), 4), memory_mb=round(torch.cuda.max_memory_allocated() / 2**20),
            reserved_mb=round(torch.cuda.max_memory_reserved() / 2**20), loss=[rows[0]["loss"], rows[-1]["loss"]],
        )  # fmt: skip
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        run(work / "full", policy, data, "--steps", "3", "--batch-size", str(BEYOND), "--no-save")
        tell(memory_of_4_GB=f"{BEYOND} samples in float32 fitted")
    except RuntimeError as error:
        said = json.loads((work / "full" / "status.json").read_text())
        tell(memory_of_4_GB=str(error), said=said.get("error"))
