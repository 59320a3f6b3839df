# SPDX-License-Identifier: Apache-2.0
"""`vla-bench`: what it times, what it counts, and the gate between two results."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_edge.benchmarks import full
from vla_edge.benchmarks import measure as measuring
from vla_edge.benchmarks.bench_compare import compare
from vla_edge.benchmarks.bench_report import markdown, slower_int8
from vla_edge.benchmarks.bundle_subject import BundleSubject
from vla_edge.benchmarks.ceilings import Ceilings
from vla_edge.benchmarks.command import main
from vla_edge.benchmarks.full import headline
from vla_edge.benchmarks.measure import percentiles
from vla_edge.benchmarks.preset import PRESETS, contract_of
from vla_edge.benchmarks.subject import CACHED, DELTA, FRESH, ONE_CAMERA, SubjectSpec
from vla_edge.benchmarks.subjects import SubjectProcess
from vla_edge.benchmarks.torch_subject import TorchSubject
from vla_edge.bundle import open_bundle
from vla_edge.errors import BundleError, CheckFailed
from vla_edge.export.assemble import ExportRequest, export_unproven

CHECKPOINT = Path(__file__).parents[1] / "golden" / "koch-bfloat16"


def spec(bundle: Path, **fields: Any) -> SubjectSpec:
    return SubjectSpec(
        **{"name": "one", "kind": "bundle", "path": bundle, "backend": "ort", "threads": 1, "inputs": bundle, **fields}
    )


@pytest.fixture(scope="module")
def result(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the command on a tiny bundle beside torch, with a small measurement of the ceilings."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vla_edge.benchmarks.ceilings.SHAPES", ((64, 64, 64),))
        here = tmp_path_factory.mktemp("here")
        patch.chdir(here)
        words = [
            "--bundle",
            str(golden_bundle),
            "--against",
            "torch",
            "--checkpoint",
            str(CHECKPOINT),
            "--rounds",
            "3",
            "--threads",
            "1",
        ]
        assert main([*words, "--out", str(out), "--name", "tiny", "--json"]) == 0
    assert {file.name for file in out.iterdir()} == {"tiny.json", "tiny.md", "tiny.png"} and not [*here.iterdir()]
    content: dict[str, Any] = json.loads((out / "tiny.json").read_text())
    return content


def test_percentiles_are_ordered_and_exact() -> None:
    assert percentiles(list(map(float, range(101)))) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_a_result_names_host_commit_digest_and_every_stage(result: dict[str, Any]) -> None:
    assert {"cpu", "cores", "clock_mhz", "commit", "when"} <= result["host"].keys()
    bundle, torch = (
        next(item for item in result["subjects"].values() if item["kind"] == kind) for kind in ("bundle", "torch")
    )
    assert len(bundle["digest"]) == 64 and len(torch["checkpoint"]) == 64
    assert bundle["cases"].keys() == {FRESH, CACHED, ONE_CAMERA}
    assert (bundle["chunk"], bundle["steps"]) == (torch["chunk"], torch["steps"]) == (50, 10)
    graphs = bundle["cases"][FRESH]["graphs_ms"]
    for graph in ("camera preparation", "vision", "prefix", "state", "step", "loop", "post-processing", "inference"):
        assert graphs[graph]["p50"] > 0, graph
    assert (
        bundle["cases"][CACHED]["graphs_ms"]["vision"]["max"] == 0
        and bundle["cases"][CACHED]["graphs_ms"]["prefix"]["max"] == 0
    )
    assert len(bundle["cases"][FRESH]["raw_ms"]) == 3 and bundle["peak_rss_mb"] > 50 and bundle["cold_start_s"] > 0
    assert set(bundle["verdicts"]["replan_every_tick"]) == set(bundle["cases"])


def test_the_first_table_says_how_many_actions_and_flow_steps_a_chunk_has() -> None:
    """Of each case: one of fewer steps takes those, a correction takes none; results of before say neither."""
    quantiles = dict.fromkeys(("p50", "p90", "p99", "max"), 1.0)
    found = {"whole_tick_ms": quantiles, "cpu_ms": quantiles, "graphs_ms": {}}
    facts = {"peak_rss_mb": 1, "resident_mb": 1, "cold_start_s": 1.0, "verdicts": {}, "fractions": {}}
    first = {**facts, "chunk": 16, "steps": 10, "cases": dict.fromkeys((FRESH, "cached, 2 steps", DELTA), found)}
    names = ("when", "cpu", "cores", "governor", "memory_gb", "load_before", "commit")
    host: dict[str, Any] = {**dict.fromkeys(names, ""), "clock_mhz": []}
    lines = list(
        markdown(
            {
                "host": host,
                "ceilings": {"float32": 1.0, "int8": 1.0, "memory": 1.0},
                "rounds": {"rounds": 1, "warm_up": 0},
                "baseline": "old",
                "subjects": {"first": first, "old": {**facts, "cases": {FRESH: found}}},
                "ratios": {},
                "errors": {},
            }
        )
    )
    cells = [line.split(" | ")[:4] for line in lines if line.startswith(("| subject | actions", "| first", "| old"))]
    assert cells[:5] == [
        ["| subject", "actions a chunk", "flow steps", "case"],
        ["| first", "16", "10", FRESH],
        ["| first", "16", "2", "cached, 2 steps"],
        ["| first", "16", "–", DELTA],
        ["| old", "–", "–", FRESH],
    ]


def test_the_bundle_and_torch_are_compared_on_the_same_inputs(result: dict[str, Any]) -> None:
    (error,) = result["errors"].values()
    # Float32 against float32 through the whole chain; parity allows 1e-4 of the maximum.
    assert error["relative"] < 1e-3
    (ratio,) = result["ratios"].values()
    assert ratio["wall"].keys() == ratio["cpu"].keys() == {FRESH, CACHED, "one_camera_saved"}


def test_a_bundle_of_the_first_actions_is_compared_with_those_of_torch(tmp_path: Path) -> None:
    """In units of the chunk itself: float32 against float32, 1e-4 of the maximum as above."""
    export_unproven(ExportRequest(CHECKPOINT, tmp_path / "short", chunk_size=4), lambda step: None)
    short = BundleSubject(spec(tmp_path / "short"))
    torch = TorchSubject(spec(tmp_path / "short", kind="torch", path=CHECKPOINT))
    found, whole = short.actions(1)[None], torch.actions(1)[None]
    assert found.shape[1] == 4 < whole.shape[1]
    first, reference = measuring.shared(found, whole)
    assert np.abs(first - reference).max() <= 1e-4 * np.abs(reference).max()
    assert measuring.shared(whole, found)[0].shape == found.shape


def test_a_case_that_ran_other_pieces_than_its_name_says_is_refused(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = BundleSubject(spec(golden_bundle))
    subject.run(FRESH, 0)
    monkeypatch.setattr(subject, "_one_changed", lambda: subject._last)
    with pytest.raises(CheckFailed, match="one_camera ran 0 cameras"):
        subject.run(ONE_CAMERA, 0)


def test_fractions_are_of_the_ceiling_of_the_type_that_runs() -> None:
    facts = {
        "work": {"vision": {"multiply_adds": 10**9, "weight_bytes": 10**6, "activation_bytes": 0}},
        "precision": {"vision": "int8 90.0 %, fp32 10.0 %"},
    }
    runs = [measuring.Run(20, 20, {"vision": 10.0}), measuring.Run(30, 30, {"vision": 20.0})]
    found = measuring._fractions(facts, {FRESH: runs}, Ceilings(100.0, 400.0, 10.0, {}))["vision"]
    assert found == {"gops": 200.0, "ceiling": "int8", "fraction": 0.5, "floor_ms": 5.0, "best_ms": 10.0}


def test_ratios_are_medians_over_the_rounds() -> None:
    def runs(*walls: float) -> list[measuring.Run]:
        return [measuring.Run(wall, 2 * wall, {}) for wall in walls]

    samples = {
        "torch": {FRESH: runs(100, 200, 900)},
        "ours": {FRESH: runs(50, 50, 90), CACHED: runs(10, 10, 10), ONE_CAMERA: runs(30, 25, 45)},
    }
    found = measuring._ratios(samples, "torch")["ours"]
    assert found["wall"] == {FRESH: 4.0, CACHED: 20.0, "one_camera_saved": 0.5} == found["cpu"]


def test_an_int8_bundle_that_is_slower_than_its_float_one_is_named_on_its_own_backend_alone() -> None:
    def subject(backend: str, kind: str, ms: float) -> dict[str, Any]:
        return {"backend": backend, "precision": {"expert": kind}, "cases": {"cached": {"whole_tick_ms": {"p50": ms}}}}

    subjects = {
        "plain": subject("ort", "fp32", 20.0), "fast": subject("ort", "int8 dynamic", 15.0),
        "slow": subject("ort", "int8 dynamic", 25.0), "elsewhere": subject("openvino", "int8", 99.0),
        "torch": {"cases": {}},
    }  # fmt: skip
    assert list(slower_int8(subjects)) == ["- slow, cached: INT8 is slower here, 25.0 ms against 20.0 ms of plain"]


def test_compare_passes_a_result_on_itself_and_fails_a_slower_one(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = copy.deepcopy(result)
    name = next(name for name, item in slower["subjects"].items() if item["kind"] == "bundle")
    slower["subjects"][name]["cases"][CACHED]["whole_tick_ms"]["p50"] *= 1.5
    for file, content in (("a.json", result), ("b.json", slower), ("c.json", {"schema": 99})):
        (tmp_path / file).write_text(json.dumps(content))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "1.50 times" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--limit", "2"]) == 0
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 2
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2
    wrong: list[Any] = [[], 5, {"x": {"cases": {"fresh": {}}}}]
    for subjects in wrong:
        (tmp_path / "d.json").write_text(json.dumps({**result, "subjects": subjects}))
        assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "d.json")]) == 2
    for limit in ("nan", "0", "-1", "inf"):
        assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--limit", limit]) == 2, (
            "a gate that no result could fail"
        )


def test_where_results_cannot_be_written_is_told_before_the_measurement(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr("vla_edge.benchmarks.measure.measure", measured)
    (tmp_path / "file").touch()
    for words in (["--out", str(tmp_path / "file" / "x")], ["--out", str(tmp_path), "--name", "../evil"]):
        assert main(["--bundle", str(golden_bundle), *words]) == 2


def test_nothing_is_written_into_the_current_folder(
    result: dict[str, Any], golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_edge.benchmarks.measure.measure", lambda *_: result)  # that measures in an empty one too
    monkeypatch.chdir(tmp_path)
    assert main(["--bundle", str(golden_bundle)]) == 0
    assert not [*tmp_path.iterdir()]


def test_a_slower_machine_is_not_a_slower_program(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    for subject in other["subjects"].values():
        for case in subject["cases"].values():
            case["whole_tick_ms"]["p50"] *= 3
    assert all(change.factor == pytest.approx(1) for change in compare(result, other))


def test_a_subject_that_cannot_load_says_why_in_the_parent(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no manifest"):
        SubjectProcess(spec(tmp_path))


def test_bars_are_judged_by_the_best_backend_and_the_memory_by_onnx_runtime() -> None:
    def subject(rss: float) -> dict[str, Any]:
        return {
            "peak_rss_mb": rss,
            "resident_mb": rss,
            "work": {"vision": {"multiply_adds": 100 * 10**9}},
            "cases": {FRESH: {"graphs_ms": {"vision": {"p50": 1000.0}}}},
        }

    def ratio(fresh: float, cached: float) -> dict[str, Any]:
        return {"wall": {FRESH: fresh, CACHED: cached, "one_camera_saved": 0.35}}

    content: dict[str, Any] = {
        "ratios": {"float32 ort": ratio(1.1, 4), "int8 ort": ratio(2, 8), "int8 openvino": ratio(3.5, 15)},
        "errors": {name: {"cosine": 0.9985} for name in ("float32 ort", "int8 ort", "int8 openvino")},
        "subjects": {
            "torch eager": subject(2000),
            "float32 ort": subject(2500),
            "int8 ort": subject(900),
            "int8 openvino": subject(1500),
        },
        "ceilings": {"float32": 250.0},
    }
    found = headline(content)
    assert found["ratio"] == {"fresh_float32": 1.1, "fresh": 3.5, "cached": 15, "one_camera": 0.35}
    assert (
        all(found["reached"].values())
        and found["memory_share"] == 0.45
        and np.isclose(found["torch"]["fraction_of_ceiling"], 0.8)
    )
    content["errors"]["int8 openvino"]["cosine"] = 0.9
    assert not headline(content)["reached"]["cosine"]


def test_an_act_of_full_size_is_measured_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network made small."""
    names = ("dim_model", "dim_feedforward", "n_heads", "chunk_size", "n_action_steps")
    fields: dict[str, Any] = dict(zip(names, (16, 16, 2, 5, 5))) | {"n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    small = replace(full.FAMILIES["act"], make=partial(full.make_act, backbone_width=4, **fields))
    monkeypatch.setitem(full.FAMILIES, "act", small)
    monkeypatch.setattr("vla_edge.benchmarks.ceilings.SHAPES", ((64, 64, 64),))
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--rounds", "1", "--threads", "1"]
    assert full.main(["--family", "act", *words]) == 0
    content = json.loads((tmp_path / "out" / "act-full.json").read_text())
    assert {"torch eager", "float32 ort", "int8 ort"} <= set(content["subjects"])
    assert {FRESH, CACHED, ONE_CAMERA} == set(content["subjects"]["int8 ort"]["cases"])
    assert content["errors"]["float32 ort"]["cosine"] > 0.9999
    made = (tmp_path / "work" / "int8-ort" / "manifest.json").stat().st_mtime_ns
    specs = full.prepare(tmp_path / "work", small, True, 1, lambda _: None)
    assert [spec.kind for spec in specs[:2]] == ["torch", "lerobot"]
    assert (tmp_path / "work" / "int8-ort" / "manifest.json").stat().st_mtime_ns == made, "made once"


def test_a_preset_prints_one_row_with_its_contract_mode_clocks_percentiles_and_memory(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--bundle", f"ort:{golden_bundle}", "--preset", "orin-nano", "--rounds", "2", "--threads", "1"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "picture is (128, 128), the public row of orin-nano has (512, 512)" in told
    assert main([*words, "--against", "torch", "--checkpoint", str(CHECKPOINT)]) == 2
    assert "--preset measures one bundle with its row's flow steps; leave out --against" in capsys.readouterr().err
    small = replace(PRESETS["orin-nano"], contract=contract_of(open_bundle(golden_bundle)))
    monkeypatch.setitem(PRESETS, "orin-nano", small)
    assert main([*words, "--out", str(tmp_path)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row == json.loads((tmp_path / "orin-nano.jsonl").read_text())
    assert row["public"]["p50_ms"] == 189.9 and row["mode"] == "" and "clocks" in row
    for case in ("fresh", "cached"):
        assert 0 < row[case]["p50_ms"] <= row[case]["p95_ms"] and row[case]["loop_ms"] > 0
    assert row["fresh"]["vision_ms"] > 0 == row["cached"]["vision_ms"] and row["peak_mb"] >= row["resident_mb"] > 50
