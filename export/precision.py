# SPDX-License-Identifier: Apache-2.0
"""A float32 bundle in, a bundle of another precision out: plan found by measuring, realised precision audited.

The plan's action error is measured against the float32 bundle on ONNX Runtime,
on observations that its ranges were not taken from. What was asked for and does
not run so is a failed export.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, GraphFile, GraphSpec, Manifest, file_sha256, open_bundle, write_manifest
from vla_edge.calibration.precision.action_error import ActionError, ActionErrorBound, action_error, chunks, joint_spans
from vla_edge.calibration.precision.folding import Folds, folds_of
from vla_edge.calibration.precision.linear import weight_arrays
from vla_edge.calibration.precision.precision_audit import GraphAudit, audit_openvino, audit_ort
from vla_edge.calibration.precision.precision_plan import Candidate, Search, Weighted, all_half, candidates, search
from vla_edge.calibration.precision.ranges import Ranges, gather
from vla_edge.calibration.precision.recorded_observations import Split, from_dataset
from vla_edge.calibration.precision.synthetic import synthetic
from vla_edge.calibration.precision.variant import (
    Plan,
    VariantEngine,
    VariantSettings,
    build,
    groups_of,
    in_memory,
    settled,
)
from vla_edge.engines.dialect import Dialect
from vla_edge.engines.engine import Engine, EngineOptions, backend_of, backends, load_engine
from vla_edge.engines.openvino import OpenVinoGraph
from vla_edge.errors import ConfigError, ExportError
from vla_edge.export.nvidia_verdict import verdicts
from vla_edge.export.weights import WeightFile
from vla_edge.files import new_folder
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession

Progress = Callable[[str], None]

ROUNDS = 3
"""Timed inferences of float32 and of the plan, in turn; medians are compared."""


@dataclass(frozen=True)
class PrecisionRequest:
    """precision: "fp16", "int8" or "auto". backend: what the graphs are for. data: LeRobot dataset, None for synthetic
    observations (a policy with random weights). cameras: policy name → dataset name. tolerance_s: of its pictures'
    times. ranges_file: kept there and gone on with after an interruption. frames, held_out: observations for ranges and
    for the action error."""

    precision: str
    backend: str = "ort"
    data: Path | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    tolerance_s: float = TOLERANCE_S
    bound: ActionErrorBound = ActionErrorBound()
    ranges_file: Path | None = None
    frames: int = 32
    held_out: int = 8
    threads: int = 0


def requantise(source: Path, out: Path, request: PrecisionRequest, progress: Progress) -> Manifest:
    """Write the bundle `out` from the float32 bundle `source`; returns its manifest.

    Errors: ConfigError for the request, ExportError when no plan holds the bound, when something runs in another
    precision than asked for, or when `out` exists; nothing is left behind then.
    """
    bundle = open_bundle(source)
    if any(name != "fp32" for name in bundle.manifest.precision.get("graphs", {}).values()):
        raise ConfigError(f"{source}: is {bundle.manifest.precision.get('requested')} already; give the float32 bundle")
    if request.precision == "fp16" and not dialect_of(request.backend).half:
        raise ExportError(
            f"fp16 on backend {request.backend}: this CPU has no half-precision products and would compute them in "
            "float32; choose fp32 or int8, or a GPU backend"
        )
    work = PrecisionWork(bundle, request, progress)
    with new_folder(out, ExportError) as folder:
        candidate, found = (all_half(work.groups()), None) if request.precision == "fp16" else work.int8()
        why_float32 = "no INT8 plan holds the bound"
        if candidate is not None:
            manifest = write_variant(work, candidate, folder)
            write_manifest(folder, manifest)
            manifest = work.prove(candidate, open_bundle(folder), found)
            slower = manifest.precision.get("slower_than_float32")
            if request.precision != "auto" or slower is None:
                write_manifest(folder, manifest)
                return manifest
            why_float32 = slower
            shutil.rmtree(folder / "graphs")
        shutil.copytree(source, folder, dirs_exist_ok=True)
        facts = {
            "requested": request.precision,
            "search": _tried(found),
            "bound": asdict(request.bound),
            "why_float32": why_float32,
        }
        manifest = replace(bundle.manifest, precision={**bundle.manifest.precision, **facts})
        write_manifest(folder, manifest)
    return manifest


def requantise_unproven(source: Path, out: Path, request: PrecisionRequest, progress: Progress) -> Manifest:
    """Write the bundle `out` in "fp16" or, by the dialect's finest plan, "int8", its error measured on nothing: for
    times of a policy with random weights."""
    work = PrecisionWork(open_bundle(source), request, progress)
    with new_folder(out, ExportError) as folder:
        candidate = all_half(work.groups()) if request.precision == "fp16" else work.finest()
        manifest = write_variant(work, candidate, folder)
        kind = request.precision
        facts = {"requested": kind, "graphs": dict.fromkeys(manifest.graphs, f"{kind}, not proven")}
        manifest = replace(manifest, precision=facts)
        write_manifest(folder, manifest)
    return manifest


class PrecisionWork:
    """One export: the float32 bundle, what it is measured on, and the search."""

    def __init__(self, bundle: Bundle, request: PrecisionRequest, progress: Progress) -> None:
        self.bundle, self.request, self.progress = bundle, request, progress
        backend, self.dialect = backend_of(request.backend), dialect_of(request.backend)
        self.graphs = {name: bundle.graph(name) for name in bundle.manifest.graphs}
        options = EngineOptions(threads=request.threads, spin=False)
        self.reference_engine = load_engine("ort", options)
        self.runs_here = backend.device == "cpu"
        if self.runs_here and backend.from_memory:  # candidates lie in memory
            self.candidate_engine = backend.open(options)
        else:
            self.candidate_engine = load_engine("ort-python", replace(options, fuse=self.runs_here))
        self.data: Split = _observations(bundle, request)
        self.ranges: Ranges | None = None
        self.folds: Folds | None = None

    def int8(self) -> tuple[Candidate | None, Search | None]:
        """The plan; None when `auto` finds float32 to be the better choice."""
        self._gather()
        if not self.dialect.int8:
            raise ConfigError(f"backend {self.request.backend} has no INT8 products; choose fp16")
        found = search(self.groups(), self.dialect, self.request.bound, self._measure)
        if found.chosen is None and self.request.precision == "int8":
            best = min(found.tried, key=lambda trial: trial.error.relative)
            if self.dialect.half and len(found.tried) == 1:
                raise ExportError(f"{self._missed('fp16', best.error)}; raise the bound, or export fp32")
            raise ExportError(
                f"no INT8 plan holds the bound (cosine {self.request.bound.cosine:g}, joint error "
                f"{self.request.bound.joint_p95:g} of range); the best, {best.candidate.name}, "
                f"has cosine {best.error.cosine:.5f} and {best.error.joint_p95:.4f}; raise the bound, or export fp32"
            )
        return (None if found.chosen is None else found.chosen.candidate), found

    def finest(self) -> Candidate:
        """The plan of the dialect's last shape, which a trained policy takes most often, without folding."""
        self._gather()
        *_, plain, _, _ = candidates(self.groups(), self.dialect)
        return plain

    def _gather(self) -> None:
        self.ranges = gather(
            self.bundle,
            load_engine("ort-python", EngineOptions(threads=self.request.threads, spin=False)),
            self.data.ranges,
            self.request.ranges_file,
            lambda done, of: self.progress(f"ranges: observation {done} of {of}"),
        )
        self.folds = folds_of(list(self.graphs.values()), self.ranges)

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """What an action error is measured against."""
        self.progress("float32 reference")
        return chunks(self.bundle, self.reference_engine, self.data.held_out)

    def settings(self, candidate: Candidate) -> VariantSettings:
        folds = self.folds if candidate.folded else None
        return VariantSettings(self.ranges, self.dialect.signed, folds, self.dialect.half)

    def prove(self, candidate: Candidate, written: Bundle, found: Search | None) -> Manifest:
        """Error, latency and audit of the written bundle, on the backend it is for. ExportError: it is not what was
        asked."""
        manifest = written.manifest
        facts: dict[str, Any] = {
            "requested": self.request.precision,
            "backend": self.request.backend,
            "plan": {name: str(choice) for name, choice in candidate.plan.items()},
            "folded": candidate.folded,
            "bound": asdict(self.request.bound),
            "data": {
                "ranges": self.data.ranges.source,
                "held_out": self.data.held_out.source,
                "digest": self.data.held_out.digest,
            },
            "ranges": None if self.ranges is None else {"digest": self.ranges.digest, "observations": self.ranges.seen},
            "search": _tried(found),
        }
        if not self.runs_here:
            error = self._error(written, self.candidate_engine)
            if not error.within(self.request.bound):
                missed = self._missed(self.request.precision, error)
                raise ExportError(f"{missed}; raise the bound, or export fp32")
            facts["graphs"] = dict.fromkeys(manifest.graphs, f"{self.request.precision}, not run here")
            not_run = (
                f"not audited: backend {self.request.backend} is not on this machine; action error measured on ort, "
                "as the graphs are written; not timed"
            )
            compiled = verdicts(written, self.progress) if backend_of(self.request.backend).builds else None
            facts["audit"] = not_run if compiled is None else {"not_run": not_run, **compiled}
            return replace(manifest, precision={**facts, "error": error.facts()})
        engine = load_engine(self.request.backend, EngineOptions(threads=self.request.threads, spin=False))
        self.progress("audit what really runs")
        audits = {
            name: self._audit(engine, self.graphs[name], written.graph(name), candidate.plan)
            for name in manifest.graphs
        }
        lost = [f"{audit.graph}: {node}" for audit in audits.values() for node in audit.fell_back]
        if lost:
            raise ExportError(
                f"{len(lost)} layers do not run in the precision they were asked for on {self.request.backend}, "
                f"first {lost[0]}; choose another precision or backend"
            )
        error = self._error(written, engine)
        if not error.within(self.request.bound):
            raise ExportError(
                f"the written bundle has cosine {error.cosine:.5f} and joint error {error.joint_p95:.4f}, outside "
                "the bound its plan held; report this"
            )
        facts["graphs"] = {name: str(audit) for name, audit in audits.items()}
        facts["audit"] = {
            name: {"share": dict(audit.share), "fell_back": list(audit.fell_back), "kernels": dict(audit.kernels)}
            for name, audit in audits.items()
        }
        facts["error"] = error.facts()
        took = facts["latency_ms"] = self._latency(written, engine)
        this, float32 = (took[name]["total"] for name in ("this", "fp32"))
        if this >= float32:
            facts["slower_than_float32"] = f"INT8 takes {this:.1f} ms here and float32 {float32:.1f} ms"
        return replace(manifest, precision=facts)

    def _missed(self, precision: str, error: ActionError) -> str:
        bound = self.request.bound
        return (
            f"{precision} for {self.request.backend} has cosine {error.cosine:.5f} and joint error "
            f"{error.joint_p95:.4f} of range on ort, outside the bound ({bound.cosine:g}, {bound.joint_p95:g})"
        )

    def groups(self) -> list[Weighted]:
        """Of all graphs, with how often each runs in one inference."""
        manifest, programme = self.bundle.manifest, self.bundle.manifest.programme
        runs = {programme.camera: len(manifest.cameras), programme.step: manifest.policy.num_steps}
        return [
            Weighted(group, runs.get(name, 1), programme.role(name))
            for name, graph in self.graphs.items()
            for group in groups_of(graph)
        ]

    def _measure(self, candidate: Candidate) -> ActionError:
        self.progress(f"try {candidate.name}")
        settings = self.settings(candidate)
        variants = {name: in_memory(graph, candidate.plan, settings) for name, graph in self.graphs.items()}
        return self._error(self.bundle, VariantEngine(self.candidate_engine, variants))

    def _error(self, bundle: Bundle, engine: Engine) -> ActionError:
        return action_error(chunks(bundle, engine, self.data.held_out), self.reference, joint_spans(self.bundle))

    def _audit(self, engine: Engine, source: GraphFile, variant: GraphFile, plan: Plan) -> GraphAudit:
        loaded = engine.load(variant)
        if isinstance(loaded, OpenVinoGraph):
            return audit_openvino(source, loaded.executed_layers(), plan)
        return audit_ort(source, variant, plan)

    def _latency(self, written: Bundle, engine: Engine) -> dict[str, dict[str, float]]:
        """Median ms of each graph in float32 on ONNX Runtime and in the written bundle, run in turn."""
        self.progress("latency")
        sessions = {"fp32": PolicySession(self.bundle, self.reference_engine), "this": PolicySession(written, engine)}
        taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in sessions}
        data = self.data.held_out
        for number in range(ROUNDS + 1):
            for name, session in sessions.items():
                result = session.infer(InferenceRequest(data.observations[0], 0, noise=data.noise[0]))
                assert result is not None
                timing = result.timings
                if number:
                    taken[name].append(
                        (timing.vision, timing.prefix, timing.state, statistics.median(timing.step), timing.total)
                    )
        graphs = ("vision", "prefix", "state", "expert", "total")
        return {
            name: {graph: round(statistics.median(column), 3) for graph, column in zip(graphs, zip(*rows))}
            for name, rows in taken.items()
        }


def write_variant(work: PrecisionWork, candidate: Candidate, folder: Path) -> Manifest:
    """The graphs of the plan under graphs/PRECISION/, everything else copied."""
    kind = work.request.precision if work.request.precision != "auto" else "int8"
    place = folder / "graphs" / kind
    place.mkdir(parents=True)
    settings, specs = work.settings(candidate), {}
    own = f"graphs/{kind}/{kind}.bin"
    with WeightFile(folder / own) as weights:
        for name, graph in work.graphs.items():
            work.progress(f"write {name}")
            model = settled(
                build(graph, candidate.plan, settings, weights),
                weight_arrays(graph, onnx.load_from_string(graph.model)),
                Path(own).name,
                weights,
            )
            file = f"graphs/{kind}/{name}.onnx"
            (folder / file).write_bytes(model.SerializeToString())
            outside = any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer)
            specs[name] = GraphSpec(file, (own,) if outside else (), graph.spec.inputs, graph.spec.outputs)
    for spec in specs.values():
        onnx.checker.check_model(str(folder / spec.file), full_check=True)
    old = {file for spec in work.bundle.manifest.graphs.values() for file in (spec.file, *spec.weights)}
    others = [name for name in work.bundle.manifest.files if name not in old]
    for name in others:
        shutil.copyfile(work.bundle.path / name, folder / name)
    files = sorted({*others, own, *(spec.file for spec in specs.values())})
    return replace(work.bundle.manifest, graphs=specs, files={name: file_sha256(folder / name) for name in files})


def dialect_of(backend: str) -> Dialect:
    """ConfigError names the backends that graphs are prepared for."""
    dialect = backend_of(backend).dialect
    if dialect is None:
        others = (name for name, other in backends().items() if other.dialect)
        raise ConfigError(f"no graphs are prepared for backend {backend}; choose one of {', '.join(others)}")
    return dialect


def _observations(bundle: Bundle, request: PrecisionRequest) -> Split:
    if request.data is None:
        return Split(synthetic(bundle, request.frames, 1), synthetic(bundle, request.held_out, 0))
    return from_dataset(bundle, request.data, request.cameras, request.frames, request.held_out, request.tolerance_s)


def _tried(found: Search | None) -> list[dict[str, Any]]:
    tried = () if found is None else found.tried
    return [{"plan": trial.candidate.name, "cost": round(trial.cost, 4), **trial.error.facts()} for trial in tried]
