# SPDX-License-Identifier: Apache-2.0
"""What the seven commands share: the parser, errors in one line, `--json`, old names.

Exit codes: 0 done, 1 a check failed (or a run ended in a fault), 2 bad input or environment, 130 interrupted. With
`--json` standard output holds one object and nothing else; what a person reads goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_edge import __version__
from vla_edge.command_parser import CommandParser, did_you_mean, example_lines, subcommand_row
from vla_edge.errors import CheckFailed, UsageError, VlaEdgeError
from vla_edge.files import json_text
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
    arguments: str = ""
    add: str = "add_arguments"
    run: str = "run"


def by_word(subcommands: Mapping[str, Subcommand]) -> dict[str, Subcommand]:
    """The same, their functions called `add_WORD` and `run_WORD`."""
    names = {word: word.replace("-", "_") for word in subcommands}
    return {word: replace(sub, add=f"add_{names[word]}", run=f"run_{names[word]}") for word, sub in subcommands.items()}


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
                *(subcommand_row(name, width, entry.purpose) for name, entry in self.subcommands.items()),
                "\nexample:",
                example_lines(f"{self.name} {next(iter(self.subcommands.values())).example}"),
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


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


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
            print(json_text(written) if written else "", end="\n" if written else "", flush=True)
        return code
    except BrokenPipeError:
        return 0
    except Exception as error:
        if as_json:
            failure = {"error": f"{type(error).__name__}: {_one_line(error)}", "exit_code": 1}
            print(json_text({**_answers[-1], **failure}), flush=True)
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


@dataclass(frozen=True, slots=True)
class Target:
    """Type of an argument: a path to write to, its folders made where they are not there. taken: whether something that
    is there is of the other kind, which `wrong` says."""

    metavar: str
    taken: Callable[[Path], bool]
    wrong: str

    def __call__(self, text: str) -> Path:
        path = Path(text)
        if self.taken(path):
            raise argparse.ArgumentTypeError(f"{text!r} is {self.wrong}")
        _writable_parent(path / "inside" if path.is_dir() else path)
        return path


file_to_write = Target("FILE", Path.is_dir, "a folder; name a file")
folder_to_write = Target("DIR", lambda path: path.exists() and not path.is_dir(), "a file; name a folder")


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
