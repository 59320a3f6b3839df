# SPDX-License-Identifier: Apache-2.0
"""The one training loop: fine-tuning, training from scratch, delta and CLS training, a stage of a sequence.

One optimiser step: `accumulation` batches forward and back, CRaFT's retention
gradient when it is due, clip, AdamW, schedule. Everything that decides the next
step is in the checkpoint, so an interrupted run continues bit for bit (CPU).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from vla_edge.errors import TrainingError, VlaEdgeError
from vla_edge.training.batches import LONGEST_WAIT_S, batches
from vla_edge.training.checkpoint_saving import copy_from, fill_checkpoint
from vla_edge.training.checkpoints import (
    PRETRAINED,
    STATE,
    LoopState,
    checkpoint_path,
    last_checkpoint,
    load_master_weights,
    load_state,
    point,
    prune,
    remove_partial,
    write_checkpoint,
)
from vla_edge.training.craft.retention import Retention, append_history, cut_history, write_state
from vla_edge.training.frozen.caches import fill_caches, release_frozen
from vla_edge.training.loop_inputs import Setup
from vla_edge.training.objective import Objective, make_optimizer, step_shares, valid_steps, with_stale_context
from vla_edge.training.processes import device_name, make_accelerator
from vla_edge.training.progress import Report, silent
from vla_edge.training.random_state import load_rng, rng_file, save_rng, seed_everything
from vla_edge.training.run_config import TrainConfig
from vla_edge.training.run_files import Status, append_metrics, cut_metrics, write_status
from vla_edge.training.sampler import QuotaSampler, SamplerState, Source
from vla_edge.training.trackers import open_trackers
from vla_edge.training.training_frames import Mix, to_device
from vla_edge.training.validation import delta_error, validation_numbers, weighted

NOT_FINITE = "not finite"
SMALLEST_SCALE = 2.0**-14
NO_LOSS = 1e6
"""A mean squared error beyond it means that something is divided by next to nothing."""
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with; `best_loss` is None without validation."""

    steps: int
    loss: float
    best_loss: float | None
    best_step: int | None
    checkpoint: str


@dataclass
class Loop:
    """The moving parts of a run; `status` is what `status.json` shows."""

    setup: Setup
    accelerator: Accelerator
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    sampler: QuotaSampler
    position: SamplerState
    retention: Retention | None
    status: Status
    scaler: torch.amp.GradScaler
    held_out: tuple[int, dict[str, dict[str, float]]] = (-1, {})
    """The step of the last validation, and what it found per task."""

    def autocast(self) -> torch.autocast:
        """bfloat16 or float16 matrix products where the run asks for them; weights, losses and updates stay float32."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.setup.config.precision)
        return torch.autocast(self.accelerator.device.type, kind, enabled=kind is not None)


def train(
    setup: Setup, retention: Retention | None = None, resume: Path | None = None, report: Report = silent
) -> Outcome:
    """Train to `config.steps`; `resume` is a checkpoint folder of the same run.

    TrainingError (with advice and the last good checkpoint) for a loss or gradient that is not finite and for lack of
    memory; the checkpoint folders stay whole whatever happens.
    """
    loop = _start(setup, retention, resume)
    run = Path(setup.config.output)
    try:
        return _run(loop, report)
    except KeyboardInterrupt:
        _tell(loop, run, replace(loop.status, state="interrupted"))
        raise
    except (VlaEdgeError, RuntimeError, MemoryError, OSError) as error:
        remedy = fault_advice(error, setup.config, _last_good(run))
        _tell(loop, run, replace(loop.status, state="failed", error=str(remedy or error)))
        if remedy is None:
            raise
        raise remedy from None


def fault_advice(error: BaseException, config: TrainConfig, last_good: str) -> TrainingError | None:
    """The one line for a person, or None when the error is of another kind and should be shown as it is."""
    if isinstance(error, TrainingError) and str(error).startswith(NOT_FINITE):
        return TrainingError(
            f"{error}; lower the learning rate (now {config.optimizer.lr:g}) or raise the warm-up, and check the "
            "dataset's statistics "
            f"with `vla-data verify`; last good checkpoint: {last_good}"
        )
    if isinstance(error, RuntimeError) and "DataLoader timed out" in str(error):
        return TrainingError(
            f"no batch came from {config.workers} loader processes for {LONGEST_WAIT_S} s; look at the disk, or load "
            f"in the training process (--workers 0); last good checkpoint: {last_good}"
        )
    if _is_memory(error):
        return TrainingError(
            f"out of memory with batch {config.batch_size} × {config.accumulation} in {config.precision}; use a "
            "smaller batch with more accumulation, bf16, --cache-vision with a frozen tower, or "
            f"--set image_size=[256,256]; `vla-train plan --checkpoint {config.policy}` says what fits; last good "
            f"checkpoint: {last_good}"
        )
    return None


def _is_memory(error: BaseException) -> bool:
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _start(setup: Setup, retention: Retention | None, resume: Path | None) -> Loop:
    config = setup.config
    accelerator = make_accelerator(config.device, any(".vlm." in name for name in setup.trained))
    seed_everything(config.seed + accelerator.process_index)
    setup.policy.to(accelerator.device)
    with accelerator.main_process_first():
        fill_caches(config, setup.policy, [*setup.training, *setup.validation], accelerator.device)
        if config.cache_prefix and retention is not None:
            retention.keep_scenes(setup.policy, Path(config.cache_prefix), config.cache_type, accelerator.device)
    if accelerator.num_processes == 1:
        release_frozen(config, setup.policy, pictures=retention is not None and not config.cache_prefix)
    optimizer, scheduler = make_optimizer(setup.trained.values(), config.optimizer, config.schedule, config.steps)
    sources = [Source(frames.data.name, len(frames), frames.data.weight) for frames in setup.training]
    sampler = QuotaSampler(sources, config.batch_size * accelerator.num_processes, config.seed)
    if setup.teacher is not None:
        setup.teacher.to(accelerator.device)
    objective = Objective(setup.policy, config.padded_dims, setup.teacher).train()
    if accelerator.num_processes > 1:
        objective = accelerator.prepare_model(objective)
    status = Status("running", 0, config.steps, device=device_name(accelerator.device))
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")
    loop = Loop(
        setup, accelerator, objective, optimizer, scheduler, sampler, sampler.start(), retention, status, scaler
    )
    run = Path(config.output)
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        (run / "checkpoints").mkdir(exist_ok=True)
    if resume is not None:
        _restore(loop, resume)
    if retention is not None:
        retention.check(setup.policy, accelerator.device)
    if accelerator.is_main_process:
        write_status(run, loop.status)
    return loop


def _restore(loop: Loop, checkpoint: Path) -> None:
    folder = checkpoint / STATE
    load_master_weights(folder, dict(loop.setup.policy.named_parameters()), bool(loop.setup.config.lora.rank))
    saved = load_state(folder, loop.optimizer, loop.scheduler)
    loop.position = loop.sampler.restore(saved.extra["sampler"])
    best = saved.extra["best_step"]
    loop.status = replace(loop.status, step=saved.step, best_loss=saved.extra["best_loss"], best_step=best)
    if loop.retention is not None:
        loop.retention.restore(saved.extra["craft"])
    if loop.scaler.is_enabled():
        loop.scaler.load_state_dict(saved.extra["scaler"])
    if loop.accelerator.is_main_process:
        run = Path(loop.setup.config.output)
        if best == saved.step:  # the run may have been killed after `last` was moved and before `best` was
            point(run, "best", checkpoint)
        remove_partial(run)
        logged = cut_metrics(run, saved.step)
        loop.status = replace(loop.status, loss=logged.get("loss"), lr=logged.get("lr"))
        cut_history(run, saved.step)
    load_rng(rng_file(folder, loop.accelerator.process_index))


def _run(loop: Loop, report: Report) -> Outcome:
    config, accelerator = loop.setup.config, loop.accelerator
    run, first = Path(config.output), loop.status.step
    place = (accelerator.process_index, accelerator.num_processes)
    stream = batches(
        Mix(loop.setup.training), loop.setup.policy, loop.sampler, loop.position, place, config.workers or 0
    )
    loss, pace = loop.status.loss if loop.status.loss is not None else float("nan"), 0.0
    with open_trackers(config, run, accelerator.is_main_process) as track:
        for step in range(first, config.steps):
            began = time.monotonic()
            row = _optimiser_step(loop, stream, step)
            loss, done = row["loss"], step + 1
            seconds = time.monotonic() - began
            pace = seconds if not pace else 0.9 * pace + 0.1 * seconds
            left = pace * (config.steps - done)
            loop.status = replace(loop.status, step=done, loss=loss, lr=row["lr"], seconds_per_step=pace, eta_s=left)
            report(done, loss, row["lr"], pace)
            validated = _validate(loop, done)
            if accelerator.is_main_process and (validated or done % config.log_every == 0 or done in (1, config.steps)):
                epoch = round(max(loop.sampler.passes(loop.position)), 4)
                full = {"step": done, "epoch": epoch, **row, **validated, "s_per_step": seconds}
                append_metrics(run, full)
                track(full)
                write_status(run, loop.status)
            if config.save and (done % config.save_every == 0 or done in (config.steps, loop.status.best_step)):
                save(loop)
    loop.status = replace(loop.status, state="done", eta_s=0.0)
    if accelerator.is_main_process:
        write_status(run, loop.status)
    return Outcome(config.steps, loss, loop.status.best_loss, loop.status.best_step, _last_good(run))


def _optimiser_step(loop: Loop, stream: Iterator[dict[str, Tensor]], step: int) -> dict[str, Any]:
    """One step; returns what is logged: loss (mean over micro-batches and processes), lr, gradient norm, parts."""
    config, accelerator = loop.setup.config, loop.accelerator
    loop.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=accelerator.device)
    sums: dict[str, float] = {}
    micros = [next(stream) for _ in range(config.accumulation)]
    for micro, (drawn, share) in enumerate(zip(micros, _shares(accelerator, micros))):
        loop.position = loop.sampler.advance(loop.position)
        waits = micro + 1 < config.accumulation and accelerator.num_processes > 1
        with accelerator.no_sync(loop.objective) if waits else contextlib.nullcontext():
            with loop.autocast():
                batch = with_stale_context(to_device(drawn, accelerator.device), loop.setup.policy)
                loss, parts = loop.objective(batch, share=share)
            loop.scaler.scale(loss / config.accumulation).backward()
        total += loss.detach() / config.accumulation
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / config.accumulation
    loop.scaler.unscale_(loop.optimizer)
    mean = float(accelerator.reduce(total, reduction="mean"))
    if not math.isfinite(mean):
        raise TrainingError(f"{NOT_FINITE}: loss {mean} at step {step + 1}")
    if mean > NO_LOSS:
        raise TrainingError(
            f"the loss is {mean:.2g} at step {step + 1}, on normalised actions it is about 1: the statistics cannot be "
            "the data's; look at them with `vla-data stats`, write them anew with --write"
        )
    row: dict[str, Any] = {**sums, "loss": mean, "lr": float(loop.scheduler.get_last_lr()[0])}
    if loop.retention is not None and loop.retention.due(step):
        row |= _retain(loop, loop.retention, step)
    norm = float(torch.nn.utils.clip_grad_norm_(loop.setup.trained.values(), config.optimizer.grad_clip_norm))
    if not math.isfinite(norm) and not loop.scaler.is_enabled():
        raise TrainingError(f"{NOT_FINITE}: gradient norm {norm} at step {step + 1}")
    loop.scaler.step(loop.optimizer)  # with fp16 a step whose gradient overflowed is left out, and the scale halved
    loop.scaler.update()
    if loop.scaler.is_enabled():
        row |= {"loss_scale": loop.scaler.get_scale(), "skipped": float(not math.isfinite(norm))}
        if loop.scaler.get_scale() < SMALLEST_SCALE:
            raise TrainingError(f"{NOT_FINITE}: every gradient overflows in fp16 at step {step + 1}")
    if math.isfinite(norm):
        loop.scheduler.step()
    return {**row, "grad_norm": norm if math.isfinite(norm) else None}


def _shares(accelerator: Accelerator, micros: Sequence[dict[str, Tensor]]) -> list[float]:
    """`step_shares` of this process's batches, over all processes."""
    counts, processes = [valid_steps(batch) for batch in micros], accelerator.num_processes
    total = sum(counts)
    if processes > 1:
        total = int(accelerator.reduce(torch.tensor(float(total), device=accelerator.device), reduction="sum"))
    return step_shares(counts, total, len(micros) * processes)


def _retain(loop: Loop, retention: Retention, step: int) -> dict[str, Any]:
    """Replace the gradients by CRaFT's merge of task and retention gradient."""
    accelerator, weights = loop.accelerator, list(loop.setup.trained.values())
    with loop.autocast():
        loss = retention.loss(loop.setup.policy, accelerator.device)
    found = list(torch.autograd.grad(loop.scaler.scale(loss), weights, allow_unused=True))
    if loop.scaler.is_enabled():
        found = [None if gradient is None else gradient / loop.scaler.get_scale() for gradient in found]
    if accelerator.num_processes > 1:
        found = [None if gradient is None else accelerator.reduce(gradient, reduction="mean") for gradient in found]
    mean = float(accelerator.reduce(loss.detach(), reduction="mean"))
    merged, row = retention.step(step, [weight.grad for weight in weights], found, mean)
    for weight, gradient in zip(weights, merged.gradients):
        weight.grad = gradient
    if accelerator.is_main_process:
        append_history(Path(loop.setup.config.output), step + 1, row)
    return row


def _validate(loop: Loop, done: int) -> dict[str, float]:
    """Validation losses when they are due, under `validation/TASK`; keeps the best in the status."""
    config = loop.setup.config
    due = config.validate_every and (done % config.validate_every == 0 or done == config.steps)
    if not due or not loop.setup.validation:
        return {}
    losses = {name: numbers["loss"] for name, numbers in _held_out(loop, done).items()}
    if not all(map(math.isfinite, losses.values())):
        raise TrainingError(f"{NOT_FINITE}: validation losses {losses} at step {done}")
    row = {f"validation/{name}": value for name, value in losses.items()}
    if config.kind == "delta" and (relative := delta_error(loop.held_out[1])) is not None:
        row["validation_delta_relative"] = relative
    overall = weighted(losses, {task.name: task.weight for task in config.data})
    if not math.isfinite(overall):  # only tasks of share 0 hold episodes out: nothing to choose the best by
        return row
    if loop.status.best_loss is None or overall < loop.status.best_loss:
        loop.status = replace(loop.status, best_loss=overall, best_step=done)
    return {**row, "validation": overall}


def _held_out(loop: Loop, done: int) -> dict[str, dict[str, float]]:
    """What validation finds after step `done`, computed once."""
    config = loop.setup.config
    if loop.held_out[0] != done:
        objective = loop.accelerator.unwrap_model(loop.objective)
        with loop.autocast():
            found = validation_numbers(
                objective, loop.setup.validation, config.validation_frames, config.batch_size, loop.accelerator.device
            )
        loop.held_out = done, found
    return loop.held_out[1]


def save(loop: Loop) -> None:
    """Write the checkpoint of the present step, then move `last` and `best` to it."""
    config, accelerator = loop.setup.config, loop.accelerator
    run, step = Path(config.output), loop.status.step
    if not accelerator.is_main_process:
        save_rng(run / f".rng_state_{accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        craft = loop.retention.save(step) if loop.retention is not None else None
        extra = {
            "sampler": loop.sampler.save(loop.position),
            "best_loss": loop.status.best_loss,
            "best_step": loop.status.best_step,
            "craft": craft,
            "scaler": loop.scaler.state_dict(),
        }
        target = checkpoint_path(run, step, config.steps)
        measured = delta_error(_held_out(loop, step)) if config.kind == "delta" else None
        parts = config, loop.setup.policy, loop.optimizer, loop.scheduler, LoopState(step, extra), measured
        write_checkpoint(target, lambda folder: fill_checkpoint(folder, *parts))
        point(run, "last", target)
        if loop.status.best_step == step:
            point(run, "best", target)
        if craft is not None:
            write_state(run, craft)
        copy_from(loop.setup.policy, target / PRETRAINED)
        prune(run, config.keep)
    accelerator.wait_for_everyone()


def _tell(loop: Loop, run: Path, status: Status) -> None:
    """Write why the run ends; on a full disk that may fail too, and the reason itself must still get out."""
    if loop.accelerator.is_main_process:
        with contextlib.suppress(OSError):
            write_status(run, status)


def _last_good(run: Path) -> str:
    try:
        return str(last_checkpoint(run))
    except TrainingError:
        return "none yet"
