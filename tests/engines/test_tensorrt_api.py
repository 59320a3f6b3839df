# SPDX-License-Identifier: Apache-2.0
"""Every TensorRT name and call in engines/tensorrt against the signatures of the real bindings, 10.3 to 11.4.

The tables in tests/data/tensorrt_api were written by scripts/tensorrt_signatures.py from the published wheels; no
TensorRT is needed here and none is run.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("10.3", "10.13", "10.16", "11.4")
SOURCES = sorted(file for file in (ROOT / "engines" / "tensorrt").glob("*.py") if not file.name.startswith("cuda"))
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "engine": "ICudaEngine",
    "runtime": "Runtime",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
    "error": "ParserError",
}
"""What a variable of this name is, wherever it stands in these files."""
REMOVED = {
    "EXPLICIT_BATCH",
    "supports_model",
    "device_memory_size",
    "create_execution_context_without_device_memory",
    "set_calibration_profile",
    "int8_calibrator",
    "dynamic_range",
}


def table(version: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "tensorrt_api" / f"{version}.json").read_text())
    return content


def chain(node: ast.expr) -> list[str]:
    """`trt.A.B` and `self.trt.A.B` as ["A", "B"]; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    first = node.id if isinstance(node, ast.Name) else ""
    if first == "trt":
        return names
    return names[1:] if first == "self" and names[:1] == ["trt"] else []


def owner_of(node: ast.Attribute) -> str | None:
    value = node.value
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    return OBJECTS.get(name)


def parameters(signature: str) -> list[str]:
    """Names of a signature's parameters; a trailing "=" marks an optional one."""
    text = re.sub(r"<[^>]*>|\[[^\]]*\]", "", signature)
    return [
        match.group(1) + ("=" if "=" in part else "")
        for part in text.split(",")
        if (match := re.match(r"\s*(\w+)", part))
    ]


def takes(signature: str, call: ast.Call) -> bool:
    known = parameters(signature)
    names = [name.rstrip("=") for name in known]
    given = {*names[: len(call.args)], *(keyword.arg for keyword in call.keywords)}
    required = {name for name in known if not name.endswith("=")}
    return len(call.args) <= len(known) and given <= set(names) and required <= given


def findings(source: str, api: dict[str, Any]) -> list[str]:
    """What `source` uses that the table does not have, in words."""
    found = []
    tree = ast.parse(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        names, kind = chain(node), owner_of(node)
        if names and names != ["__version__"]:
            signatures = None
            if names[0] not in api["top"]:
                found.append(f"line {node.lineno}: tensorrt has no {names[0]}")
            elif len(names) == 1:
                signatures = api.get(names[0], {}).get("__init__")
            elif names[0] not in api or names[1] not in api[names[0]]:
                found.append(f"line {node.lineno}: {names[0]} has no {names[1]}")
        elif kind:
            if node.attr not in api[kind]:
                found.append(f"line {node.lineno}: {kind} has no {node.attr}")
                continue
            signatures = api[kind][node.attr]
            if signatures != "" and id(node) not in called:
                found.append(f"line {node.lineno}: {kind}.{node.attr} is a method and is not called")
            if signatures == "" and id(node) in called:
                found.append(f"line {node.lineno}: {kind}.{node.attr} is no method")
        else:
            continue
        call = called.get(id(node))
        if call is not None and signatures and not any(takes(signature, call) for signature in signatures):
            found.append(f"line {node.lineno}: {ast.unparse(call)} does not fit {signatures}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_every_name_and_call_exists_in_the_bindings(file: Path, version: str) -> None:
    assert not findings(file.read_text(), table(version))


def test_enough_of_tensorrt_is_seen_for_this_to_mean_something() -> None:
    api = table("10.3")
    for name in ("Builder", "OnnxParser", "IExecutionContext", "ICudaEngine", "Runtime"):
        emptied = {**api, name: {}}
        assert any(findings(file.read_text(), emptied) for file in SOURCES), f"nothing of {name} is seen"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("trt.BuilderFlag.INT8", "BuilderFlag has no INT8"),
        ("trt.Nothing", "tensorrt has no Nothing"),
        ("engine.device_memory_size", "ICudaEngine has no device_memory_size"),
        ("engine.device_memory_size_v2()", "is no method"),
        ("context.execute_async_v3()", "does not fit"),
        ("context.set_tensor_address(name, 1, 2)", "does not fit"),
        ("config.set_timing_cache(cache, wrong=True)", "does not fit"),
        ("parser.num_errors; parser.get_error", "is a method and is not called"),
    ],
)
def test_a_wrong_use_is_found(code: str, words: str) -> None:
    assert any(words in line for line in findings(code, table("11.4")))


def test_nothing_that_version_11_removed_is_used() -> None:
    for file in SOURCES:
        used = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & REMOVED, f"{file.name} uses {used & REMOVED}"


def test_objects_of_our_own_that_tensorrt_calls_have_its_method_names() -> None:
    build = ast.parse((ROOT / "engines" / "tensorrt" / "engine_build.py").read_text())
    classes = {
        ast.unparse(node.bases[0]): node for node in ast.walk(build) if isinstance(node, ast.ClassDef) and node.bases
    }
    for version in VERSIONS:
        api = table(version)
        for base in ("IProgressMonitor", "ILogger"):
            methods = {
                item.name: [argument.arg for argument in item.args.args[1:]]
                for item in classes[f"trt.{base}"].body
                if isinstance(item, ast.FunctionDef)
            }
            wanted = {
                name: parameters(signatures[0])
                for name, signatures in api[base].items()
                if signatures and name not in ("__init__", "Severity")
            }
            assert {name: methods.get(name) for name in wanted} == wanted, version
