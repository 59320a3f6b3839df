# SPDX-License-Identifier: Apache-2.0
"""The packet framing in C: expected bytes, every line, sanitizers, the fuzz corpus."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUS = ROOT / "robot" / "bus"
CORPUS = ROOT / "tests" / "runtime" / "core" / "fuzz" / "corpus" / "status"
STRICT = ["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{BUS}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def build(tmp_path: Path, flags: list[str], sources: list[Path]) -> Path:
    program = tmp_path / "program"
    subprocess.run(["gcc", *STRICT, *flags, *map(str, sources), "-o", str(program)], check=True, cwd=tmp_path)
    return program


def test_the_packet_test_passes_under_the_sanitizers(tmp_path: Path) -> None:
    program = build(
        tmp_path, SANITIZERS, [ROOT / "tests" / "runtime" / "core" / "c" / "packet_test.c", BUS / "packet.c"]
    )
    subprocess.run([str(program)], check=True)


def test_the_packet_test_runs_every_line_of_the_framing(tmp_path: Path) -> None:
    program = build(
        tmp_path, ["-O0", "--coverage"], [ROOT / "tests" / "runtime" / "core" / "c" / "packet_test.c", BUS / "packet.c"]
    )
    subprocess.run([str(program)], check=True, cwd=tmp_path)
    report = subprocess.run(
        ["gcov", "-n", *map(str, tmp_path.glob("*packet.gcda"))],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    covered = dict(re.findall(r"File '.*?([a-z_]+\.c)'\nLines executed:([\d.]+)%", report))
    assert covered["packet.c"] == "100.00"


def test_the_kept_fuzz_corpus_replays_without_a_finding(tmp_path: Path) -> None:
    inputs = sorted(CORPUS.iterdir())
    assert len(inputs) > 50
    program = build(
        tmp_path,
        [*SANITIZERS, "-DREPLAY"],
        [ROOT / "tests" / "runtime" / "core" / "fuzz" / "fuzz_status.c", BUS / "packet.c"],
    )
    done = subprocess.run([str(program), *map(str, inputs)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{len(inputs)} inputs\n"


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang with libFuzzer")
def test_libfuzzer_finds_nothing_new_in_five_minutes(tmp_path: Path) -> None:
    fuzzer = tmp_path / "fuzzer"
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", f"-I{BUS}"]
    sources = [str(ROOT / "tests" / "runtime" / "core" / "fuzz" / "fuzz_status.c"), str(BUS / "packet.c")]
    subprocess.run(["clang", *flags, *sources, "-o", str(fuzzer)], check=True)
    found = tmp_path / "found"
    found.mkdir()
    subprocess.run(
        [str(fuzzer), "-max_total_time=300", "-max_len=1200", str(found), str(CORPUS)], check=True, cwd=tmp_path
    )
