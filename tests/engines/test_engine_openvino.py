# SPDX-License-Identifier: Apache-2.0
"""The OpenVINO backend behind the engine border."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.errors import BundleError, EngineError

pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("openvino", EngineOptions(threads=1))


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return open_bundle(golden_bundle)


def test_external_tensors_are_put_into_the_model_unchanged(bundle: Bundle) -> None:
    graph = bundle.graph("expert")
    whole = onnx.load_from_string(with_inline_tensors(graph.model, graph.weights))
    onnx.checker.check_model(whole, full_check=True)
    model = onnx.load(str(graph.path))
    expected = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    assert [item.name for item in whole.graph.initializer] == [item.name for item in model.graph.initializer]
    for item in whole.graph.initializer:
        assert item.data_location == onnx.TensorProto.DEFAULT and not item.external_data
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(item), expected[item.name])
    assert whole.graph.node == model.graph.node and whole.opset_import == model.opset_import


def test_a_missing_or_short_file_of_tensors_is_named(bundle: Bundle) -> None:
    graph = bundle.graph("expert")
    with pytest.raises(BundleError, match="does not list"):
        with_inline_tensors(graph.model, {})
    with pytest.raises(BundleError, match="do not hold"):
        with_inline_tensors(graph.model, {name: data[:100] for name, data in graph.weights.items()})


def test_a_session_writes_into_the_bound_buffers_and_follows_a_new_binding(bundle: Bundle, engine: Engine) -> None:
    graph = bundle.graph("vision")
    session = engine.load(graph)
    (pixels,), (tokens,) = graph.spec.inputs, graph.spec.outputs
    picture = engine.allocate(pixels.shape, pixels.dtype)
    picture[...] = np.random.default_rng(0).uniform(-1, 1, pixels.shape)
    first, second = engine.allocate(tokens.shape, tokens.dtype), engine.allocate(tokens.shape, tokens.dtype)
    with pytest.raises(EngineError, match="nothing is bound to pixels, tokens"):
        session.run()
    session.bind_input("pixels", picture)
    session.bind_output("tokens", first)
    session.run()
    kept = first.copy()
    picture *= -1
    session.bind_output("tokens", second)
    session.run()
    assert np.array_equal(first, kept) and np.abs(second - kept).max() > 0.01


@pytest.mark.parametrize("shape, dtype", [((1, 3, 2, 2), "float32"), (None, "float64")])
def test_a_buffer_that_does_not_fit_is_refused(
    bundle: Bundle, engine: Engine, shape: tuple[int, ...] | None, dtype: str
) -> None:
    graph = bundle.graph("vision")
    with pytest.raises(EngineError, match="pixels"):
        engine.load(graph).bind_input("pixels", np.zeros(shape or graph.spec.inputs[0].shape, dtype))


def test_a_graph_that_is_none_and_one_of_another_interface_are_refused(bundle: Bundle, engine: Engine) -> None:
    graph = bundle.graph("vision")
    with pytest.raises((EngineError, BundleError)):
        engine.load(replace(graph, model=b"nonsense"))
    spec = replace(graph.spec, inputs=(replace(graph.spec.inputs[0], shape=(1, 3, 7, 7)),))
    with pytest.raises(EngineError, match="pixels"):
        engine.load(replace(graph, spec=spec))
