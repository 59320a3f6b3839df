# SPDX-License-Identifier: Apache-2.0
"""What an engine file binds to, kept beside it, and compared field by field before a byte of it is used.

An engine file is executable code for one TensorRT version, GPU architecture and
operating system (TensorRT-RTX's run on every RTX card). It lies in a folder
named like its compiler (mode 0700) beside its ONNX graph, with a sidecar
`GRAPH.json`; neither is part of the bundle's digest, because both belong to
one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla_edge.bundle import MANIFEST, GraphFile, TensorSpec
from vla_edge.engines.tensorrt.cuda import GpuFacts
from vla_edge.errors import EngineError
from vla_edge.fields import build, read_object
from vla_edge.files import json_text, write_bytes

SCHEMA = 1
FLAGS = ("max_aux_streams=0", "no TF32", "optimization level 3", "strongly typed")
"""How every engine file is built (engine_build.py)."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """NVIDIA's compiler. name: "tensorrt" or "tensorrt-rtx", also the backend and the folder; portable: its engine
    files do not bind to one GPU and are built without any."""

    name: str
    version: str
    portable: bool
    module: Any = field(compare=False, repr=False)

    @property
    def again(self) -> str:
        where = "" if self.portable else " on this machine"
        return f"build it{where}: export-engines --bundle BUNDLE --backend {self.name}"


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Everything an engine file depends on. onnx_sha256: over the digests of the graph and its external data;
    precision_sha256: of the manifest's precision plan with the digest of its ranges; l4t: "" where this is no Jetson;
    cuda, driver, gpu, compute_capability are "" and sm_count 0 in a portable one."""

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
    """The JSON beside an engine file. device_memory: bytes of scratch that a context needs; weights: bytes it holds;
    layers: how many layers the inspector saw by the type they compute in."""

    graph: str
    engine_sha256: str
    identity: EngineIdentity
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device_memory: int
    weights: int
    layers: Mapping[str, int]
    schema: int = SCHEMA


def identity_of(graph: GraphFile, compiler: Compiler, gpu: GpuFacts | None) -> EngineIdentity:
    """What an engine file of `graph` must have been built for to run here. gpu: not needed for a portable one."""
    bound = None if compiler.portable else gpu
    return EngineIdentity(
        onnx_sha256=onnx_digest(graph),
        precision_sha256=precision_digest(graph),
        tensorrt=f"{compiler.name} {compiler.version}",
        cuda="" if bound is None else bound.cuda,
        driver="" if bound is None else bound.driver,
        os=system_name(),
        architecture=platform.machine(),
        l4t=l4t_release(),
        gpu="" if bound is None else bound.name,
        compute_capability="" if bound is None else bound.compute_capability,
        sm_count=0 if bound is None else bound.sm_count,
        flags=FLAGS,
    )


def engine_folder(graph: GraphFile, compiler: Compiler) -> Path:
    return graph.path.parent / compiler.name


def make_private(folder: Path) -> None:
    """Make the folder of engine files, readable by its owner only. EngineError: it is someone else's or cannot be made
    so."""
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    check_private(folder, "remove it and build again")


def check_private(folder: Path, again: str) -> None:
    """EngineError unless the folder is this user's own with mode 0700: whoever can write there can run code here."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        raise EngineError(f"{folder}: no engine files; {again}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        mode = stat.S_IMODE(found.st_mode)
        raise EngineError(
            f"{folder}: engine files are executable code, the folder must be a folder of this user with mode 0700 "
            f"(owner {found.st_uid}, mode {mode:04o}); remove it and {again}"
        )


def write_engine(folder: Path, data: bytes, sidecar: Sidecar) -> Path:
    """Write engine file and sidecar by renaming, the sidecar last: one without its sidecar counts as not built."""
    make_private(folder)
    target = folder / f"{sidecar.graph}.engine"
    write_bytes(target, data)
    write_bytes(target.with_suffix(".json"), (json_text(asdict(sidecar), 1, sort_keys=True) + "\n").encode())
    return target


def fitting_sidecar(graph: GraphFile, compiler: Compiler, gpu: GpuFacts) -> Sidecar:
    """The sidecar of the graph's engine file, which fits this machine and this graph.

    EngineError names the first field in which they differ.
    """
    folder = engine_folder(graph, compiler)
    check_private(folder, compiler.again)
    sidecar = read_sidecar(folder / f"{graph.name}.json", compiler.again)
    expected: dict[str, Any] = {"graph": graph.name, "inputs": graph.spec.inputs, "outputs": graph.spec.outputs}
    found = {name: getattr(sidecar, name) for name in expected}
    expected |= asdict(identity_of(graph, compiler, gpu))
    found |= asdict(sidecar.identity)
    for name, value in expected.items():
        if found[name] != value:
            raise EngineError(
                f"{folder / graph.name}.engine: {name} is {_words(found[name])} in the engine file and "
                f"{_words(value)} here; {compiler.again}"
            )
    return sidecar


def read_engine(graph: GraphFile, compiler: Compiler, sidecar: Sidecar) -> bytes:
    """The engine file's bytes, hashed as they are returned. EngineError: missing, or not the sidecar's."""
    file = engine_folder(graph, compiler) / f"{graph.name}.engine"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise EngineError(f"{file}: missing; {compiler.again}") from None
    if hashlib.sha256(data).hexdigest() != sidecar.engine_sha256:
        raise EngineError(
            f"{file}: engine_sha256 differs from its sidecar, the file is damaged or was changed; {compiler.again}"
        )
    return data


def read_sidecar(file: Path, again: str) -> Sidecar:
    """EngineError: missing, not JSON, another schema, or a field that is missing, unknown or of the wrong type."""
    content = read_object(file, EngineError, again)
    if content.get("schema") != SCHEMA:
        raise EngineError(f"{file}: schema is {content.get('schema')}, this version reads {SCHEMA}; {again}")
    return build(Sidecar, content, file, EngineError, again)


def onnx_digest(graph: GraphFile) -> str:
    """sha256 over the model and the digest of each external file with its name; what the bundle has verified is not
    hashed again."""
    digest = hashlib.sha256(graph.model)
    for name, data in sorted(graph.weights.items()):
        found = graph.verified.get(name) or hashlib.sha256(data).hexdigest()
        digest.update(f"\0{name}\0{found}".encode())
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


def _words(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], TensorSpec):
        return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in value)
    return repr(list(value) if isinstance(value, tuple) else value)
