# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own compiler (TensorRT-RTX, which needs no GPU to build) on every graph of a tiny policy, as `engine_build`
runs it: what it fuses, what stays in float32, how many kernels and how much scratch. Nothing is run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from vla_edge.bundle import Bundle, GraphFile, open_bundle
from vla_edge.calibration.precision.linear import KEPT_FLOAT
from vla_edge.calibration.precision.ranges import gather
from vla_edge.calibration.precision.synthetic import synthetic
from vla_edge.calibration.precision.variant import Choice, VariantSettings, groups_of, in_memory
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.tensorrt.engine_build import RTX, BuildOptions, load_compiler, serialize
from vla_edge.engines.tensorrt.engine_file import Compiler, read_engine, read_sidecar
from vla_edge.engines.tensorrt.memory_plan import MB
from vla_edge.engines.tensorrt.trt_lint import find
from vla_edge.errors import EngineError
from vla_edge.export.command import main as export_engines

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    Treatment.FLOAT32: {"vision": 39, "prefix": 55, "state": 51, "expert": 58},
    Treatment.FLOAT16: {"vision": 30, "prefix": 49, "state": 42, "expert": 53},
    Treatment.INT8_STATIC: {"vision": 33, "prefix": 45, "state": 44, "expert": 51},
}
"""As TensorRT-RTX 1.7.1.116 counted them when this was written; more of them is a graph that got worse."""
SCRATCH = 9 * MB
"""The compiler takes about 8 MB for the smallest graph."""


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    try:
        return load_compiler(RTX)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("verdict") / "bundle"
    words = ["--checkpoint", str(ROOT / "examples" / "reach-cube" / "checkpoint"), "--out", str(out), "--threads", "1"]
    assert export_engines(words) == 0
    return open_bundle(out)


@pytest.fixture(scope="module", params=KERNELS, ids=lambda treatment: treatment.value)
def graphs(bundle: Bundle, request: pytest.FixtureRequest) -> tuple[Treatment, list[GraphFile]]:
    return request.param, treated(bundle, request.param, 2)


def treated(bundle: Bundle, treatment: Treatment, observations: int) -> list[GraphFile]:
    """Every graph with all its linear maps treated one way, as the dialect of tensorrt writes them. observations: for
    INT8's ranges."""
    names = list(bundle.manifest.graphs)
    groups = [group for name in names for group in groups_of(bundle.graph(name)) if not group.products]
    settings = VariantSettings(signed=True, half=treatment is not Treatment.FLOAT32)
    if treatment is Treatment.INT8_STATIC:
        engine = load_engine("ort-python", EngineOptions(threads=1, spin=False))
        found = gather(bundle, engine, synthetic(bundle, observations, 1), None, lambda done, of: None)
        settings = replace(settings, ranges=found)
    plan = {group.name: Choice(treatment) for group in groups}
    return [in_memory(bundle.graph(name), plan, settings) for name in names]


@pytest.mark.check
def test_the_compiler_fuses_every_attention_and_leaves_no_product_in_float32(
    compiler: Compiler, graphs: tuple[Treatment, list[GraphFile]]
) -> None:
    check(compiler, *graphs, KERNELS, dict.fromkeys(KERNELS[graphs[0]], SCRATCH))


def check(
    compiler: Compiler,
    treatment: Treatment,
    made: list[GraphFile],
    kernels: Mapping[Treatment, Mapping[str, int]],
    scratch: Mapping[str, int],
) -> None:
    for graph in made:
        found = serialize(compiler, graph, BuildOptions(), lambda step: None).verdict
        print(treatment.value, graph.name, found.kernels, found.fused_attentions, found.scratch, flush=True)
        assert found.kernels <= kernels[treatment][graph.name], graph.name
        assert found.scratch <= scratch[graph.name], graph.name
        if treatment is not Treatment.FLOAT32:  # no fused attention in float32 at all
            attentions = sum(node.op_type == "Softmax" for node in onnx.load_from_string(graph.model).graph.node)
            assert found.fused_attentions == attentions > 0, graph.name
            assert all(name.startswith(KEPT_FLOAT) for name in found.float32_products), found.float32_products
            assert not list(find(graph))
        if treatment is Treatment.INT8_STATIC:
            assert found.layers["products.int8"] > attentions, found.layers


FULL = {
    Treatment.FLOAT16: {"vision": 102, "prefix": 205, "state": 195, "expert": 191},
    Treatment.INT8_STATIC: {"vision": 114, "prefix": 189, "state": 187, "expert": 183},
}
FULL_SCRATCH = {"vision": 24 * MB, "prefix": 15 * MB, "state": 9 * MB, "expert": 10 * MB}


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("treatment", FULL, ids=lambda treatment: treatment.value)
def test_the_same_at_full_size(compiler: Compiler, treatment: Treatment, tmp_path: Path) -> None:
    """Random weights; the counts of benchmarks/results/nvidia_counts.json are the ceilings."""
    from tests.random_policy import RandomPolicy, write_random_policy

    from vla_edge.export.assemble import ExportRequest, export_unproven

    write_random_policy(tmp_path / "policy", RandomPolicy(size="full", dtype="bfloat16"))
    export_unproven(ExportRequest(tmp_path / "policy", tmp_path / "bundle"), lambda step: None)
    check(compiler, treatment, treated(open_bundle(tmp_path / "bundle"), treatment, 1), FULL, FULL_SCRATCH)


@pytest.mark.check
def test_an_export_for_tensorrt_writes_what_the_compiler_found_into_the_bundles_audit(
    compiler: Compiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    words = ["--checkpoint", str(ROOT / "examples" / "reach-cube" / "checkpoint"), "--out", str(out), "--threads", "1"]
    assert export_engines([*words, "--backend", "tensorrt", "--build-on-device"]) == 0
    audit = open_bundle(out).manifest.precision["audit"]
    assert compiler.version in audit["compiler"] and "nothing was run" in audit["compiler"]
    found = {name: graph["kernels"] for name, graph in audit["graphs"].items()}
    assert found == KERNELS[Treatment.FLOAT32]
    capsys.readouterr()
    assert export_engines(["--inspect", str(out)]) == 0
    assert f"expert: 0 of 4 attentions fused, {found['expert']} kernels" in capsys.readouterr().out


@pytest.mark.check
def test_engine_files_for_rtx_cards_are_built_without_a_gpu(
    compiler: Compiler, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = open_bundle(shutil.copytree(bundle.path, tmp_path / "bundle"))
    assert export_engines(["--bundle", str(copy.path), "--backend", RTX]) == 0
    assert "built without a GPU" in capsys.readouterr().out
    for name in copy.manifest.graphs:
        graph = copy.graph(name)
        sidecar = read_sidecar(graph.path.parent / RTX / f"{name}.json", "")
        assert read_engine(graph, compiler, sidecar) and sidecar.identity.gpu == ""
        assert 0 < sidecar.device_memory <= SCRATCH and sidecar.layers["fp32"] == KERNELS[Treatment.FLOAT32][name]
    assert export_engines(["--bundle", str(copy.path), "--backend", RTX, "--build-on-device"]) == 2
