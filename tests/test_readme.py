# SPDX-License-Identifier: Apache-2.0
"""The documents against the repository: links lead somewhere, commands and flags exist, the tree page is current."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = dict(re.findall(r'^([a-z-]+) = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.M))
"""Our commands → the modules that hold them."""


def commands(page: Path) -> list[str]:
    """Every line of a code block, and every inline code, that starts with one of our commands; continued lines
    joined."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line for line in [*lines, *inline] if line.split() and line.split()[0] in COMMANDS]


@cache
def flags_of(command: str, *subcommand: str) -> set[str]:
    """What the help names, LeRobot's names of our options among them."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit, match="0"):
        raise SystemExit(import_module(COMMANDS[command]).main([*subcommand, "--help"]))
    return flags(told.getvalue())


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<!\S)\[?(--[a-z][a-z.-]+)", text))


def test_links_lead_to_files() -> None:
    lost = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert not lost, "\n".join(lost)


def test_python_files_that_are_named_exist() -> None:
    """Whole paths from the root, or the name of one file of the house; `*` stands for any."""
    made = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [f"/{file}" for file in made.stdout.split()]
    lost = [
        f"{page.name}: {named}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for named in set(re.findall(r"[\w./*-]+\.py\b", page.read_text()))
        if not any(fnmatch(file, f"*/{named.lstrip('./')}") for file in files)
    ]
    assert not lost, "\n".join(lost)


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = {word for page in PAGES for word in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named <= targets, named - targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_in_the_documents_exist(page: Path) -> None:
    unknown = []
    for line in commands(page):
        words = line.split()
        if len(words) == 1 or "|" in words:
            continue
        subcommand = [words[1]] if re.fullmatch(r"[a-z][a-z-]+", words[1]) else []
        if words[0] == "vla-runtime" and words[1].startswith("--"):
            subcommand = ["run"]
        unknown += [f"{line}: {flag}" for flag in flags(line) - flags_of(words[0], *subcommand)]
    assert not unknown, "\n".join(unknown)


def test_the_tree_page_is_current() -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tree.py"), "--check"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_message_that_troubleshooting_quotes_is_one_of_ours() -> None:
    """The first column quotes parts of lines that the code prints."""
    rooms = ("src", "robot", "runtime", "policies", "export", "calibration", "engines", "lerobot_data", "trials")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    code = " ".join(re.sub(r'"\s*f?"', "", re.sub(r"\s+", " ", file.read_text())) for file in files)
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert not [row for row in rows if row not in code]
