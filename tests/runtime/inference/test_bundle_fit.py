# SPDX-License-Identifier: Apache-2.0
"""A manifest whose numbers contradict its graphs, tokenizer or tables is refused in one line, by `infer` and
`--inspect`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vla_edge.bundle import MANIFEST, TABLES, open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import BundleError, EngineError
from vla_edge.export.command import main as export_engines
from vla_edge.runtime.inference.bundle_fit import check_fit
from vla_edge.runtime.inference.session import PolicySession


@pytest.fixture
def folder(golden_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the golden bundle that a test may change."""
    shutil.copytree(golden_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def put(folder: Path, name: str, data: bytes) -> None:
    """A file of the bundle, with its hash made right."""
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda content: content["files"].update({name: hashlib.sha256(data).hexdigest()}))


def policy(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["policy"].update(fields)


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another chunk": (policy(chunk_size=60), r"graph expert has dt \[50, 1\], the policy's numbers make it \[60, 1\]"),
    "other heads": (policy(kv_heads=3), r"graph prefix has ek01 \[2, 64, 16\]"),
    "another picture": (policy(image_height=64), r"graph vision has pixels \[1, 3, 128, 128\]"),
    "too few keys": (policy(key_rows=56), "policy.key_rows is 56, must be more than the 56 of the prefix"),
    "other keys": (policy(key_rows=72), r"graph prefix has ek01 \[2, 64, 16\]"),
    "other tokens": (policy(tokens_per_image=5), "policy.prefix_rows is 56"),
    "a layer too many": (policy(cross_layers=[1, 9]), "must be different ones below 4"),
    "a layer of the other kind": (policy(self_layers=[0], cross_layers=[1, 2, 3]), "graph expert has ek02 not at all"),
    "no steps": (policy(num_steps=0), "policy.num_steps is 0, must be 1 to 64"),
    "half a chunk executed twice": (policy(n_action_steps=51), "policy.n_action_steps is 51, must be 1 to 50"),
    "another prompt": (
        lambda content: content["tokenizer"].update(max_length=20),
        "cameras, image tokens and tokenizer.max_length make 28",
    ),
    "an unknown side": (
        lambda content: content["tokenizer"].update(padding_side="up"),
        "tokenizer.padding_side is 'up'",
    ),
    "a joint less": (lambda content: content["joints"].pop(), "joints has 5 names, policy.action_dim is 6"),
    "a camera less": (lambda content: content["cameras"].pop(), "policy.prefix_rows is 56"),
    "a camera twice": (
        lambda content: content["cameras"].__setitem__(1, content["cameras"][0]),
        "must be one or more different ones",
    ),
    "a camera without pixels": (lambda content: content["cameras"][0].update(height=0), "must have pixels"),
    "an input of another name": (
        lambda content: content["graphs"]["vision"]["inputs"][0].update(name="picture"),
        "graph vision has pixels not at all",
    ),
    "no epsilon": (
        lambda content: content["normalization"][0].update(eps=float("nan")),
        "normalization eps of observation.state is nan",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_names_the_field(name: str, folder: Path) -> None:
    change, words = CONTRADICTIONS[name]
    check_fit(open_bundle(folder))
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=words):
        check_fit(open_bundle(folder))


def drop_table(tables: dict[str, Any]) -> None:
    del tables["time_bias.10"]


def cut_table(tables: dict[str, Any]) -> None:
    tables["time_bias.10"] = np.ascontiguousarray(tables["time_bias.10"][:-1])


def rising_times(tables: dict[str, Any]) -> None:
    tables["flow_times.2"] = np.array([1, 0.5, 0.6], np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rising_times, r"flow_times\.2 must be 3 numbers from 1 down to 0"),
        (drop_table, r"time_bias\.10 is missing, must be \[10, 72\]"),
        (cut_table, r"time_bias\.10 is \[9, 72\]"),
    ],
)
def test_a_table_of_the_steps_that_does_not_fit_is_named(
    change: Callable[[dict[str, Any]], None], words: str, folder: Path
) -> None:
    tables = load_file(folder / TABLES)
    change(tables)
    save_file(tables, folder / "changed")
    put(folder, TABLES, (folder / "changed").read_bytes())
    with pytest.raises(BundleError, match=words):
        PolicySession(open_bundle(folder), load_engine("ort", EngineOptions(threads=1, spin=False)))


def test_tables_that_are_none_and_a_pad_token_outside_the_tokenizer_are_named(folder: Path) -> None:
    engine = load_engine("ort", EngineOptions(threads=1, spin=False))
    edit_manifest(folder, lambda content: content["tokenizer"].update(pad_id=10**6))
    with pytest.raises(BundleError, match="tokenizer.pad_id 1000000 is not in tokenizer.json"):
        PolicySession(open_bundle(folder), engine)
    put(folder, TABLES, b"12345678")
    with pytest.raises(BundleError, match=r"tables\.safetensors: damaged"):
        PolicySession(open_bundle(folder), engine)


@pytest.mark.parametrize("backend", ["ort", "ort-python"])
def test_a_run_that_fails_is_an_engine_error_that_names_the_graph(golden_bundle: Path, backend: str) -> None:
    session = PolicySession(open_bundle(golden_bundle), load_engine(backend, EngineOptions(threads=1, spin=False)))
    session.graphs.buffers["token_ids"].fill(10**6)
    with pytest.raises(EngineError, match="graph prefix.*run failed"):
        session.loop.encode(True)


def test_inspect_refuses_a_contradiction_and_a_graph_that_is_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(folder, policy(chunk_size=60))
    assert export_engines(["--inspect", str(folder)]) == 2
    assert "graph expert has dt" in (found := capsys.readouterr().err) and found.count("\n") == 1
    edit_manifest(folder, policy(chunk_size=50))
    put(folder, "graphs/vision.onnx", b"no graph")
    assert export_engines(["--inspect", str(folder)]) == 2
    assert "vision.onnx: no ONNX graph" in (found := capsys.readouterr().err) and found.count("\n") == 1
