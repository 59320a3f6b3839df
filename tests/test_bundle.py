# SPDX-License-Identifier: Apache-2.0
"""The bundle's folder: hashes on the bytes that are used, schema, manifest, all-or-nothing writing."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_edge.bundle import (
    MANIFEST,
    SCHEMA,
    CameraSpec,
    GraphSpec,
    Manifest,
    NormalizationSpec,
    PolicySpec,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    open_bundle,
    write_manifest,
)
from vla_edge.errors import BundleError
from vla_edge.files import new_folder

CONTENTS = {
    "graphs/vision.onnx": b"graph bytes",
    "graphs/weights.bin": bytes(range(256)) * 40,
    "tokenizer.json": b"{}",
    "empty.bin": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete bundle of files that only their hashes describe."""
    place = tmp_path / "bundle"
    with new_folder(place, BundleError) as temporary:
        (temporary / "graphs").mkdir()
        for name, data in CONTENTS.items():
            (temporary / name).write_bytes(data)
        write_manifest(temporary, manifest({name: file_sha256(temporary / name) for name in CONTENTS}))
    return place


def manifest(files: dict[str, str]) -> Manifest:
    numbers = {name: 1 for name, kind in PolicySpec.__annotations__.items() if kind == "int"}
    policy = PolicySpec(**{**numbers, "type": "smolvla", "self_layers": (0,), "cross_layers": (1,)})  # type: ignore[arg-type]
    pixels, tokens = TensorSpec("pixels", (1, 3, 8, 8), "float32"), TensorSpec("tokens", (1, 4, 16), "float32")
    return Manifest(
        policy=policy,
        cameras=(CameraSpec("observation.images.laptop", "observation.images.front", 480, 640),),
        joints=("gripper",),
        joint_units="degrees",
        tokenizer=TokenizerSpec("tokenizer.json", 48, "longest", "right", "left", 2, True),
        normalization=(NormalizationSpec("action", "MEAN_STD", 1e-8),),
        graphs={"vision": GraphSpec("graphs/vision.onnx", ("graphs/weights.bin",), (pixels,), (tokens,))},
        files=files,
        checkpoint={"sha256": "0" * 64},
        parity={"tolerance": 1e-4},
        precision={"requested": "fp32"},
        gate={"kind": "pooled"},
        tools={"python": "3"},
        notes=("a note",),
    )


def test_a_written_manifest_reads_back_equal(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.manifest == manifest(dict(bundle.manifest.files))
    assert bundle.digest == file_sha256(folder / MANIFEST)


def test_a_bundle_of_before_has_an_unknown_rate_and_a_rate_that_is_none_is_refused(folder: Path) -> None:
    assert open_bundle(folder).manifest.fps is None
    write_manifest(folder, replace(open_bundle(folder).manifest, fps=30.0))
    assert open_bundle(folder).manifest.fps == 30.0
    content = json.loads((folder / MANIFEST).read_text())
    for fps in (0, -30, 1001, float("nan")):
        (folder / MANIFEST).write_text(json.dumps({**content, "fps": fps}))
        with pytest.raises(BundleError, match=r"fps is .* must be 0\.1 to 1000, or null"):
            open_bundle(folder)
    del content["fps"]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert open_bundle(folder).manifest.fps is None


def test_a_graph_comes_with_the_bytes_that_were_hashed(folder: Path) -> None:
    graph = open_bundle(folder).graph("vision")
    assert graph.model == CONTENTS["graphs/vision.onnx"]
    assert {name: bytes(data) for name, data in graph.weights.items()} == {
        "weights.bin": CONTENTS["graphs/weights.bin"]
    }
    assert graph.weights["weights.bin"].readonly


@pytest.mark.parametrize("name", [name for name, data in CONTENTS.items() if data])
@pytest.mark.parametrize("place", (0, -1))
def test_one_flipped_bit_is_refused_and_the_file_is_named(folder: Path, name: str, place: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        open_bundle(folder).verify()
    if name.startswith("graphs/"):
        with pytest.raises(BundleError, match=name):
            open_bundle(folder).graph("vision")


@pytest.mark.parametrize("name", CONTENTS)
def test_a_missing_or_truncated_or_longer_file_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for changed in (data[:-1], data + b"x") if data else (b"x",):
        (folder / name).write_bytes(changed)
        with pytest.raises(BundleError, match=name):
            open_bundle(folder).read(name)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        open_bundle(folder).verify()


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting_for_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json: no regular file"):
        open_bundle(folder).verify()


def test_a_manifest_without_end_is_not_valid_json(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="not valid JSON"):
        open_bundle(folder)


def test_a_flipped_bit_anywhere_in_the_manifest_changes_the_digest_or_is_refused(folder: Path) -> None:
    data, digest = (folder / MANIFEST).read_bytes(), open_bundle(folder).digest
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 4
        (folder / MANIFEST).write_bytes(changed)
        try:
            bundle = open_bundle(folder)
            bundle.verify()
        except BundleError:
            continue
        assert bundle.digest != digest


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (SCHEMA + 1, "newer.*update vla-edge"),
        (SCHEMA - 1, "older.*export"),
        ("1", "no schema"),
        (None, "no schema"),
        (True, "no schema"),
    ],
)
def test_another_schema_is_refused_with_what_to_do(folder: Path, schema: Any, words: str) -> None:
    content = json.loads((folder / MANIFEST).read_bytes())
    content["schema"] = schema
    content["from_the_future"] = {"unknown": 1}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=words):
        open_bundle(folder)


@pytest.mark.parametrize("text", ("", "{", "[]", "null", '"text"', "{}", "\x00"))
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        open_bundle(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="export-engines"):
            open_bundle(place)


def test_an_unknown_graph_or_file_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(BundleError, match="vision"):
        open_bundle(folder).graph("expert")
    with pytest.raises(BundleError, match="lists no file"):
        open_bundle(folder).read("../secret")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), value=json_values)
def test_a_manifest_with_any_field_replaced_or_removed_is_read_or_refused_by_name(
    folder: Path, data: st.DataObject, value: Any
) -> None:
    original = json.loads((folder / MANIFEST).read_bytes())
    content = copy.deepcopy(original)
    at: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(at)) if isinstance(at, dict) else st.integers(0, len(at) - 1))
        if not (isinstance(at[key], (dict, list)) and at[key]) or data.draw(st.booleans()):
            break
        at = at[key]
    if data.draw(st.booleans()) and isinstance(at, dict):
        del at[key]
    else:
        at[key] = value
    (folder / MANIFEST).write_text(json.dumps(content))
    try:
        bundle = open_bundle(folder)
        bundle.verify()
        for name in bundle.manifest.graphs:
            bundle.graph(name)
    except BundleError as error:
        assert str(folder) in str(error)
    finally:
        (folder / MANIFEST).write_text(json.dumps(original))


@pytest.mark.parametrize("name", ("/etc/passwd", "../outside", "graphs/../../outside", "", "a\0b"))
def test_a_file_outside_the_bundle_is_refused(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_bytes())
    content["files"][name] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="not a file inside"):
        open_bundle(folder)


def test_a_folder_where_a_file_should_be_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        open_bundle(folder).verify()


def test_two_bundles_of_the_same_content_have_the_same_digest(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert open_bundle(folder).digest == open_bundle(tmp_path / "copy").digest
    changed = replace(open_bundle(folder).manifest, joint_units="unknown")
    write_manifest(tmp_path / "copy", changed)
    assert open_bundle(folder).digest != open_bundle(tmp_path / "copy").digest
    assert asdict(open_bundle(tmp_path / "copy").manifest) == asdict(changed)
