# SPDX-License-Identifier: Apache-2.0
"""The benchmark of ACT at full size, with a network made small: everything is made once, measured and written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from vla_edge.benchmarks import act_full
from vla_edge.benchmarks.subject import CACHED, FRESH

SMALL = {
    "backbone_width": 4,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 16,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "chunk_size": 5,
    "n_action_steps": 5,
}


def test_float32_and_int8_are_measured_beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act_full, "write_act", partial(act_full.write_act, **SMALL))
    words = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--rounds", "1", "--threads", "1"]
    assert act_full.main(words) == 0
    result = json.loads((tmp_path / "out" / "act-full.json").read_text())
    assert list(result["subjects"]) == ["torch eager", "float32 ort", "int8 ort"]
    assert result["baseline"] == "torch eager"
    assert {FRESH, CACHED} <= set(result["subjects"]["int8 ort"]["cases"])
    assert result["errors"]["float32 ort"]["cosine"] > 0.9999
    assert (tmp_path / "out" / "act-full.md").read_text().count("int8 ort")
    made = (tmp_path / "work" / "resnet18-int8" / "manifest.json").stat().st_mtime_ns
    specs = act_full.prepare(tmp_path / "work", "resnet18", True, 1, lambda _: None)
    assert [spec.kind for spec in specs] == ["torch", "lerobot", "bundle", "bundle"]
    assert (tmp_path / "work" / "resnet18-int8" / "manifest.json").stat().st_mtime_ns == made, "made once"
