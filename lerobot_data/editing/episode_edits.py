# SPDX-License-Identifier: Apache-2.0
"""Datasets made of the episodes of others: merge, split, delete, renumber. Always a new v3.0 folder, verified before it
gets its name; the sources, of any version, are only read.

As LeRobot's own edit tools, with two differences: videos are cut between their packets instead of being encoded anew,
and the statistics of the columns that are counted anew (index, episode_index, task_index) are computed, not left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vla_edge.errors import CheckFailed, ConfigError, DatasetError
from vla_edge.files import new_folder
from vla_edge.lerobot_data.compare_data import differing_heads
from vla_edge.lerobot_data.editing.rewrite import DEFAULT_SIZES, Part, Progress, used_tasks, write_episodes
from vla_edge.lerobot_data.layout import Info, read_info
from vla_edge.lerobot_data.meta import Episode
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.verification.verify import verify_dataset


def merge(
    sources: Sequence[Path], target: Path, progress: Progress | None = None, tolerance_s: float = TOLERANCE_S
) -> Info:
    """All episodes of all sources, one after the other; task texts of all, the same text once.

    Raises DatasetError when rate, robot or features differ.
    """
    if len(sources) < 2:
        raise ConfigError(f"merge got {len(sources)} dataset; name two or more")
    with ExitStack() as stack:
        datasets = [stack.enter_context(open_dataset(source, tolerance_s=tolerance_s)) for source in sources]
        for other in datasets[1:]:
            differences = differing_heads(datasets[0], other)
            if differences:
                raise DatasetError(
                    f"{sources[0]} and {other.root} cannot stand in one dataset: {differences[0]}; merge datasets of "
                    "one robot, recorded alike"
                )
        parts = [Part(dataset, dataset.episodes) for dataset in datasets]
        tasks = list(dict.fromkeys(text for dataset in datasets for text in dataset.tasks.values()))
        _written(parts, tasks, target, progress)
    return read_info(target)


def delete(
    source: Path,
    numbers: Sequence[int],
    target: Path,
    progress: Progress | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> Info:
    """All episodes but those of `numbers`, counted anew; task texts that no frame has any more are dropped."""
    with open_dataset(source, tolerance_s=tolerance_s) as dataset:
        gone = {episode.index for episode in _chosen(dataset, numbers)}
        kept = [episode for episode in dataset.episodes if episode.index not in gone]
        if not kept:
            raise ConfigError(f"{source} has no other episodes than {_range(dataset)}; leave one at least")
        parts = [Part(dataset, kept)]
        _written(parts, used_tasks(parts), target, progress)
    return read_info(target)


def split(
    source: Path,
    shares: Mapping[str, float | Sequence[int]],
    target: Path,
    progress: Progress | None = None,
    tolerance_s: float = TOLERANCE_S,
) -> dict[str, Info]:
    """`target`/NAME for each name: a share of the episodes, in their order, or the numbers given. No episode twice."""
    with open_dataset(source, tolerance_s=tolerance_s) as dataset:
        chosen = _shared_out(dataset, shares)
        with new_folder(target, DatasetError) as folder:
            for name, episodes in chosen.items():
                parts = [Part(dataset, episodes)]
                _fill(parts, used_tasks(parts), folder / name, progress)
    return {name: read_info(target / name) for name in chosen}


def renumber(source: Path, target: Path, progress: Progress | None = None, tolerance_s: float = TOLERANCE_S) -> Info:
    """The same episodes with numbers from 0 on without a gap; so are frames and tasks."""
    with open_dataset(source, True, tolerance_s) as dataset:
        tasks = list(dict.fromkeys(dataset.tasks.values()))
        _written([Part(dataset, dataset.episodes)], tasks, target, progress)
    return read_info(target)


def add_episodes(parser: Any, purpose: str) -> None:
    """Declare `--episodes`, which some of a dataset's are chosen with. purpose: for which sake, in the help."""
    parser.add_argument("--episodes", type=parse_episodes, default=(), metavar="LIST", help=purpose)


def parse_episodes(text: str) -> tuple[int, ...]:
    """`0-3,7` → (0, 1, 2, 3, 7). ConfigError for anything else, and for an empty list."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"episode list {text!r} is not understood; write numbers and ranges such as 0-9,12")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen:
        raise ConfigError(f"episode list {text!r} is empty; give at least one episode")
    return tuple(dict.fromkeys(chosen))


def parse_shares(texts: Sequence[str]) -> dict[str, float | tuple[int, ...]]:
    """`train=0.8` or `train=0-9,12` by name. ConfigError for what is neither, a name twice, both kinds at once."""
    shares: dict[str, float | tuple[int, ...]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or "/" in name or name in shares:
            raise ConfigError(f"--part {text!r}: write NAME=SHARE or NAME=EPISODES, each name once, as train=0.8")
        shares[name] = float(value) if "." in value else parse_episodes(value)
    if len({type(value) for value in shares.values()}) > 1:
        raise ConfigError("--part has shares and episode numbers; give one kind for all parts")
    return shares


def _shared_out(dataset: Dataset, shares: Mapping[str, float | Sequence[int]]) -> dict[str, list[Episode]]:
    count = len(dataset.episodes)
    chosen: dict[str, list[Episode]] = {}
    total, begin = sum(value for value in shares.values() if isinstance(value, float)), 0
    if total > 1 + 1e-9:
        raise ConfigError(f"the shares sum to {total:g}; 1 is all there is")
    for name, value in shares.items():
        if isinstance(value, float):
            end = count if name == list(shares)[-1] and total > 1 - 1e-9 else begin + int(count * value + 1e-9)
            chosen[name], begin = list(dataset.episodes[begin:end]), end
        else:
            chosen[name] = _chosen(dataset, value)
        if not chosen[name]:
            raise ConfigError(f"part {name} gets none of the {count} episodes; give it a larger share")
    numbers = [episode.index for episodes in chosen.values() for episode in episodes]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise ConfigError(f"episode {twice[0]} stands in two parts; give each episode to one")
    return chosen


def _chosen(dataset: Dataset, numbers: Sequence[int]) -> list[Episode]:
    """In the order of their numbers. ConfigError for a number that is not there."""
    odd = [number for number in numbers if number >= len(dataset.episodes)]
    if odd:
        raise ConfigError(f"{dataset.root} has no episode {odd[0]}; there are {_range(dataset)}")
    return [dataset.episodes[number] for number in sorted(set(numbers))]


def _range(dataset: Dataset) -> str:
    return f"0 to {len(dataset.episodes) - 1}"


def _written(parts: Sequence[Part], tasks: Sequence[str], target: Path, progress: Progress | None) -> None:
    with new_folder(target, DatasetError) as folder:
        _fill(parts, tasks, folder, progress)


def _fill(parts: Sequence[Part], tasks: Sequence[str], folder: Path, progress: Progress | None) -> None:
    folder.mkdir(exist_ok=True)
    write_episodes(parts, tasks, folder, DEFAULT_SIZES, progress)
    report = verify_dataset(folder, tolerance_s=max(part.dataset.tolerance_s for part in parts))
    if not report.passed:
        roots = " ".join(str(part.dataset.root) for part in parts)
        raise CheckFailed(f"the new dataset does not verify: {report.first_problem}; run `vla-data verify` on {roots}")
