# SPDX-License-Identifier: Apache-2.0
"""The whole C extension under AddressSanitizer and UBSan, driven by its Python tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [*sorted((ROOT / "runtime" / "core").glob("*/*.c")), *sorted((ROOT / "robot" / "bus").glob("*.c"))]
DRIVEN_BY = ("runtime/core/test_pilot.py", "robot/test_bus_faults.py")
"""What drives the extension without torch, whose start takes minutes under the sanitizer."""
LEFT_OUT = "not stale"
"""They build a program with sanitizers of its own."""


@pytest.mark.check
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc with its sanitizers")
def test_the_extension_passes_its_python_tests_under_the_address_sanitizer(tmp_path: Path) -> None:
    # The package as it is, with another _core: child processes find it too.
    package = tmp_path / "vla_edge"
    package.mkdir()
    for item in (ROOT / "src" / "vla_edge").iterdir():
        if not item.name.startswith("_core.c"):
            (package / item.name).symlink_to(item)
    built = package / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [
        f"-I{sysconfig.get_path('include')}",
        *(f"-I{ROOT / 'runtime' / 'core' / part}" for part in ("control", "policy", "glue")),
        f"-I{ROOT / 'robot' / 'bus'}",
    ]
    flags = ["-std=c11", "-shared", "-fPIC", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["gcc", *flags, *include, *map(str, SOURCES), "-ldl", "-lrt", "-lpthread", "-lm", "-o", str(built)], check=True
    )
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    # Python's own arenas are never given back: leaks are not looked for.
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    environment["PYTHONMALLOC"] = "malloc"
    found = subprocess.run(
        [sys.executable, "-c", "import vla_edge._core as c; print(c.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(built), found.stdout + found.stderr
    files = [str(ROOT / "tests" / name) for name in DRIVEN_BY]
    words = [sys.executable, "-m", "pytest", "-k", LEFT_OUT, *files]
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = ran.stdout[-3000:] + ran.stderr[-3000:]
    assert ran.returncode == 0 and "AddressSanitizer" not in said and "runtime error" not in said, said
