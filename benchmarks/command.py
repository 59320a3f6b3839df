# SPDX-License-Identifier: Apache-2.0
"""`vla-bench`: latency of bundles, and of torch beside them; `vla-bench compare` gates one result on another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from vla_edge.command_line import Command, Subcommand, answer, count, folder_to_write, positive, threads
from vla_edge.errors import ConfigError
from vla_edge.files import write_json
from vla_edge.runtime.inference.session import add_flow_steps_argument

main = Command(
    "vla-bench",
    "Latency, memory and action error of bundles.",
    {
        "": Subcommand(
            "vla_edge.benchmarks.command",
            "latency, memory and action error of bundles, and of torch beside them",
            "--bundle BUNDLE --bundle openvino:BUNDLE-int8 --rounds 20",
        ),
        "compare": Subcommand(
            "vla_edge.benchmarks.command",
            "fail when the second result is slower than the first",
            "compare before.json after.json --limit 1.15",
            add="add_compare",
            run="run_compare",
        ),
    },
    default="",
)


def run(arguments: argparse.Namespace) -> int:
    from vla_edge.benchmarks.preset import print_row
    from vla_edge.benchmarks.subject import SubjectSpec

    if Path(arguments.name).name != arguments.name:
        raise ConfigError(f"--name {arguments.name} is no plain file name; the folder is --out")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    inputs, cores = arguments.bundle[0][1], arguments.threads
    specs = [
        SubjectSpec(f"{path.name} on {engine}", "bundle", path, engine, cores, inputs, steps=arguments.flow_steps)
        for engine, path in arguments.bundle
    ]
    if arguments.preset is not None:
        if arguments.against or arguments.flow_steps:
            raise ConfigError(
                "--preset measures one bundle with its row's flow steps; leave out --against, --flow-steps"
            )
        return print_row(arguments.preset, specs, arguments.rounds, arguments.out)
    from vla_edge.benchmarks.bench_report import markdown, write_report
    from vla_edge.benchmarks.measure import Rounds, measure

    if len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("two bundles have the same name and backend; rename a folder")
    for kind in dict.fromkeys(arguments.against):
        if arguments.checkpoint is None:
            raise ConfigError(f"--against {kind} needs the policy's weights: give --checkpoint DIR")
        family, compiled = kind.removesuffix("-compiled"), kind == "torch-compiled"
        specs.append(SubjectSpec(kind, family, arguments.checkpoint, "torch", arguments.threads, inputs, compiled))
    console = Console()
    with console.status("starting") as status:
        result = measure(specs, Rounds(arguments.rounds), arguments.threads, status.update)
    for line in markdown(result):
        console.print(line, markup=False, soft_wrap=True)
    written: list[Path] = []
    if arguments.out is not None:
        file = arguments.out / f"{arguments.name}.json"
        write_json(file, result)
        written = [file, *write_report(result, arguments.out, arguments.name)]
        console.print(f"written: {', '.join(str(path) for path in written)}", markup=False)
    answer({"files": [str(path) for path in written], "ratios": result["ratios"], "errors": result["errors"]})
    return 0


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, help="JSON that vla-bench wrote")
    parser.add_argument("after", type=Path, help="JSON of a later run")
    parser.add_argument("--limit", type=positive, default=1.15, help="largest factor that passes")


def run_compare(arguments: argparse.Namespace) -> int:
    from vla_edge.benchmarks.bench_compare import compare, gate, read_result

    changes = compare(read_result(arguments.before), read_result(arguments.after))
    for change in changes:
        print(
            f"{change.subject} {change.case}: {change.before_ms:.1f} → {change.after_ms:.1f} ms, factor "
            f"{change.factor:.3f}"
        )
    answer(
        {
            "limit": arguments.limit,
            "factors": {f"{change.subject} {change.case}": round(change.factor, 4) for change in changes},
        }
    )
    gate(changes, arguments.limit)
    return 0


def _bundle(text: str) -> tuple[str, Path]:
    """[BACKEND:]FOLDER"""
    backend, colon, path = text.partition(":")
    return (backend, Path(path)) if colon else ("ort", Path(text))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--bundle",
        type=_bundle,
        action="append",
        required=True,
        metavar="[BACKEND:]DIR",
        help="a bundle, on ort unless a backend stands before it; may be given several times",
    )
    measured.add_argument(
        "--against",
        choices=("torch", "torch-compiled", "lerobot"),
        action="append",
        default=[],
        help="the same policy in torch, or LeRobot's own, measured in turns; needs --checkpoint",
    )
    measured.add_argument(
        "--preset",
        choices=("orin-nano",),
        help="one bundle under the contract of a public row, printed as one line of JSON (and added to "
        "OUT/orin-nano.jsonl)",
    )
    measured.add_argument("--checkpoint", type=Path, metavar="DIR", help="the checkpoint the bundles were made of")
    measured.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of every subject (default: all physical cores)"
    )
    add_flow_steps_argument(measured)
    measured.add_argument("--rounds", type=count, default=20, help="measured rounds")
    files = parser.add_argument_group("files that are written")
    files.add_argument("--out", type=folder_to_write, help="folder for the results (default: none is written)")
    files.add_argument("--name", default="latency", help="name of the result files")


if __name__ == "__main__":
    sys.exit(main())
