# SPDX-License-Identifier: Apache-2.0
"""What the seven commands share: the parser, errors in one line, `--json`, old names.

Exit codes: 0 done, 1 a check failed (or a run ended in a fault), 2 bad input or environment, 130 interrupted. With
`--json` standard output holds one object and nothing else; what a person reads goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from vla_edge import __version__
from vla_edge.errors import CheckFailed, UsageError, VlaEdgeError
from vla_edge.installation import EXTRAS, missing_package

_answers: list[dict[str, Any]] = []
"""One for each `run_command` that is under way: what its `--json` will print."""


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One word after a command. module: holds the functions `add` (arguments into a parser) and `run` (parsed arguments
    → exit code). example: what to type after the command's name. arguments: the module of `add`, where it is another:
    one that loads nothing large, so that help comes at once."""

    module: str
    purpose: str
    example: str
    add: str = "add_arguments"
    run: str = "run"
    arguments: str = ""


@dataclass(frozen=True)
class Command:
    """One of the seven commands. default: the subcommand that is meant when no word is given ("" is one without a
    word). old: its old words and flags → what they are called now. extras: what a missing package is installed with.
    translate: module:function that turns a command line in other names into ours, before it is parsed."""

    name: str
    purpose: str
    subcommands: Mapping[str, Subcommand]
    default: str | None = None
    old: Mapping[str, str] = field(default_factory=dict)
    extras: str = ""
    translate: str = ""
    terminable: bool = True
    """SIGTERM ends it as Ctrl-C does; otherwise its subcommands see to signals themselves."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        return run_command(self._run, argv, self.extras)

    def parser(self, name: str) -> CommandParser:
        """The parser of a subcommand; the module of its arguments is imported."""
        sub = self.subcommands[name]
        others = {word: entry.purpose for word, entry in self.subcommands.items() if word} if not name else {}
        parser = CommandParser(
            prog=f"{self.name} {name}".rstrip(),
            description=_sentence(sub.purpose),
            example=f"{self.name} {sub.example}",
            old=self.old,
            subcommands=others,
        )
        getattr(import_module(sub.arguments or sub.module), sub.add)(parser)
        parser.add_json()
        return parser

    def overview(self) -> str:
        """What `--help` prints before a subcommand is named."""
        width = max(map(len, self.subcommands)) + 2
        default = f"without one: {self.default}; " if self.default else ""
        word = "[SUBCOMMAND]" if self.default else "SUBCOMMAND"
        return "\n".join(
            [
                f"usage: {self.name} {word} [options]\n\n{self.purpose}\n",
                f"subcommands ({default}each has --help):",
                *(_row(name, width, entry.purpose) for name, entry in self.subcommands.items()),
                "\nexample:",
                _example(f"{self.name} {next(iter(self.subcommands.values())).example}"),
                f"\n{self.name} --version prints the version.",
            ]
        )

    def _run(self, argv: Sequence[str]) -> int:
        words, name = list(argv), self.default
        first = words[0] if words else ""
        if first == "--version":
            print(f"{self.name} {__version__}")
            return 0
        if first in ("-h", "--help") and "" not in self.subcommands:
            print(self.overview())
            return 0
        if first and not first.startswith("-") and set(self.subcommands) != {""}:
            if first not in self.subcommands:
                raise UsageError(self._unknown(first))
            name = words.pop(0)
        if name is None:
            raise UsageError(f"{self.name} needs a subcommand: {', '.join(self.subcommands)}; see `{self.name} --help`")
        parser = self.parser(name)
        if self.translate:
            module, _, function = self.translate.partition(":")
            words = getattr(import_module(module), function)(words)
        arguments = parser.parse_args(words)
        run = getattr(import_module(self.subcommands[name].module), self.subcommands[name].run)
        with terminated_like_interrupted() if self.terminable else contextlib.nullcontext():
            return int(run(arguments))

    def _unknown(self, word: str) -> str:
        if word in self.old:
            return f"`{self.name} {word}` is now `{self.old[word]}`; see `{self.name} --help`"
        known = [name for name in self.subcommands if name]
        return f"{self.name} has no subcommand {word!r}{did_you_mean(word, known)}; see `{self.name} --help`"


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
            prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False, add_help=False
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
            if not self.knows(flag) and self.knows(self.old.get(flag, "")):
                raise UsageError(f"{flag} is now {self.old[flag]}; see `{self.prog} --help`")
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
        how = _HelpFormatter(self.prog).how_to_type
        words = [self.prog, *(["[SUBCOMMAND]"] if self.subcommands else [])]
        words += [how(action) for action in self._actions if not action.option_strings]
        words += [how(action) for action in self._actions if action.option_strings and action.required]
        for group in self._mutually_exclusive_groups:
            if group.required:
                words.append(f"({' | '.join(how(action) for action in group._group_actions)})")
        words.append("[options]")
        return f"{_wrapped(f'usage: {words[0]}', [*words[1:]], '    ')}\n"

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
            rows = [_row(name, 10, purpose) for name, purpose in self.subcommands.items()]
            parts.append("\n".join(["\nsubcommands (each has --help):", *rows, ""]))
        if self.notes:
            parts.append(f"\n{self.notes}\n")
        if self.example:
            parts += ["\nexample:\n", _example(self.example), "\n"]
        return "".join(parts)


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


class _HelpFormatter(argparse.HelpFormatter):
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
        names = {Path: "PATH", int: "N", float: "X", file_to_write: "FILE", folder_to_write: "DIR"}
        kind = action.type
        return kind.metavar if isinstance(kind, Number) else names.get(kind, action.dest.upper())  # type: ignore[call-overload, no-any-return]

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


def _wrapped(first: str, words: Sequence[str], indent: str, end: str = "") -> str:
    """`first` and words behind it, in lines of `_width`; a word is never broken. end: of every line but the last."""
    lines = [first]
    for word in words:
        if len(lines[-1]) + 1 + len(word) + len(end) <= _width():
            lines[-1] += f" {word}"
        else:
            lines[-1] += end
            lines.append(indent + word)
    return "\n".join(lines)


def _row(name: str, width: int, text: str) -> str:
    """A subcommand and what it is for."""
    return _wrapped(f"  {name:<{width - 1}}", text.split(), " " * (width + 2))


def _example(line: str) -> str:
    """A command as it can be typed, broken before an option where it is long."""
    head, *options = re.split(r" (?=--)", line)
    return _wrapped(f"  {head}", options, "      ", " \\")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean laptop?`, or nothing where nothing known is near."""
    names = {name.lstrip("-"): name for name in known}  # the dashes would make all options near one another
    near = difflib.get_close_matches(word.lstrip("-"), names, 1, 0.65)
    return f"; did you mean {names[near[0]]}?" if near else ""


def answer(value: Mapping[str, Any]) -> None:
    """What `--json` prints when the command ends, `error` and `exit_code` beside it if it fails then."""
    if _answers:
        _answers[-1].update(value)


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None, extras: str = "") -> int:
    """Run `main(argv)`, turn errors a user can meet into one line on stderr, print the answer where `--json` stands.

    A full disk, a refused permission and a path that is none are the environment's errors; an optional package that is
    missing is named with the command that installs it. Anything else is our bug and keeps its traceback.
    """
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    _answers.append({})
    with contextlib.suppress(AttributeError):  # a terminal that lacks a sign shows a question mark in its place
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            code, line = _outcome(main, words, extras)
        if line:
            print(line, file=sys.stderr)
        if as_json:
            error = line.partition(": ")[2] or line or _answers[-1].get("error", "failed")
            written = {**_answers[-1], **({"error": error, "exit_code": code} if code else {})}
            print(json.dumps(written) if written else "", end="\n" if written else "", flush=True)
        return code
    except BrokenPipeError:
        return 0
    except Exception as error:
        if as_json:
            failure = {"error": f"{type(error).__name__}: {_one_line(error)}", "exit_code": 1}
            print(json.dumps({**_answers[-1], **failure}), flush=True)
        raise
    finally:
        _answers.pop()


def _outcome(main: Callable[[Sequence[str]], int], words: Sequence[str], extras: str) -> tuple[int, str]:
    """(exit code, what to say about it)."""
    try:
        return main(words), ""
    except CheckFailed as error:
        return 1, f"failed: {_one_line(error)}"
    except VlaEdgeError as error:
        return 2, f"error: {_one_line(error)}"
    except KeyboardInterrupt:
        return 130, "interrupted"
    except BrokenPipeError:
        raise
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return 2, f"error: {missing_package(package, extras)}"
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        return 2, f"error: {error.filename or 'output'}: {error.strerror}; {_ENVIRONMENT[error.errno]}"


_ENVIRONMENT = {
    errno.ENOSPC: "no space left on the disk; free some and run again",
    errno.EDQUOT: "no space left on the disk for this user; free some and run again",
    errno.EACCES: "check its owner and mode, or give another path",
    errno.EPERM: "check its owner and mode, or give another path",
    errno.EROFS: "no permission to write there; give another path",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EEXIST: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a file is needed there; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EFBIG: "larger than this file system or `ulimit -f` allows; raise the limit or write elsewhere",
    errno.EIO: "the disk does not answer; check it and run again",
}
"""Errors of the operating system that are not our bug, and the next step for each."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside the block, so that both ways to stop a command clean up alike.

    For the main thread of a command; elsewhere it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class Number:
    """Type of an argument: a number of a kind (int or float) that fits; what it must be is said where it does not."""

    kind: Callable[[str], Any]
    fits: Callable[[Any], bool]
    what: str
    metavar: str

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.fits(value):  # nan fits nothing
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.what}")
        return value


count = Number(int, lambda value: value >= 1, "a whole number from 1 up", "N")
whole = Number(int, lambda value: value >= 0, "a whole number from 0 up", "N")
fraction = Number(float, lambda value: 0 <= value <= 1, "a number from 0 to 1", "SHARE")
inner_share = Number(float, lambda value: 0 < value < 1, "a share above 0 and below 1", "SHARE")
positive = Number(float, lambda value: 0 < value < math.inf, "a number above 0", "X")
not_negative = Number(float, lambda value: 0 <= value < math.inf, "a number from 0 up", "X")
PROCESSORS = os.cpu_count() or 1
threads = Number(
    int, lambda value: 0 <= value <= PROCESSORS, f"0 (all physical cores) to {PROCESSORS}, what this machine has", "N"
)


def between(low: float, high: float, kind: Callable[[str], Any] = float) -> Number:
    """A number (kind: float or int) from low to high."""
    return Number(
        kind, lambda value: low <= value <= high, f"a number from {low:g} to {high:g}", "N" if kind is int else "X"
    )


def file_to_write(text: str) -> Path:
    """Type of an argument: a file that can be written, its folders made where they are not there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file")
    _writable_parent(path)
    return path


def folder_to_write(text: str) -> Path:
    """Type of an argument: a folder that is there and can be written to, or can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file; name a folder")
    _writable_parent(path / "inside" if path.is_dir() else path)
    return path


def _writable_parent(path: Path) -> None:
    """The nearest folder above that is there decides; nothing is made before the command knows what to do."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise argparse.ArgumentTypeError(f"'{path}' cannot be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"'{path}' cannot be made: no permission to write in {above}")
    try:  # as root everything is permitted, and /proc takes no folder all the same
        os.rmdir(tempfile.mkdtemp(dir=above))
    except OSError as error:
        why = f"{above} takes no new folder ({error.strerror})"
        raise argparse.ArgumentTypeError(f"'{path}' cannot be made: {why}") from None
