# SPDX-License-Identifier: Apache-2.0
"""`export-engines --backend tensorrt` and `tensorrt-rtx`: engine files made here, or one file to carry over."""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_edge.bundle import MANIFEST, open_bundle
from vla_edge.engines.engine import backend_of
from vla_edge.engines.tensorrt.cuda import open_cuda, require_gpu
from vla_edge.engines.tensorrt.engine_build import RTX, BuildOptions, board_of, board_plan, build_engines, load_compiler
from vla_edge.engines.tensorrt.memory_plan import MB, plan_memory
from vla_edge.errors import ConfigError
from vla_edge.files import written_beside


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    """How engine files are built: backend they are for, scratch of the builder, memory of the board they are for,
    `force` to build although the memory does not suffice, `audit` for a float32 bundle that was made just now: what
    NVIDIA's compiler says of it goes into its manifest."""

    backend: str
    workspace_bytes: int
    board_memory_gb: float
    force: bool
    audit: bool


def add_tensorrt_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that only `--backend tensorrt` has."""
    group = parser.add_argument_group("TensorRT")
    group.add_argument(
        "--build-on-device",
        action="store_true",
        help="tensorrt: check and pack the bundle here, build its engine files on the device",
    )
    group.add_argument(
        "--board-memory",
        type=float,
        default=8,
        metavar="GB",
        help="tensorrt, packing: memory of the board it is for (default: 8)",
    )
    group.add_argument(
        "--workspace",
        type=int,
        default=1024,
        metavar="MB",
        help="tensorrt: scratch the builder may use (default: 1024)",
    )
    group.add_argument(
        "--force", action="store_true", help="tensorrt: build though the memory plan says it will not fit"
    )


def check_tensorrt_arguments(arguments: argparse.Namespace) -> None:
    """Before any work: flags that mean nothing without the backend, and the driver where engine files are to be built.

    ConfigError, EngineError.
    """
    if not backend_of(arguments.backend).builds:
        if arguments.build_on_device or arguments.force:
            raise ConfigError("--build-on-device and --force belong to --backend tensorrt")
        return
    if arguments.backend == RTX:
        load_compiler(RTX)
        if arguments.build_on_device:
            raise ConfigError(f"engine files of {RTX} are built anywhere; leave out --build-on-device")
    elif not arguments.build_on_device:
        require_gpu(otherwise="add --build-on-device to prepare the bundle here and build there")
    elif arguments.board_memory <= 0:
        raise ConfigError(f"--board-memory is {arguments.board_memory}, must be more than 0 GB")


def options_from_arguments(arguments: argparse.Namespace) -> TensorRTOptions:
    """The options that the flags ask for."""
    fresh = arguments.checkpoint is not None and arguments.precision == "fp32"
    return TensorRTOptions(arguments.backend, arguments.workspace * MB, arguments.board_memory, arguments.force, fresh)


def _audit_new(path: Path, options: TensorRTOptions, tell: Callable[[str], None]) -> None:
    if options.audit:  # where a bundle is made, onnx is; where one is only built or measured it need not be
        from vla_edge.export.nvidia_verdict import audit

        audit(path, tell)


def build_here(path: Path, options: TensorRTOptions, tell: Callable[[str], None]) -> Iterator[str]:
    """Build the engine files of the bundle at `path`; yields what was built, a line each, and what it needs to run."""
    _audit_new(path, options, tell)
    bundle, build = open_bundle(path), BuildOptions(options.workspace_bytes, options.force)
    cuda = None if options.backend == RTX else open_cuda()
    made = build_engines(bundle, build, tell, cuda, load_compiler(options.backend))
    for built in made:
        layers = ", ".join(
            f"{name} {count}" for name, count in built.sidecar.layers.items() if not name.startswith("products.")
        )
        share = f", INT8 in {built.int8_share:.0%} of the layers with products" if built.int8_share else ""
        yield (
            f"{built.path.name}: {built.size / MB:.1f} MB, scratch {built.sidecar.device_memory / MB:.1f} MB, layers: "
            f"{layers}{share}"
        )
    if cuda:
        scratch = {built.sidecar.graph: built.sidecar.device_memory for built in made}
        yield from plan_memory(bundle, board_of(cuda), build.workspace, scratch).lines()
    else:
        yield f"built without a GPU by {made[0].sidecar.identity.tensorrt}, for RTX cards; not loaded here"


def pack(path: Path, options: TensorRTOptions, tell: Callable[[str], None]) -> Iterator[str]:
    """Check every graph for TensorRT and put the bundle into `BUNDLE.tar`; yields the memory plan and what to do next.

    ExportError: a graph TensorRT would refuse. ConfigError: the file exists.
    """
    from vla_edge.engines.tensorrt.trt_lint import lint_bundle

    _audit_new(path, options, tell)
    bundle = open_bundle(path)
    target = path.resolve().with_name(f"{path.resolve().name}.tar")
    if target.exists():
        raise ConfigError(f"{target}: exists already; remove it or give another --out")
    tell("check the graphs for TensorRT")
    bundle.verify()
    lint_bundle(bundle)
    tell(f"write {target.name}")
    with written_beside(target) as partial, tarfile.open(partial, "w") as archive:
        for name in (MANIFEST, *sorted(bundle.manifest.files)):
            archive.add(bundle.path / name, f"{path.resolve().name}/{name}")
    yield f"a board of {options.board_memory_gb:g} GB:"
    yield from board_plan(bundle, options.board_memory_gb, options.workspace_bytes).lines()
    yield (
        f"{target}: carry it to the device, then: tar -xf {target.name} && export-engines --bundle "
        f"{path.resolve().name} --backend tensorrt"
    )
