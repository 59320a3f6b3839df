# SPDX-License-Identifier: Apache-2.0
"""Whatever can predict a chunk, behind one interface: a checkpoint (torch), a bundle (engine), saved predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from vla_edge.bundle import MANIFEST, Bundle, open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import ConfigError, DatasetError, TrainingError
from vla_edge.lerobot_data.observations import observation_of
from vla_edge.policies.checkpoint_folder import checkpoint_name, resolve_checkpoint
from vla_edge.policies.families import load_policy
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.training.training_frames import RawSample, collate, states_of, to_device

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """One frame to predict from: its dataset index, the raw sample, and noise float32 [chunk, max_action_dim]."""

    index: int
    sample: RawSample
    noise: Floats


class Predictor(Protocol):
    """cameras: dataset keys it reads; chunk: actions per prediction; executed: n_action_steps; noise: shape of one
    draw; flow_steps: Euler steps a chunk, None where it takes none or they are unknown; parameters: count, None when
    unknown."""

    name: str
    kind: str
    cameras: tuple[str, ...]
    chunk: int
    executed: int
    noise: tuple[int, int]
    flow_steps: int | None
    parameters: int | None

    def predict(self, queries: Sequence[Query]) -> Floats:
        """Chunks float32 [queries, chunk, joints] in the dataset's units."""

    def latency_ms(self, queries: Sequence[Query]) -> Floats | None:
        """Milliseconds of each prediction alone (pre- and post-processing included), after three to warm up."""


def open_predictor(path: Path, device: str = "cpu", threads: int = 0, flow_steps: int | None = None) -> Predictor:
    """Tell by its content what `path` is. flow_steps: of a policy that flows, None for its own number. TrainingError
    when it is none of the three, ConfigError for a number of steps that it does not take."""
    if path.suffix == ".npz":
        return SavedPredictor(path)
    if (path / MANIFEST).is_file():
        return BundlePredictor(path, threads, flow_steps)
    folder = resolve_checkpoint(path)
    if (folder / "config.json").is_file():
        return CheckpointPredictor(folder, checkpoint_name(folder), device, flow_steps)
    raise TrainingError(f"{path}: neither a bundle, a checkpoint nor predictions (.npz); give one of these")


class CheckpointPredictor:
    """A LeRobot checkpoint through torch."""

    kind = "checkpoint (torch)"

    def __init__(self, folder: Path, name: str, device: str, flow_steps: int | None = None) -> None:
        self.name = name
        if device == "cuda" and not torch.cuda.is_available():
            raise TrainingError(
                "device cuda: no CUDA device is visible to torch; use --device cpu or install a CUDA build of torch"
            )
        self.device = torch.device(device)
        self.policy = load_policy(folder).to(self.device)
        self.flow_steps: int | None = None
        config = self.policy.config
        if config.noised:
            self.flow_steps = steps_of(folder, flow_steps, config.num_steps, bool(config.distilled))
            self.policy.config = replace(config, num_steps=self.flow_steps)
        self.cameras = tuple(camera.source for camera in self.policy.settings.cameras)
        self.chunk, self.executed = config.chunk_size, config.n_action_steps
        self.noise = (config.chunk_size, config.max_action_dim)
        self.parameters: int | None = sum(parameter.numel() for parameter in self.policy.parameters())

    def predict(self, queries: Sequence[Query]) -> Floats:
        batch = to_device(collate([query.sample for query in queries], self.policy), self.device)
        noise = torch.from_numpy(np.stack([query.noise for query in queries])).to(self.device)
        actions = self.policy.predict_action_chunk(batch, noise=noise)
        assert isinstance(actions, torch.Tensor)
        states = states_of([query.sample for query in queries]).to(self.device)
        return self.policy.postprocess(actions, states).float().cpu().numpy()

    def latency_ms(self, queries: Sequence[Query]) -> Floats | None:
        return _timed(lambda query: self.predict([query]), queries)


class BundlePredictor:
    """A bundle on ONNX Runtime, every piece computed anew for every frame."""

    kind = "bundle (ort)"

    def __init__(self, folder: Path, threads: int, flow_steps: int | None = None) -> None:
        self.name = folder.name
        bundle = open_bundle(folder)
        policy = bundle.manifest.policy
        self.flow_steps: int | None = None
        if bundle.manifest.programme.step:
            self.flow_steps = steps_of(folder, flow_steps, policy.num_steps, policy.distilled)
        options = SessionOptions(steps=self.flow_steps)
        self.session = PolicySession(bundle, load_engine("ort", EngineOptions(threads=threads)), options)
        self.cameras = tuple(camera.source for camera in bundle.manifest.cameras)
        self.chunk, self.executed = policy.chunk_size, policy.n_action_steps
        self.noise = (policy.chunk_size, policy.max_action_dim)
        self.parameters: int | None = weights_of(bundle)

    def predict(self, queries: Sequence[Query]) -> Floats:
        return np.stack([self._one(query) for query in queries])

    def latency_ms(self, queries: Sequence[Query]) -> Floats | None:
        return _timed(self._one, queries)

    def _one(self, query: Query) -> Floats:
        observation = observation_of(query.sample.images, query.sample.state, query.sample.task, query.index)
        self.session.reset()
        result = self.session.infer(InferenceRequest(observation, 0, noise=query.noise))
        assert result is not None
        return result.actions


def steps_of(folder: Path, wanted: int | None, most: int, distilled: bool) -> int:
    """The flow steps a policy is asked for, up to its own number as in the runtime. ConfigError: it takes others."""
    if wanted is None or (1 <= wanted <= most and not distilled) or wanted == most:
        return most if wanted is None else wanted
    takes = f"was distilled to {most}: ask for no other" if distilled else f"takes 1 to {most}"
    raise ConfigError(f"--flow-steps {wanted}: {folder} {takes}")


def weights_of(bundle: Bundle) -> int:
    """Numbers in the float and int8 weights of all graphs; what graphs share counts once."""
    import onnx

    sizes: dict[tuple[str, ...], int] = {}
    for name in bundle.manifest.graphs:
        graph = onnx.load_from_string(bundle.graph(name).model).graph
        for tensor in graph.initializer:
            place = {item.key: item.value for item in tensor.external_data}
            key = (place["location"], place.get("offset", "0")) if place else (name, tensor.name)
            if tensor.data_type != onnx.TensorProto.INT64:
                sizes[key] = int(np.prod(tensor.dims, dtype=np.int64))
    return sum(sizes.values())


class SavedPredictor:
    """Predictions of any policy: an npz with `index` int [frames] (dataset frame numbers), `action` float32 [frames,
    chunk, joints] in the dataset's units, and optionally `executed`, `flow_steps`, `parameters`, `latency_ms` [n] and
    `name`."""

    kind = "saved predictions"

    def __init__(self, file: Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as archive:
                content = {name: archive[name] for name in archive.files}
        except (FileNotFoundError, ValueError, OSError, EOFError, BadZipFile, AttributeError) as error:
            raise TrainingError(
                f"{file}: no predictions to read ({error}); save them with `vla-train evaluate --out`"
            ) from None
        if (
            not {"index", "action"} <= set(content)
            or content["action"].ndim != 3
            or len(content["index"]) != len(content["action"])
        ):
            raise TrainingError(
                f"{file}: needs `index` [frames] and `action` [frames, chunk, joints] of the same length; it holds "
                f"{', '.join(content)}"
            )
        check_saved(file, content)
        self.name = str(content["name"]) if "name" in content else file.stem
        self.cameras: tuple[str, ...] = ()
        self.chunk = content["action"].shape[1]
        self.executed = int(content.get("executed", self.chunk))
        self.noise = (0, 0)
        self.flow_steps: int | None = int(content["flow_steps"]) if "flow_steps" in content else None
        self.parameters = int(content["parameters"]) if "parameters" in content else None
        self._rows = {int(index): row for row, index in enumerate(content["index"])}
        self._actions = content["action"].astype(np.float32)
        self._latency = content.get("latency_ms")

    def predict(self, queries: Sequence[Query]) -> Floats:
        missing = [query.index for query in queries if query.index not in self._rows]
        if missing:
            raise DatasetError(
                f"predictions {self.name} lack frame {missing[0]} and {len(missing) - 1} others; evaluate the same "
                "episodes and stride"
            )
        return self._actions[[self._rows[query.index] for query in queries]]

    def latency_ms(self, queries: Sequence[Query]) -> Floats | None:
        return None if self._latency is None else self._latency.astype(np.float32)


def check_saved(file: Path, content: Mapping[str, np.ndarray]) -> None:
    """TrainingError names the array of an npz that is of the wrong kind: a comparison of it would mean nothing."""
    wrong = None
    if (
        content["index"].ndim != 1
        or content["index"].dtype.kind not in "iu"
        or len(set(content["index"].tolist())) != len(content["index"])
    ):
        wrong = "`index` must be whole numbers, each once"
    elif (
        content["action"].dtype.kind not in "fiu"
        or not np.isfinite(content["action"]).all()
        or not content["action"].size
    ):
        wrong = "`action` must be finite numbers"
    for name in ("executed", "flow_steps", "parameters"):
        value = content.get(name)
        if value is not None and (value.shape != () or value.dtype.kind not in "iu" or value < 1):
            wrong = f"`{name}` must be one whole number above 0"
    if "executed" in content and wrong is None and content["executed"] > content["action"].shape[1]:
        wrong = f"`executed` is {content['executed']}, the chunk holds {content['action'].shape[1]}"
    spent = content.get("latency_ms")
    if spent is not None and (
        spent.dtype.kind not in "fiu" or not spent.size or not (np.isfinite(spent) & (spent > 0)).all()
    ):
        wrong = "`latency_ms` must be finite numbers above 0"
    if wrong:
        raise TrainingError(f"{file}: {wrong}; see docs/training.md for the form")


def _timed(predict: Callable[[Query], Floats], queries: Sequence[Query]) -> Floats:
    for query in queries[:3]:
        predict(query)
    spent = []
    for query in queries:
        began = time.perf_counter()
        predict(query)
        spent.append((time.perf_counter() - began) * 1e3)
    return np.array(spent, np.float32)
