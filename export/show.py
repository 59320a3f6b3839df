# SPDX-License-Identifier: Apache-2.0
"""What a bundle holds, as tables for a person."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table

from vla_edge.bundle import UNKNOWN_RATE, Bundle, open_bundle
from vla_edge.errors import BundleError
from vla_edge.export.nvidia_verdict import lines
from vla_edge.runtime.inference.bundle_fit import check_fit


def summary(bundle: Bundle) -> dict[str, object]:
    """The bundle's figures for `--json`."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "bytes": sum((bundle.path / name).stat().st_size for name in manifest.files),
        "graphs": {name: _figures(bundle, name) for name in manifest.graphs},
        "parity": dict(manifest.parity),
        "gate": dict(manifest.gate),
        "fps": manifest.fps,
        "robot_type": manifest.robot_type,
        "notes": list(manifest.notes),
    }


def print_bundle(path: Path, console: Console, detail: bool) -> Bundle:
    """Check every file of the bundle at `path` and print its graphs; with `detail` also policy, cameras and tensors.

    BundleError: a file is missing or differs from its hash, or the manifest contradicts itself.
    """
    bundle = open_bundle(path)
    bundle.verify()
    check_fit(bundle)
    if detail:
        _print_policy(bundle, console)
    table = Table(title=f"{path.name} · {bundle.digest[:12]}")
    table.add_column("graph")
    latency = bundle.manifest.precision.get("latency_ms", {})
    columns = ("nodes", "parameters", "weights MB", "precision", "worst parity", *(["ms (fp32)"] if latency else []))
    for name in columns:
        table.add_column(name, justify="right")
    parity = bundle.manifest.parity.get("graphs", {})
    precision = bundle.manifest.precision.get("graphs", {})
    for name in bundle.manifest.programme.order():
        figures = _figures(bundle, name)
        worst = f"{parity[name]:.1e}" if name in parity else ""
        took = [f"{latency['this'][name]:.1f} ({latency['fp32'][name]:.1f})"] if name in latency.get("this", {}) else []
        size = str(figures["nodes"]), f"{figures['parameters'] / 1e6:.2f} M", f"{figures['bytes'] / 1e6:.1f}"
        table.add_row(name, *size, precision.get(name, ""), worst, *took)
    console.print(table)
    _print_precision(bundle, console)
    stored = sum((path / name).stat().st_size for name in bundle.manifest.files)
    limit = bundle.manifest.parity.get("tolerance", 0)
    chunk = f", chunk parity {parity['chunk']:.1e} (limit {limit:g})" if "chunk" in parity else ""
    console.print(f"{stored / 1e6:.1f} MB on disk, shared tensors stored once{chunk}")
    for note in (*bundle.manifest.notes, *(() if bundle.manifest.fps else (UNKNOWN_RATE,))):
        console.print(f"note: {note}", markup=False)
    return bundle


def _print_precision(bundle: Bundle, console: Console) -> None:
    """The measured action error of a bundle that is not float32, with its bound."""
    found = bundle.manifest.precision
    audit = found.get("audit")
    if isinstance(audit, dict) and "compiler" in audit:
        for line in lines(audit):
            console.print(line, markup=False)
    if "error" not in found:
        return
    error, bound = found["error"], found["bound"]
    console.print(
        f"{found['requested']} for {found['backend']}: action error cosine {error['cosine']:.5f} (at least "
        f"{bound['cosine']:g}), "
        f"95th percentile {100 * error['joint_p95']:.2f} % of a joint's range (at most {100 * bound['joint_p95']:g} "
        f"%), on {found['data']['held_out']}",
        markup=False,
    )
    if "latency_ms" in found:
        whole = found["latency_ms"]
        console.print(
            f"fresh inference {whole['this']['total']:.1f} ms, float32 on ONNX Runtime {whole['fp32']['total']:.1f} ms"
        )
    if "slower_than_float32" in found:
        console.print(f"this bundle is slower than its float32 one: {found['slower_than_float32']}", markup=False)


def _figures(bundle: Bundle, name: str) -> dict[str, int]:
    """Nodes, parameters and weight bytes of one graph; what graphs share counts in each."""
    file = bundle.manifest.graphs[name].file
    try:
        graph = onnx.load_from_string(bytes(bundle.read(file))).graph
    except DecodeError:
        raise BundleError(f"{bundle.path / file}: no ONNX graph; export the bundle again") from None
    weights = [item for item in graph.initializer if item.data_type != onnx.TensorProto.INT64]
    elements = [prod(item.dims) for item in weights]
    sizes = [
        count * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize for item, count in zip(weights, elements)
    ]
    return {"nodes": len(graph.node), "parameters": sum(elements), "bytes": sum(sizes)}


def _print_policy(bundle: Bundle, console: Console) -> None:
    manifest, policy = bundle.manifest, bundle.manifest.policy
    facts = Table(show_header=False, title="policy")
    layers = f"{policy.layers} text layers, self {list(policy.self_layers)}, cross {list(policy.cross_layers)}"
    facts.add_row("type", f"{policy.type}, {layers}" if policy.layers else policy.type)
    count = f"distilled to {policy.num_steps}" if policy.distilled else f"{policy.min_steps} to {policy.num_steps}"
    steps = f"{count} flow steps" if manifest.programme.step else "in one pass"
    averaged = policy.ensemble_coefficient
    used = f"{policy.n_action_steps} executed" if averaged is None else f"averaged with coefficient {averaged:g}"
    facts.add_row("chunk", f"{policy.chunk_size} actions, {used}, {steps}")
    rate = f"{manifest.fps:g} actions a second" if manifest.fps else "actions a second: unknown"
    facts.add_row("data", f"{rate}, of a {manifest.robot_type}" if manifest.robot_type else rate)
    facts.add_row("pictures", f"{policy.image_width}×{policy.image_height}, {policy.tokens_per_image} tokens each")
    for camera in manifest.cameras:
        renamed = f" (from {camera.source})" if camera.source != camera.name else ""
        renamed += f" ({camera.in_data} in the data)" if camera.in_data else ""
        facts.add_row("camera", f"{camera.name}{renamed} {camera.width}×{camera.height}")
    facts.add_row("joints", f"{', '.join(manifest.joints)} [{manifest.joint_units}]")
    text = manifest.tokenizer
    language = (
        f"{text.max_length} tokens, padding {text.padding} {text.padding_side}" if manifest.reads_text else "none"
    )
    facts.add_row("language", language)
    for item in manifest.normalization:
        facts.add_row("normalisation", f"{item.feature}: {item.mode}")
    facts.add_row("gate", str(manifest.gate.get("kind")))
    if "still_mean" in manifest.gate:
        limits = " and ".join(f"{manifest.gate[name]:.3g}" for name in ("still_mean", "still_worst"))
        facts.add_row("still", f"mean and worst block within {limits} grey levels")
    facts.add_row("checkpoint", f"{manifest.checkpoint.get('name')} {str(manifest.checkpoint.get('sha256'))[:12]}")
    facts.add_row("made with", ", ".join(f"{name} {number}" for name, number in manifest.tools.items()))
    console.print(facts)
    tensors = Table(title="tensors")
    for column in ("graph", "", "tensor", "type", "shape"):
        tensors.add_column(column)
    for name in manifest.programme.order():
        graph = manifest.graphs[name]
        for kind, specs in (("in", graph.inputs), ("out", graph.outputs)):
            for spec in specs:
                tensors.add_row(name, kind, spec.name, spec.dtype, "×".join(str(size) for size in spec.shape))
    console.print(tensors)
