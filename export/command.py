# SPDX-License-Identifier: Apache-2.0
"""`export-engines`: checkpoint in, verified bundle out; `--inspect` shows one."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vla_edge.command_line import Command, Subcommand, answer, folder_to_write, threads
from vla_edge.command_parser import GONE
from vla_edge.engines.engine import backend_of
from vla_edge.errors import ConfigError
from vla_edge.export.checkpoint_arguments import (
    add_checkpoint_arguments,
    check_checkpoint_arguments,
    export_from_arguments,
)
from vla_edge.export.precision_arguments import add_precision_arguments, request_from_arguments
from vla_edge.export.tensorrt_bundle import (
    add_tensorrt_arguments,
    build_here,
    check_tensorrt_arguments,
    options_from_arguments,
    pack,
)

main = Command(
    "export-engines",
    "Turn a SmolVLA or ACT checkpoint into a bundle of verified ONNX graphs.",
    {
        "": Subcommand(
            "vla_edge.export.command",
            "turn a SmolVLA or ACT checkpoint into a bundle of verified ONNX graphs",
            "--checkpoint CHECKPOINT --out BUNDLE --dataset DATASET",
        )
    },
    default="",
    old={"--data": "--dataset", "--ranges": f"{GONE}a range goes from the smallest to the largest value (minmax)"},
    extras="export,ort,data",
)


def run(arguments: argparse.Namespace) -> int:
    console = Console()
    if not arguments.inspect:
        check_checkpoint_arguments(arguments)
        check_tensorrt_arguments(arguments)
        if arguments.bundle and arguments.precision == "fp32":
            if backend_of(arguments.backend).builds:  # on a device, where there is no onnx
                return _finish_tensorrt(arguments, arguments.bundle, console)
            raise ConfigError("--bundle is float32 already; give --precision fp16, int8 or auto")
    from vla_edge.export.show import print_bundle, summary

    if arguments.inspect:
        bundle = print_bundle(arguments.inspect, console, detail=True)
        answer(summary(bundle))
        return 0
    start_from = (arguments.checkpoint or arguments.bundle).resolve()
    beside = start_from.parent if start_from.exists() else Path.cwd()  # a Hub id
    out = arguments.out or beside / (
        f"{start_from.name}-bundle" if arguments.checkpoint else f"{start_from.name}-{arguments.precision}"
    )
    if not arguments.out:
        console.print(f"no --out given: writing to {out}", markup=False)
    start = time.monotonic()
    with _progress(console) as tell:
        if arguments.precision == "fp32":
            export_from_arguments(arguments, out, tell)
        else:
            from vla_edge.export.precision import requantise

            request = request_from_arguments(arguments)
            with _float32_bundle(arguments, out, tell) as source:
                requantise(source, out, request, tell)
    written = print_bundle(out, console, detail=False)
    seconds = time.monotonic() - start
    console.print(
        f"{out} written and compared with {'torch' if arguments.checkpoint else 'its float32 bundle'} in "
        f"{seconds:.1f} s",
        markup=False,
    )
    if backend_of(arguments.backend).builds:
        return _finish_tensorrt(arguments, out, console)
    answer({**summary(written), "seconds": round(seconds, 2)})
    return 0


def _finish_tensorrt(arguments: argparse.Namespace, path: Path, console: Console) -> int:
    with _progress(console) as tell:
        lines = list((pack if arguments.build_on_device else build_here)(path, options_from_arguments(arguments), tell))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    answer({"bundle": str(path), "built": not arguments.build_on_device, "lines": lines})
    return 0


@contextmanager
def _float32_bundle(arguments: argparse.Namespace, out: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The bundle that was given, or one of the checkpoint that is removed again."""
    if arguments.bundle:
        yield arguments.bundle
        return
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another folder or remove it")
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as beside:
        export_from_arguments(arguments, Path(beside) / "float32", tell)
        yield Path(beside) / "float32"


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done and for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, description=step)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="a policy as LeRobot saves it: its folder, a run, or a Hub id"
    )
    parser.add_argument(
        "--out",
        type=folder_to_write,
        metavar="BUNDLE",
        help="new folder to write (default: CHECKPOINT-bundle beside it; of a Hub id, here)",
    )
    parser.add_argument("--inspect", type=Path, metavar="BUNDLE", help="check a bundle's hashes and show what it holds")
    add_checkpoint_arguments(parser)
    add_precision_arguments(parser)
    add_tensorrt_arguments(parser)
    parser.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of the comparison (default: all physical cores)"
    )


if __name__ == "__main__":
    sys.exit(main())
