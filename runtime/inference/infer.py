# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime infer`: one observation file in, one action file out. This is also how others check us."""

from __future__ import annotations

import argparse
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Manifest, open_bundle
from vla_edge.camera_names import PREFIX, is_camera_key
from vla_edge.command_line import answer, file_to_write, threads, whole
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, backends, load_engine
from vla_edge.errors import CheckFailed, ObservationError
from vla_edge.files import written_beside
from vla_edge.runtime.inference.prepare import other_aspects
from vla_edge.runtime.inference.session import (
    InferenceRequest,
    InferenceResult,
    PolicySession,
    SessionOptions,
    add_flow_steps_argument,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="folder written by export-engines")
    parser.add_argument(
        "--observation",
        required=True,
        type=Path,
        help="npz: observation.images.NAME, observation.state, task (of a policy that reads one) [, noise, steps]",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=file_to_write,
        help="npz: action, action_normalized, times of the parts; replaced when it exists",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the policy runs")
    parser.add_argument(
        "--backend", choices=list(backends()), help="what runs the graphs (default: ort on cpu, ort-cuda on cuda)"
    )
    parser.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of one graph (default: all physical cores)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="seed of the noise, when the observation brings none")
    add_flow_steps_argument(parser)
    parser.add_argument(
        "--refuse-truncation",
        action="store_true",
        help="refuse a task that is too long, as the robot does (default: cut it as LeRobot does, and say so)",
    )


def run(arguments: argparse.Namespace) -> int:
    bundle = open_bundle(arguments.bundle)
    inputs = read_observation(arguments.observation, bundle.manifest)
    standard = (name for name, backend in backends().items() if backend.standard and backend.device == arguments.device)
    engine = load_engine(arguments.backend or next(standard), EngineOptions(threads=arguments.threads))
    session = PolicySession(
        bundle,
        engine,
        SessionOptions(
            seed=arguments.seed, steps=arguments.flow_steps, allow_truncation=not arguments.refuse_truncation
        ),
    )
    result = session.infer(InferenceRequest(inputs.observation, 0, inputs.steps, inputs.noise))
    assert result is not None
    if not np.isfinite(result.actions).all():
        raise CheckFailed(
            "the actions are not finite, nothing was written; check noise and state, or export the bundle again"
        )
    write_actions(arguments.out, result)
    seen = {name: frame.image for name, frame in inputs.observation.frames.items()}
    for fact, _ in other_aspects(bundle.manifest.cameras, seen):
        print(f"note: {fact}; a robot is not started with it unless --trust-cameras says so", file=sys.stderr)
    if session.tokens_cut:
        limit = bundle.manifest.tokenizer.max_length
        print(
            f"note: {session.tokens_cut} tokens of the task were cut, the policy takes {limit}; a robot is not "
            "started with it",
            file=sys.stderr,
        )
    print(
        f"{arguments.out}: {result.actions.shape[0]} actions of {result.actions.shape[1]} joints, "
        f"{result.timings.total:.1f} ms"
    )
    answer(
        {
            "out": str(arguments.out),
            "shape": list(result.actions.shape),
            "steps": result.steps,
            "tokens_cut": session.tokens_cut,
            "bundle": bundle.digest,
            "timings_ms": asdict(result.timings),
        }
    )
    return 0


@dataclass(frozen=True, slots=True)
class ObservationFile:
    """What an observation file holds; noise float32 [C, A] and steps only where it brings them."""

    observation: Observation
    noise: NDArray[np.float32] | None
    steps: int | None


def read_observation(path: Path, manifest: Manifest) -> ObservationFile:
    """Read an npz without pickle. ObservationError names the file and the field; unknown fields are refused."""
    return observation_of(_read_npz(path), str(path), manifest)


def observation_of(arrays: Mapping[str, NDArray[Any]], source: str, manifest: Manifest) -> ObservationFile:
    """The observation in named arrays, from a file or a client; `source` stands in messages. A policy that reads no
    text needs no task; one that makes its chunk in one pass takes no noise and no steps."""
    frames = {name: Frame(name, array, 0, 0) for name, array in arrays.items() if is_camera_key(name)}
    unknown = sorted(set(arrays) - set(frames) - {"observation.state", "task", "noise", "steps"})
    if unknown:
        raise ObservationError(
            f"{source}: unknown field {unknown[0]!r:.80}; known: {PREFIX}NAME, observation.state, task, noise, steps"
        )
    for name in ("observation.state", "task"):
        if name not in arrays and (name != "task" or manifest.reads_text):
            raise ObservationError(
                f"{source}: no field {name!r}; an observation needs the state, the task and at least one camera"
            )
    for name in ("noise", "steps"):
        if name in arrays and not manifest.programme.step:
            raise ObservationError(f"{source}: {name} is given; this policy makes its chunk in one pass, leave it out")
    task = arrays.get("task", np.array([""]))
    if task.dtype.kind != "U" or task.size != 1:
        raise ObservationError(f"{source}: task is {task.dtype} {list(task.shape)}; expected one text")
    observation = Observation(0, frames, JointReading(0, 0, arrays["observation.state"]), str(task.reshape(-1)[0]))
    return ObservationFile(observation, arrays.get("noise"), _steps(source, arrays.get("steps")))


def write_actions(path: Path, result: InferenceResult) -> None:
    """Write the actions, the normalised actions, the steps and the times to `path` (npz)."""
    timings = {f"timing_ms/{name}": np.asarray(value, np.float64) for name, value in asdict(result.timings).items()}
    with written_beside(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            action=result.actions,
            action_normalized=result.normalized,
            steps=np.int64(result.steps),
            **timings,  # type: ignore[arg-type]
        )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise ObservationError(
            f"{path}: no such file; give an npz with observation.images.NAME, observation.state and task"
        )
    name = ""
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ObservationError(f"{path}: a single array; expected an npz with named arrays")
        arrays = {}
        with archive:
            for name in archive.files:
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise ObservationError(f"{path}: field {name!r} is no array; save plain arrays with numpy.savez")
        return arrays
    except _DAMAGE as error:
        where = f" at field {name!r}" if name else ""
        raise ObservationError(
            f"{path}: not readable as npz without pickle{where} ({error}); save plain arrays with numpy.savez"
        ) from None


_DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What numpy and zipfile raise for bytes that are no plain npz (found by fuzzing)."""


def _steps(source: str, steps: NDArray[Any] | None) -> int | None:
    if steps is None:
        return None
    if steps.dtype.kind not in "iu" or steps.size != 1:
        raise ObservationError(f"{source}: steps is {steps.dtype} {list(steps.shape)}; expected one integer")
    return int(steps.reshape(-1)[0])
