# SPDX-License-Identifier: Apache-2.0
"""The parser of every command line: no abbreviations, errors of one line with a suggestion, help that shows defaults,
groups and an example."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vla_edge import __version__
from vla_edge.errors import UsageError

GONE = "left out: "
"""How it begins what an old flag without a successor is now."""
MANY = 45
"""Characters of choices that still stand in the option's own line."""
_PLAIN = {
    r"^argument (?:-\w/)?": "",
    r": invalid int value: (.*)$": r" \1 is not a whole number",
    r": invalid float value: (.*)$": r" \1 is not a number",
    r": expected (at least )?one argument$": " needs a value",
    r"^the following arguments are required: ": "missing: ",
}
"""argparse's own sentences → ours."""


class CommandParser(argparse.ArgumentParser):
    """A parser without abbreviations whose errors are `UsageError`s of one line, and whose help shows defaults, groups
    and an example."""

    def __init__(
        self,
        prog: str,
        description: str,
        example: str = "",
        old: Mapping[str, str] | None = None,
        subcommands: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            prog=prog, description=description, formatter_class=HelpLayout, allow_abbrev=False, add_help=False
        )
        self.old, self.example, self.subcommands = old or {}, example, subcommands or {}
        self.expand: Callable[[Sequence[str]], Sequence[str]] = list
        """Words that stand for others, such as a file of flags, put into the command line before it is parsed."""
        self.notes = ""
        """Lines for the help before the example, as they are."""
        self.last = self.add_argument_group("help and output")
        self.last.add_argument("-h", "--help", action="help", help="show this help")
        self.last.add_argument("--version", action="version", version=f"{prog} {__version__}", help="print the version")

    def add_json(self) -> None:
        """The flag that every command has."""
        self.last.add_argument(
            "--json", action="store_true", help="print one JSON object, on errors too; text for people goes to stderr"
        )

    def knows(self, flag: str) -> bool:
        """Whether `flag` is one of this parser's."""
        return flag in self._option_string_actions

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        self._refuse_old(words)
        words = list(self.expand(words))
        options = words[: words.index("--")] if "--" in words else words
        self._refuse_unknown(
            word for word in options if word.startswith("--") and not self.knows(word.partition("=")[0])
        )
        parsed, unknown = self.parse_known_args(words, namespace)
        self._refuse_unknown(unknown)
        return parsed

    def _refuse_unknown(self, words: Iterable[str]) -> None:
        """Before what is missing is told: a word typed wrong is why it is missing."""
        known = [option for option in self._option_string_actions if option.startswith("--") and option != "--help"]
        for word in words:
            name = word.partition("=")[0]
            kind = "option" if word.startswith("-") else "argument"
            self.error(f"there is no {kind} {name}{did_you_mean(name, known)}")

    def _refuse_old(self, words: Sequence[str]) -> None:
        """An option, or an option's value, of an earlier version, where the option it is now stands here."""
        for word, after in zip(words, [*words[1:], ""]):
            flag, equals, value = word.partition("=")
            if word == "--":
                return
            new = self.old.get(flag, "")
            if not self.knows(flag) and (self.knows(new) or new.startswith(GONE)):
                raise UsageError(f"{flag} is now {new}; see `{self.prog} --help`")
            pair = f"{flag} {value if equals else after}"
            if pair in self.old and self.knows(flag):
                raise UsageError(f"{pair} is now {self.old[pair]}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            text = f"{value!r} is none of {', '.join(known)}{did_you_mean(str(value), known)}"
            raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        for pattern, text in _PLAIN.items():
            message = re.sub(pattern, text, message)
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def format_usage(self) -> str:
        how = HelpLayout(self.prog).how_to_type
        words = [self.prog, *(["[SUBCOMMAND]"] if self.subcommands else [])]
        words += [how(action) for action in self._actions if not action.option_strings]
        words += [how(action) for action in self._actions if action.option_strings and action.required]
        for group in self._mutually_exclusive_groups:
            if group.required:
                words.append(f"({' | '.join(how(action) for action in group._group_actions)})")
        words.append("[options]")
        return f"{wrapped(f'usage: {words[0]}', [*words[1:]], '    ')}\n"

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group is self.last)
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section("arguments" if group is self._positionals else group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        parts = [self.format_usage(), "\n", formatter.format_help()]
        if self.subcommands:
            rows = [subcommand_row(name, 10, purpose) for name, purpose in self.subcommands.items()]
            parts.append("\n".join(["\nsubcommands (each has --help):", *rows, ""]))
        if self.notes:
            parts.append(f"\n{self.notes}\n")
        if self.example:
            parts += ["\nexample:\n", example_lines(self.example), "\n"]
        return "".join(parts)


class HelpLayout(argparse.HelpFormatter):
    """Defaults are shown where there is one worth showing and the text does not name it; many choices stand behind the
    text. No line is broken at a hyphen, so that a flag can be searched."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _many(self, action: argparse.Action) -> str:
        """The choices in words where they are too long for the option's own line, else nothing."""
        written = ", ".join(map(str, action.choices or ()))
        return written if len(written) > MANY and action.metavar is None else ""

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if self._many(action):
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if many := self._many(action):
            head, bracket, default = text.partition(" (default")
            text = f"{head}; one of {many}{bracket}{default}"
        usual = action.default
        usual = " ".join(map(str, usual)) if isinstance(usual, (list, tuple)) else usual
        hidden = usual is None or isinstance(usual, bool) or str(usual) in ("", argparse.SUPPRESS)
        if hidden or not action.option_strings or "default" in text:
            return text
        return f"{text} (default: {str(usual).replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        names: dict[Any, str] = {Path: "PATH", int: "N", float: "X"}
        return str(getattr(action.type, "metavar", names.get(action.type, action.dest.upper())))

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def how_to_type(self, action: argparse.Action) -> str:
        """`--bundle PATH`, `RECORD`."""
        if not action.option_strings:
            return self._format_args(action, self._get_default_metavar_for_positional(action))
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[-1]} {values}".strip()


def _width() -> int:
    """Columns of a line of help, as argparse counts them."""
    return shutil.get_terminal_size().columns - 2


def wrapped(first: str, words: Sequence[str], indent: str, end: str = "") -> str:
    """`first` and words behind it, in lines of `_width`; a word is never broken. end: of every line but the last."""
    lines = [first]
    for word in words:
        if len(lines[-1]) + 1 + len(word) + len(end) <= _width():
            lines[-1] += f" {word}"
        else:
            lines[-1] += end
            lines.append(indent + word)
    return "\n".join(lines)


def subcommand_row(name: str, width: int, text: str) -> str:
    """A subcommand and what it is for."""
    return wrapped(f"  {name:<{width - 1}}", text.split(), " " * (width + 2))


def example_lines(line: str) -> str:
    """A command as it can be typed, broken before an option where it is long."""
    head, *options = re.split(r" (?=--)", line)
    return wrapped(f"  {head}", options, "      ", " \\")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean laptop?`, or nothing where nothing known is near."""
    names = {name.lstrip("-"): name for name in known}  # the dashes would make all options near one another
    near = difflib.get_close_matches(word.lstrip("-"), names, 1, 0.65)
    return f"; did you mean {names[near[0]]}?" if near else ""
