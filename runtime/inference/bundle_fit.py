"""Does a manifest fit together? The policy's numbers against the graphs' tensors, the tokenizer and the cameras.

Every hash may be right and the manifest still say another chunk or prompt
length than its graphs have, when it was edited or written by another program.
The runtime lays out its buffers by these numbers, so they are compared once,
before a session is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from vla_edge.bundle import Bundle, Manifest
from vla_edge.errors import BundleError


def check_fit(bundle: Bundle) -> None:
    """BundleError names the first field of the manifest that contradicts another."""
    for said in (*_numbers(bundle.manifest), *_words(bundle.manifest), *_tensors(bundle.manifest)):
        raise BundleError(f"{bundle.path}: manifest: {said}; export the bundle again")


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
        ("min_steps", 1, policy.num_steps),
        ("state_dim", 1, policy.max_state_dim),
        ("action_dim", 1, policy.max_action_dim),
    ):
        if not low <= getattr(policy, name) <= high:
            yield f"policy.{name} is {getattr(policy, name)}, must be {low} to {high}"
    if len(manifest.joints) != policy.action_dim:
        yield f"joints has {len(manifest.joints)} names, policy.action_dim is {policy.action_dim}"
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


def _tensors(manifest: Manifest) -> Iterator[str]:
    """Tensors whose size the policy's numbers fix; symbols as in docs/design.md."""
    policy, length = manifest.policy, manifest.tokenizer.max_length
    slots = len(manifest.cameras) + policy.empty_cameras
    rows, tokens = policy.prefix_rows, policy.tokens_per_image
    expected_rows = slots * (policy.image_start_tokens + tokens + policy.image_end_tokens) + length
    if rows != expected_rows:
        yield f"policy.prefix_rows is {rows}, cameras, image tokens and tokenizer.max_length make {expected_rows}"
    chunk = (1, policy.chunk_size, policy.max_action_dim)
    shapes = {
        ("vision", "pixels"): (1, 3, policy.image_height, policy.image_width),
        ("vision", "tokens"): (1, tokens, policy.vlm_width),
        ("prefix", "image_tokens"): (1, slots * tokens, policy.vlm_width),
        ("prefix", "token_ids"): (1, length),
        ("prefix", "mask"): (rows,),
        ("prefix", "positions"): (rows,),
        ("state", "state"): (1, policy.max_state_dim),
        ("state", "position"): (1,),
        ("expert", "x"): chunk,
        ("expert", "time_bias"): (1, policy.expert_width),
        ("expert", "dt"): (1,),
        ("expert", "mask"): (rows + 1,),
        ("expert", "first_position"): (1,),
        ("expert", "x_next"): chunk,
        ("delta", "chunk"): chunk,
        ("delta", "corrected"): chunk,
    }
    cache = (policy.kv_heads, rows + 1, policy.head_dim)
    for prefix, layers in (("", policy.self_layers), ("e", policy.cross_layers)):
        shapes |= {("expert", f"{prefix}{kind}{layer:02}"): cache for kind in "kv" for layer in layers}
    for (graph, name), shape in shapes.items():
        if graph in manifest.graphs:
            spec = manifest.graphs[graph]
            found = next((item.shape for item in (*spec.inputs, *spec.outputs) if item.name == name), None)
            if found != shape:
                yield (
                    f"graph {graph} has {name} {list(found) if found else 'not at all'}, the policy's numbers make "
                    f"it {list(shape)}"
                )
