"""Does a test notice when the safety filter is wrong? Every operator and constant of guard.c is changed, one at a time.

    python tests/mutate_guard.py

A mutant that compiles and passes guard_test is a survivor. Survivors must be in
EQUIVALENT, each with the reason why no test can tell it from the original.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "runtime" / "core" / "guard.c"
INCLUDES = [f"-I{ROOT / 'runtime' / 'core'}", f"-I{ROOT / 'robot' / 'bus'}"]
STEPS = 1500
TIMEOUT_S = 30.0

SWAPS = {
    "<=": ["<", ">="], ">=": [">", "<="], "<": ["<=", ">"], ">": [">=", "<"], "==": ["!="], "!=": ["=="],
    "&&": ["||"], "||": ["&&"], "+": ["-"], "-": ["+"], "*": ["+"], "/": ["*"], "+=": ["-="], "-=": ["+="],
    "true": ["false"], "false": ["true"],
}
TOKEN = re.compile(r"->|\+\+|--|<=|>=|==|!=|&&|\|\||\+=|-=|[-+*/<>]|\btrue\b|\bfalse\b|(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


@dataclass(frozen=True)
class Mutant:
    line: int
    column: int
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column} {self.old} -> {self.new}   {self.text.strip()}"


EQUIVALENT: dict[tuple[str, str, str], str] = {}
"""(line's text, old, new): reason."""


def mutants(source: str) -> Iterator[Mutant]:
    in_comment = False
    for number, line in enumerate(source.splitlines(), 1):
        code = re.sub(r"/\*.*?\*/", lambda found: " " * len(found[0]), line)
        if in_comment or "/*" in code:
            in_comment = "*/" not in code
            continue
        if code.startswith(("#", "static ", "guard_", "bool ")) or code.strip().startswith(("const ", "for (int i = 0; i < ARM_JOINTS")):
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


def build_test(folder: Path) -> Path:
    """guard_test without the guard: the same for every mutant."""
    out = folder / "guard_test.o"
    subprocess.run(["gcc", "-std=c11", "-O1", *INCLUDES, "-c", str(ROOT / "tests" / "c" / "guard_test.c"), "-o", str(out)], check=True)
    return out


def survives(source: str, mutant: Mutant | None, test: Path) -> bool | None:
    """None: it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        file, program = Path(folder) / "guard.c", Path(folder) / "guard_test"
        file.write_text(apply(source, mutant) if mutant else source)
        built = subprocess.run(
            ["gcc", "-std=c11", "-O1", "-w", *INCLUDES, str(test), str(file), "-lm", "-o", str(program)], capture_output=True
        )
        if built.returncode != 0:
            return None
        try:
            ran = subprocess.run([str(program), str(STEPS)], capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        return ran.returncode == 0


def survivors() -> tuple[int, list[Mutant]]:
    """How many mutants were tried, and those that no test noticed and no reason excuses."""
    source = GUARD.read_text()
    todo = list(mutants(source))
    with tempfile.TemporaryDirectory() as folder:
        test = build_test(Path(folder))
        if survives(source, None, test) is not True:
            raise SystemExit("guard_test fails on the unchanged guard.c")
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda mutant: survives(source, mutant, test), todo))
    tried = sum(result is not None for result in results)
    left = [m for m, result in zip(todo, results) if result and (m.text.strip(), m.old, m.new) not in EQUIVALENT]
    return tried, left


if __name__ == "__main__":
    count, left = survivors()
    print(f"{count} mutants, {len(left)} unnoticed")
    for mutant in left:
        print(mutant)
    sys.exit(bool(left))
