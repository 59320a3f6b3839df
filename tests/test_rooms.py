# SPDX-License-Identifier: Apache-2.0
"""The room table and the house rules of docs/architecture.md, enforced on the files themselves."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "vla_edge"
SHARED = {
    "bundle",
    "command_line",
    "command_parser",
    "contract",
    "errors",
    "files",
    "fields",
    "camera_names",
    "ensembling",
    "core",
    "hub",
    "installation",
    "_core",
    "__version__",
}
INFERENCE, CONTROL = "runtime/inference", "runtime/control"
MAY_IMPORT: dict[str, set[str]] = {
    "policies": set(),
    "lerobot_data": set(),
    "training": {"policies", "lerobot_data", "engines", INFERENCE},
    "export": {"policies", "lerobot_data", "engines", "calibration", INFERENCE},
    "calibration": {"lerobot_data", "engines", INFERENCE},
    "engines": set(),
    INFERENCE: {"engines"},
    CONTROL: {INFERENCE, "engines", "robot"},
    "runtime/service": {INFERENCE, CONTROL, "engines", "robot"},
    "runtime/records": {INFERENCE, CONTROL, "engines", "lerobot_data"},
    "robot": set(),
}
MAY_IMPORT["trials"] = set(MAY_IMPORT)
MAY_IMPORT["benchmarks"] = set(MAY_IMPORT)
ROOMS = sorted({room.split("/")[0] for room in MAY_IMPORT})
WITHOUT_TORCH = ("engines", "runtime", "robot", "lerobot_data", "calibration")
SOURCE_FILES = {"training": 30}
"""Source files a folder may hold, where it is not 20."""
FAMILIES = sorted(file.parent.name for file in (ROOT / "policies").glob("*/policy.py"))
FAMILY_FOLDERS = tuple(f"{room}/{family}/" for room in ("policies", "export") for family in FAMILIES)


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a path or dotted name below the package: the longest key of the table that it lies in."""
    return max(
        (room for room in [*MAY_IMPORT, *ROOMS] if tuple(room.split("/")) == parts[: room.count("/") + 1]),
        key=len,
        default="",
    )


@cache
def python_files() -> list[Path]:
    """Every Python file of the rooms and of the package itself, once."""
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))] + sorted(PACKAGE.glob("*.py"))


@cache
def imports(file: Path) -> list[str]:
    """Dotted names that a file imports, wherever the statement stands, and names of our modules that stand as text
    (but for a command that is started as a process of its own)."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in {file}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"vla_edge\.[\w.:]+", node.value)
            and not node.value.endswith(".command")
        ):
            found.append(node.value.replace(":", "."))
    return found


def module_of(file: Path) -> str:
    below = file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else ROOT).with_suffix("")
    return ".".join(("vla_edge", *below.parts))


@cache
def importers() -> Counter[str]:
    """How many files import each of our modules, tests left out."""
    modules = {module_of(file) for file in python_files()}
    count: Counter[str] = Counter()
    for file in python_files():
        for name in {name for full in imports(file) for name in (full, full.rpartition(".")[0]) if name in modules}:
            count[name] += name != module_of(file)
    return count


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    offences = []
    for file in python_files():
        parts = file.relative_to(ROOT).parts
        if room_of(parts) != room or file.name == "command.py":
            continue
        for name in imports(file):
            words = tuple(name.split(".")[1:])
            if not name.startswith("vla_edge.") or words[0] in SHARED:
                continue
            if room_of(words) not in MAY_IMPORT[room] | {room}:
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
    for file in PACKAGE.glob("*.py"):
        if file.stem == "doctor":
            continue
        for name in imports(file):
            assert not name.startswith("vla_edge.") or name.split(".")[1] in SHARED, f"{file.name} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_the_room_is_a_relative_link_in_the_package(room: str) -> None:
    link = PACKAGE / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room


def test_c_of_the_robot_includes_only_its_own_headers() -> None:
    for file in (ROOT / "robot" / "bus").glob("*.[ch]"):
        included = {line.split('"')[1] for line in file.read_text().splitlines() if line.startswith('#include "')}
        own = {header.name for header in (ROOT / "robot" / "bus").glob("*.h")}
        assert included <= own, f"{file.name} includes {included - own}"


def test_python_headers_are_included_in_one_file() -> None:
    users = [
        file.relative_to(ROOT).as_posix()
        for folder in ("runtime/core", "robot/bus")
        for file in (ROOT / folder).rglob("*.[ch]")
        if "#include <Python.h>" in file.read_text()
    ]
    assert users in (["runtime/core/glue/module.h"], [])


def test_commands_are_short() -> None:
    for file in ROOT.glob("*/command.py"):
        assert len(file.read_text().splitlines()) <= 150, file


def test_lines_of_c_end_at_120_columns() -> None:
    """Python's are held by ruff (E501)."""
    rooms = (*ROOMS, "tests")
    long = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in (file for room in rooms for suffix in ("*.c", "*.h") for file in (ROOT / room).rglob(suffix))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if len(line) > 120
    ]
    assert not long, "\n".join(long)


def test_no_file_is_named_for_nothing() -> None:
    for file in python_files():
        assert not any(word in file.stem for word in ("utils", "common", "helper", "manager", "misc")), file


def test_no_name_is_dialect() -> None:
    """`told` says nothing of what it holds."""
    named = {
        str(file.relative_to(ROOT))
        for file in python_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if "told" in (getattr(node, "id", ""), getattr(node, "arg", ""), getattr(node, "name", ""))
    }
    assert not named, "\n".join(sorted(named))


def test_no_folder_holds_more_source_files_than_a_person_surveys() -> None:
    count: Counter[str] = Counter()
    for room in ROOMS:
        for file in (ROOT / room).rglob("*"):
            if file.suffix in (".py", ".c", ".h") and file.name != "__init__.py":
                pair = file.suffix == ".h" and file.with_suffix(".c").is_file()
                count[file.parent.relative_to(ROOT).as_posix()] += not pair
    assert not {folder: n for folder, n in count.items() if n > SOURCE_FILES.get(folder, 20)}


def test_a_base_name_stands_once_in_the_house() -> None:
    places: dict[str, list[str]] = {}
    for file in python_files():
        where = file.relative_to(ROOT).as_posix()
        if file.name not in ("__init__.py", "command.py") and not where.startswith(FAMILY_FOLDERS):
            places.setdefault(file.name, []).append(where)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_nobody_outside_a_familys_folders_asks_which_family_a_policy_is() -> None:
    """Another family is one folder: what differs between families is stated there."""
    offences = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in python_files()
        if not file.relative_to(ROOT).as_posix().startswith(FAMILY_FOLDERS)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Compare, ast.MatchValue))
        and any(isinstance(part, ast.Constant) and part.value in FAMILIES for part in ast.walk(node))
    ]
    assert not offences, "\n".join(offences)


def test_no_paragraph_of_a_file_has_a_single_importer() -> None:
    small = [
        f"{file.relative_to(ROOT)} ({lines} lines)"
        for file in python_files()
        if file.name not in ("__init__.py", "command.py")
        and (lines := len(file.read_text().splitlines())) < 40
        and importers()[module_of(file)] == 1
    ]
    assert not small, "\n".join(small)


def test_namespaces_stay_in_commands_and_argument_functions() -> None:
    """`argparse.Namespace` as an annotation: only in command.py, and in functions whose name ends in `arguments` or is
    `run`."""
    offences = []
    for file in python_files():
        if file.name == "command.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            names = node.args if not isinstance(node, ast.ClassDef) else node
            annotated = [
                a.annotation for a in ast.walk(names) if isinstance(a, (ast.arg, ast.AnnAssign)) and a.annotation
            ]
            if any("Namespace" in ast.unparse(a) for a in annotated) and not re.search(
                r"(arguments|_arguments|^run(_\w+)?)$", node.name
            ):
                offences.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not offences, "\n".join(sorted(set(offences)))


def test_a_document_that_code_names_exists() -> None:
    """A document is `docs/NAME.md`, or a name in capitals; other .md names are files that code writes or reads."""
    offences = []
    for file in [*python_files(), *(ROOT / "runtime").rglob("*.[ch]"), *(ROOT / "robot").rglob("*.[ch]")]:
        for name in set(re.findall(r"(?<![\w/.{}-])(docs/[\w-]+\.md|[A-Z]{4,}\.md)\b", file.read_text())):
            if name not in ("NAME.md", "FILE.md") and not (ROOT / name).is_file():
                offences.append(f"{file.relative_to(ROOT)} names {name}")
    assert not offences, "\n".join(sorted(offences))


def _c_functions() -> Iterator[tuple[Path, str]]:
    """Functions that headers of the C core declare."""
    for header in [*(ROOT / "runtime" / "core").rglob("*.h"), *(ROOT / "robot" / "bus").glob("*.h")]:
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        for name in re.findall(r"^(?!typedef|#|\s)[\w\s*]+?\b(\w+)\([^;{]*\);", text, re.M):
            yield header, name


def test_every_c_function_has_a_caller_outside_tests() -> None:
    sources = [*(ROOT / "runtime" / "core").rglob("*.[ch]"), *(ROOT / "robot" / "bus").glob("*.[ch]")]
    text = {file: re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.S) for file in sources}
    unused = []
    for header, name in _c_functions():
        uses = sum(len(re.findall(rf"\b{name}\b", body)) for file, body in text.items() if file.suffix == ".c")
        if uses < 2:
            unused.append(f"{header.relative_to(ROOT)}: {name}")
    assert not unused, "\n".join(unused)


def test_every_binding_has_a_caller_outside_tests() -> None:
    """Functions, classes and methods of `_core.pyi` against the text of the rooms."""
    house = "\n".join(file.read_text() for file in python_files())
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    names = [
        node.name
        for node in ast.walk(stub)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("__")
    ]
    unused = sorted({name for name in names if not re.search(rf"\b{name}\b", house)})
    assert not unused, "\n".join(unused)


def test_no_tool_or_path_of_a_developer_machine_is_named() -> None:
    listed = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^\w.])/(home/[a-z]+|root)/", "--", ".", ":!tests/test_rooms.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout, listed.stdout


def test_every_source_file_names_its_licence() -> None:
    files = [*python_files(), *(ROOT / "runtime").rglob("*.[ch]"), *(ROOT / "robot").rglob("*.[ch]")]
    unnamed = [
        file for file in files if file.stat().st_size and "SPDX-License-Identifier: Apache-2.0" not in file.read_text()
    ]
    assert not unnamed, "\n".join(str(file.relative_to(ROOT)) for file in unnamed)
