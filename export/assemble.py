# SPDX-License-Identifier: Apache-2.0
"""Checkpoint in, bundle out: builds the graphs, writes the folder, proves it against torch.

The bundle is written to a temporary sibling and renamed only after every graph
passed the checker, the lint and the comparison of `proof.py`. What depends on the policy's family is its `Exporter`'s.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.numpy import save

from vla_edge import __version__
from vla_edge.bundle import (
    TABLES,
    TOKENIZER,
    CameraSpec,
    GraphSpec,
    Manifest,
    NormalizationSpec,
    TokenizerSpec,
    file_sha256,
    open_bundle,
    write_manifest,
)
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import CheckpointError, ExportError
from vla_edge.export.family import Cut, Exporter, exporter_of
from vla_edge.export.graph import Graph
from vla_edge.export.lerobot_files import LEROBOT_FILES, write_lerobot_files
from vla_edge.export.lint import lint
from vla_edge.export.proof import compare
from vla_edge.export.proof_observations import (
    NUMBERED,
    Case,
    Recording,
    camera_specs,
    data_fps,
    data_robot,
    joint_names,
    recorded_cases,
    synthetic_cases,
    task_texts,
)
from vla_edge.export.weights import WeightFile
from vla_edge.files import new_folder
from vla_edge.policies.checkpoint import MODEL_FILE
from vla_edge.policies.checkpoint_folder import checkpoint_name, resolve_checkpoint
from vla_edge.policies.families import Policy
from vla_edge.policies.tokenizer import TaskTokenizer
from vla_edge.runtime.inference.units import resting, resting_sentence

FOLLOWER_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""Of LeRobot's followers with six servos: Koch, SO-100 and SO-101 name them alike."""
GRAPHS = "graphs"
WEIGHTS = "graphs/weights.bin"

Progress = Callable[[str], None]
"""Told what begins now, in words."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """checkpoint: a folder as LeRobot saves it, or a Hub id at `revision`; out: the bundle's folder, must not exist.
    vlm: where the backbone's config and tokenizer lie, None to look where the checkpoint says. recording: a dataset
    for more parity cases and the joints' names. threads: for the parity runs, 0 all cores. joint_units: "degrees",
    "range_m100_100" or "unknown", written into the manifest. base: the policy that a LoRA folder adapts, None where
    the adapter says. outputs_are_joint_values: actions without statistics are what the arm is sent, as they come.
    fps: actions a second in the policy's data, "unknown", or None: the recording's. take_empty_cameras: the policy's
    `empty_cameras` are cameras that a picture may be given to. step_sizes: of n Euler steps that are not equally long,
    their shares of the way; runs of n steps take them. chunk_size: compute the first so many actions of the policy's
    chunk, None for all."""

    checkpoint: Path
    out: Path
    vlm: Path | None = None
    recording: Recording | None = None
    threads: int = 0
    joint_units: str = "unknown"
    base: Path | None = None
    outputs_are_joint_values: bool = False
    fps: float | str | None = None
    revision: str = ""
    take_empty_cameras: bool = False
    step_sizes: tuple[float, ...] = ()
    chunk_size: int | None = None


def export_bundle(request: ExportRequest, progress: Progress) -> Manifest:
    """Write the bundle and return its manifest.

    Errors: CheckpointError and ConfigError for the checkpoint, ExportError when the folder exists, cannot be written
    or a graph misses its tolerance; nothing is left behind then.
    """
    progress("read the checkpoint")
    request = replace(request, checkpoint=resolve_checkpoint(request.checkpoint, request.revision))
    exporter = _exporter(request)
    policy = exporter.policy
    _check_outputs(policy, request)
    exporter.check(request.checkpoint, request.step_sizes)
    if request.take_empty_cameras:
        exporter.take_empty_cameras(request.checkpoint)
    cameras = camera_specs(policy, request.recording, exporter.placeholder_size)
    try:
        with new_folder(request.out, ExportError) as folder, torch.inference_mode():
            cases = list(_cases(exporter, cameras, request.recording))
            manifest = write_graphs(exporter, cameras, request, folder, progress)
            write_manifest(folder, manifest)
            engine = load_engine("ort", EngineOptions(threads=request.threads, spin=False))
            report = compare(exporter, open_bundle(folder), engine, cases, progress)
            manifest = replace(manifest, parity=report)
            write_manifest(folder, manifest)
    except OSError as error:
        raise ExportError(
            f"{request.out}: cannot be written: {error.strerror or error}; free space or choose another folder, "
            "nothing was left behind"
        ) from None
    return manifest


def export_unproven(request: ExportRequest, progress: Progress) -> Manifest:
    """As `export_bundle`, but compared with nothing: for counts and times of a policy with random weights."""
    exporter = _exporter(request)
    with new_folder(request.out, ExportError) as folder, torch.inference_mode():
        cameras = camera_specs(exporter.policy, request.recording, exporter.placeholder_size)
        manifest = write_graphs(exporter, cameras, request, folder, progress)
        write_manifest(folder, manifest)
    return manifest


def _exporter(request: ExportRequest) -> Exporter:
    """Of the checkpoint, with as many of its actions as were asked for."""
    exporter = exporter_of(request.checkpoint, request.vlm, request.base)
    if request.chunk_size is not None:
        exporter.shorten_chunk(request.checkpoint, request.chunk_size)
    return exporter


def _check_outputs(policy: Policy, request: ExportRequest) -> None:
    """CheckpointError: nobody knows in what units the actions come out."""
    unknown = policy.settings.unknown_outputs
    if unknown and not request.outputs_are_joint_values:
        raise CheckpointError(
            f"{request.checkpoint}: {unknown}; an arm would be sent normalised values: put the right statistics under "
            "that name, or give --outputs-are-joint-values if the network was trained on joint values as they are"
        )


def _resting(policy: Policy, joints: tuple[str, ...]) -> Iterator[str]:
    """A note for each joint of the state whose statistics have no spread."""
    by = policy.settings.state
    for index in resting(by.low, by.high, by.mode):
        yield resting_sentence(joints[index] if index < len(joints) else f"dimension {index}")


def _camera_notes(cameras: tuple[CameraSpec, ...]) -> Iterator[str]:
    if not all(camera.seen or camera.placeholder for camera in cameras):
        yield (
            "config.json says 256×256 for every camera, as each fine-tune of smolvla_base does: the size of the data's "
            "pictures is not known, any is scaled; give --dataset to hold cameras against it"
        )


def _task_notes(policy: Policy, recording: Recording | None) -> list[str]:
    """Tasks of the recording, else one with numbers, that LeRobot's newer tokenizer library reads otherwise."""
    tasks = [NUMBERED] if recording is None else task_texts(recording)
    tokenizer = policy.settings.tokenizer
    return TaskTokenizer(tokenizer).read_otherwise(tasks) if tokenizer is not None else []


def write_graphs(
    exporter: Exporter, cameras: tuple[CameraSpec, ...], request: ExportRequest, folder: Path, progress: Progress
) -> Manifest:
    """Graphs, weights, tables and tokenizer into `folder`; the manifest says nothing yet of parity."""
    policy = exporter.policy
    joints, notes = _joints(policy, request.recording)
    notes = (*notes, *_resting(policy, joints), *_camera_notes(cameras), *_task_notes(policy, request.recording))
    (folder / GRAPHS).mkdir()
    graphs: dict[str, GraphSpec] = {}
    with WeightFile(folder / WEIGHTS) as weights:
        for cut in exporter.cuts():
            progress(f"build {cut.name}")
            try:
                graphs[cut.name] = _write_graph(cut, weights, folder)
            except ExportError as error:
                raise _named(error, policy, request.checkpoint) from None
    for spec in graphs.values():
        onnx.checker.check_model(str(folder / spec.file), full_check=True)
    progress("write tables and tokenizer")
    (folder / TABLES).write_bytes(save({**exporter.tables(request.step_sizes), **_statistics(policy)}))
    tokenizer = _tokenizer(policy, folder)
    policy_numbers = exporter.spec()
    write_lerobot_files(folder, policy_numbers, cameras)
    files = sorted({TABLES, WEIGHTS, *LEROBOT_FILES, tokenizer.file, *(spec.file for spec in graphs.values())} - {""})
    return Manifest(
        policy=policy_numbers,
        cameras=cameras,
        joints=joints,
        joint_units=request.joint_units,
        fps=data_fps(request.fps, request.recording),
        robot_type=data_robot(request.recording),
        tokenizer=tokenizer,
        normalization=(
            *(
                NormalizationSpec(item.feature, item.mode, item.eps)
                for item in (policy.settings.state, policy.settings.action)
            ),
            *exporter.pictures(),
        ),
        graphs=graphs,
        programme=exporter.programme(graphs),
        files={name: file_sha256(folder / name) for name in files},
        checkpoint={
            "name": checkpoint_name(request.checkpoint),
            "sha256": policy.digest,
            "config": dict(policy.config.source),
        },
        parity={},
        precision={"requested": "fp32", "graphs": dict.fromkeys(graphs, "fp32")},
        gate=exporter.gate(),
        correction=exporter.correction(),
        tools=_tools(),
        notes=(*policy.notes, *notes),
    )


def _named(error: ExportError, policy: Policy, checkpoint: Path) -> ExportError | CheckpointError:
    """The error, with the checkpoint's tensor where that is what is wrong: a graph knows its own names only."""
    broken = next((name for name, tensor in policy.state_dict().items() if not tensor.isfinite().all()), None)
    if broken is None:
        return error
    return CheckpointError(f"{checkpoint / MODEL_FILE}: tensor {broken} is not finite ({error})")


def _write_graph(cut: Cut, weights: WeightFile, folder: Path) -> GraphSpec:
    graph = Graph(cut.name, weights)
    cut.build(graph)
    model = graph.model()
    lint(model)
    file = f"{GRAPHS}/{cut.name}.onnx"
    (folder / file).write_bytes(model.SerializeToString())
    outside = any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer)
    return GraphSpec(file, (WEIGHTS,) if outside else (), tuple(graph.inputs), tuple(graph.outputs))


def _statistics(policy: Policy) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Every statistic of the checkpoint, and the pair each normaliser uses under the names of its mode."""
    tables = {}
    for feature, statistics in policy.settings.statistics.items():
        tables.update(
            {f"{feature}.{name}": np.ascontiguousarray(value, np.float32) for name, value in statistics.items()}
        )
    for item in (policy.settings.state, policy.settings.action, *policy.settings.pictures):
        names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}[item.mode]
        tables.update({f"{item.feature}.{name}": value for name, value in zip(names, (item.low, item.high))})
    return tables


def _tokenizer(policy: Policy, folder: Path) -> TokenizerSpec:
    """The tokenizer's settings, its file copied into the bundle; without a file where the policy reads no text."""
    settings = policy.settings.tokenizer
    if settings is None:
        return TokenizerSpec("", 0, "longest", "right", "right", 0, False)
    (folder / TOKENIZER).write_bytes((settings.folder / "tokenizer.json").read_bytes())
    return TokenizerSpec(
        file=TOKENIZER,
        max_length=settings.max_length,
        padding=settings.padding,
        padding_side=settings.padding_side,
        truncation_side=settings.truncation_side,
        pad_id=settings.pad_id,
        append_newline=settings.append_newline,
    )


def _cases(exporter: Exporter, cameras: tuple[CameraSpec, ...], recording: Recording | None) -> Iterator[Case]:
    policy = exporter.policy
    yield from synthetic_cases(policy, cameras, exporter.masks_cameras)
    if recording is not None:
        yield from recorded_cases(policy, cameras, recording)


def _joints(policy: Policy, recording: Recording | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Joint names, and a note where they are assumed: a checkpoint holds none."""
    named = joint_names(policy, recording) if recording is not None else ()
    if named:
        return named, ()
    if policy.config.action_dim == len(FOLLOWER_JOINTS):
        return FOLLOWER_JOINTS, (
            "a checkpoint names no joints; its six actions are taken for a Koch's or an SO-101's joints in the order "
            "of their ids",
        )
    names = tuple(f"joint_{index}" for index in range(policy.config.action_dim))
    return names, (f"a checkpoint names no joints; its {len(names)} actions are numbered",)


def _tools() -> dict[str, str]:
    return {
        "vla-edge": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "tokenizers": version("tokenizers"),
    }
