"""The room table of docs/architecture.md, enforced on the imports that stand in the files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"bundle", "contract", "errors", "_core", "__version__"}
MAY_IMPORT = {
    "policies": set(),
    "datasets": set(),
    "training": {"policies", "datasets", "engines", "runtime"},
    "export": {"policies", "datasets", "engines", "calibration", "runtime"},
    "calibration": {"datasets", "engines", "runtime"},
    "engines": set(),
    "runtime": {"engines", "robot", "datasets"},
    "robot": set(),
    "benchmarks": {"policies", "datasets", "training", "export", "calibration", "engines", "runtime", "robot", "benchmarks"},
}
WITHOUT_TORCH = ("engines", "runtime", "robot", "datasets", "calibration")


def imports(file: Path) -> Iterator[str]:
    """Every dotted name a file imports, wherever the statement stands; relative imports are spelled out."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"relative import in {file.name}"
            elif node.module == "vla_edge":
                yield from (f"vla_edge.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def strings_with_rooms(file: Path) -> Iterator[str]:
    """Dotted names given to importlib as text (tables of commands and backends)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("vla_edge."):
            yield node.value


def room_files(room: str) -> list[Path]:
    return [file for file in sorted((ROOT / room).rglob("*.py")) if file.name != "command.py"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    offences = []
    for file in room_files(room):
        for name in [*imports(file), *strings_with_rooms(file)]:
            if name.startswith("relative import"):
                offences.append(name)
            if not name.startswith("vla_edge."):
                continue
            target = name.split(".")[1].split(":")[0]
            if target not in SHARED | {room} | MAY_IMPORT[room]:
                offences.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_torch_is_not_imported_where_the_robot_runs(room: str) -> None:
    offences = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for name in imports(file)
        if name.split(".")[0] in ("torch", "torchvision")
    ]
    assert not offences, "\n".join(offences)


def test_shared_modules_depend_on_no_room() -> None:
    for name in ("bundle", "contract", "errors"):
        for imported in imports(ROOT / "src" / "vla_edge" / f"{name}.py"):
            assert not imported.startswith("vla_edge.") or imported.split(".")[1] in SHARED, f"{name}.py imports {imported}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_room_is_a_relative_link_in_the_package(room: str) -> None:
    link = ROOT / "src" / "vla_edge" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room


def test_c_includes_go_from_runtime_to_robot_only() -> None:
    for file in (ROOT / "robot" / "bus").glob("*.[ch]"):
        included = {line.split('"')[1] for line in file.read_text().splitlines() if line.startswith('#include "')}
        own = {header.name for header in (ROOT / "robot" / "bus").glob("*.h")}
        assert included <= own, f"{file.name} includes {included - own}"


def test_python_headers_are_included_in_one_file() -> None:
    users = [
        file.relative_to(ROOT).as_posix()
        for folder in ("runtime/core", "robot/bus")
        for file in (ROOT / folder).glob("*.[ch]")
        if "#include <Python.h>" in file.read_text()
    ]
    assert users in (["runtime/core/module.h"], [])


def test_commands_are_short() -> None:
    for file in ROOT.glob("*/command.py"):
        assert len(file.read_text().splitlines()) < 150, file


def test_no_file_is_named_for_nothing() -> None:
    for room in MAY_IMPORT:
        for file in (ROOT / room).rglob("*.py"):
            assert not any(word in file.stem for word in ("utils", "common", "helper", "manager", "misc")), file
