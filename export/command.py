"""`export-engines`: checkpoint in, verified bundle out; `--inspect` shows one."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vla_edge.errors import ConfigError, EngineError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with _packages():
        from vla_edge.export.show import print_bundle, summary
    console = Console(stderr=arguments.json)
    if arguments.inspect:
        bundle = print_bundle(arguments.inspect, console, detail=True)
        if arguments.json:
            print(json.dumps(summary(bundle)))
        return 0
    if not arguments.checkpoint:
        raise ConfigError("nothing to do: give --checkpoint DIR to export, or --inspect BUNDLE")
    out = arguments.out or arguments.checkpoint.resolve().parent / f"{arguments.checkpoint.resolve().name}-bundle"
    if not arguments.out:
        console.print(f"no --out given: writing to {out}", markup=False)
    start = time.monotonic()
    _export(arguments, out, console)
    bundle = print_bundle(out, console, detail=False)
    seconds = time.monotonic() - start
    console.print(f"{out} written and compared with torch in {seconds:.1f} s", markup=False)
    if arguments.json:
        print(json.dumps({**summary(bundle), "seconds": round(seconds, 2)}))
    return 0


def _export(arguments: argparse.Namespace, out: Path, console: Console) -> None:
    with _packages():
        from vla_edge.export.assemble import ExportRequest, export_bundle
        from vla_edge.export.observations import Recording
    request = ExportRequest(
        checkpoint=arguments.checkpoint,
        out=out,
        vlm=arguments.vlm,
        recording=Recording(arguments.data, dict(arguments.camera)) if arguments.data else None,
        threads=arguments.threads,
        joint_units=arguments.joint_units,
    )
    # A terminated export cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _progress(console) as tell, _packages():
        export_bundle(request, tell)


@contextmanager
def _packages() -> Iterator[None]:
    """Turn a missing optional package into one line: a robot's own computer may have neither torch nor onnx."""
    try:
        yield
    except ImportError as error:
        raise EngineError(f"export-engines needs {error.name}, which is not installed; pip install 'vla-edge[export,ort,data]'") from None


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done and for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def tell(step: str) -> None:
            progress.update(task, description=step)

        yield tell


def _pair(text: str) -> tuple[str, str]:
    policy, equals, dataset = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be POLICY=DATASET, for example observation.images.laptop=observation.images.front")
    return policy, dataset


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="export-engines", description="Turn a SmolVLA checkpoint into a bundle of verified ONNX graphs.")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder as LeRobot's save_pretrained writes it")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to write, must not exist (default: CHECKPOINT-bundle beside it)")
    parser.add_argument("--vlm", type=Path, metavar="DIR", help="folder with the backbone's config.json and tokenizer (default: where the checkpoint says)")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="LeRobot data set: compare on its frames too, take the joints' names from it")
    parser.add_argument("--camera", type=_pair, action="append", default=[], metavar="POLICY=DATASET", help="a camera whose name differs in the data set")
    parser.add_argument("--joint-units", choices=("degrees", "range_m100_100", "unknown"), default="unknown", help="unit of the policy's joint values; checkpoints do not say it")
    parser.add_argument("--backend", choices=("ort",), default="ort", help="what the graphs are prepared for and compared on (default: ort)")
    parser.add_argument("--precision", choices=("fp32",), default="fp32", help="type of the matrices (default: fp32)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of the comparison (default: all physical cores)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line; tables go to stderr")
    parser.add_argument("--inspect", type=Path, metavar="BUNDLE", help="check a bundle's hashes and print what it holds")
    return parser.parse_args(argv)
