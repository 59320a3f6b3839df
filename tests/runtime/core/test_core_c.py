# SPDX-License-Identifier: Apache-2.0
"""The C parts on their own: every line run, sanitizers, a mutated guard noticed, hostile ring files."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.runtime.control.control_rig import short_folder

ROOT = Path(__file__).resolve().parents[3]
CORE = ROOT / "runtime" / "core" / "control"
PROGRAMS = {
    "guard_test": ("guard",),
    "guard_law_test": ("guard",),
    "schedule_test": ("schedule",),
    "ring_test": ("ring", "shared"),
    "serial_test": (),
    "press_test": ("press", "health", "beat", "shared"),
    "guardian_test": ("guardian", "shared", "clock"),
    "two_buses_test": tuple(
        f"../../../robot/bus/{part}" for part in ("bus", "packet", "servo_arm", "servo_lines", "servo_protocol")
    ),
}
LOOP = (
    "control",
    "control_status",
    "beat",
    "command",
    "health",
    "press",
    "clock",
    "ring",
    "shared",
    "schedule",
    "guard",
    "pilot",
    "pilot_commands",
    "record",
    "record_read",
    "record_old",
    "status",
)
CORPUS = Path(__file__).parent / "fuzz" / "corpus" / "ring"
COVERED = {"guard_test": "guard", "schedule_test": "schedule", "ring_test": "ring"}

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("gcov") is None, reason="needs gcc and gcov")


def build(folder: Path, program: str, *flags: str, compiler: str = "gcc") -> Path:
    out = folder / program
    parts = PROGRAMS.get(program, LOOP)
    home = Path(__file__).parent / ("fuzz" if program == "fuzz_ring" else "c")
    sources = [home / f"{program}.c", *(CORE / f"{part}.c" for part in parts)]
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{CORE}", f"-I{ROOT / 'robot' / 'bus'}", *flags]
    subprocess.run([*command, *map(str, sources), "-lm", "-lpthread", "-o", str(out)], check=True, cwd=folder)
    return out


def run(program: Path, *arguments: str) -> None:
    words = [str(program), *([str(program.parent / "chunks.ring")] if program.name == "ring_test" else []), *arguments]
    ran = subprocess.run(words, cwd=program.parent, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_gcc
@pytest.mark.parametrize("program", COVERED)
def test_c_tests_pass_and_run_every_line_of_their_part(tmp_path: Path, program: str) -> None:
    run(build(tmp_path, program, "-O0", "--coverage"), "3000")
    part = COVERED[program]
    data = next(tmp_path.glob(f"*{part}.gcda"))
    told = subprocess.run(["gcov", "-j", "-t", data.name], cwd=tmp_path, capture_output=True, text=True, check=True)
    file = next(item for item in json.loads(told.stdout)["files"] if item["file"].endswith(f"{part}.c"))
    missed = [line["line_number"] for line in file["lines"] if line["count"] == 0]
    assert not missed, f"{part}.c: lines {missed} never ran"


@needs_gcc
def test_a_million_adversarial_actions_never_exceed_a_limit(tmp_path: Path) -> None:
    """R8 on a virtual clock: five configurations of 200,000 steps, six joints each; judged by what was sent."""
    run(build(tmp_path, "guard_law_test", "-O2"), "200000")


@needs_gcc
def test_a_hundred_thousand_interleaved_chunks_give_no_action_at_another_tick(tmp_path: Path) -> None:
    """R6."""
    run(build(tmp_path, "schedule_test", "-O2"), "100000")


@needs_gcc
@pytest.mark.parametrize("program", ["serial_test", "press_test", "guardian_test", "two_buses_test"])
def test_small_parts_on_a_virtual_clock(tmp_path: Path, program: str) -> None:
    run(build(tmp_path, program, "-O1", "-Wno-unused-function"))


@needs_gcc
def test_the_loop_on_a_virtual_clock_notices_a_suspended_machine_and_servos_that_do_not_obey(tmp_path: Path) -> None:
    """CLOCK_BOOTTIME goes on while CLOCK_MONOTONIC stands; the health rotation stays within the tick's budget."""
    program = build(tmp_path, "loop_test", "-O1")
    ran = subprocess.run([str(program), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_gcc
def test_the_tick_allocates_nothing_and_touches_no_new_page(tmp_path: Path) -> None:
    """R4, with every allocation of the process counted, the C library's own included."""
    program = build(tmp_path, "tick_test", "-O2")
    with short_folder() as folder:
        ran = subprocess.run([str(program), str(folder)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and " 0 allocations" in ran.stdout, ran.stdout + ran.stderr


@needs_gcc
def test_hostile_ring_files_of_the_kept_corpus_move_no_goal_outside_its_limits(tmp_path: Path) -> None:
    inputs = sorted(map(str, CORPUS.iterdir()))
    assert len(inputs) > 25
    program = build(
        tmp_path, "fuzz_ring", "-O1", "-g", "-DREPLAY", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    )
    ran = subprocess.run([str(program), *inputs], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout == f"{len(inputs)} inputs\n", ran.stderr


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang with libFuzzer")
def test_libfuzzer_finds_no_ring_file_that_moves_a_goal_outside_its_limits(tmp_path: Path) -> None:
    program = build(tmp_path, "fuzz_ring", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", compiler="clang")
    (tmp_path / "found").mkdir()
    words = [str(program), "-max_total_time=300", "-max_len=4096", "found", str(CORPUS)]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]


@needs_gcc
@pytest.mark.check
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_c_tests_pass_under_sanitizers(tmp_path: Path, program: str, sanitizer: str) -> None:
    run(build(tmp_path, program, "-O1", "-g", "-fno-sanitize-recover=all", f"-fsanitize={sanitizer}"), "4000")


@needs_gcc
@pytest.mark.check
def test_the_control_loop_passes_under_the_address_sanitizer(tmp_path: Path) -> None:
    """Readings that are lost and chunks included."""
    program = build(
        tmp_path, "tick_test", "-O1", "-g", "-DSANITIZED", "-fno-sanitize-recover=all", "-fsanitize=address,undefined"
    )
    with short_folder() as folder:
        ran = subprocess.run([str(program), str(folder)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_gcc
@pytest.mark.check
@pytest.mark.timeout(3600)
def test_every_mutated_operator_of_the_guard_is_noticed() -> None:
    ran = subprocess.run(["python3", str(Path(__file__).parent / "mutate_guard.py")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
