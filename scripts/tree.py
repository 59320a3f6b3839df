# SPDX-License-Identifier: Apache-2.0
"""Write docs/tree.md: one line a file, taken from the file's own first sentence.

python scripts/tree.py          rewrites docs/tree.md
python scripts/tree.py --check  exit 1 when the page is not current
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "policies",
    "lerobot_data",
    "training",
    "export",
    "calibration",
    "engines",
    "runtime",
    "robot",
    "trials",
    "benchmarks",
    "src/vla_edge",
    "scripts",
)


def first_sentence(file: Path) -> str:
    """The first sentence of a Python docstring or of a C file's opening comment (a .c file without one takes its
    header's)."""
    if file.suffix in (".py", ".pyi"):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
    else:
        match = re.match(r"\s*/\*(.*?)\*/", file.read_text().partition("*/\n")[2], re.S)  # behind the licence's line
        text = re.sub(r"\n\s*\*", "\n", match.group(1)) if match else ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return textwrap.shorten(re.split(r"(?<=[a-z0-9)`])\.(?= |$)", paragraph)[0].rstrip(".:"), 110, placeholder=" …")


def lines() -> list[str]:
    """The tree's lines: a heading a room, a line a file; a C file stands with its header."""
    found = []
    for room in ROOMS:
        folder = ROOT / room
        files = sorted(
            file
            for pattern in ("*.py", "*.pyi", "*.[ch]")
            for file in folder.rglob(pattern)
            if "__pycache__" not in file.parts and file.name != "__init__.py"
        )
        about = (
            first_sentence(folder / "__init__.py")
            if (folder / "__init__.py").is_file()
            else "Small programs for this repository"
        )
        found.append(f"{room + '/':<40}{about}")
        for file in files:
            if file.suffix == ".c" and file.with_suffix(".h") in files:
                continue
            name = file.relative_to(folder).as_posix()
            name = name[:-2] + ".{h,c}" if file.suffix == ".h" and file.with_suffix(".c") in files else name
            found.append(f"  {name:<38}{first_sentence(file)}")
    return found


def main() -> int:
    page = ROOT / "docs" / "tree.md"
    current = (
        "# Tree\n\nWhat stands where: one line a file, taken from the file's own first sentence.\n\n```\n"
        + "\n".join(lines())
        + "\n```\n"
    )
    if "--check" in sys.argv:
        same = page.is_file() and page.read_text() == current
        print("docs/tree.md is current" if same else "docs/tree.md is stale: run python scripts/tree.py")
        return int(not same)
    page.write_text(current)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
