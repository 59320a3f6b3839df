# SPDX-License-Identifier: Apache-2.0
"""The framing of each servo language in C: expected bytes, every line, sanitizers, the fuzz corpus."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUS = ROOT / "robot" / "bus"
TESTS = ROOT / "tests" / "runtime" / "core"
STRICT = ["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{BUS}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LANGUAGES = {"packet": [], "feetech": ["-DFEETECH"]}
"""File of the framing in `robot/bus`: what makes the fuzz harness speak it."""

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.parametrize("language", LANGUAGES),
]


def corpus(language: str) -> Path:
    return TESTS / "fuzz" / "corpus" / {"packet": "status"}.get(language, language)


def build(tmp_path: Path, flags: list[str], sources: list[Path]) -> Path:
    program = tmp_path / "program"
    subprocess.run(["gcc", *STRICT, *flags, *map(str, sources), "-o", str(program)], check=True, cwd=tmp_path)
    return program


def build_test(tmp_path: Path, language: str, *flags: str) -> Path:
    return build(
        tmp_path,
        [*flags],
        [TESTS / "c" / f"{language}_test.c", *(BUS / f"{part}.c" for part in (language, "servo_protocol"))],
    )


def test_the_framings_test_passes_under_the_sanitizers(tmp_path: Path, language: str) -> None:
    subprocess.run([str(build_test(tmp_path, language, *SANITIZERS))], check=True)


def test_the_framings_test_runs_every_line_of_it(tmp_path: Path, language: str) -> None:
    program = build_test(tmp_path, language, "-O0", "--coverage")
    subprocess.run([str(program)], check=True, cwd=tmp_path)
    report = subprocess.run(
        ["gcov", "-n", *map(str, tmp_path.glob(f"*{language}.gcda"))],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    covered = dict(re.findall(r"File '.*?([a-z_]+\.c)'\nLines executed:([\d.]+)%", report))
    assert covered[f"{language}.c"] == "100.00"


def test_the_kept_fuzz_corpus_replays_without_a_finding(tmp_path: Path, language: str) -> None:
    inputs = sorted(corpus(language).iterdir())
    assert len(inputs) > 50
    flags = [*SANITIZERS, "-DREPLAY", *LANGUAGES[language]]
    program = build(tmp_path, flags, [TESTS / "fuzz" / "fuzz_status.c", BUS / f"{language}.c"])
    done = subprocess.run([str(program), *map(str, inputs)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{len(inputs)} inputs\n"


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang with libFuzzer")
def test_libfuzzer_finds_nothing_new_in_five_minutes(tmp_path: Path, language: str) -> None:
    fuzzer = tmp_path / "fuzzer"
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", f"-I{BUS}", *LANGUAGES[language]]
    sources = [str(TESTS / "fuzz" / "fuzz_status.c"), str(BUS / f"{language}.c")]
    subprocess.run(["clang", *flags, *sources, "-o", str(fuzzer)], check=True)
    found = tmp_path / "found"
    found.mkdir()
    words = [str(fuzzer), "-max_total_time=300", "-max_len=1200", str(found), str(corpus(language))]
    subprocess.run(words, check=True, cwd=tmp_path)
