# SPDX-License-Identifier: Apache-2.0
"""JSON and YAML become frozen dataclasses, or one line that names the file, the field and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_edge.errors import ConfigError, JointCalibrationError
from vla_edge.fields import build, parse_json, read_object, take, take_positive, to_json


@dataclass(frozen=True, slots=True)
class Joint:
    name: str
    id: int
    limits_deg: tuple[float, float] = (-90.0, 90.0)
    inverted: bool = False

    def __post_init__(self) -> None:
        if self.limits_deg[0] >= self.limits_deg[1]:
            raise ValueError(f"limits_deg {list(self.limits_deg)} are not rising")


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm as a description file would hold it."""

    joints: tuple[Joint, ...]
    bus: Joint | None = None
    speeds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()


GOOD = {"joints": [{"name": "pan", "id": 1}, {"name": "lift", "id": 2, "limits_deg": [0, 1.5], "inverted": True}]}


def test_a_written_dataclass_reads_back_equal() -> None:
    arm = build(Arm, {**GOOD, "bus": None, "speeds": {"pan": 2}, "facts": {"any": [1, "x"]}}, "arm.json", ConfigError)
    assert arm.joints[1] == Joint("lift", 2, (0.0, 1.5), True) and arm.speeds == {"pan": 2.0}
    assert build(Arm, to_json(arm), "arm.json", ConfigError) == arm


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "arm.yaml: the content is [], must be an object; mend it"),
        ({}, "arm.yaml: field joints is missing; mend it"),
        ({"joints": {}}, "arm.yaml: joints is {}, must be a list; mend it"),
        ({"joints": [3]}, "arm.yaml: joints[0] is 3, must be an object; mend it"),
        ({"joints": [{"name": "pan"}]}, "arm.yaml: field joints[0].id is missing; mend it"),
        ({"joints": [{"name": "pan", "id": "1"}]}, "arm.yaml: joints[0].id is '1', must be a whole number; mend it"),
        ({"joints": [{"name": "pan", "id": True}]}, "arm.yaml: joints[0].id is True, must be a whole number; mend it"),
        ({"joints": [{"name": "pan", "id": 1.0}]}, "arm.yaml: joints[0].id is 1.0, must be a whole number; mend it"),
        ({"joints": [{"name": 1, "id": 1}]}, "arm.yaml: joints[0].name is 1, must be a text; mend it"),
        ({"joints": [], "speeds": {"pan": "fast"}}, "arm.yaml: speeds.pan is 'fast', must be a number; mend it"),
        ({"joints": [], "speeds": {"pan": 10**400}}, "must be a number; mend it"),
        ({"joints": [], "speeds": [1]}, "arm.yaml: speeds is [1], must be an object; mend it"),
        ({"joints": [], "names": [None]}, "arm.yaml: names[0] is None, must be a text; mend it"),
        ({"joints": [], "names": "pan"}, "arm.yaml: names is 'pan', must be a list; mend it"),
        ({"joints": [], "jionts": []}, "arm.yaml: unknown field jionts; did you mean 'joints'?; mend it"),
        ({"joints": [], "zzz": 1}, "unknown field zzz; known are joints, bus, speeds, facts, names; mend it"),
        (
            {"joints": [{"name": "pan", "id": 1, "limits_deg": [1]}]},
            "arm.yaml: joints[0].limits_deg has 1 items, must have 2; mend it",
        ),
        (
            {"joints": [{"name": "pan", "id": 1, "limits_deg": [2, 1]}]},
            "arm.yaml: joints[0]: limits_deg [2.0, 1.0] are not rising; mend it",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(content: Any, words: str) -> None:
    with pytest.raises(JointCalibrationError) as caught:
        build(Arm, content, "arm.yaml", JointCalibrationError, "mend it")
    assert str(caught.value).endswith(words)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.sampled_from(["joints", "bus", "speeds", "facts", "names", "other"]), value=values)
def test_any_value_in_any_field_is_taken_or_refused_in_one_line(name: str, value: Any) -> None:
    try:
        build(Arm, {**GOOD, name: value}, "arm.json", ConfigError)
    except ConfigError as error:
        assert str(error).startswith("arm.json: ")


def test_yaml_and_json_are_told_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"lr": 1e-4}')
    (tmp_path / "a.yaml").write_text("lr: 1e-4\nsmall: -5.0E-05\nword: 1e\nversion: 1.5\n")
    assert read_object(tmp_path / "a.json", ConfigError, "x") == {"lr": 1e-4}
    content = read_object(tmp_path / "a.yaml", ConfigError, "x")
    assert content == {"lr": 1e-4, "small": -5e-5, "word": "1e", "version": 1.5}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"\xff\xfe\x00", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b"[1]", "holds a list, must be an object"),
        ("a.json", b"null", "holds nothing, must be an object"),
        ("a.yaml", b"a: [1", "not valid YAML"),
        ("a.yaml", b"a: \xff\xfe\x00", "not valid YAML"),
        ("a.yaml", b"a: 1\nb: {c: 1, c: 2}", "not valid YAML (line 2: c stands twice)"),
        ("a.yaml", b"!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a.yaml", b"[" * 3000, "not valid YAML"),
        ("a.yml", b"", "holds nothing, must be an object"),
        ("a.yml", b"text", "holds a text, must be an object"),
    ],
)
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, name: str, text: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_object(tmp_path / name, ConfigError, "write one")
    assert str(caught.value).startswith(f"{tmp_path / name}: {words}") and str(caught.value).endswith("; write one")


def test_a_missing_file_has_its_own_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a.json: no arm here; make one"):
        read_object(tmp_path / "a.json", ConfigError, "mend it", "no arm here; make one")
    with pytest.raises(ConfigError, match="missing; mend it"):
        read_object(tmp_path / "a.json", ConfigError, "mend it")
    with pytest.raises(ConfigError, match="Is a directory; mend it"):
        read_object(tmp_path, ConfigError, "mend it")
    with pytest.raises(ConfigError, match=r"a\.jsonl line 3: not valid JSON .*; mend it"):
        parse_json("{", "a.jsonl line 3", ConfigError, "mend it")


def test_one_field_of_a_larger_object_is_taken_by_the_type_of_its_default() -> None:
    content = {"n": 3, "f": 2, "text": "x", "none": None, "list": [1], "map": {"a": 1}}
    assert take(content, "n", 1, "f.json") == 3 and take(content, "missing", 1, "f.json") == 1
    assert take(content, "none", "default", "f.json") == "default"
    assert isinstance(take(content, "f", 1.0, "f.json"), float)
    empty_list: list[int] = []
    empty_map: dict[str, int] = {}
    assert take(content, "list", empty_list, "f.json") == [1] and take(content, "map", empty_map, "f.json") == {"a": 1}
    with pytest.raises(ConfigError, match="f.json: text is 'x', must be a whole number"):
        take(content, "text", 1, "f.json")
    with pytest.raises(ConfigError, match="f.json: zero is 0, must be at least 1"):
        take_positive({"zero": 0}, "zero", 1, "f.json")
