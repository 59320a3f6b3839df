# SPDX-License-Identifier: Apache-2.0
"""INT8 and half precision: the arithmetic, the ranges, the search, the audit, and whole bundles of tiny policies."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.precision.action_error import ActionError, ActionErrorBound, action_error, chunks, joint_spans
from vla_edge.calibration.precision.counting import work_of
from vla_edge.calibration.precision.folding import folds_of
from vla_edge.calibration.precision.int8 import Rewriter, Span, activation_grid, quantise_columns
from vla_edge.calibration.precision.linear import linear_maps, shapes_of
from vla_edge.calibration.precision.precision_audit import audit_openvino, audit_ort
from vla_edge.calibration.precision.precision_plan import Candidate, Weighted, all_half, cost_of, search
from vla_edge.calibration.precision.ranges import Ranges, Tap, gather
from vla_edge.calibration.precision.recorded_observations import from_dataset
from vla_edge.calibration.precision.synthetic import synthetic
from vla_edge.calibration.precision.variant import (
    FLOAT32,
    Choice,
    Group,
    MemorySink,
    Plan,
    VariantEngine,
    VariantSettings,
    groups_of,
    in_memory,
)
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.engines.openvino import GROUP, OpenVinoGraph
from vla_edge.errors import ConfigError, DatasetError, EngineError, ExportError
from vla_edge.export.command import main as export_main
from vla_edge.export.precision import PrecisionRequest, dialect_of, requantise
from vla_edge.export.show import print_bundle

ONE = EngineOptions(threads=1, spin=False)
LOOSE = ActionErrorBound(joint_p95=0.05, cosine=0.998)
"""Random weights forget no error, so the default bound is for trained policies; 0.998 is what full size must reach."""

DATA = Path(__file__).parents[1] / "data" / "koch_v21"


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return open_bundle(golden_bundle)


@pytest.fixture(scope="module")
def ranges(bundle: Bundle) -> Ranges:
    return gather(bundle, load_engine("ort-python", ONE), synthetic(bundle, 2, 1), None, lambda done, of: None)


@pytest.fixture(scope="module")
def openvino() -> Engine:
    try:
        return load_engine("openvino", ONE)
    except EngineError as error:
        pytest.skip(str(error))


def everywhere(bundle: Bundle, treatment: Treatment) -> Plan:
    return {
        group.name: Choice(treatment)
        for name in bundle.manifest.graphs
        for group in groups_of(bundle.graph(name))
        if not group.products
    }


def error_of(bundle: Bundle, engine: Engine, plan: Plan, settings: VariantSettings) -> ActionError:
    data = synthetic(bundle, 2, 0)
    variants = {name: in_memory(bundle.graph(name), plan, settings) for name in bundle.manifest.graphs}
    found = chunks(bundle, VariantEngine(engine, variants), data)
    return action_error(found, chunks(bundle, load_engine("ort", ONE), data), joint_spans(bundle))


def test_weights_come_back_within_half_a_step_of_their_column() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32) * np.logspace(
        -3, 3, 7, dtype=np.float32
    )
    weight[:, 3] = 0
    quantised, scale = quantise_columns(weight)
    assert quantised.dtype == np.int8 and np.abs(quantised).max() == 127
    # Half a step, and float32 rounding of the division beside it.
    assert (np.abs(quantised * scale - weight) <= scale * 0.5001).all()


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_lies_on_the_grid_of_an_activation(low: float, high: float) -> None:
    scale, zero = activation_grid(Span(low, high), signed=False)
    assert scale > 0 and 0 <= int(zero) <= 255
    # Both ends are reached within a step: zero is moved to the grid.
    assert (0 - int(zero)) * scale <= min(low, 0) + scale and (255 - int(zero)) * scale >= max(high, 0) - scale
    assert activation_grid(Span(low, high), signed=True)[1] == 0


def test_a_tap_keeps_a_stray_value_and_knows_its_channel() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 60)).astype(np.float32)
    values[3, 5] = 500.0
    tap = Tap()
    tap.add(values)
    assert tap.span().high == 500.0 and tap.outliers(20.0) == (5,)
    assert 3 < tap.without((5,)).span().high < 10


def test_multiply_adds_are_those_of_the_matrices(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.graph("expert").model)
    maps = sum(item.multiply_adds for item in linear_maps(model))
    shapes = shapes_of(model)
    others = sum(
        int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name not in {item.node for item in linear_maps(model)}
    )
    found = work_of(model)
    assert found.multiply_adds == maps + others
    assert found.weight_bytes == sum(
        int(np.prod(item.dims)) * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
        for item in model.graph.initializer
    )


def test_an_interrupted_gathering_of_ranges_goes_on_where_it_stopped(bundle: Bundle, tmp_path: Path) -> None:
    data, engine, file = synthetic(bundle, 3, 1), load_engine("ort-python", ONE), tmp_path / "ranges.npz"
    seen: list[int] = []

    def stop(done: int, of: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(bundle, engine, data, file, stop)
    resumed = gather(bundle, engine, data, file, lambda done, of: seen.append(done))
    whole = gather(bundle, engine, data, None, lambda done, of: None)
    assert seen == [0, 1, 2, 2, 3]
    assert resumed.taps.keys() == whole.taps.keys() and resumed.digest == data.digest
    for key, tap in whole.taps.items():
        other = resumed.taps[key]
        assert (tap.low, tap.high) == (other.low, other.high)
    with pytest.raises(ConfigError, match="other data"):
        gather(bundle, engine, synthetic(bundle, 3, 2), file, lambda done, of: None)


def test_the_expert_is_seen_at_every_one_of_its_steps(bundle: Bundle) -> None:
    runs: list[str] = []
    from vla_edge.calibration.precision.observing import ObservingEngine
    from vla_edge.runtime.inference.session import InferenceRequest, PolicySession

    value = next(linear_maps(onnx.load_from_string(bundle.graph("expert").model))).value
    session = PolicySession(
        bundle,
        ObservingEngine(
            load_engine("ort-python", ONE),
            lambda graph, name, _: runs.append(graph) if (graph, name) == ("expert", value) else None,
        ),
    )
    session.infer(InferenceRequest(synthetic(bundle, 1, 1).observations[0], 0))
    assert len(runs) == bundle.manifest.policy.num_steps


def test_folded_scales_change_nothing_in_float32(bundle: Bundle, ranges: Ranges) -> None:
    folds = folds_of([bundle.graph(name) for name in bundle.manifest.graphs], ranges)
    assert len(folds.factors) > 10
    prefix, state = folds.of("prefix"), folds.of("state")
    shared = prefix.keys() & state.keys()
    assert shared and all(np.array_equal(prefix[value], state[value]) for value in shared)
    # Another rounding of the same products.
    assert error_of(bundle, load_engine("ort-python", ONE), {}, VariantSettings(ranges, folds=folds)).relative < 1e-5


def test_dynamic_int8_runs_on_integers_in_onnx_runtime(bundle: Bundle) -> None:
    plan = everywhere(bundle, Treatment.INT8_DYNAMIC)
    for name in bundle.manifest.graphs:
        found = audit_ort(bundle.graph(name), in_memory(bundle.graph(name), plan, VariantSettings()), plan)
        # The rest is attention and the projections that stay in float.
        assert found.share["int8"] > 0.6 and not found.fell_back
        assert set(found.kernels) <= {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}


def test_an_audit_names_every_layer_that_did_not_become_what_was_asked(bundle: Bundle) -> None:
    plan = everywhere(bundle, Treatment.INT8_DYNAMIC)
    source = bundle.graph("expert")
    found = audit_ort(source, source, plan)
    assert found.share == {"fp32": 1.0}
    assert set(found.fell_back) == {item.node for item in linear_maps(onnx.load_from_string(source.model))}


def test_half_precision_keeps_softmax_norms_and_the_euler_step_in_float32(bundle: Bundle) -> None:
    plan = everywhere(bundle, Treatment.FLOAT16)
    model = onnx.load_from_string(in_memory(bundle.graph("expert"), plan, VariantSettings()).model)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.op_type in ("Softmax", "Sqrt", "Cos", "Sin", "ReduceMean", "Add", "Mul", "Div"):
            assert types.get(node.output[0], onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT, node.name
    halves = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and types[node.output[0]] == onnx.TensorProto.FLOAT16
    ]
    assert len(halves) > 20
    # float16 has 11 bits: 5e-4 a product, averaged over the sums.
    assert error_of(bundle, load_engine("ort-python", ONE), plan, VariantSettings()).relative < 5e-3


@pytest.mark.parametrize("treatment, kind", [(Treatment.INT8_STATIC, "int8"), (Treatment.INT8_WEIGHTS, "int8 weights")])
def test_openvino_runs_what_was_asked(
    bundle: Bundle, ranges: Ranges, openvino: Engine, treatment: Treatment, kind: str
) -> None:
    plan = everywhere(bundle, treatment)
    settings = VariantSettings(ranges)
    for name in ("vision", "state", "expert"):
        session = openvino.load(in_memory(bundle.graph(name), plan, settings))
        assert isinstance(session, OpenVinoGraph)
        # One row's products wait for their weights: quantising it would gain nothing.
        group = session._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
        assert group == (0 if name == "state" else GROUP)
        found = audit_openvino(bundle.graph(name), session.executed_layers(), plan)
        assert found.share[kind] > 0.5 and not found.fell_back
    error = error_of(bundle, openvino, plan, settings)
    assert error.cosine > 0.995, error


def test_the_tensorrt_dialect_is_signed_and_symmetric(bundle: Bundle, ranges: Ranges) -> None:
    plan = everywhere(bundle, Treatment.INT8_STATIC)
    model = onnx.load_from_string(in_memory(bundle.graph("vision"), plan, VariantSettings(ranges, signed=True)).model)
    tensors = {item.name: item for item in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantisers) > 5
    for node in quantisers:
        zero = tensors[node.input[2]]
        assert zero.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(zero).any()


def test_half_precision_around_int8_costs_no_more_than_int8_itself(bundle: Bundle, ranges: Ranges) -> None:
    """What the dialect of tensorrt writes: float16 scales, every other product in half, checked by ONNX's checker."""
    plan = everywhere(bundle, Treatment.INT8_STATIC)
    single = VariantSettings(ranges, signed=True)
    mixed = replace(single, half=True)
    for name in bundle.manifest.graphs:
        graph = in_memory(bundle.graph(name), plan, mixed)
        model = onnx.load_from_string(with_inline_tensors(graph.model, graph.weights))
        onnx.checker.check_model(model, full_check=True)
        kinds = {item.name: item.data_type for item in model.graph.initializer}
        scales = [node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert scales and {kinds[scale] for scale in scales} == {onnx.TensorProto.FLOAT16}
    engine = load_engine("ort-python", ONE)
    before, after = (error_of(bundle, engine, plan, settings) for settings in (single, mixed))
    # 11 bits beside 8: an eighth of a quantisation step at most.
    assert after.relative < 1.15 * before.relative and after.cosine > 0.995, (before, after)


def test_float16_scales_are_never_zero_and_weights_are_quantised_by_the_rounded_scale(bundle: Bundle) -> None:
    weight = np.array([[1e-9, 0.3, 0.0], [-1e-9, 0.1, 0.0]], np.float32)
    rewriter = Rewriter(onnx.ModelProto(), {}, MemorySink(bytearray()), half=True)
    quantised, scale = quantise_columns(weight, rewriter._scale)
    assert scale.dtype == np.float16 and (scale > 0).all()
    assert (np.abs(quantised * scale.astype(np.float32) - weight) <= scale * 0.51).all()


def test_the_table_of_token_embeddings_is_stored_in_half(bundle: Bundle) -> None:
    model = onnx.load_from_string(
        in_memory(bundle.graph("prefix"), everywhere(bundle, Treatment.FLOAT16), VariantSettings()).model
    )
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in kinds]
    assert tables and {kinds[table] for table in tables} == {onnx.TensorProto.FLOAT16}


def test_openvino_agrees_with_onnx_runtime_in_float32(bundle: Bundle, openvino: Engine) -> None:
    # Two libraries' float32: another order of summation.
    assert error_of(bundle, openvino, {}, VariantSettings()).relative < 1e-4


def test_a_missing_backend_is_never_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="openvino is not installed"):
        load_engine("openvino", ONE)


GROUPS = [
    Weighted(Group(name, name.split("/")[0], work), 1, role)
    for name, role, work in (("vision/up", "camera", 60), ("prefix/up", "scene", 25), ("expert/up", "step", 15))
]


def pretend(bad: Sequence[str]) -> ActionError:
    return ActionError(1.0 - 0.01 * len(bad), 0.9, 0.01 + 0.1 * len(bad), 0.001 + 0.01 * len(bad))


def test_the_search_takes_the_cheapest_plan_that_holds_the_bound() -> None:
    found = search(GROUPS, dialect_of("openvino"), ActionErrorBound(), lambda candidate: pretend([]))
    assert found.chosen is not None and len(found.tried) == 1
    assert {choice.treatment for choice in found.chosen.candidate.plan.values()} == {Treatment.INT8_STATIC}


def test_the_search_mends_only_what_is_broken() -> None:
    def measure(candidate: Candidate) -> ActionError:
        return pretend([name for name in ("expert/up",) if candidate.plan.get(name, FLOAT32) != FLOAT32])

    found = search(GROUPS, dialect_of("ort"), ActionErrorBound(), measure)
    assert found.chosen is not None
    plan = found.chosen.candidate.plan
    assert (
        plan["expert/up"] == FLOAT32
        and plan["vision/up"].treatment is Treatment.INT8_DYNAMIC
        and plan["prefix/up"].treatment is Treatment.INT8_DYNAMIC
    )


ON_GPU = [
    Weighted(Group(name, name.split("/")[0], 1000, weights=weights), runs, role)
    for name, role, runs, weights in (
        ("vision/mlp/up", "camera", 2, 10), ("prefix/attention/qkv", "scene", 1, 10), ("prefix/mlp/up", "scene", 1, 20),
        ("state/mlp/up", "moment", 1, 20), ("expert/mlp/up", "step", 10, 20),
    )
]  # fmt: skip


def test_for_a_gpu_the_search_begins_in_half_and_takes_int8_where_weights_are_waited_for() -> None:
    found = search(ON_GPU, dialect_of("tensorrt"), ActionErrorBound(), lambda candidate: pretend([]))
    assert found.chosen is not None and found.tried[0].candidate.name == "all fp16"
    kinds = {name: choice.treatment for name, choice in found.chosen.candidate.plan.items()}
    quantised = {"prefix/mlp/up", "state/mlp/up", "expert/mlp/up"}
    assert {name for name, kind in kinds.items() if kind is Treatment.INT8_STATIC} == quantised
    assert {kinds[name] for name in kinds.keys() - quantised} == {Treatment.FLOAT16}
    assert found.chosen.cost < found.tried[0].cost


def test_for_a_gpu_the_search_mends_towards_half_and_names_half_where_that_is_too_much() -> None:
    def measure(candidate: Candidate) -> ActionError:
        return pretend([name for name in ("expert/mlp/up",) if candidate.plan[name].treatment is Treatment.INT8_STATIC])

    found = search(ON_GPU, dialect_of("tensorrt"), ActionErrorBound(), measure)
    assert found.chosen is not None
    kinds = {name: choice.treatment for name, choice in found.chosen.candidate.plan.items()}
    assert kinds["expert/mlp/up"] is Treatment.FLOAT16 and Treatment.INT8_STATIC in kinds.values()
    refused = search(ON_GPU, dialect_of("tensorrt"), ActionErrorBound(), lambda candidate: pretend(["all"]))
    assert refused.chosen is None and len(refused.tried) == 1


def test_a_gpus_cost_is_bytes_for_the_steps_and_products_for_pictures() -> None:
    half = all_half(ON_GPU)
    wide = replace(ON_GPU[4], group=replace(ON_GPU[4].group, weights=10**6))
    assert cost_of(half, [wide], on_gpu=True) == pytest.approx(0.5)
    assert cost_of(half, ON_GPU[:1], on_gpu=True) == pytest.approx(1 / 8.4)


def test_a_bound_that_nothing_holds_gives_no_plan() -> None:
    assert search(GROUPS, dialect_of("ort"), ActionErrorBound(), lambda candidate: pretend(["all"])).chosen is None


def test_an_int8_bundle_runs_native_and_says_what_it_is(golden_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    manifest = requantise(
        golden_bundle, out, PrecisionRequest("int8", bound=LOOSE, frames=2, held_out=2, threads=1), lambda step: None
    )
    written = open_bundle(out)
    written.verify()
    assert written.manifest == manifest and "native" in load_engine("ort", ONE).detail
    source = open_bundle(golden_bundle)
    data = synthetic(source, 2, 0)
    engine = load_engine("ort", ONE)
    found = action_error(chunks(written, engine, data), chunks(source, engine, data), joint_spans(source))
    assert found.within(LOOSE) and manifest.precision["error"]["cosine"] == pytest.approx(found.cosine, abs=1e-4)
    assert all(text.startswith("int8") for text in manifest.precision["graphs"].values())
    assert manifest.graphs["expert"].inputs == source.manifest.graphs["expert"].inputs
    assert manifest.precision["data"]["digest"] == data.digest and manifest.precision["latency_ms"]["this"]["total"] > 0
    weights = {name: (out / name).stat().st_size for name in manifest.files if name.endswith(".bin")}
    assert sum(weights.values()) < 0.6 * (golden_bundle / "graphs" / "weights.bin").stat().st_size
    with pytest.raises(ConfigError, match="already"):
        requantise(out, tmp_path / "twice", PrecisionRequest("int8"), lambda step: None)


def test_a_bound_out_of_reach_fails_the_export_and_auto_stays_in_float32(golden_bundle: Path, tmp_path: Path) -> None:
    tight = PrecisionRequest("int8", bound=ActionErrorBound(1e-9, 1.0), frames=1, held_out=1, threads=1)
    with pytest.raises(ExportError, match="no INT8 plan holds the bound"):
        requantise(golden_bundle, tmp_path / "tight", tight, lambda step: None)
    assert not list(tmp_path.iterdir())
    manifest = requantise(golden_bundle, tmp_path / "auto", replace(tight, precision="auto"), lambda step: None)
    assert set(manifest.precision["graphs"].values()) == {"fp32"} and manifest.precision["search"]
    assert manifest.precision["why_float32"] == "no INT8 plan holds the bound"
    open_bundle(tmp_path / "auto").verify()


@pytest.mark.parametrize("int8_ms, kept", [(50.0, "int8"), (150.0, "fp32")])
def test_auto_keeps_int8_only_where_it_is_faster(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8_ms: float, kept: str
) -> None:
    timed = {"this": {"total": int8_ms}, "fp32": {"total": 100.0}}
    monkeypatch.setattr("vla_edge.export.precision.PrecisionWork._latency", lambda work, written, engine: timed)
    request = PrecisionRequest("auto", bound=LOOSE, frames=1, held_out=1, threads=1)
    manifest = requantise(golden_bundle, tmp_path / "auto", request, lambda step: None)
    assert all(text.startswith(kept) for text in manifest.precision["graphs"].values())
    written = open_bundle(tmp_path / "auto")
    written.verify()
    found = [path.relative_to(written.path).as_posix() for path in written.path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(["manifest.json", *manifest.files])


def test_int8_that_is_slower_than_float32_is_said_in_the_bundle_and_where_it_is_shown(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = {"this": {"total": 150.0}, "fp32": {"total": 100.0}}
    monkeypatch.setattr("vla_edge.export.precision.PrecisionWork._latency", lambda work, written, engine: timed)
    request = PrecisionRequest("int8", bound=LOOSE, frames=1, held_out=1, threads=1)
    manifest = requantise(golden_bundle, tmp_path / "int8", request, lambda step: None)
    sentence = "INT8 takes 150.0 ms here and float32 100.0 ms"
    assert manifest.precision["slower_than_float32"] == sentence
    shown = Console(record=True, width=200, file=io.StringIO())
    print_bundle(tmp_path / "int8", shown, detail=False)
    assert f"this bundle is slower than its float32 one: {sentence}" in shown.export_text()


def test_half_precision_for_this_cpu_is_refused_and_for_a_gpu_is_said_not_to_be_audited(
    golden_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="float32"):
        requantise(golden_bundle, tmp_path / "no", PrecisionRequest("fp16", "ort"), lambda step: None)
    request = PrecisionRequest("fp16", "ort-cuda", frames=1, held_out=1, threads=1)
    manifest = requantise(golden_bundle, tmp_path / "half", request, lambda step: None)
    assert "not audited" in manifest.precision["audit"] and manifest.precision["error"]["cosine"] > 0.9999


def test_int8_for_tensorrt_is_searched_here_and_refused_beyond_its_bound(golden_bundle: Path, tmp_path: Path) -> None:
    """Its graphs are computed as they are written: the same rounding, without the device's speed."""
    request = PrecisionRequest("int8", "tensorrt", bound=LOOSE, frames=2, held_out=2, threads=1)
    precision = requantise(golden_bundle, tmp_path / "int8", request, lambda step: None).precision
    assert precision["search"] and precision["error"]["cosine"] >= LOOSE.cosine
    audit = precision["audit"]
    said = audit if isinstance(audit, str) else audit["not_run"]
    assert said.startswith("not audited") and "not timed" in said
    if not isinstance(audit, str):  # where NVIDIA's compiler is installed
        for name, found in audit["graphs"].items():
            assert found["fused_attentions"] == found["attentions"] > 0 or name == "delta_kv"
    assert any("int8-static" in choice for choice in precision["plan"].values())
    kept = {name: choice for name, choice in precision["plan"].items() if name.startswith("vision/")}
    assert set(kept.values()) == {"fp16"}
    assert precision["search"][0]["plan"] == "all fp16"
    tight = replace(request, bound=ActionErrorBound(1e-9, 1.0), frames=1, held_out=1)
    with pytest.raises(ExportError, match="fp16 for tensorrt has cosine .* outside the bound"):
        requantise(golden_bundle, tmp_path / "tight", tight, lambda step: None)
    with pytest.raises(ExportError, match="fp16 for tensorrt has cosine .* outside the bound"):
        requantise(golden_bundle, tmp_path / "half", replace(tight, precision="fp16"), lambda step: None)
    assert [item.name for item in tmp_path.iterdir()] == ["int8"]


@pytest.mark.parametrize("backend", ["ort", "openvino", "tensorrt"])
def test_planted_outlier_channels_leave_a_plan_that_reaches_the_cosine(
    random_policy, tmp_path: Path, backend: str
) -> None:
    """8 times the norm weights on 0.8 % of the channels (one of 96): plain INT8 spends its steps on them."""
    if backend == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    import torch

    from vla_edge.export.assemble import ExportRequest, export_bundle

    policy = random_policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                count = max(1, round(0.008 * len(weight)))
                weight[torch.randperm(len(weight), generator=generator)[:count]] *= 8
    policy.save_pretrained(tmp_path / "outliers")
    export_bundle(
        ExportRequest(checkpoint=tmp_path / "outliers", out=tmp_path / "bundle", threads=1), lambda step: None
    )
    bound = ActionErrorBound(joint_p95=1.0, cosine=0.998)
    manifest = requantise(
        tmp_path / "bundle",
        tmp_path / "int8",
        PrecisionRequest("int8", backend, bound=bound, frames=2, held_out=2, threads=1),
        lambda step: None,
    )
    assert manifest.precision["error"]["cosine"] >= 0.998
    audit = manifest.precision["audit"]
    if backend != "tensorrt":  # what runs there is decided on the device
        assert all(audit[name]["share"]["fp32"] < 0.5 and not audit[name]["fell_back"] for name in ("vision", "prefix"))


def test_observations_come_from_a_dataset_and_some_are_held_out(bundle: Bundle) -> None:
    names = [camera.source for camera in bundle.manifest.cameras]
    renamed = dict(zip(names, ("observation.images.front", "observation.images.wrist")))
    split = from_dataset(bundle, DATA, renamed, 3, 2)
    assert (
        len(split.ranges.observations) == 3
        and len(split.held_out.observations) == 2
        and split.ranges.digest != split.held_out.digest
    )
    assert max(item.sequence for item in split.ranges.observations) < min(
        item.sequence for item in split.held_out.observations
    )
    assert set(split.held_out.observations[0].frames) == set(names)
    with pytest.raises(DatasetError, match="--camera"):
        from_dataset(replace_cameras(bundle), DATA, {}, 3, 2)


def replace_cameras(bundle: Bundle) -> Bundle:
    cameras = tuple(
        replace(camera, name="observation.images.other", source="observation.images.other")
        for camera in bundle.manifest.cameras[:1]
    )
    return replace(bundle, manifest=replace(bundle.manifest, cameras=cameras))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--precision", "int8"], "--dataset"),
        (["--precision", "fp32"], "float32 already"),
        (["--precision", "int8", "--synthetic", "--cosine", "2"], "--cosine"),
        (["--precision", "int8", "--synthetic", "--frames", "0"], "--frames"),
        (["--precision", "fp16", "--synthetic"], "half-precision"),
    ],
)
def test_mistaken_flags_are_one_line(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert export_main(["--bundle", str(golden_bundle), "--out", str(tmp_path / "out"), *flags]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1 and said in message[0]
    assert not (tmp_path / "out").exists()
