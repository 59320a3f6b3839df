"""What a TensorRT plan binds to, kept beside it, and compared field by field before a byte of it is used.

A plan is executable code for one TensorRT version, GPU architecture and
operating system. It lies in a folder `tensorrt` (mode 0700) beside its ONNX
graph, with a sidecar `GRAPH.json`; neither is part of the bundle's digest,
because both belong to one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vla_edge.bundle import MANIFEST, GraphFile, TensorSpec
from vla_edge.engines.tensorrt.cuda import GpuFacts
from vla_edge.errors import EngineError
from vla_edge.files import write_bytes

SCHEMA = 1
FLAGS = ("max_aux_streams=0", "no TF32", "optimization level 3", "strongly typed")
"""How every plan is built (trt_build.py)."""

AGAIN = "build it on this machine: export-engines --bundle BUNDLE --backend tensorrt"


@dataclass(frozen=True, slots=True)
class PlanIdentity:
    """Everything a plan depends on. onnx_sha256: over the graph's bytes and its external data; precision_sha256: of the
    manifest's precision plan with the digest of its ranges; l4t: "" where this is no Jetson."""

    onnx_sha256: str
    precision_sha256: str
    tensorrt: str
    cuda: str
    driver: str
    os: str
    architecture: str
    l4t: str
    gpu: str
    compute_capability: str
    sm_count: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The JSON beside a plan. device_memory: bytes of scratch that a context needs; weights: bytes the plan holds;
    layers: how many layers the inspector saw by the type they compute in."""

    graph: str
    plan_sha256: str
    identity: PlanIdentity
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device_memory: int
    weights: int
    layers: Mapping[str, int]
    schema: int = SCHEMA


def identity_of(graph: GraphFile, tensorrt: str, gpu: GpuFacts) -> PlanIdentity:
    """What a plan of `graph` must have been built for to run here."""
    return PlanIdentity(
        onnx_sha256=onnx_digest(graph),
        precision_sha256=precision_digest(graph),
        tensorrt=tensorrt,
        cuda=gpu.cuda,
        driver=gpu.driver,
        os=system_name(),
        architecture=platform.machine(),
        l4t=l4t_release(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        sm_count=gpu.sm_count,
        flags=FLAGS,
    )


def plan_folder(graph: GraphFile) -> Path:
    return graph.path.parent / "tensorrt"


def make_private(folder: Path) -> None:
    """Make the plan folder, readable by its owner only. EngineError: it is someone else's or cannot be made so."""
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    check_private(folder)


def check_private(folder: Path) -> None:
    """EngineError unless the folder is this user's own with mode 0700: whoever can write there can run code here."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        raise EngineError(f"{folder}: no TensorRT plans; {AGAIN}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        mode = stat.S_IMODE(found.st_mode)
        raise EngineError(
            f"{folder}: plans are executable code, the folder must be a folder of this user with mode 0700 (owner "
            f"{found.st_uid}, mode {mode:04o}); remove it and {AGAIN}"
        )


def write_plan(graph: GraphFile, plan: bytes, sidecar: Sidecar) -> Path:
    """Write plan and sidecar by renaming, the sidecar last: a plan without its sidecar counts as not built."""
    folder = plan_folder(graph)
    make_private(folder)
    target = folder / f"{graph.name}.plan"
    write_bytes(target, plan)
    write_bytes(target.with_suffix(".json"), (json.dumps(asdict(sidecar), indent=1, sort_keys=True) + "\n").encode())
    return target


def read_plan(graph: GraphFile, identity: PlanIdentity) -> tuple[bytes, Sidecar]:
    """The plan's bytes, hashed as they are returned, and its sidecar.

    EngineError names the first field in which plan and machine (or graph) differ.
    """
    folder = plan_folder(graph)
    check_private(folder)
    sidecar = read_sidecar(folder / f"{graph.name}.json")
    check_sidecar(sidecar, graph, identity, folder / f"{graph.name}.plan")
    try:
        plan = (folder / f"{graph.name}.plan").read_bytes()
    except FileNotFoundError:
        raise EngineError(f"{folder / graph.name}.plan: missing; {AGAIN}") from None
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise EngineError(
            f"{folder / graph.name}.plan: plan_sha256 differs from its sidecar, the file is damaged or was changed; "
            f"{AGAIN}"
        )
    return plan, sidecar


def check_sidecar(sidecar: Sidecar, graph: GraphFile, identity: PlanIdentity, plan: Path) -> None:
    """EngineError names the field that does not fit."""
    expected: dict[str, Any] = {"graph": graph.name, "inputs": graph.spec.inputs, "outputs": graph.spec.outputs}
    found = {name: getattr(sidecar, name) for name in expected}
    expected |= asdict(identity)
    found |= asdict(sidecar.identity)
    for name, value in expected.items():
        if found[name] != value:
            raise EngineError(f"{plan}: {name} is {_words(found[name])} in the plan and {_words(value)} here; {AGAIN}")


def read_sidecar(file: Path) -> Sidecar:
    """EngineError: missing, not JSON, another schema, or a field that is missing, unknown or of the wrong type."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"{file}: missing; {AGAIN}") from None
    except ValueError as error:
        raise EngineError(f"{file}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise EngineError(
            f"{file}: schema is {content.get('schema') if isinstance(content, dict) else 'missing'}, this version "
            f"reads {SCHEMA}; {AGAIN}"
        )
    try:
        values = dict(content)
        values["identity"] = _built(PlanIdentity, {**values["identity"], "flags": tuple(values["identity"]["flags"])})
        for name in ("inputs", "outputs"):
            values[name] = tuple(_built(TensorSpec, {**item, "shape": tuple(item["shape"])}) for item in values[name])
        sidecar: Sidecar = _built(Sidecar, values)
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{file}: field {error} is missing or wrong; {AGAIN}") from None
    return sidecar


def onnx_digest(graph: GraphFile) -> str:
    """sha256 over the model and each external file with its name."""
    digest = hashlib.sha256(graph.model)
    for name in sorted(graph.weights):
        digest.update(f"\0{name}\0{len(graph.weights[name])}\0".encode())
        digest.update(graph.weights[name])
    return digest.hexdigest()


def precision_digest(graph: GraphFile) -> str:
    """sha256 of the manifest's `precision` (plan and ranges), canonical JSON. EngineError: no manifest above the
    graph."""
    root = graph.path.parents[len(Path(graph.spec.file).parts) - 1]
    try:
        content = json.loads((root / MANIFEST).read_bytes())
        text = json.dumps(content["precision"], sort_keys=True, separators=(",", ":"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{root / MANIFEST}: no precision plan to compare the engine with ({error}); export the bundle again"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()


def system_name() -> str:
    """The distribution, "Ubuntu 22.04"; the kernel's name where it does not say."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return f"{release.get('NAME', platform.system())} {release.get('VERSION_ID', '')}".strip()


def l4t_release(file: Path = Path("/etc/nv_tegra_release")) -> str:
    """Jetson Linux as "36.4.3", "" where this is no Jetson."""
    try:
        text = file.read_text()
    except OSError:
        return ""
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else text.splitlines()[0][:80]


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    kinds = {"str": str, "int": int}
    for item in fields(kind):
        wanted = kinds.get(str(item.type))
        if item.name not in values or (wanted and type(values[item.name]) is not wanted):
            raise KeyError(item.name)
    unknown = set(values) - {item.name for item in fields(kind)}
    if unknown:
        raise KeyError(sorted(unknown)[0])
    return kind(**values)


def _words(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], TensorSpec):
        return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in value)
    return repr(list(value) if isinstance(value, tuple) else value)
