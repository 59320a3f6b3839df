# SPDX-License-Identifier: Apache-2.0
"""Does a test notice when the safety filter is wrong? Every operator and constant of guard.c is changed, one at a time.

    python tests/runtime/core/mutate_guard.py

A mutant that compiles and passes both tests of the guard is a survivor. Survivors must be in
EQUIVALENT, each with the reason why no test can tell it from the original.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GUARD = ROOT / "runtime" / "core" / "control" / "guard.c"
INCLUDES = [
    *(f"-I{ROOT / 'runtime' / 'core' / part}" for part in ("control", "policy", "glue")),
    f"-I{ROOT / 'robot' / 'bus'}",
]
TESTS = ("guard_test", "guard_law_test")
STEPS = 1500
CPU_S = 3

SWAPS = {
    "<=": ["<", ">="],
    ">=": [">", "<="],
    "<": ["<=", ">"],
    ">": [">=", "<"],
    "==": ["!="],
    "!=": ["=="],
    "&&": ["||"],
    "||": ["&&"],
    "+": ["-"],
    "-": ["+"],
    "*": ["+"],
    "/": ["*"],
    "+=": ["-="],
    "-=": ["+="],
    "true": ["false"],
    "false": ["true"],
}
TOKEN = re.compile(
    r"->|\+\+|--|<=|>=|==|!=|&&|\|\||\+=|-=|[-+*/<>]|\btrue\b|\bfalse\b|(?<![\w.])\d+(?:\.\d+)?(?![\w.])"
)


@dataclass(frozen=True)
class Mutant:
    line: int
    column: int
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column} {self.old} -> {self.new}   {self.text.strip()}"


_SAME = "at the boundary both sides give the same value"
_SPLIT = "a search may split its range anywhere"
_ROOM = "only keeps the sums below from overflowing; any bound beyond every goal does"
_REST = "|a| that small changes no velocity on its way to zero"
_PRESENT = "present = unit * clamp(present, -2 * GUARD_COUNTS_MAX, 2 * GUARD_COUNTS_MAX); /* no overflow below */"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("return value < low ? low : value > high ? high : value;", "<", "<="): _SAME,
    ("return value < low ? low : value > high ? high : value;", ">", ">="): _SAME,
    ("return value < 0 ? -value : value;", "<", "<="): _SAME,
    ("return value < 0 ? -value : value;", "0", "1"): "a value of 0 is negated to 0",
    ("if (acceleration == 0)", "0", "1"): _REST,
    ("return acceleration > 0 ? velocity + sum : velocity - sum;", ">", ">="): "0 has returned before",
    ("return acceleration > 0 ? velocity + sum : velocity - sum;", "0", "1"): _REST,
    ("int32_t middle = low + (high - low) / 2;", "2", "3"): _SPLIT,
    ("int32_t middle = first + (last - first) / 2;", "2", "3"): _SPLIT,
    (_PRESENT, "2", "3"): _ROOM,
    (_PRESENT, "*", "+"): _ROOM,
    ("joint->low = joint->goal < limits->position_min ? joint->goal : limits->position_min;", "<", "<="): _SAME,
    ("joint->high = joint->goal > limits->position_max ? joint->goal : limits->position_max;", ">", ">="): _SAME,
    ("int32_t worst = 0;", "0", "1"): "one tick is the least any joint needs",
    ("for (int32_t a = 0; a <= limits->acceleration; a++) {", "0", "1"): "an acceleration of 1 needs no less",
    ("for (int32_t a = 0; a <= limits->acceleration; a++) {", "<=", "<"): "the two largest accelerations need as long",
    ("if (v < -limits->velocity)", "<", "<="): "from just there the brake is not the slowest",
    ("if (ticks > worst)", ">", ">="): _SAME,
    ("if (ticks > self->rest_ticks)", ">", ">="): _SAME,
    ("to->acceleration = to->acceleration > 2 * to->velocity ? 2 * to->velocity : to->acceleration;", ">", ">="): _SAME,
    ("to->jerk = to->jerk > 2 * to->acceleration ? 2 * to->acceleration : to->jerk;", ">", ">="): _SAME,
    ("int32_t steps = limits->acceleration < limits->jerk ? limits->acceleration : limits->jerk;", "<", "<="): _SAME,
    (
        "return refuse(self, GUARD_REFUSED_JOINTS, joints < self->count ? joints : -1);",
        "<",
        "<=",
    ): "the right number never comes here",
}
"""(line's text, old, new): reason."""


def mutants(source: str) -> Iterator[Mutant]:
    in_comment = False
    for number, line in enumerate(source.splitlines(), 1):
        code = re.sub(r"/\*.*?\*/", lambda found: " " * len(found[0]), line)
        if in_comment or "/*" in code:
            in_comment = "*/" not in code
            continue
        if code.startswith(("#", "static ", "guard_", "bool ")) or code.strip().startswith(
            ("const ", "for (int i = 0; i < self->count")
        ):
            continue  # declarations: a pointer's star is no product
        for found in TOKEN.finditer(code):
            old = found[0]
            if old == "*" and (code[found.start() - 1] in " (," and code[found.end() : found.end() + 1].isalpha()):
                continue  # a pointer
            news = SWAPS.get(old, [])
            if old[0].isdigit():
                news = [str(int(old) + 1)] if "." not in old else [str(float(old) + 1)]
            for new in news:
                yield Mutant(number, found.start(), old, new, line)


def apply(source: str, mutant: Mutant) -> str:
    lines = source.splitlines(keepends=True)
    line = lines[mutant.line - 1]
    lines[mutant.line - 1] = line[: mutant.column] + mutant.new + line[mutant.column + len(mutant.old) :]
    return "".join(lines)


def build_tests(folder: Path) -> list[Path]:
    """The guard's tests without the guard: the same for every mutant."""
    objects = []
    for name in TESTS:
        objects.append(folder / f"{name}.o")
        source = Path(__file__).parent / "c" / f"{name}.c"
        subprocess.run(["gcc", "-std=c11", "-O1", *INCLUDES, "-c", str(source), "-o", str(objects[-1])], check=True)
    return objects


def survives(source: str, mutant: Mutant | None, tests: Sequence[Path]) -> bool | None:
    """None: it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        file, built = Path(folder) / "guard.c", Path(folder) / "guard.o"
        file.write_text(apply(source, mutant) if mutant else source)
        if subprocess.run(
            ["gcc", "-std=c11", "-O1", "-w", *INCLUDES, "-c", str(file), "-o", str(built)], capture_output=True
        ).returncode:
            return None
        for test in tests:
            program = Path(folder) / test.stem
            subprocess.run(["gcc", str(test), str(built), "-lm", "-o", str(program)], check=True)
            # A mutant may never end: CPU time is bounded, so that a busy machine makes no difference.
            if subprocess.run(
                ["sh", "-c", f"ulimit -t {CPU_S}; exec {program} {STEPS}"], capture_output=True
            ).returncode:
                return False
        return True


def survivors() -> tuple[int, list[Mutant]]:
    """How many mutants were tried, and those that no test noticed and no reason excuses."""
    source = GUARD.read_text()
    todo = list(mutants(source))
    with tempfile.TemporaryDirectory() as folder:
        tests = build_tests(Path(folder))
        if survives(source, None, tests) is not True:
            raise SystemExit("the guard's tests fail on the unchanged guard.c")
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda mutant: survives(source, mutant, tests), todo))
    tried = sum(result is not None for result in results)
    left = [m for m, result in zip(todo, results) if result and (m.text.strip(), m.old, m.new) not in EQUIVALENT]
    return tried, left


if __name__ == "__main__":
    count, left = survivors()
    print(f"{count} mutants, {len(left)} unnoticed")
    for mutant in left:
        print(mutant)
    sys.exit(bool(left))
