"""`vla-data convert | verify | compare | stats | tasks` on LeRobot data sets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from vla_edge.errors import ConfigError, run_command, terminated_like_interrupted
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.convert import FileSizes, convert_dataset
from vla_edge.lerobot_data.recompute import largest_difference, recompute_stats
from vla_edge.lerobot_data.tables import stats_to_json
from vla_edge.lerobot_data.task_texts import add_task, load_counter, rename_task, task_uses
from vla_edge.lerobot_data.verify import verify_dataset


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    with terminated_like_interrupted():
        return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vla-data", description="LeRobot data sets, v2.1 and v3.0")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = _command(commands, "convert", _convert, "v2.1 to v3.0 in a new folder; the source is only read")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path, help="must not exist")
    convert.add_argument("--data-file-mb", type=float, default=layout.DATA_FILE_MB)
    convert.add_argument("--video-file-mb", type=float, default=layout.VIDEO_FILE_MB)

    verify = _command(commands, "verify", _verify, "is a data set sound? exit 1 when a check fails")
    verify.add_argument("data_set", type=Path)

    compare = _command(commands, "compare", _compare, "do two data sets hold the same? exit 1 when not")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    compare.add_argument("--samples", type=int, default=3, help="pictures compared per episode and camera (default 3)")

    stats = _command(commands, "stats", _stats, "recompute the statistics and show how far the stored ones are off")
    stats.add_argument("data_set", type=Path)
    stats.add_argument("--write", action="store_true", help="replace the stored statistics")

    tasks = _command(commands, "tasks", _tasks, "list task texts with their token counts; add or rename one")
    tasks.add_argument("data_set", type=Path)
    change = tasks.add_mutually_exclusive_group()
    change.add_argument("--add", metavar="TEXT")
    change.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"))
    tasks.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json, bundle or checkpoint folder to count tokens with"
    )
    tasks.add_argument("--limit", type=int, help="token limit (default: the checkpoint's, else 48)")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose)
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line")
    parser.set_defaults(run=run)
    return parser


def _convert(arguments: argparse.Namespace) -> int:
    sizes = FileSizes(arguments.data_file_mb, arguments.video_file_mb)
    with _bar("episodes") as advance:
        info = convert_dataset(arguments.source, arguments.target, sizes, advance)
    print(f"{arguments.target}: {info.version}, {info.total_episodes} episodes, {info.total_frames} frames, verified")
    _last_line(
        arguments, {"target": str(arguments.target), "episodes": info.total_episodes, "frames": info.total_frames}
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    report = verify_dataset(arguments.data_set)
    for check in report.checks:
        print(f"{check.verdict:<8}{check.name}" + (f": {check.needs}" if check.needs else ""))
        for problem in check.problems or ():
            print(f"        {problem}")
    _last_line(arguments, report.as_json())
    return 0 if report.passed else 1


def _compare(arguments: argparse.Namespace) -> int:
    differences = compare_datasets(arguments.a, arguments.b, arguments.samples)
    for difference in differences:
        print(difference)
    if not differences:
        print("equal")
    _last_line(arguments, {"equal": not differences, "differences": differences})
    return 1 if differences else 0


def _stats(arguments: argparse.Namespace) -> int:
    with _bar("episodes") as advance:
        computed, stored = recompute_stats(arguments.data_set, advance, arguments.write)
    differences = {key: largest_difference(key, computed, stored) for key in computed}
    for key, difference in differences.items():
        print(f"{key:<32} stored differs by {difference:.2g} of the range")
    if arguments.write:
        print("the computed statistics were written")
    _last_line(arguments, {"stats": stats_to_json(computed), "difference": differences, "written": arguments.write})
    return 0


def _tasks(arguments: argparse.Namespace) -> int:
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"token limit {arguments.limit}: give at least 1")
    counter = load_counter(arguments.tokenizer, arguments.limit) if arguments.tokenizer else None
    if arguments.add is not None:
        print(f"task {add_task(arguments.data_set, arguments.add)} added")
    if arguments.rename is not None:
        print(f"task {rename_task(arguments.data_set, *arguments.rename)} renamed")
    rows = []
    for use in task_uses(arguments.data_set, counter):
        too_long = counter is not None and use.tokens is not None and use.tokens > counter.limit
        tokens = "tokens not counted" if counter is None else f"{use.tokens} of {counter.limit} tokens"
        mark = "  TOO LONG: the policy sees a truncated instruction" if too_long else ""
        print(f"{use.index:>3}  {use.episodes} episodes, {use.frames} frames, {tokens}  {use.text!r}{mark}")
        rows.append(
            {
                "index": use.index,
                "text": use.text,
                "episodes": use.episodes,
                "frames": use.frames,
                "tokens": use.tokens,
                "too_long": too_long,
            }
        )
    _last_line(arguments, {"tasks": rows, "limit": counter.limit if counter else None})
    return 1 if any(row["too_long"] for row in rows) else 0


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(unit, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _last_line(arguments: argparse.Namespace, value: object) -> None:
    if arguments.json:
        print(json.dumps(value))
