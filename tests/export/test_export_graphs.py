# SPDX-License-Identifier: Apache-2.0
"""How graphs are written: tensors once in one file, names that stay, and what the lint refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.errors import ExportError
from vla_edge.export.graph import OPSET, Graph
from vla_edge.export.lint import find, lint
from vla_edge.export.weights import INLINE_BYTES, WeightFile


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return open_bundle(golden_bundle)


def models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load_from_string(bytes(bundle.read(spec.file))) for name, spec in bundle.manifest.graphs.items()}


def test_equal_tensors_are_stored_once_whatever_their_name(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32)
    with WeightFile(tmp_path / "weights.bin") as weights:
        places = [weights.tensor(name, array.copy()).external_data for name in ("a", "b")]
        other = weights.tensor("c", array + 1).external_data
        small = weights.tensor("d", array[: INLINE_BYTES // 4])
    assert (
        [entry.value for entry in places[0]] == [entry.value for entry in places[1]] != [entry.value for entry in other]
    )
    assert not small.external_data and small.raw_data
    assert (tmp_path / "weights.bin").stat().st_size < 2 * array.nbytes + 128


def test_tensors_start_on_a_cache_line_and_large_ones_on_a_page(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin") as weights:
        offsets = []
        for size in (65, 1 << 18, 77, 1 << 19):
            proto = weights.tensor("x", np.full(size, size, np.float32))
            offsets.append(next(int(entry.value) for entry in proto.external_data if entry.key == "offset"))
    assert [offset % 64 for offset in offsets] == [0] * 4
    assert offsets[1] % 4096 == offsets[3] % 4096 == 0


def test_an_existing_weight_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        WeightFile(tmp_path / "weights.bin")


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin") as weights:
        graph = Graph("expert", weights)
        with (
            graph.scope("layer03"),
            pytest.raises(ExportError, match="expert: weight layer03/gate_up holds a value that is not finite"),
        ):
            graph.weight(np.array([1.0, np.nan]), "gate_up")


def test_every_graph_passes_checker_and_lint_and_uses_only_onnx_itself(bundle: Bundle, tmp_path: Path) -> None:
    # A copy: the checker refuses weights with a second link, which a calibration of the same bundle makes.
    own = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    for name, model in models(bundle).items():
        onnx.checker.check_model(str(own / bundle.manifest.graphs[name].file), full_check=True)
        assert list(find(model)) == []
        assert {opset.domain for opset in model.opset_import} == {""}
        assert model.opset_import[0].version == OPSET


def test_a_later_pass_finds_each_matrix_by_a_name_that_stays(bundle: Bundle) -> None:
    names = {
        name: {node.name for node in model.graph.node if node.op_type == "MatMul"}
        for name, model in models(bundle).items()
    }
    assert {"patches/project", "layer00/attention/qkv", "layer02/mlp/down", "connector/project"} <= names["vision"]
    assert {"layer00/attention/qkv", "layer02/mlp/gate_up", "layer03/attention/kv", "expert01/key/project"} <= names[
        "prefix"
    ]
    assert {"state_proj", "layer00/attention/output", "layer03/attention/kv"} <= names["state"]
    assert {
        "embed/actions",
        "layer00/attention/qkv",
        "layer01/attention/query",
        "layer03/mlp/down",
        "action_out",
    } <= names["expert"]


def test_prefix_and_state_share_the_text_weights_under_the_same_names(bundle: Bundle) -> None:
    places = {}
    for name in ("prefix", "state"):
        graph = models(bundle)[name].graph
        places[name] = {
            item.name: [(entry.key, entry.value) for entry in item.external_data]
            for item in graph.initializer
            if item.external_data
        }
    shared = {name for name in places["state"] if name.startswith("layer")}
    assert len(shared) >= 3 * 4
    for name in shared:
        assert places["state"][name] == places["prefix"][name], name


def test_no_graph_carries_what_nobody_reads(bundle: Bundle) -> None:
    """The vocabulary's output matrix, the text model's norm, and the last text layer beyond keys and values."""
    for name, model in models(bundle).items():
        used = {value for node in model.graph.node for value in node.input}
        assert {item.name for item in model.graph.initializer} <= used, name
    assert not any(
        item.name.startswith("layer03/") and "kv" not in item.name and "norm" not in item.name
        for item in models(bundle)["prefix"].graph.initializer
    )


def tiny_model(
    node: onnx.NodeProto, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = (2, 3)
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    return helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", OPSET)]
    )


def branch() -> onnx.GraphProto:
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, (2, 3))
    return helper.make_graph([helper.make_node("Identity", ["x"], ["inner"], "i")], "b", [], [inner])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (tiny_model(helper.make_node("Identity", ["x"], ["y"], "n")), None),
        (tiny_model(helper.make_node("Identity", ["x"], ["y"], "n"), shape=("rows", 3)), "no static shape"),
        (tiny_model(helper.make_node("Identity", ["x"], ["y"], "n"), kind=TensorProto.DOUBLE), "float64"),
        (tiny_model(helper.make_node("Add", ["x", "x"], ["y"], "n"), kind=TensorProto.INT64), "int64"),
        (tiny_model(helper.make_node("RandomNormalLike", ["x"], ["y"], "n")), "RandomNormalLike"),
        (tiny_model(helper.make_node("RandomUniformLike", ["x"], ["y"], "n")), "RandomUniformLike"),
        (tiny_model(helper.make_node("If", ["c"], ["y"], "n", then_branch=branch(), else_branch=branch())), "is If"),
        (tiny_model(helper.make_node("Loop", ["", "c", "x"], ["y"], "n", body=branch())), "is Loop"),
        (
            tiny_model(helper.make_node("NonZero", ["x"], ["y"], "n"), kind=TensorProto.INT64, shape=(2, 2)),
            "is NonZero",
        ),
        (tiny_model(helper.make_node("Identity", ["x"], ["y"])), "names are missing"),
        (
            tiny_model(helper.make_node("FusedGemm", ["x", "x"], ["y"], "n", domain="com.microsoft")),
            "operator domain com.microsoft",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "model",
)
def test_the_lint_refuses_what_backends_cannot_run_at_a_fixed_cost(model: onnx.ModelProto, words: str | None) -> None:
    if words is None:
        lint(model)
        return
    if words == "operator domain com.microsoft":
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ExportError, match=words):
        lint(model)


def test_the_lint_refuses_a_newer_opset_and_a_constant_that_is_not_finite() -> None:
    newer = tiny_model(helper.make_node("Identity", ["x"], ["y"], "n"))
    newer.opset_import[0].version = OPSET + 1
    with pytest.raises(ExportError, match=f"opset is {OPSET + 1}"):
        lint(newer)
    masked = tiny_model(helper.make_node("Add", ["x", "minus"], ["y"], "n"))
    masked.graph.initializer.append(onnx.numpy_helper.from_array(np.full((2, 3), -np.inf, np.float32), "minus"))
    with pytest.raises(ExportError, match="minus holds a value that is not finite"):
        lint(masked)


def test_the_lint_refuses_a_tensor_that_nothing_reads() -> None:
    # ort-python and ort-cuda give ONNX Runtime the data of every tensor, and it refuses those it has dropped.
    spare = tiny_model(helper.make_node("Identity", ["x"], ["y"], "n"))
    spare.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "spare"))
    with pytest.raises(ExportError, match="spare is read by no node"):
        lint(spare)
