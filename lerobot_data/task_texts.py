# SPDX-License-Identifier: Apache-2.0
"""Task texts of a dataset: how often each is used, how many tokens it takes, adding and renaming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.editing.meta_edit import edited_meta, set_task, set_texts, write_statistics, write_task_texts
from vla_edge.lerobot_data.layout import read_info
from vla_edge.lerobot_data.meta import read_episode_stats, read_tasks
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.stats import Stats, aggregate, number_stats

TOKEN_LIMIT = 48
"""`tokenizer_max_length` of SmolVLA."""


@dataclass(frozen=True, slots=True)
class TaskUse:
    """One task text. tokens: with the newline the policy appends; None when no tokenizer was given."""

    index: int
    text: str
    episodes: int
    frames: int
    tokens: int | None


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts tokens as the policy does: a newline appended unless there is one, no special tokens."""

    source: Path
    limit: int
    count: Callable[[str], int]


def load_counter(path: Path, limit: int | None = None) -> TokenCounter:
    """`path`: a tokenizer.json, a bundle, or a checkpoint folder (its own or its backbone's tokenizer).

    limit: None takes what the folder says, 48 where it says nothing. Raises
    DatasetError when no tokenizer is found.
    """
    config = _json_of(path / "config.json")
    places = [path] if path.is_file() else [path / "tokenizer.json", path / "vlm" / "tokenizer.json"]
    backbone = config.get("vlm_model_name")
    if isinstance(backbone, str):
        places.append(path / backbone / "tokenizer.json")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DatasetError(f"no tokenizer at {path}; give a tokenizer.json, a bundle or a checkpoint folder")
    content = layout.read_json(found)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DatasetError(f"{found} is not a tokenizer (no model in it); give a tokenizer.json")
    tokenizer = Tokenizer.from_file(str(found))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        line = text if text.endswith("\n") else text + "\n"
        return len(tokenizer.encode(line, add_special_tokens=False).ids)

    return TokenCounter(found, limit or _stated_limit(path, config) or TOKEN_LIMIT, count)


def _stated_limit(folder: Path, config: dict[str, Any]) -> int | None:
    """The bundle's manifest; else the checkpoint's preprocessor, which has the last word; else its config."""
    stated = _json_of(folder / "manifest.json").get("tokenizer", {}).get("max_length")
    for step in _json_of(folder / "policy_preprocessor.json").get("steps", []):
        if step.get("registry_name") == "tokenizer_processor":
            stated = stated or step.get("config", {}).get("max_length")
    return stated or config.get("tokenizer_max_length")


def _json_of(path: Path) -> dict[str, Any]:
    content = layout.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not an object; restore it")
    return content


def task_uses(root: Path, counter: TokenCounter | None = None) -> list[TaskUse]:
    """All task texts of a dataset in the order of their index."""
    with open_dataset(root) as dataset:
        used = dataset.column("task_index")
        owner = dataset.column("episode_index")
        uses = []
        for index, text in dataset.tasks.items():
            rows, tokens = used == index, counter.count(text) if counter else None
            uses.append(TaskUse(index, text, len(np.unique(owner[rows])), int(rows.sum()), tokens))
        return uses


def add_task(root: Path, text: str) -> int:
    """Add a task text that no frame uses yet. Returns its index. Raises DatasetError when it is there already."""
    info = read_info(root)
    tasks = read_tasks(root, info)
    _check_new(root, tasks, text)
    index = max(tasks, default=-1) + 1
    with edited_meta(root) as copy:
        write_task_texts(copy, info, tasks | {index: text})
    return index


def rename_task(root: Path, old: str, new: str) -> int:
    """Give a task another text; frames keep its number. Returns its index.

    Raises DatasetError when `old` is not there or `new` is.
    """
    info = read_info(root)
    tasks = read_tasks(root, info)
    index = next((number for number, text in tasks.items() if text == old), None)
    if index is None:
        raise DatasetError(f"{root} has no task {old!r}; it has {list(tasks.values())}")
    _check_new(root, tasks, new)
    with edited_meta(root) as copy:
        write_task_texts(copy, info, tasks | {index: new})
        set_texts(copy, info, lambda _, texts: [new if text == old else text for text in texts])
    return index


def assign_task(root: Path, text: str, episodes: Sequence[int] = ()) -> int:
    """Give every frame of `episodes` (of all when none is named) the task `text`, which is added where it is new.

    Returns its index. Other texts keep their numbers, also those that no frame has any more. The folders `meta` and
    `data` are edited as copies and swapped, one after the other.
    """
    if not text.strip():
        raise DatasetError("the task text is empty; give the instruction in words")
    with open_dataset(root) as dataset:
        info, tasks = dataset.info, dict(dataset.tasks)
        odd = [number for number in episodes if number >= len(dataset.episodes)]
        if odd:
            raise DatasetError(f"{root} has no episode {odd[0]}; there are 0 to {len(dataset.episodes) - 1}")
        chosen = set(episodes) or {episode.index for episode in dataset.episodes}
        index = next((number for number, known in tasks.items() if known == text), max(tasks, default=-1) + 1)
        changed = np.isin(dataset.column("episode_index"), list(chosen))
        stats = _task_statistics(dataset, np.where(changed, index, dataset.column("task_index")))
        files = [path.relative_to(root) for path in dataset.files]
    with edited_meta(root, ("meta", "data")) as copy:
        write_task_texts(copy, info, tasks | {index: text})
        set_texts(copy, info, lambda number, texts: [text] if number in chosen else texts)
        set_task([copy / path for path in files], index, chosen)
        if stats:
            write_statistics(copy, info, stats, aggregate(stats.values()))
    return index


def _task_statistics(dataset: Dataset, task_index: NDArray) -> dict[int, Stats]:
    """Of the new column, by episode: those that are stored now; none where an episode has none."""
    try:
        known = read_episode_stats(dataset.root, dataset.info)
    except DatasetError:
        return {}
    stats: dict[int, Stats] = {}
    for episode in dataset.episodes:
        computed = number_stats(task_index[episode.from_index : episode.to_index])
        names = known.get(episode.index, {}).get("task_index", {})
        stats[episode.index] = {"task_index": {name: computed[name] for name in computed if name in names}}
    return stats if all(entry["task_index"] for entry in stats.values()) else {}


def _check_new(root: Path, tasks: dict[int, str], text: str) -> None:
    if not text.strip():
        raise DatasetError("the new task text is empty; give the instruction in words")
    if text in tasks.values():
        raise DatasetError(f"{root} has the task {text!r} already; two tasks need two texts")
