# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's graphs against its torch policy, graph by graph, on the runtime's own code path.

Every graph's tensors are compared on the rows that are valid, because padded
rows hold numbers that nobody reads. The Euler steps are compared velocity by
velocity from the graph's own x. The chunk, from noise to actions, is compared
with the policy as LeRobot runs it: prefix and state in one pass, no cut, all
actions, of which the graphs may make the first ones alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_edge.bundle import Bundle
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import TIMES, FlowRequest, PythonLoop
from vla_edge.export.family import Deviations
from vla_edge.export.proof_observations import Case
from vla_edge.export.smolvla.cuts import prefix_rows
from vla_edge.export.smolvla.expert import cross_layers
from vla_edge.policies.features import STATE
from vla_edge.policies.smolvla.cls import observe
from vla_edge.policies.smolvla.delta import predict_velocity
from vla_edge.policies.smolvla.flow import Inputs, Prefix, flow_moments
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.text import KeyValue
from vla_edge.runtime.inference.graphs import BoundGraphs
from vla_edge.runtime.inference.prepare import Layout, Preparer, lay_out
from vla_edge.runtime.inference.prompt import PromptEncoder

COMPARED = ("inputs", "vision", "prefix", "pooled", "cls", "state", "expert", "delta", "chunk", "actions")
"""In the order in which they run: the first that misses the tolerance is named."""


class SmolVLAComparison:
    """Both sides, set up once for all cases."""

    def __init__(self, policy: SmolVLAPolicy, bundle: Bundle, engine: Engine, deviations: Deviations) -> None:
        self._policy, self._model = policy, policy.model
        self._spec = bundle.manifest.policy
        self._deviations = deviations
        self._preparer = Preparer(bundle)
        self._prompts = PromptEncoder(bundle, allow_truncation=True)
        self._graphs = BoundGraphs(bundle, engine)
        self._loop = PythonLoop(self._graphs.flow(self._preparer.tables))
        tables = self._preparer.tables.items()
        times = {name: values.tolist() for name, values in tables if name.startswith(TIMES)}
        self._uneven = {int(name.removeprefix(TIMES)): values for name, values in times.items()}

    def case(self, case: Case) -> None:
        """Compare every graph on one observation."""
        inputs = self._policy.prepare(self._policy.preprocess(case.observation))
        tokens = self._model.embed_images(inputs.images)
        layout = self._prepare(case, inputs, tokens)
        rows, mask = self._model.embed_prefix(tokens, inputs.image_masks, inputs.token_ids, inputs.token_mask)
        prefix, entering_last = self._reference_prefix(rows, mask)
        self._loop.encode(True)
        self._compare_prefix(prefix, entering_last, layout.mask[: self._spec.prefix_rows] == 1)
        joined = self._model.run_state(prefix, inputs.state)
        self._compare_state(joined)
        made = self._spec.chunk_size
        self._compare_steps(joined, case.noise[:made])
        uncut = self._model.run_together(rows, mask, inputs.state)
        for steps in sorted({*self._uneven, self._spec.num_steps}):
            found = self._chunk(steps, case.noise[:made])
            noise = torch.from_numpy(case.noise)[None]
            latent = self._model.integrate(uncut, noise, steps, self._uneven.get(steps, ()))[:, :made]
            self._deviations.add("chunk", found, latent[0])
        if self._graphs.programme.correct:
            self._compare_delta(joined, found)
        actions, _ = self._preparer.actions(found)
        state = torch.as_tensor(case.observation[STATE])[None]
        self._deviations.add("actions", actions, self._policy.postprocess(self._policy.real_actions(latent), state)[0])

    def _chunk(self, steps: int, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        latent = self._loop.denoise(FlowRequest(steps, noise)).latent
        assert latent is not None
        return latent

    def _prepare(self, case: Case, inputs: Inputs, tokens: Sequence[Tensor]) -> Layout:
        """Fill the runtime's buffers from the raw observation and run `vision` for the cameras that are there."""
        buffers, graphs = self._graphs.buffers, self._graphs
        images = {name: value for name, value in case.observation.items() if name not in (STATE, "task")}
        slots = self._preparer.slots(images)
        expected = iter(zip(inputs.images, tokens))
        buffers["image_tokens"].fill(0)
        for slot, image in enumerate(slots):
            if image is None:
                continue
            pixels, seen = next(expected)
            self._preparer.picture(slot, image, buffers["pixels"])
            self._deviations.add("inputs", buffers["pixels"], pixels)
            graphs.see(slot)
            count = self._spec.tokens_per_image
            self._deviations.add("vision", buffers["image_tokens"][:, slot * count : (slot + 1) * count], seen)
        prompt = self._prompts.encode(case.observation["task"])
        graphs.set_language(prompt.ids)
        layout = lay_out(self._spec, [image is not None for image in slots], prompt.mask, self._preparer.placeholders)
        graphs.set_layout(layout)
        self._preparer.state(case.observation[STATE], buffers["state"])
        self._deviations.add("inputs", buffers["state"], inputs.state)
        return layout

    def _reference_prefix(self, rows: Tensor, mask: Tensor) -> tuple[Prefix, Tensor]:
        """Torch's prefix without the state, and the rows [rows, H] that enter the last text layer."""
        seen: list[Tensor] = []
        norm = self._model.vlm_with_expert.vlm.model.text_model.layers[-1].input_layernorm
        hook = norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        try:
            prefix = self._model.run_prefix(rows, mask)
        finally:
            hook.remove()
        return prefix, seen[0][0]

    def _compare_prefix(self, prefix: Prefix, entering_last: Tensor, valid: NDArray[np.bool_]) -> None:
        buffers, mask = self._graphs.buffers, prefix.mask[0]
        for name, expected in self._caches(prefix.cache):
            self._deviations.add(
                "prefix", buffers[name][:, : self._spec.prefix_rows][:, valid], expected[mask].transpose(0, 1)
            )
        pictures = prefix_rows(self._policy).pictures()[valid] == 1
        self._deviations.add("pooled", buffers["pooled"], entering_last[mask][torch.from_numpy(pictures)].mean(dim=0))
        if "cls" in buffers:
            self._deviations.add("cls", buffers["cls"], observe(self._model, prefix)[0])

    def _compare_state(self, joined: Prefix) -> None:
        buffers = self._graphs.buffers
        own = [KeyValue(cache.key[:, -1:], cache.value[:, -1:]) for cache in joined.cache]
        for name, expected in self._caches(own):
            if f"state_{name}" in buffers:
                self._deviations.add("state", buffers[f"state_{name}"], expected.transpose(0, 1))
                place = self._spec.prefix_rows
                self._deviations.add("state", buffers[name][:, place : place + 1], expected.transpose(0, 1))

    def _compare_steps(self, joined: Prefix, noise: NDArray[np.float32]) -> None:
        """The velocity of the first, middle and last step at the graph's own x: with dt = 1 a step adds it
        undivided."""
        buffers, steps = self._graphs.buffers, self._spec.num_steps
        table = self._preparer.tables[f"time_bias.{steps}"]
        x = noise.copy()
        for index, (time, dt) in enumerate(flow_moments(steps, self._uneven.get(steps, ()))):
            buffers["x"][0], buffers["time_bias"][:], buffers["dt"][:] = x, table[index], 1.0
            self._graphs.loaded("expert").run()
            velocity = buffers["x_next"][0] - x
            if index in (0, steps // 2, steps - 1):
                expected = self._model.denoise_step(joined, torch.from_numpy(x)[None], torch.tensor([time]))
                self._deviations.add("expert", velocity, expected[0])
            x = x + velocity * np.float32(dt)

    def _compare_delta(self, joined: Prefix, chunk: NDArray[np.float32]) -> None:
        """The correction of `chunk` [C, A] for this observation."""
        self._graphs.buffers["chunk"][0] = chunk
        self._graphs.correct()
        velocity, _ = predict_velocity(self._model, joined, torch.from_numpy(chunk)[None])
        self._deviations.add("delta", self._graphs.buffers["corrected"][0] - chunk, velocity[0])

    def _caches(self, caches: Sequence[KeyValue]) -> Iterator[tuple[str, Tensor]]:
        """(tensor name, [rows, kv heads, head width]) of text layers and of cross-attending expert layers."""
        for index in range(self._spec.layers):
            yield f"k{index:02d}", caches[index].key[0]
            yield f"v{index:02d}", caches[index].value[0]
        expert = self._model.vlm_with_expert.lm_expert
        for index, number in cross_layers(self._model.vlm_with_expert.plan):
            own = expert.layers[number].self_attn.project_cache(caches[index])
            yield f"ek{index:02d}", own.key[0]
            yield f"ev{index:02d}", own.value[0]
