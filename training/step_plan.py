# SPDX-License-Identifier: Apache-2.0
"""`vla-train plan`: memory and seconds of a training step by batch, precision and cache, before anything is trained.

Computed from the network's own operations, run on tensors without content: weights, AdamW's averages, what the
backward pass reads again and the largest results are counted, and the products. Seconds of a GPU are the larger of the
products at an assumed rate and of the operations at an assumed time each. `--measure` runs the steps here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vla_edge.command_line import answer
from vla_edge.errors import ConfigError
from vla_edge.policies.checkpoint_folder import find_folder, resolve_checkpoint
from vla_edge.policies.families import family_of, policy_class
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.config import SmolVLAConfig, read_config
from vla_edge.policies.smolvla.flow import FlowMatching, Inputs, Prefix, SpecialTokens
from vla_edge.policies.smolvla.policy import set_trainable
from vla_edge.policies.smolvla.text import KeyValue
from vla_edge.policies.smolvla.vision import tokens_per_image

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
CACHES = ("none", "vision", "prefix")
CARDS_GB = (8, 12, 16, 24)
CONTEXT_BYTES, USABLE = 0.6e9, 0.95
"""Of a card: what CUDA and its libraries take, and the share of the rest that the allocator makes use of."""
RATES = {"float32": 12e12, "bf16": 40e12}
"""Products a second that are assumed of a desktop card: about half of what an RTX 3060 or 4060 is sold with."""
OPERATION_S = 1e-5
"""Assumed of PyTorch's launches; small batches are bound by it (an H200 took 0.17 s for a step of 8)."""
SMALL, LARGE = 8, 16
"""The batches that are computed; memory and products grow in a straight line."""
ROOM = 2
"""Results of the largest size that live beside what the backward pass needs: with it an H200's measured peaks of
batches of 8 to 64 are met within a tenth (benchmarks/results/h200.jsonl)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to train: number format, and what is kept of a frozen model."""

    precision: str
    cache: str


@dataclass(frozen=True, slots=True)
class StepCost:
    """Bytes at the step's peak (weights, gradients and AdamW included), multiplications and additions, operations."""

    memory: float
    flops: float
    operations: float

    def seconds(self, precision: str) -> float:
        """On a desktop card, by the assumptions above."""
        return max(self.flops / RATES[precision], self.operations * OPERATION_S)


@dataclass(frozen=True)
class PlannedPolicy:
    """What decides a step's size, from a checkpoint's config.json; its weights are not read."""

    config: SmolVLAConfig
    backbone: Any

    def model(self) -> FlowMatching:
        """The network with the checkpoint's freezing rules and weights of no meaning."""
        model = FlowMatching(self.config, self.backbone, SpecialTokens((), ()))
        set_trainable(model)
        return model

    def inputs(self, batch: int, cache: str) -> Inputs:
        """A batch of no meaning, all cameras there."""
        config, text = self.config, self.backbone.text
        height, width = config.resized_to or config.cameras[0].shape[1:]
        tokens, length = tokens_per_image(self.backbone, height, width), config.tokenizer_max_length
        shape = (batch, tokens, text.hidden_size) if cache == "vision" else (batch, 3, height, width)
        cameras = len(config.cameras) * (cache != "prefix")
        there = torch.ones(batch, dtype=torch.bool)
        scene = None
        if cache == "prefix":
            rows = len(config.cameras) * tokens + length
            layers = config.num_vlm_layers if 0 < config.num_vlm_layers < text.layers else text.layers
            kept = [torch.zeros(batch, rows, text.kv_heads, text.head_dim) for _ in range(2 * layers)]
            cache_rows = [KeyValue(key, value) for key, value in zip(kept[::2], kept[1::2])]
            scene = Prefix(
                cache_rows, torch.ones(batch, rows, dtype=torch.bool), torch.zeros(batch, 0, text.hidden_size)
            )
        return Inputs(
            tuple(torch.zeros(shape) for _ in range(cameras)),
            (there,) * cameras,
            torch.zeros(batch, length, dtype=torch.int64),
            torch.ones(batch, length, dtype=torch.bool),
            torch.zeros(batch, config.max_state_dim),
            scene,
        )

    def backward(self, model: FlowMatching, inputs: Inputs, precision: str) -> None:
        """One step's gradients."""
        batch = len(inputs.state)
        actions = torch.zeros(batch, self.config.chunk_size, self.config.max_action_dim)
        with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32"):
            loss = model.losses(inputs, actions, torch.zeros_like(actions), torch.full((batch,), 0.5)).mean()
        loss.backward()


class _Observed(TorchDispatchMode):
    """Counts operations, keeps the size of the largest result, and of all that the backward pass reads again."""

    def __init__(self, model: FlowMatching) -> None:
        super().__init__()
        self.operations = self.largest = 0
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._own = {weight.untyped_storage()._cdata for weight in model.parameters()}

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        storages = [leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        sizes = [storage.nbytes() for storage in storages if storage._cdata not in self._own]
        self.largest = max([self.largest, *sizes])
        return out

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """A hook of autograd's: `tensor` is kept until the backward pass."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._saved[storage._cdata] = storage
        return tensor

    @property
    def saved(self) -> int:
        """Bytes, each storage once."""
        return sum(storage.nbytes() for storage in self._saved.values())


def planned_policy(checkpoint: Path) -> PlannedPolicy:
    """The policy of a checkpoint folder or Hub id. ConfigError: no SmolVLA."""
    folder = resolve_checkpoint(checkpoint)
    if policy_class(family_of(folder)).trains_whole:
        raise ConfigError(f"{checkpoint}: vla-train plan is for SmolVLA; a smaller policy fits where its data do")
    config = read_config(folder)
    return PlannedPolicy(config, read_backbone(find_folder(config.vlm_model_name, folder, ("config.json",))))


def step_cost(policy: PlannedPolicy, case: Case, batch: int) -> StepCost:
    """What one step of `batch` samples costs, computed."""
    with FakeTensorMode():
        model = policy.model()
        vlm = model.vlm_with_expert.vlm
        left_on_disk = [vlm.model.vision_model, vlm.model.connector] if case.cache != "none" else []
        weights = _bytes(model.parameters()) - sum(_bytes(part.parameters()) for part in left_on_disk)
        trained = _bytes(weight for weight in model.parameters() if weight.requires_grad)
        inputs = policy.inputs(batch, case.cache)
        seen = _Observed(model)
        hooks = torch.autograd.graph.saved_tensors_hooks(seen.save, lambda tensor: tensor)
        with seen, hooks, FlopCounterMode(display=False) as flops:
            policy.backward(model, inputs, case.precision)
    of_inputs = sum(_bytes(part) for part in (inputs.images, [inputs.state]))
    forward = seen.saved + ROOM * seen.largest
    update = 2 * trained  # gradients, and AdamW's own intermediate values
    memory = weights + 2 * trained + of_inputs + max(forward, update)
    return StepCost(memory, float(flops.get_total_flops()), float(seen.operations))


def line_through(small: StepCost, large: StepCost, batch: int) -> StepCost:
    """The cost of `batch` samples from those of SMALL and LARGE."""
    share = (batch - SMALL) / (LARGE - SMALL)
    ends = zip(asdict(small).values(), asdict(large).values())
    memory, flops, operations = (a + (b - a) * share for a, b in ends)
    return StepCost(memory, flops, operations)


def largest_batch(small: StepCost, large: StepCost, card_gb: float) -> int:
    """The largest power of two that fits a card; 0: none."""
    room = USABLE * (card_gb * 2**30 - CONTEXT_BYTES)
    fitting = [size for size in (2**power for power in range(11)) if line_through(small, large, size).memory <= room]
    return max(fitting, default=0)


def measured(work: tuple[PlannedPolicy, Case, int, int]) -> tuple[float, float]:
    """Median seconds of three steps on this machine's CPU and the process's peak of memory in bytes. A process each."""
    policy, case, batch, cores = work
    if cores:
        torch.set_num_threads(cores)
    model = policy.model().train()
    if case.cache != "none":
        vlm = model.vlm_with_expert.vlm.model
        for part in ("vision_model", "connector"):  # left on disk
            setattr(vlm, part, torch.nn.Identity())
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    inputs, took = policy.inputs(batch, case.cache), []
    for _ in range(4):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        policy.backward(model, inputs, case.precision)
        optimizer.step()
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run_plan(arguments: argparse.Namespace) -> int:
    policy, console = planned_policy(arguments.checkpoint), Console()
    table = Table(title="a training step; GB and s of a GPU are computed")
    for name in ("precision", "cache", *(f"batch {size}" for size in arguments.batch)):
        table.add_column(name)
    cards = Table(title="largest batch that fits, computed")
    for name in ("precision", "cache", *(f"{size} GB" for size in CARDS_GB)):
        cards.add_column(name)
    rows: list[dict[str, Any]] = []
    frozen = policy.config.train_expert_only
    caches = CACHES if frozen else CACHES[:1]
    for case in (Case(precision, cache) for precision in PRECISIONS for cache in caches):
        small, large = (step_cost(policy, case, size) for size in (SMALL, LARGE))
        costs = {size: line_through(small, large, size) for size in arguments.batch}
        here = _here(policy, case, arguments.batch, arguments.threads) if arguments.measure else {}
        table.add_row(case.precision, case.cache, *(_cell(costs[size], case, here.get(size)) for size in costs))
        fits = {size: largest_batch(small, large, size) for size in CARDS_GB}
        cards.add_row(case.precision, case.cache, *(str(found or "–") for found in fits.values()))
        rows.append(
            {
                **asdict(case),
                "computed": {size: {**asdict(cost), "s": cost.seconds(case.precision)} for size, cost in costs.items()},
                "measured_here": {size: {"s": s, "memory": memory} for size, (s, memory) in here.items()},
                "fits": fits,
            }
        )
    console.print(table, cards)
    if not frozen:
        console.print("the vision-language model trains: nothing of it can be kept (give --expert-only)", markup=False)
    answer({"rows": rows})
    return 0


def _here(policy: PlannedPolicy, case: Case, batches: Sequence[int], cores: int) -> Mapping[int, tuple[float, float]]:
    found = {}
    for size in batches:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[size] = pool.map(measured, [(policy, case, size, cores)])[0]
    return found


def _cell(cost: StepCost, case: Case, here: Sequence[float] | None) -> str:
    text = f"{cost.memory / 1e9:.1f} GB, {cost.seconds(case.precision):.2f} s"
    return text if here is None else f"{text}; here {here[0]:.1f} s, {here[1] / 1e9:.1f} GB"
