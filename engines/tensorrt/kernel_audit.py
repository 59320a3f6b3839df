"""What TensorRT made of a graph, from the engine inspector's JSON: how many layers compute in which type.

The inspector's wording differs between versions ("Half", "FP16", "Row major
linear FP16 format"), so types are found by their words in the datatype of each
layer's outputs; a layer whose words are not known counts as "other", which is
reported and never folded into another type.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vla_edge.errors import EngineError

_WORDS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("half", "fp16"),
    ("fp16", "fp16"),
    ("bfloat16", "bf16"),
    ("bf16", "bf16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
    ("int64", "int64"),
    ("int32", "int32"),
    ("bool", "bool"),
)
"""Looked for in this order."""

_PRODUCTS = (
    "gemm",
    "matmul",
    "matrixmultiply",
    "matrix_multiply",
    "convolution",
    "conv",
    "fc",
    "myelin",
    "mha",
    "attention",
)
"""Words in the type or name of a layer that holds matrix products."""


def layer_types(inspected: str) -> dict[str, int]:
    """Layers by the type of what they read, the narrowest input first; `products.TYPE` counts those with matrix
    products.

    EngineError: not the inspector's JSON, or no per-layer detail in it.
    """
    found: Counter[str] = Counter()
    for layer in _layers(inspected):
        kind = _computes_in(layer)
        found[kind] += 1
        words = f"{layer.get('LayerType', '')} {layer.get('Name', '')}".lower()
        if any(word in words for word in _PRODUCTS):
            found[f"products.{kind}"] += 1
    return dict(sorted(found.items()))


def int8_share(layers: Mapping[str, int]) -> float:
    """Share of the layers with matrix products that read INT8; 0 when there are none."""
    products = {name: count for name, count in layers.items() if name.startswith("products.")}
    total = sum(products.values())
    return products.get("products.int8", 0) / total if total else 0.0


def _layers(inspected: str) -> list[Mapping[str, Any]]:
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"the engine inspector's answer has no list of layers ({error}); the plan was built without profiling "
            "detail, build it again"
        ) from None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise EngineError(
            "the engine inspector gives names only; the plan was built without profiling detail, build it again"
        )
    return layers


def _computes_in(layer: Mapping[str, Any]) -> str:
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    kinds = {
        _kind(str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))))
        for tensor in tensors
        if isinstance(tensor, dict)
    }
    return next((kind for _, kind in _WORDS if kind in kinds), "other")


def _kind(text: str) -> str:
    lower = text.lower()
    return next((kind for word, kind in _WORDS if word in lower), "other")
