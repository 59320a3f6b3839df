# SPDX-License-Identifier: Apache-2.0
"""ACT as export sees it, and its graphs against its torch policy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, NormalizationSpec, PolicySpec, Programme
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowRequest
from vla_edge.errors import ConfigError
from vla_edge.export.act.backbone import build_backbone
from vla_edge.export.act.decode import build_decode
from vla_edge.export.family import Comparison, Cut, Deviations
from vla_edge.export.proof_observations import Case
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.features import STATE
from vla_edge.runtime.inference.graphs import BoundGraphs, OnePass
from vla_edge.runtime.inference.prepare import Preparer


class ACTExporter:
    """See `Exporter`. `backbone` makes a camera's tokens, `decode` the chunk of them and the joints."""

    graphs = ("inputs", "backbone", "decode", "chunk", "actions")
    masks_cameras = False
    placeholder_size: tuple[int, int] | None = None

    def __init__(self, policy: ACTPolicy) -> None:
        self.policy = policy

    def check(self, checkpoint: Path, step_sizes: tuple[float, ...]) -> None:
        if step_sizes:
            raise ConfigError(
                f"{checkpoint}: ACT makes its chunk in one pass, without flow steps; leave --step-sizes out"
            )
        sizes = {(camera.height, camera.width) for camera in self.policy.settings.cameras}
        if len(sizes) > 1:
            raise ConfigError(
                f"{checkpoint}: cameras have sizes {sorted(sizes)}; graphs are static, train with one size for all"
            )

    def take_empty_cameras(self, checkpoint: Path) -> None:
        raise ConfigError(f"{checkpoint}: ACT has no empty cameras; leave out --take-empty-cameras")

    def shorten_chunk(self, checkpoint: Path, size: int) -> None:
        raise ConfigError(
            f"{checkpoint}: every action of ACT's chunk depends on all others, so none can be left out; leave out "
            "--chunk-size"
        )

    def cuts(self) -> list[Cut]:
        model, size = self.policy.model, self._size()
        grid, cameras = model.backbone.grid(*size), len(self.policy.settings.cameras)
        return [
            Cut("backbone", partial(build_backbone, model=model, size=size)),
            Cut("decode", partial(build_decode, model=model, grid=grid, cameras=cameras)),
        ]

    def spec(self) -> PolicySpec:
        config, (height, width) = self.policy.config, self._size()
        return PolicySpec(
            type="act",
            chunk_size=config.chunk_size,
            n_action_steps=config.n_action_steps,
            num_steps=1,
            min_steps=1,
            state_dim=config.state_dim,
            action_dim=config.action_dim,
            max_state_dim=config.state_dim,
            max_action_dim=config.action_dim,
            image_height=height,
            image_width=width,
            tokens_per_image=int(np.prod(self.policy.model.backbone.grid(height, width))),
            vlm_width=config.dim_model,
            resize_with_padding=False,
            relative_joints=self.policy.settings.relative.joints if self.policy.settings.relative else (),
            ensemble_coefficient=config.temporal_ensemble_coeff,
        )

    def programme(self, graphs: Iterable[str]) -> Programme:
        return Programme("backbone", (), ("decode",))

    def pictures(self) -> tuple[NormalizationSpec, ...]:
        return tuple(NormalizationSpec(item.feature, item.mode, item.eps) for item in self.policy.settings.pictures)

    def tables(self, step_sizes: tuple[float, ...]) -> dict[str, NDArray[np.float32]]:
        return {}

    def gate(self) -> dict[str, Any]:
        return {"kind": "none", "why_not_cls": "ACT has no prefix that a scene gate could judge"}

    def correction(self) -> None:
        return None

    def comparison(self, bundle: Bundle, engine: Engine, deviations: Deviations) -> Comparison:
        return ACTComparison(self.policy, bundle, engine, deviations)

    def _size(self) -> tuple[int, int]:
        camera = self.policy.settings.cameras[0]
        return camera.height, camera.width


FAMILY_EXPORTER = ACTExporter


class ACTComparison:
    """See `Comparison`. Pictures, tokens, chunk and actions of one observation."""

    def __init__(self, policy: ACTPolicy, bundle: Bundle, engine: Engine, deviations: Deviations) -> None:
        self._policy, self._deviations = policy, deviations
        self._preparer = Preparer(bundle)
        self._graphs = BoundGraphs(bundle, engine)
        self._loop = OnePass(self._graphs)

    def case(self, case: Case) -> None:
        batch = self._policy.preprocess(case.observation)
        buffers, images = self._graphs.buffers, {key: value for key, value in case.observation.items() if key != STATE}
        expected = zip(self._preparer.slots(images), self._policy.pictures(batch))
        pictures = []
        for slot, (image, pixels) in enumerate(expected):
            assert image is not None
            self._preparer.picture(slot, image, buffers["pixels"])
            self._deviations.add("inputs", buffers["pixels"], pixels)
            self._graphs.see(slot)
            tokens, places = self._policy.model.encode_picture(pixels)
            count = tokens.shape[1]
            made = buffers["image_tokens"][:, slot * count : (slot + 1) * count]
            self._deviations.add("backbone", made, tokens)
            pictures.append((torch.from_numpy(made.copy()), places))
        self._preparer.state(case.observation[STATE], buffers["state"])
        self._deviations.add("inputs", buffers["state"], batch[STATE])
        self._loop.encode(True)
        report = self._loop.denoise(FlowRequest(1, case.noise))
        assert report.latent is not None
        self._deviations.add("decode", report.latent, self._policy.model.decode(pictures, batch[STATE])[0])
        chunk = self._policy.predict_action_chunk(batch)
        self._deviations.add("chunk", report.latent, chunk[0])
        actions, _ = self._preparer.actions(report.latent)
        state = torch.as_tensor(case.observation[STATE])[None]
        self._deviations.add("actions", actions, self._policy.postprocess(chunk, state)[0])
