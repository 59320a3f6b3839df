# SPDX-License-Identifier: Apache-2.0
"""Convolutions in INT8: on ONNX Runtime every one of them runs on integers, and the tokens stay near float32's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.policies.act.act_checkpoints import checkpoint

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.precision.action_error import ActionErrorBound
from vla_edge.calibration.precision.convolution import convolutions, watched_values
from vla_edge.calibration.precision.counting import work_of
from vla_edge.calibration.precision.ranges import Ranges, Tap
from vla_edge.calibration.precision.variant import Choice, VariantSettings, build, groups_of, in_memory
from vla_edge.engines.dialect import Treatment
from vla_edge.errors import ConfigError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.export.weights import WeightFile


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("conv")
    export_bundle(ExportRequest(checkpoint(place / "act"), place / "bundle", threads=1), lambda _: None)
    return place / "bundle"


def test_a_convolution_is_found_with_the_value_behind_its_relu_and_its_work(float32: Path) -> None:
    model = onnx.load_from_string(open_bundle(float32).graph("backbone").model)
    found = {item.node: item for item in convolutions(model)}
    assert len(found) == 21  # 1 + 2 · 8 + 3 shortcuts, and the projection
    stem, second = found["stem/conv1"], found["stage1/block0/conv2"]
    assert (stem.value, stem.made, stem.group) == ("pixels", "stem/relu", "backbone/stem")
    assert second.made == "stage1/block0/conv2"  # its sum comes before a ReLU
    assert stem.multiply_adds == 48 * 64 * 64 * 3 * 49
    assert sum(item.multiply_adds for item in found.values()) == work_of(model).multiply_adds
    assert watched_values(model)[0] == "pixels"


def test_groups_are_stages_of_the_backbone_beside_the_kinds_of_linear_maps(float32: Path) -> None:
    groups = {group.name: group for group in groups_of(open_bundle(float32).graph("backbone"))}
    assert list(groups) == [f"backbone/{name}" for name in ("stem", "stage1", "stage2", "stage3", "stage4", "project")]
    assert all(group.convolution for group in groups.values())


def test_the_backbone_runs_on_integers_and_the_actions_stay_near(float32: Path, tmp_path: Path) -> None:
    request = PrecisionRequest("int8", frames=4, held_out=2, threads=1, bound=ActionErrorBound(0.03, 0.99))
    manifest = requantise(float32, tmp_path / "int8", request, lambda _: None)
    assert manifest.precision["graphs"]["backbone"] == "int8 100.0 %"
    assert set(manifest.precision["audit"]["backbone"]["kernels"]) == {"QLinearConv"}
    assert manifest.precision["error"]["cosine"] > 0.99


def model_of(bundle: Bundle, treatment: Treatment, settings: VariantSettings, folder: Path) -> onnx.ModelProto:
    graph = bundle.graph("backbone")
    plan = {group.name: Choice(treatment) for group in groups_of(graph)}
    with WeightFile(folder / "weights.bin") as weights:
        return build(graph, plan, settings, weights)


def test_for_tensorrt_the_grids_are_signed_and_the_bias_stays_float(float32: Path, tmp_path: Path) -> None:
    bundle = open_bundle(float32)
    watched = watched_values(onnx.load_from_string(bundle.graph("backbone").model))
    taps = {("backbone", name): Tap(-1.0, 2.0, np.ones(1, np.float32)) for name in watched}
    ranges = Ranges(taps, "", "", 1)
    model = model_of(bundle, Treatment.INT8_STATIC, VariantSettings(ranges, signed=True, half=True), tmp_path)
    types = {item.name: item.data_type for item in model.graph.initializer}
    zeros = [kind for name, kind in types.items() if name.endswith("/zero")]
    assert set(zeros) == {onnx.TensorProto.INT8}
    assert onnx.TensorProto.INT32 not in types.values()
    assert types["stem/relu/conv/scale"] == onnx.TensorProto.FLOAT16


def test_half_precision_takes_convolutions_too(float32: Path, tmp_path: Path) -> None:
    model = model_of(open_bundle(float32), Treatment.FLOAT16, VariantSettings(), tmp_path)
    weights = {item.name: item.data_type for item in model.graph.initializer}
    read = [weights[name] for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]]
    assert len(read) == 42 and set(read) == {onnx.TensorProto.FLOAT16}


def test_static_int8_without_recorded_ranges_is_refused(float32: Path) -> None:
    graph = open_bundle(float32).graph("backbone")
    plan = {group.name: Choice(Treatment.INT8_STATIC) for group in groups_of(graph)}
    with pytest.raises(ConfigError, match="needs recorded ranges"):
        in_memory(replace(graph), plan, VariantSettings())
