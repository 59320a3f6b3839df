# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of a bundle → engine files of TensorRT or TensorRT-RTX, with timing cache, progress, sidecar and audit.

Networks are strongly typed: what a graph says is what runs, and nothing here
chooses a precision. Only what TensorRT 10.3 to 11 have in common is used
(tests/data/tensorrt_api). Weights come from the verified bytes, put into the
model, because the parser would open the external file a second time. DLA is not
used: it takes neither strongly typed networks nor most of these operators.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vla_edge.bundle import Bundle, GraphFile
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.engines.tensorrt.cuda import Cuda, open_cuda
from vla_edge.engines.tensorrt.engine_file import (
    Compiler,
    EngineIdentity,
    Sidecar,
    engine_folder,
    identity_of,
    make_private,
    write_engine,
)
from vla_edge.engines.tensorrt.kernel_audit import TOLD, Verdict, int8_share, layer_types, verdict_of
from vla_edge.engines.tensorrt.memory_plan import MB, Board, MemoryPlan, graph_weights, plan_memory
from vla_edge.errors import EngineError
from vla_edge.files import write_bytes
from vla_edge.installation import install_command

TIMING_CACHE = "timing.cache"
OLDEST = (10, 3)
RTX = "tensorrt-rtx"

Progress = Callable[[str], None]
"""Told what begins now, in words."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """workspace: bytes of scratch the builder's tactics may use. force: build though the memory plan says it will not
    fit."""

    workspace: int = 1024 * MB
    force: bool = False

    def __post_init__(self) -> None:
        if self.workspace < 16 * MB:
            raise EngineError(f"workspace is {self.workspace / MB:.0f} MB, must be 16 or more")


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One engine file on disk. int8_share: of the layers with matrix products, as the inspector tells them."""

    path: Path
    size: int
    sidecar: Sidecar
    int8_share: float


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph as its compiler made it. data: the bytes of the engine file; log: what the compiler logged of its
    kernels."""

    data: bytes
    log: Sequence[str]

    @property
    def verdict(self) -> Verdict:
        return verdict_of("\n".join(self.log))


def load_compiler(name: str = "tensorrt") -> Compiler:
    """TensorRT or TensorRT-RTX. EngineError: missing or too old."""
    if name == RTX:
        try:
            import tensorrt_rtx_bindings as rtx
        except ImportError as error:
            raise EngineError(
                f"TensorRT-RTX's Python package cannot be imported ({error}); install it with: {install_command('rtx')}"
            ) from None
        return Compiler(name, rtx.__version__, True, rtx)
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"TensorRT's Python package cannot be imported ({error}); JetPack brings it (python3-libnvinfer), "
            f"elsewhere install it with: {install_command('gpu')}"
        ) from None
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < OLDEST:
        raise EngineError(
            f"TensorRT {tensorrt.__version__} is older than {OLDEST[0]}.{OLDEST[1]}; update JetPack or the package"
        )
    return Compiler(name, tensorrt.__version__, False, tensorrt)


def build_engines(
    bundle: Bundle,
    options: BuildOptions,
    progress: Progress,
    cuda: Cuda | None = None,
    compiler: Compiler | None = None,
) -> list[BuiltEngine]:
    """Build every graph of the bundle and write engine files and sidecars beside them: for this GPU, or, by a compiler
    whose engine files are portable, without any.

    EngineError: no driver, no TensorRT, too little memory (unless forced), or a graph TensorRT refuses, with its node.
    """
    device = None if compiler and compiler.portable else cuda or open_cuda()
    compiler = compiler or load_compiler()
    if device:
        fit = plan_memory(bundle, board_of(device), options.workspace)
        if not (fit.fits_build and fit.fits_run) and not options.force:
            raise EngineError(f"{bundle.path}: {'; '.join(fit.lines())}; or build anyway with --force")
        device.enter()
    made = []
    for graph in map(bundle.graph, bundle.manifest.graphs):
        progress(f"build {graph.name}")
        identity = identity_of(graph, compiler, device.facts if device else None)
        make_private(engine_folder(graph, compiler))
        built = serialize(compiler, graph, options, progress)
        made.append(_write(compiler, graph, built, identity))
    return made


def board_of(cuda: Cuda) -> Board:
    """The memory of this machine."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Board(cuda.facts.memory, cuda.facts.integrated, host)


def board_plan(bundle: Bundle, memory_gb: float, workspace: int) -> MemoryPlan:
    """The memory plan for a Jetson of so many GB, on any machine."""
    return plan_memory(bundle, Board(int(memory_gb * (1 << 30)), integrated=True), workspace)


def serialize(compiler: Compiler, graph: GraphFile, options: BuildOptions, progress: Progress) -> Compiled:
    """The graph compiled. TensorRT-RTX needs neither a GPU nor a driver for it.

    EngineError: the graph is refused, with its node, or nothing was built, with TensorRT's last error of this build.
    """
    trt = compiler.module
    logger = fresh_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = with_inline_tensors(graph.model, graph.weights)
    if not parser.parse(model):
        raise EngineError(
            f"{graph.path}: {compiler.name} {compiler.version} refuses the graph: "
            f"{'; '.join(_refusals(parser, model))}; "
            "export the bundle again or choose backend ort"
        )
    del model
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0
    config.builder_optimization_level = 3
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    monitor = _monitor(trt, graph.name, progress)
    config.progress_monitor = monitor
    timing = engine_folder(graph, compiler) / TIMING_CACHE
    _take_timings(config, timing)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(
            f"{graph.path}: {compiler.name} {compiler.version} built nothing ({logger.reason()}); give it "
            "less workspace or free memory, and build again"
        )
    if timing.parent.exists():
        _keep_timings(config, timing)
    return Compiled(bytes(serialized), logger.kernels)


def _take_timings(config: Any, file: Path) -> None:
    """A cache that is damaged, or of another TensorRT or GPU, is begun anew: it only ever saves time."""
    for known in (file.read_bytes() if file.exists() else b"", b""):
        timings = config.create_timing_cache(known)
        if timings is not None and config.set_timing_cache(timings, False):
            return
    raise EngineError(f"{file}: TensorRT refuses an empty timing cache; update TensorRT")


def _write(compiler: Compiler, graph: GraphFile, built: Compiled, identity: EngineIdentity) -> BuiltEngine:
    """A portable engine file is described by its compiler's log, because loading it takes a GPU."""
    trt, data = compiler.module, built.data
    if compiler.portable:
        layers, scratch = built.verdict.layers, built.verdict.scratch
    else:
        engine = deserialize(trt, data, str(graph.path))
        inspector = engine.create_engine_inspector()
        layers = layer_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        scratch = int(engine.device_memory_size_v2)
    sidecar = Sidecar(
        graph=graph.name,
        engine_sha256=hashlib.sha256(data).hexdigest(),
        identity=identity,
        inputs=graph.spec.inputs,
        outputs=graph.spec.outputs,
        device_memory=scratch,
        weights=graph_weights(graph),
        layers=layers,
    )
    path = write_engine(engine_folder(graph, compiler), data, sidecar)
    return BuiltEngine(path, len(data), sidecar, int8_share(layers))


def deserialize(trt: Any, data: bytes, name: str) -> Any:
    """An engine from verified bytes; code inside a file that would run on the host stays forbidden."""
    logger = fresh_logger(trt)
    runtime = trt.Runtime(logger)
    if runtime.engine_host_code_allowed:
        raise EngineError("TensorRT's runtime allows host code in engine files; this must stay off")
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{name}: TensorRT does not load the engine file ({logger.reason()}); build it again")
    return engine


def _refusals(parser: Any, model: bytes) -> Iterator[str]:
    """The parser's errors with their nodes, and which parts of the graph no kernel takes."""
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        yield f"node {error.node_name()} ({error.node_operator()}): {error.desc()}"
    if not parser.supports_model_v2(model):
        refused = [index for index in range(parser.num_subgraphs) if not parser.is_subgraph_supported(index)]
        if refused:
            yield (
                f"{len(refused)} parts are not supported, the first begins at node "
                f"{parser.get_subgraph_nodes(refused[0])[0]}"
            )


def _keep_timings(config: Any, file: Path) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        write_bytes(file, bytes(timings.serialize()))


def fresh_logger(trt: Any) -> Any:
    """The process's logger, with nothing in it of what was done before."""
    logger = _logger(trt)
    logger.forget()
    return logger


@cache
def _logger(trt: Any) -> Any:
    """One logger for the process, as TensorRT wants it."""

    class Kept(trt.ILogger):
        """Keeps the newest error for the exception that is raised, and what is said of the kernels; the rest of
        TensorRT's log is not shown. The builder calls from threads of its own, so there is one text for all of
        them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.forget()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._last = msg
            elif msg.startswith(TOLD):
                self.kernels.append(msg)

        def forget(self) -> None:
            self._last = ""
            self.kernels: list[str] = []

        def reason(self) -> str:
            return self._last or "no reason given"

    return Kept()


def _monitor(trt: Any, name: str, progress: Progress) -> Any:
    class Steps(trt.IProgressMonitor):
        """Tells how far each phase of the builder is; called from several of its threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.total: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.total[phase_name] = num_steps
            progress(f"build {name}: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(f"build {name}: {phase_name} {step + 1}/{self.total.get(phase_name, 0)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.total.pop(phase_name, None)

    return Steps()
