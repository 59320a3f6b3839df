# SPDX-License-Identifier: Apache-2.0
"""Does a manifest fit together? The policy's numbers against the graphs' tensors, the tokenizer and the cameras.

Every hash may be right and the manifest still say another chunk or prompt length than its graphs have, when it was
edited or written by another program. The runtime lays out its buffers by these numbers, so they are compared once,
before a session is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from vla_edge.bundle import MAX_FLOW_STEPS, Bundle, Manifest
from vla_edge.engines.flow_loop import TIE
from vla_edge.errors import BundleError


def check_fit(bundle: Bundle) -> None:
    """BundleError names the first field of the manifest that contradicts another."""
    for said in _contradictions(bundle.manifest):
        raise BundleError(f"{bundle.path}: manifest: {said}; export the bundle again")


def _contradictions(manifest: Manifest) -> Iterator[str]:
    for look in (_numbers, _words, _order, _tensors):
        yield from look(manifest)


def _numbers(manifest: Manifest) -> Iterator[str]:
    policy, names = manifest.policy, [camera.name for camera in manifest.cameras]
    if not names or len(set(names)) != len(names):
        yield f"cameras are {', '.join(names) or 'none'}, must be one or more different ones"
    for camera in manifest.cameras:
        if min(camera.height, camera.width) < 1:
            yield f"camera {camera.name} is {camera.height}×{camera.width}, must have pixels"
    for name in ("empty_cameras", "image_start_tokens", "image_end_tokens"):
        if getattr(policy, name) < 0:
            yield f"policy.{name} is {getattr(policy, name)}, must be 0 or more"
    for name, low, high in (
        ("n_action_steps", 1, policy.chunk_size),
        ("num_steps", 1, MAX_FLOW_STEPS),
        ("min_steps", policy.num_steps if policy.distilled else 1, policy.num_steps),
        ("state_dim", 1, policy.max_state_dim),
        ("action_dim", 1, policy.max_action_dim),
    ):
        if not low <= getattr(policy, name) <= high:
            yield f"policy.{name} is {getattr(policy, name)}, must be {low} to {high}"
    if len(manifest.joints) != policy.action_dim:
        yield f"joints has {len(manifest.joints)} names, policy.action_dim is {policy.action_dim}"
    if not set(policy.relative_joints) <= set(range(min(policy.state_dim, policy.action_dim))):
        yield f"policy.relative_joints is {list(policy.relative_joints)}, must be indices of state and action"
    layers = policy.self_layers + policy.cross_layers
    if len(set(layers) & set(range(policy.layers))) != len(layers):
        yield (
            f"policy.self_layers {list(policy.self_layers)} and cross_layers {list(policy.cross_layers)} must be "
            f"different ones below {policy.layers}"
        )


def _words(manifest: Manifest) -> Iterator[str]:
    tokenizer = manifest.tokenizer
    for field, allowed in (
        ("padding", ("longest", "max_length")),
        ("padding_side", ("left", "right")),
        ("truncation_side", ("left", "right")),
    ):
        if getattr(tokenizer, field) not in allowed:
            yield f"tokenizer.{field} is {getattr(tokenizer, field)!r}, must be {' or '.join(allowed)}"
    for item in manifest.normalization:
        if not (math.isfinite(item.eps) and item.eps >= 0):
            yield f"normalization eps of {item.feature} is {item.eps}, must be a number from 0 on"


def _order(manifest: Manifest) -> Iterator[str]:
    """The programme's graphs are the bundle's, each once."""
    order = manifest.programme.order()
    for name in order:
        if name not in manifest.graphs or order.count(name) > 1:
            yield (
                f"programme runs graph {name} {order.count(name)} times, there is "
                f"{'one' if name in manifest.graphs else 'none'}"
            )
    for name in sorted(set(manifest.graphs) - set(order)):
        yield f"graph {name} has no place in the programme"


GIVEN = (
    "pixels", "image_tokens", "token_ids", "mask", "positions", "position", "first_position", "state", "x", "time_bias",
    "dt", "target", "weights", "chunk",
)  # fmt: skip
"""Inputs that the runtime fills; every other one is made by a graph."""


def _tensors(manifest: Manifest) -> Iterator[str]:
    """Tensors that a graph must have by its place in the programme, tensors whose size the policy's numbers fix, and
    inputs that nobody fills; symbols as in docs/design.md."""
    policy, programme, length = manifest.policy, manifest.programme, manifest.tokenizer.max_length
    slots = len(manifest.cameras) + policy.empty_cameras
    rows, tokens = policy.prefix_rows, policy.tokens_per_image
    expected_rows = slots * (policy.image_start_tokens + tokens + policy.image_end_tokens) + length
    if rows and rows != expected_rows:
        yield f"policy.prefix_rows is {rows}, cameras, image tokens and tokenizer.max_length make {expected_rows}"
    if policy.key_rows and policy.key_rows <= rows:
        yield f"policy.key_rows is {policy.key_rows}, must be more than the {rows} of the prefix"
    chunk = (1, policy.chunk_size, policy.max_action_dim)
    ties = any(item.name == TIE for item in manifest.graphs[programme.step].inputs) if programme.step else False
    each = policy.chunk_size if ties else 1
    shapes = {
        "pixels": (1, 3, policy.image_height, policy.image_width),
        "tokens": (1, tokens, policy.vlm_width),
        "image_tokens": (1, slots * tokens, policy.vlm_width),
        "token_ids": (1, length),
        "positions": (rows,),
        "state": (1, policy.max_state_dim),
        "position": (1,),
        "first_position": (1,),
        "time_bias": (each, policy.expert_width),
        "dt": (each, 1) if ties else (1,),
        "weights": (each, 1),
        **dict.fromkeys(("x", "x_next", TIE, "chunk", "corrected"), chunk),
    }
    cache = (policy.kv_heads, policy.kv_rows, policy.head_dim)
    needed = {(programme.camera, name) for name in ("pixels", "tokens")}
    if programme.step:
        needed |= {(programme.step, name) for name in ("x", "time_bias", "dt", "x_next")}
        needed |= {(programme.step, "weights")} if ties else set()
        for prefix, layers in (("", policy.self_layers), ("e", policy.cross_layers)):
            caches = [f"{prefix}{kind}{layer:02}" for kind in "kv" for layer in layers]
            shapes |= dict.fromkeys(caches, cache)
            needed |= {(programme.step, name) for name in caches}
    else:
        needed.add((programme.moment[-1], "chunk"))
    needed |= {(name, "corrected") for name in programme.correct[-1:]}
    made = {spec.name for graph in manifest.graphs.values() for spec in graph.outputs}
    for graph in programme.order():
        spec = manifest.graphs[graph]
        found = {item.name: item.shape for item in (*spec.inputs, *spec.outputs)}
        masks = {"mask": (rows,) if graph in programme.scene + programme.moment else (policy.kv_rows,)}
        for name in sorted({name for place, name in needed if place == graph} | (found.keys() & {*shapes, *masks})):
            expected = {**shapes, **masks}[name]
            if found.get(name) != expected:
                yield (
                    f"graph {graph} has {name} {list(found[name]) if name in found else 'not at all'}, the policy's "
                    f"numbers make it {list(expected)}"
                )
        for item in spec.inputs:
            if item.name not in made and item.name not in GIVEN:
                yield f"graph {graph} takes {item.name}, which no graph makes and the runtime does not know"
