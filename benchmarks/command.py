"""`vla-bench`: latency of bundles, and of torch beside them; `vla-bench compare` gates one result on another."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vla_edge.benchmarks.bench_compare import compare, gate, read_result
from vla_edge.errors import ConfigError, run_command
from vla_edge.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    if argv and argv[0] == "compare":
        return _compare(argv[1:])
    return _bench(_parse(argv))


def _bench(arguments: argparse.Namespace) -> int:
    from vla_edge.benchmarks.bench_report import markdown, write_report
    from vla_edge.benchmarks.measure import Rounds, measure
    from vla_edge.benchmarks.subject import SubjectSpec

    if arguments.rounds < 1 or arguments.threads < 0:
        raise ConfigError(f"--rounds {arguments.rounds} must be 1 or more, --threads {arguments.threads} 0 or more")
    if Path(arguments.name).name != arguments.name:
        raise ConfigError(f"--name {arguments.name} is no plain file name; the folder is --out")
    arguments.out.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
    inputs = arguments.bundle[0][1]
    specs = [
        SubjectSpec(f"{path.name} on {backend}", "bundle", path, backend, arguments.threads, inputs)
        for backend, path in arguments.bundle
    ]
    if len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("two bundles have the same name and backend; rename a folder")
    for kind in dict.fromkeys(arguments.against):
        if arguments.checkpoint is None:
            raise ConfigError(f"--against {kind} needs the policy's weights: give --checkpoint DIR")
        specs.append(
            SubjectSpec(
                kind,
                kind.removesuffix("-compiled"),
                arguments.checkpoint,
                "torch",
                arguments.threads,
                inputs,
                compiled=kind == "torch-compiled",
            )
        )
    console = Console(stderr=arguments.json)
    with console.status("starting") as status:
        result = measure(specs, Rounds(arguments.rounds), arguments.threads, status.update)
    for line in markdown(result):
        console.print(line, markup=False, soft_wrap=True)
    file = arguments.out / f"{arguments.name}.json"
    write_json(file, result)
    written = [file, *write_report(result, arguments.out, arguments.name)]
    console.print(f"written: {', '.join(str(path) for path in written)}", markup=False)
    if arguments.json:
        print(
            json.dumps(
                {"files": [str(path) for path in written], "ratios": result["ratios"], "errors": result["errors"]}
            )
        )
    return 0


def _compare(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vla-bench compare", description="Fail when the second result is slower than the first."
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--limit", type=float, default=1.15, help="largest factor that passes (default: 1.15)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.limit < math.inf:
        raise ConfigError(f"--limit is {arguments.limit}; it must be a factor above 0")
    changes = compare(read_result(arguments.before), read_result(arguments.after))
    for change in changes:
        print(
            f"{change.subject} {change.case}: {change.before_ms:.1f} → {change.after_ms:.1f} ms, factor "
            f"{change.factor:.3f}"
        )
    if arguments.json:
        print(
            json.dumps(
                {
                    "limit": arguments.limit,
                    "factors": {f"{change.subject} {change.case}": round(change.factor, 4) for change in changes},
                }
            )
        )
    gate(changes, arguments.limit)
    return 0


def _bundle(text: str) -> tuple[str, Path]:
    """[BACKEND:]FOLDER"""
    backend, colon, path = text.partition(":")
    return (backend, Path(path)) if colon else ("ort", Path(text))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vla-bench",
        description="Latency, memory and action error of bundles; `vla-bench compare A.json B.json` gates.",
    )
    parser.add_argument(
        "--bundle",
        type=_bundle,
        action="append",
        required=True,
        metavar="[BACKEND:]DIR",
        help="a bundle, on ort unless said; may be given several times",
    )
    parser.add_argument(
        "--against",
        choices=("torch", "torch-compiled", "lerobot"),
        action="append",
        default=[],
        help="the same policy in torch, or LeRobot's own, interleaved; needs --checkpoint",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the checkpoint the bundles were made of")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads of every subject (default: all physical cores)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="measured rounds (default: 20)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIR",
        help="folder of the results (default: benchmarks/results)",
    )
    parser.add_argument("--name", default="latency", help="name of the result files (default: latency)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line; tables go to stderr")
    return parser.parse_args(argv)
