# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of a bundle's graphs, found without a GPU where TensorRT-RTX's wheels are installed.

TensorRT-RTX (extra `rtx`) is TensorRT's sister for RTX cards: the same parser, no
autotuning. What it says of a graph is a strong lead for a Jetson and no proof; nothing
is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_edge.bundle import Bundle, GraphFile, open_bundle, write_manifest
from vla_edge.engines.tensorrt.engine_build import RTX, BuildOptions, load_compiler, serialize
from vla_edge.engines.tensorrt.engine_file import Compiler
from vla_edge.errors import EngineError

Facts = dict[str, Any]


def audit(path: Path, progress: Callable[[str], None]) -> None:
    """Write the verdicts into the manifest of a bundle that was made just now; nothing where there are none."""
    bundle = open_bundle(path)
    found = verdicts(bundle, progress)
    if found is not None:
        write_manifest(path, replace(bundle.manifest, precision={**bundle.manifest.precision, "audit": found}))


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The verdicts in words."""
    yield f"{found['compiler']}:"
    for name, counted in found["graphs"].items():
        yield (
            f"  {name}: {counted['fused_attentions']} of {counted['attentions']} attentions fused, "
            f"{counted['kernels']} kernels, {counted['float32_products']} float32 products, scratch "
            f"{counted['scratch_mb']} MB"
        )


def verdicts(bundle: Bundle, progress: Callable[[str], None]) -> Facts | None:
    """`{"compiler", "graphs": {name: counts}}`; None where the wheels are not installed. EngineError: a graph the
    compiler refuses."""
    try:
        compiler = load_compiler(RTX)
    except EngineError:
        return None
    found = {}
    for name in bundle.manifest.graphs:
        progress(f"what NVIDIA's compiler makes of {name}")
        found[name] = counts(bundle.graph(name), compiler)
    return {"compiler": f"{RTX} {compiler.version}, built on a CPU, nothing was run", "graphs": found}


def counts(graph: GraphFile, compiler: Compiler) -> Facts:
    """attentions, and how many of them are one kernel; kernels; products whose weights or inputs are float32; scratch
    and engine file in MB."""
    import onnx

    compiled = serialize(compiler, graph, BuildOptions(), lambda step: None)
    found = compiled.verdict
    return {
        "attentions": sum(node.op_type == "Softmax" for node in onnx.load_from_string(graph.model).graph.node),
        "fused_attentions": found.fused_attentions,
        "kernels": found.kernels,
        "float32_products": len(found.float32_products),
        "scratch_mb": round(found.scratch / 1e6, 1),
        "engine_mb": round(len(compiled.data) / 1e6, 1),
    }
