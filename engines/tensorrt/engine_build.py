"""ONNX graphs of a bundle → TensorRT plans on this machine, with timing cache, progress, sidecar and audit.

Networks are strongly typed: what a graph says is what runs, and nothing here
chooses a precision. Only what TensorRT 10.3 to 11 have in common is used
(tests/data/tensorrt_api). Weights come from the verified bytes, put into the
model, because the parser would open the external file a second time. DLA is not
used: it takes neither strongly typed networks nor most of these operators.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vla_edge.bundle import Bundle, GraphFile
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.engines.tensorrt.cuda import Cuda, open_cuda
from vla_edge.engines.tensorrt.engine_file import (
    PlanIdentity,
    Sidecar,
    identity_of,
    make_private,
    plan_folder,
    write_plan,
)
from vla_edge.engines.tensorrt.kernel_audit import int8_share, layer_types
from vla_edge.engines.tensorrt.memory_plan import MB, Board, MemoryPlan, graph_weights, plan_memory
from vla_edge.errors import EngineError
from vla_edge.files import write_bytes

TIMING_CACHE = "timing.cache"
OLDEST = (10, 3)

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
class BuiltPlan:
    """One plan on disk. int8_share: of the layers with matrix products, as the inspector tells them."""

    path: Path
    size: int
    sidecar: Sidecar
    int8_share: float


def load_tensorrt() -> Any:
    """The TensorRT module, once the GPU gate is passed. EngineError: missing or too old."""
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"TensorRT's Python package cannot be imported ({error}); JetPack brings it (python3-libnvinfer), "
            "elsewhere pip install 'vla-edge[gpu]'"
        ) from None
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < OLDEST:
        raise EngineError(
            f"TensorRT {tensorrt.__version__} is older than {OLDEST[0]}.{OLDEST[1]}; update JetPack or the package"
        )
    return tensorrt


def build_plans(bundle: Bundle, options: BuildOptions, progress: Progress, cuda: Cuda | None = None) -> list[BuiltPlan]:
    """Build every graph of the bundle for this GPU and write plans and sidecars beside them.

    EngineError: no driver, no TensorRT, too little memory (unless forced), or a graph TensorRT refuses, with its node.
    """
    device = cuda or open_cuda()
    trt = load_tensorrt()
    fit = plan_memory(bundle, board_of(device), options.workspace)
    if not (fit.fits_build and fit.fits_run) and not options.force:
        raise EngineError(f"{bundle.path}: {'; '.join(fit.lines())}; or build anyway with --force")
    device.enter()
    made = []
    for name in bundle.manifest.graphs:
        progress(f"build {name}")
        graph = bundle.graph(name)
        identity = identity_of(graph, trt.__version__, device.facts)
        make_private(plan_folder(graph))
        made.append(_build(trt, graph, identity, options, progress))
    return made


def board_of(cuda: Cuda) -> Board:
    """The memory of this machine."""
    return Board(cuda.facts.memory, cuda.facts.integrated, host_memory())


def host_memory() -> int:
    """Bytes of host memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def board_plan(bundle: Bundle, memory_gb: float, workspace: int) -> MemoryPlan:
    """The memory plan for a Jetson of so many GB, on any machine."""
    return plan_memory(bundle, Board(int(memory_gb * (1 << 30)), integrated=True), workspace)


def _build(trt: Any, graph: GraphFile, identity: PlanIdentity, options: BuildOptions, progress: Progress) -> BuiltPlan:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = with_inline_tensors(graph.model, graph.weights)
    if not parser.parse(model):
        raise EngineError(
            f"{graph.path}: TensorRT {trt.__version__} refuses the graph: {'; '.join(_refusals(parser, model))}; "
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
    timing = plan_folder(graph) / TIMING_CACHE
    timings = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
    # A cache of another TensorRT or GPU is refused here and begun anew; it only ever saves time.
    if not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        if not config.set_timing_cache(timings, False):
            raise EngineError(f"{graph.path}: TensorRT refuses an empty timing cache; remove {timing} and build again")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(
            f"{graph.path}: TensorRT {trt.__version__} built no plan ({logger.last or 'no reason given'}); give it "
            "less workspace or free memory, and build again"
        )
    plan = bytes(serialized)
    _keep_timings(config, timing)
    return _write(trt, graph, plan, identity)


def _write(trt: Any, graph: GraphFile, plan: bytes, identity: PlanIdentity) -> BuiltPlan:
    engine = deserialize(trt, plan, str(graph.path))
    inspector = engine.create_engine_inspector()
    layers = layer_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    sidecar = Sidecar(
        graph=graph.name,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        identity=identity,
        inputs=graph.spec.inputs,
        outputs=graph.spec.outputs,
        device_memory=int(engine.device_memory_size_v2),
        weights=graph_weights(graph),
        layers=layers,
    )
    return BuiltPlan(write_plan(graph, plan, sidecar), len(plan), sidecar, int8_share(layers))


def deserialize(trt: Any, plan: bytes, name: str) -> Any:
    """An engine from verified bytes; code inside a plan that would run on the host stays forbidden."""
    runtime = trt.Runtime(_logger(trt))
    if runtime.engine_host_code_allowed:
        raise EngineError("TensorRT's runtime allows host code in plans; this must stay off")
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{name}: TensorRT does not load the plan; build it again on this machine")
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
    write_bytes(file, bytes(config.get_timing_cache().serialize()))


@cache
def _logger(trt: Any) -> Any:
    """One logger for the process, as TensorRT wants it."""

    class LastError(trt.ILogger):
        """Keeps the newest error for the exception that is raised; the rest of TensorRT's log is not shown."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last = msg

    return LastError()


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
