# SPDX-License-Identifier: Apache-2.0
"""The exported folder: manifest, hashes, shapes.

A bundle is read by checking the sha256 of every file on the very bytes that are used. Facts of the policy that the
runtime needs stand in the manifest, in what order its graphs run too; arrays stand in `tables.safetensors`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_edge.camera_names import EMPTY_CAMERA
from vla_edge.errors import BundleError, ObservationError
from vla_edge.fields import build, parse_json
from vla_edge.files import json_text, write_bytes

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_FLOW_STEPS = 64
"""Euler steps that the native loops have tables for (`FLOW_MAX_STEPS` in runtime/core/policy/flow.h)."""
TABLES = "tables.safetensors"
TOKENIZER = "tokenizer.json"
AGAIN = "export the bundle again"
MIN_FPS, MAX_FPS = 0.1, 1000.0
UNKNOWN_RATE = (
    "the bundle does not say how many actions a second its policy's data has: each control tick takes one; "
    "`export-engines` with --fps N, or with --dataset, writes it down"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, static shape and numpy dtype name of one graph input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX graph: its file and the files of its external data, relative to the bundle."""

    file: str
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """One camera the policy sees, in slot order; `source` is its name before `rename_map`. `seen`: height and width are
    those of the training data; otherwise nobody knows them. in_data: what the data given at export calls it, where that
    is neither (`--camera`)."""

    name: str
    source: str
    height: int
    width: int
    seen: bool = True
    in_data: str = ""

    @property
    def placeholder(self) -> bool:
        """One of the policy's `empty_cameras`: no picture is expected of it, and one may be given."""
        return self.name.startswith(EMPTY_CAMERA)


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """How the task text becomes ids: `padding` is "longest" or "max_length", sides "left" or "right". No `file`: the
    policy takes no text."""

    file: str
    max_length: int
    padding: str
    padding_side: str
    truncation_side: str
    pad_id: int
    append_newline: bool


@dataclass(frozen=True, slots=True)
class NormalizationSpec:
    """How one feature is normalised: `mode` is MEAN_STD, MIN_MAX or IDENTITY; `eps` is added to std before dividing. A
    camera that is named has its channels, 0..1, normalised so; one that is not is scaled to −1..1."""

    feature: str
    mode: str
    eps: float


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """The numbers of the policy that the runtime needs; symbols as in docs/design.md. vlm_width: of a picture's tokens.
    What stands at 0 a family need not have: a prefix with K/V, an expert. relative_joints: indices of the actions that
    count from the state of the observation they were planned from. ensemble_coefficient: LeRobot's
    `temporal_ensemble_coeff`, None without. distilled: trained to make its chunk in num_steps steps, in no others."""

    type: str
    chunk_size: int
    n_action_steps: int
    num_steps: int
    min_steps: int
    state_dim: int
    action_dim: int
    max_state_dim: int
    max_action_dim: int
    image_height: int
    image_width: int
    tokens_per_image: int
    vlm_width: int
    image_start_tokens: int = 0
    image_end_tokens: int = 0
    empty_cameras: int = 0
    prefix_rows: int = 0
    key_rows: int = 0
    expert_width: int = 0
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    self_layers: tuple[int, ...] = ()
    cross_layers: tuple[int, ...] = ()
    resize_with_padding: bool = True
    adapt_to_pi_aloha: bool = False
    relative_joints: tuple[int, ...] = ()
    ensemble_coefficient: float | None = None
    distilled: bool = False

    def checked_steps(self, wanted: int | None) -> int:
        """Euler steps of a chunk, None: the policy's own. ObservationError: not a count that it can take."""
        steps = self.num_steps if wanted is None else wanted
        if self.min_steps <= steps <= self.num_steps:
            return steps
        if self.distilled:
            known = f"was distilled to {self.num_steps}: ask for no other, or export the policy it was made of"
            raise ObservationError(f"steps is {steps}; this policy {known}")
        taken = "takes no other than 1" if self.num_steps == 1 else f"takes {self.min_steps} to {self.num_steps}"
        raise ObservationError(f"steps is {steps}; this bundle {taken}")

    @property
    def kv_rows(self) -> int:
        """Rows of every K/V tensor: the prefix's, the state's, and padding that is masked."""
        return self.key_rows or self.prefix_rows + 1


@dataclass(frozen=True, slots=True)
class Programme:
    """Which of a bundle's graphs run when, in this order, and so how long what they made may be used.

    camera: once for each camera whose picture changed, into that camera's rows of `image_tokens`. scene: when a
    picture, the instruction or the set of cameras changed; K/V and gate features stay until then. moment: in every
    inference, on the joint state; an output `state_NAME` becomes the row behind the prefix of tensor NAME. step: once
    an Euler step, `x` → `x_next`, with `time_bias` and `dt` for every row of the chunk; it draws x to `target` first,
    by `weights` (graphs of before have neither, and one row of the others); without a step the last moment graph makes
    the `chunk`. correct: in place of the steps where a queued `chunk` is `corrected`. ValueError: a step without one
    scene and one moment graph, which the loops of steps run.
    """

    camera: str
    scene: tuple[str, ...]
    moment: tuple[str, ...]
    step: str = ""
    correct: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.step and not len(self.scene) == len(self.moment) == 1:
            raise ValueError("a programme with a step has one scene graph and one moment graph")
        if not self.moment:
            raise ValueError("a programme without a moment graph makes no action")

    def order(self) -> tuple[str, ...]:
        """Every graph it runs."""
        steps = (self.step,) if self.step else ()
        return (self.camera, *self.scene, *self.moment, *steps, *self.correct)

    def role(self, graph: str) -> str:
        """The field that names it: "camera", "scene", "moment", "step" or "correct"."""
        several = {name: role for role in ("scene", "moment", "correct") for name in getattr(self, role)}
        return {self.camera: "camera", self.step: "step", **several}[graph]


def smolvla_programme(graphs: Iterable[str]) -> Programme:
    """Of SmolVLA's graphs, `delta_kv` and `delta` where they are there; what a manifest without a programme means."""
    correct = tuple(name for name in ("delta_kv", "delta") if name in set(graphs))
    return Programme("vision", ("prefix",), ("state",), "expert", correct)


TRAIN_DELTA = (
    "train one with `vla-train fine-tune --kind delta --checkpoint CHECKPOINT --dataset DATASET` and export it"
)


@dataclass(frozen=True, slots=True)
class CorrectionSpec:
    """What is known of the graphs that correct a queued chunk. target: what they were taught to take away, "stale" (a
    chunk's age, which is what the runtime asks of them) or "noise". relative_error: on held-out frames, their error
    divided by that of no correction; None: never measured, or no number came of it."""

    target: str
    relative_error: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything `manifest.json` holds. `joints`: names in the order of state and action, with `joint_units`
    "degrees", "range_m100_100" or "unknown". `fps`: actions a second in the data the policy was trained on; None:
    unknown, also where an older bundle does not say. `robot_type`: LeRobot's name of its robot; "": unknown."""

    policy: PolicySpec
    cameras: tuple[CameraSpec, ...]
    joints: tuple[str, ...]
    joint_units: str
    tokenizer: TokenizerSpec
    normalization: tuple[NormalizationSpec, ...]
    graphs: Mapping[str, GraphSpec]
    files: Mapping[str, str]
    checkpoint: Mapping[str, Any]
    parity: Mapping[str, Any]
    precision: Mapping[str, Any]
    gate: Mapping[str, Any]
    tools: Mapping[str, str]
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA
    programme: Programme = smolvla_programme(())
    fps: float | None = None
    correction: CorrectionSpec | None = None
    robot_type: str = ""

    @property
    def why_not_delta(self) -> str:
        """Why queued chunks are not to be corrected by this bundle, in words; "" where they may be."""
        if not self.programme.correct:
            return "the bundle has no delta expert"
        correction = self.correction
        if correction is None or correction.relative_error is None:
            return "the delta expert's error was never measured on held-out episodes"
        if correction.target == "noise":
            return "the delta expert was taught to take away noise, not a chunk's age"
        if not correction.relative_error < 1:
            return (
                f"the delta expert's held-out error is {correction.relative_error:.2f} of that of no correction, it "
                "must be below 1"
            )
        return ""

    @property
    def reads_text(self) -> bool:
        """Whether the policy reads what it shall do; one that does not has one task, that of its data."""
        return bool(self.tokenizer.file)


@dataclass(frozen=True)
class GraphFile:
    """A graph's verified bytes: the model and its external data as read-only maps by file name. verified: sha256 by
    file name of external data that was compared with the manifest; empty where it was made or changed in memory."""

    name: str
    spec: GraphSpec
    path: Path
    model: bytes
    weights: Mapping[str, memoryview]
    verified: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `digest` is the sha256 of the manifest's bytes."""

    path: Path
    manifest: Manifest
    digest: str
    _verified: dict[str, memoryview] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> memoryview:
        """The bytes of one file of the bundle, hashed on this very mapping. BundleError names a file that differs."""
        if name not in self._verified:
            expected = self.manifest.files.get(name)
            if expected is None:
                raise BundleError(f"{self.path}: manifest lists no file {name}; export the bundle again")
            data = _map(self.path / name)
            if hashlib.sha256(data).hexdigest() != expected:
                raise BundleError(
                    f"{self.path / name}: sha256 differs from the manifest, the file is damaged or was changed; copy "
                    "or export the bundle again"
                )
            self._verified[name] = data
        return self._verified[name]

    def graph(self, name: str) -> GraphFile:
        """The verified graph `name`; BundleError lists the graphs there are."""
        spec = self.manifest.graphs.get(name)
        if spec is None:
            raise BundleError(f"{self.path}: no graph {name!r}; it holds {', '.join(sorted(self.manifest.graphs))}")
        weights = {Path(file).name: self.read(file) for file in spec.weights}
        verified = {Path(file).name: self.manifest.files[file] for file in spec.weights}
        return GraphFile(name, spec, self.path / spec.file, bytes(self.read(spec.file)), weights, verified)

    def verify(self) -> None:
        """Hash every file the manifest lists."""
        for name in self.manifest.files:
            self.read(name)


def open_bundle(path: Path | str) -> Bundle:
    """Read and check the manifest of the bundle at `path`. Errors: BundleError (missing, other schema, bad field)."""
    folder = Path(path)
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder}: no {MANIFEST}; give a folder written by export-engines")
    data = file.read_bytes()
    content = parse_json(data, file, BundleError, "copy or export the bundle again")
    return Bundle(folder, _manifest(content, file), hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write `manifest.json` into `folder`; returns the bundle digest."""
    data = (json_text(asdict(manifest), 1, sort_keys=True) + "\n").encode()
    write_bytes(folder / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _map(path: Path) -> memoryview:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise BundleError(f"{path}: no regular file; copy or export the bundle again")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BundleError(f"{path}: missing; copy or export the bundle again") from None


def _manifest(content: Any, file: Path) -> Manifest:
    if not isinstance(content, dict) or type(content.get("schema")) is not int:  # true would count as 1
        raise BundleError(f"{file}: no schema number; this is not a bundle's manifest")
    if content["schema"] != SCHEMA:
        age = "newer" if content["schema"] > SCHEMA else "older"
        advice = "update vla-edge" if age == "newer" else "export the bundle again"
        raise BundleError(
            f"{file}: schema {content['schema']} is {age} than {SCHEMA}, the one this version reads; {advice}"
        )
    manifest = build(Manifest, content, file, BundleError, AGAIN)
    if "programme" not in content:  # written before there was one
        manifest = replace(manifest, programme=smolvla_programme(manifest.graphs))
    if "stages" in manifest.parity:  # as graphs were called before
        rest = {name: value for name, value in manifest.parity.items() if name != "stages"}
        manifest = replace(manifest, parity={**rest, "graphs": manifest.parity["stages"]})
    if manifest.fps is not None and not MIN_FPS <= manifest.fps <= MAX_FPS:
        raise BundleError(f"{file}: fps is {manifest.fps:g}, must be {MIN_FPS:g} to {MAX_FPS:g}, or null; {AGAIN}")
    for name in manifest.files:
        if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{file}: files names {name!r}, which is not a file inside the bundle; {AGAIN}")
    return manifest
