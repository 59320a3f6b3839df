# SPDX-License-Identifier: Apache-2.0
"""`vla-train cls-report`: what a trained CLS head sees. Similarity history, hit statistics, plot, and the AUROC of 0·0,
1·1,
0·1 and pooled. A head that was never trained, or says the same of everything, is refused."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vla_edge.command_line import answer
from vla_edge.errors import ConfigError, TrainingError
from vla_edge.files import write_json, written_beside
from vla_edge.policies.smolvla.cls import observe, similarity, why_no_gate
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.run_config import TaskData
from vla_edge.training.training_frames import Frames, FrameSettings, RawSample, collate

PAIRS = {"00": (0, 0), "11": (1, 1), "01": (0, 1)}
BATCH = 16


@dataclass(frozen=True)
class Seen:
    """One frame's features: projected tokens float32 [2, E], pooled picture rows float32 [H], its instruction and
    place."""

    tokens: Tensor
    pooled: Tensor
    task: str
    episode: int
    frame: int


@dataclass(frozen=True)
class History:
    """The method's own decision along episodes: similarity 0·1 to the kept reference (NaN without history), and
    whether it was stable."""

    episodes: NDArray[np.int64]
    frames: NDArray[np.int64]
    similarity: NDArray[np.float64]
    stable: NDArray[np.bool_]

    def hit_rate(self) -> float:
        """Share of decisions (frames with history) that were stable."""
        decided = np.isfinite(self.similarity)
        return float(self.stable[decided].mean()) if decided.any() else float("nan")


def require_gate(policy: SmolVLAPolicy) -> None:
    """TrainingError with the reason when the head cannot serve as a gate."""
    reason = why_no_gate(policy.model)
    if reason:
        raise TrainingError(f"{reason}; train one with `vla-train fine-tune --kind delta`")


@torch.no_grad()
def look(policy: SmolVLAPolicy, data: Frames, stride: int) -> list[Seen]:
    """Features of every `stride`-th frame. TrainingError when the head is no gate or all frames look the same to it."""
    require_gate(policy)
    numbers = list(range(0, len(data), stride))
    seen: list[Seen] = []
    for start in track(range(0, len(numbers), BATCH), "looking", console=Console(stderr=True), transient=True):
        part = numbers[start : start + BATCH]
        samples = [data.sample(number, 0) for number in part]
        tokens, pooled = _features(policy, samples)
        for row, number in enumerate(part):
            index = int(data.indices[number])
            episode = data.dataset.episode_of(index)
            place = episode.index, index - episode.from_index
            seen.append(Seen(tokens[row], pooled[row], samples[row].task, *place))
    if len(seen) > 1 and float(torch.stack([item.tokens for item in seen]).std(0).max()) < 1e-6:
        raise TrainingError(
            "the CLS head gives the same answer for every frame of the data; train it longer or with more varied scenes"
        )
    return seen


def _features(policy: SmolVLAPolicy, samples: list[RawSample]) -> tuple[Tensor, Tensor]:
    """Projected tokens [B, 2, E], and the mean over valid picture rows of what enters the last text layer [B, H]."""
    entered: list[Tensor] = []
    last = policy.model.vlm_with_expert.vlm.model.text_model.layers[-1]
    inputs = policy.prepare(collate(samples, policy))
    hook = last.input_layernorm.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
    try:
        scene = policy.model.scene_of(inputs)
    finally:
        hook.remove()
    pictures = entered[0].shape[1] - inputs.token_ids.shape[1]
    mask = scene.mask[:, :pictures, None].float()
    pooled = (entered[0][:, :pictures] * mask).sum(1) / mask.sum(1).clamp(min=1)
    return observe(policy.model, scene).float(), pooled.float()


def similarities(pairs: list[tuple[Seen, Seen]]) -> dict[str, NDArray[np.float64]]:
    """Cosines of (now, reference) pairs under each of the four similarities."""
    now, reference = (torch.stack([pair[side].tokens for pair in pairs]) for side in (0, 1))
    found = {name: similarity(now, reference, *indices).double().numpy() for name, indices in PAIRS.items()}
    rows = [torch.stack([pair[side].pooled for pair in pairs]) for side in (0, 1)]
    found["pooled"] = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=-1).double().numpy()
    return found


def scene_pairs(seen: list[Seen], near: int, seed: int) -> tuple[list[tuple[Seen, Seen]], list[tuple[Seen, Seen]]]:
    """(same, changed): frames of one episode at most `near` frames apart, and frames of different episodes, up to ten
    of
    them per frame; always under one instruction, because another instruction is a miss before any similarity is
    asked."""
    by_task: dict[str, list[Seen]] = {}
    for item in seen:
        by_task.setdefault(item.task, []).append(item)
    generator = np.random.default_rng(seed)
    same, changed = [], []
    for items in by_task.values():
        for i, a in enumerate(items):
            same += [
                (b, a) for b in items[i + 1 : i + 1 + near] if b.episode == a.episode and b.frame - a.frame <= near
            ]
            others = [items[int(k)] for k in generator.integers(len(items), size=10)]
            changed += [(b, a) for b in others if b.episode != a.episode]
    return same, changed


def gate_aurocs(seen: list[Seen], near: int = 3, seed: int = 0) -> dict[str, float]:
    """AUROC of each similarity at telling the same scene from another. ConfigError where there is nothing to
    compare."""
    same, changed = scene_pairs(seen, near, seed)
    if not changed:
        raise ConfigError("the AUROC needs frames of at least two episodes with one instruction; give more episodes")
    if not same:
        raise ConfigError(
            f"no two looked-at frames of an episode are within {near} frames; lower --stride or raise --near"
        )
    of_same, of_changed = similarities(same), similarities(changed)
    return {name: auroc(of_same[name], of_changed[name]) for name in of_same}


def auroc(same: NDArray[np.floating], changed: NDArray[np.floating]) -> float:
    """Probability that a pair of the same scene scores above a pair of changed scenes; ties count half. 0.5 is chance.

    NaN where a class is empty.
    """
    if len(same) == 0 or len(changed) == 0:
        return float("nan")
    ordered = np.sort(changed)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(ordered, same, "right")
    return float(below.mean() / 2 / len(changed))


def history_of(seen: list[Seen], threshold: float) -> History:
    """Replay the method's decision: compared with a reference that only a changed verdict moves; no history at the
    start of an episode and after a new instruction."""
    values, stable = [], []
    reference: Seen | None = None
    for item in seen:
        if reference is None or (reference.episode, reference.task) != (item.episode, item.task):
            reference = item
            values.append(float("nan"))
            stable.append(False)
            continue
        value = float(similarity(item.tokens[None], reference.tokens[None]))
        values.append(value)
        stable.append(value > threshold)
        if value <= threshold:
            reference = item
    places = [np.array([getattr(item, name) for item in seen]) for name in ("episode", "frame")]
    return History(places[0], places[1], np.array(values), np.array(stable))


def write_report(folder: Path, history: History, threshold: float, aurocs: Mapping[str, float]) -> None:
    """`similarity.csv`, `cls.json` and `similarity.png` (history with the threshold line) in `folder`."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with written_beside(folder / "similarity.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "frame", "similarity", "stable"])
        columns = (history.episodes, history.frames, history.similarity, history.stable.astype(int))
        writer.writerows(zip(*(column.tolist() for column in columns)))
    write_json(folder / "cls.json", report_json(history, threshold, aurocs))
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(history.similarity))
    axes.plot(places, history.similarity, color="tab:blue", linewidth=1, label="similarity 0·1 to the reference")
    axes.scatter(
        places[history.stable], history.similarity[history.stable], s=10, color="tab:green", label="stable: reuse"
    )
    axes.axhline(threshold, color="tab:red", linestyle="--", label=f"threshold {threshold:g}")
    for start in np.flatnonzero(np.diff(history.episodes)) + 0.5:
        axes.axvline(start, color="lightgrey", linewidth=0.8)
    areas = ", ".join(f"{name} {value:.3f}" for name, value in aurocs.items())
    axes.set_title(f"hit rate {history.hit_rate():.1%}; AUROC {areas}")
    axes.set_xlabel("frame (grey lines: episodes)")
    axes.set_ylabel("cosine")
    axes.legend(loc="lower right")
    figure.savefig(folder / "similarity.png", dpi=110)


def report_json(history: History, threshold: float, aurocs: Mapping[str, float]) -> dict[str, object]:
    decided = history.similarity[np.isfinite(history.similarity)]
    spread = {f"p{q}": float(np.percentile(decided, q)) for q in (5, 50, 95)} if len(decided) else {}
    return {
        "threshold": threshold,
        "decisions": len(decided),
        "hits": int(history.stable.sum()),
        "hit_rate": history.hit_rate(),
        "similarity": spread,
        "auroc": dict(aurocs),
        "best": max(aurocs, key=lambda name: aurocs[name]),
    }


def run_cls_report(arguments: argparse.Namespace) -> int:
    if arguments.out:
        import_module("matplotlib.figure")  # before minutes of looking
    policy = SmolVLAPolicy.from_pretrained(arguments.policy)
    cameras = tuple(camera.source for camera in policy.settings.cameras)
    data = Frames(
        TaskData("gate", arguments.dataset, episodes=arguments.episodes, tolerance_s=arguments.tolerance),
        FrameSettings(cameras, policy.config.chunk_size, 0),
    )
    threshold = policy.config.cls_similarity_threshold if arguments.threshold is None else arguments.threshold
    seen = look(policy, data, arguments.stride)
    history, aurocs = history_of(seen, threshold), gate_aurocs(seen, arguments.near)
    for name, value in aurocs.items():
        print(f"AUROC {name:<7} {value:.3f}")
    print(f"hit rate      {history.hit_rate():.1%} at threshold {threshold:g} (0·1, the method's own)")
    if arguments.out:
        write_report(arguments.out, history, threshold, aurocs)
    answer(report_json(history, threshold, aurocs))
    return 0
