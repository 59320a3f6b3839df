# SPDX-License-Identifier: Apache-2.0
"""What TensorRT made of a graph: how many layers compute in which type, from the engine inspector's JSON or, where no
GPU loads the engine, from the builder's verbose log, which also tells scratch and fused attentions.

The inspector's wording differs between versions ("Half", "FP16", "Row major
linear FP16 format"), so types are found by their words in the datatype of each
layer's outputs; a layer whose words are not known counts as "other", which is
reported and never folded into another type.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

_PRODUCTS = ("gemm", "matmul", "matrixmultiply", "matrix_multiply", "conv", "fc", "myelin", "mha", "attention")
"""Words in the type or name of a layer that holds matrix products."""


_SCRATCH = "Total Activation Memory: "
TOLD = ("Layers:", _SCRATCH)
"""How the builder's messages begin that tell its kernels and the scratch of all of them together."""
_KERNEL = re.compile(r"^Name: (.+?), LayerType: (\w+), Inputs: (.*?), Constants: (.*?), Outputs: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a compiler made of a graph. kernels: launches a run; fused_attentions: of these, whole attentions (both
    products and the softmax); float32_products: names of the matrix products that read float32; scratch: bytes;
    layers: as `layer_types`."""

    kernels: int
    fused_attentions: int
    float32_products: tuple[str, ...]
    scratch: int
    layers: Mapping[str, int]


def layer_types(inspected: str) -> dict[str, int]:
    """Layers by the type of what they read, the narrowest input first; `products.TYPE` counts those with matrix
    products.

    EngineError: not the inspector's JSON, or no per-layer detail in it.
    """
    return _types(_layers(inspected))


def verdict_of(log: str) -> Verdict:
    """What the builder's verbose log says of an engine it has just built. EngineError: it says nothing of kernels."""
    kernels = [
        {"Name": name, "LayerType": kind, "Inputs": _tensors(inputs), "Constants": _tensors(constants)}
        | {"Outputs": _tensors(outputs)}
        for name, kind, inputs, constants, outputs in _KERNEL.findall(log)
    ]
    scratch = re.search(rf"^{_SCRATCH}(\d+)", log, re.MULTILINE)
    if not kernels or scratch is None:
        raise EngineError("the compiler's log says nothing of kernels or scratch; this version words it differently")
    return Verdict(
        kernels=len(kernels),
        fused_attentions=sum("_gemm_mha" in kernel["Name"] for kernel in kernels),
        float32_products=tuple(filter(None, map(_float32_product, kernels))),
        scratch=int(scratch.group(1)),
        layers=_types(kernels),
    )


def _types(layers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for layer in layers:
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


def _tensors(text: str) -> list[dict[str, str]]:
    return [
        {"Name": name, "Datatype": kind} for name, kind in re.findall(r"\{ Name: (.+?), Dim.*?Datatype: (\w+)", text)
    ]


def _float32_product(kernel: Mapping[str, Any]) -> str | None:
    """The name of a matrix product in float32: the linear map's, where the kernel reads a weight, or its first named
    input's."""
    if kernel["LayerType"] != "gemm" and "Fc" not in kernel["Name"]:
        return None
    weight = next((tensor for tensor in kernel["Constants"] if ".weight" in tensor["Name"]), None)
    given = (tensor["Name"] for tensor in kernel["Inputs"] if not tensor["Name"].startswith("__"))
    name = weight["Name"].partition(".weight")[0] if weight else next(given, kernel["Name"])
    kinds = {tensor["Datatype"] for tensor in ([weight] if weight else kernel["Inputs"])}
    return str(name) if "Float" in kinds else None
