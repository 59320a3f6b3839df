# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all: written beside their place, flushed to disk, renamed.

A reader, a full disk, a kill or a power cut finds the old content or the new one, never a half. What is being written
stands beside its target under a hidden name that ends in `.partial` (and the target's own ending, which some writers
look at). Errors are the system's `OSError`, with the target's name in them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_edge.errors import VlaEdgeError

_LINKLESS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What the system says where a hard link cannot be made."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
"""A Git LFS pointer is a text of about 130 bytes."""


def refuse_pointer(file: Path, error: type[VlaEdgeError]) -> None:
    """`error` where `file` is only a Git LFS pointer to what should stand there; one that is missing is no matter."""
    if file.is_file() and file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
        raise error(
            f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in the folder it was cloned to"
        )


def partial_path(target: Path) -> Path:
    """A hidden name beside `target` that nobody else uses."""
    ending = target.suffix if target.suffix != target.name else ""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial{ending}")


def put_in_place(partial: Path, target: Path, flush: bool = True) -> None:
    """Flush the file or folder `partial` to disk and rename it to `target`, whose content it replaces if it is a file.

    flush False: for news that nobody needs after a power cut and whose writer must not wait for the disk.
    """
    if flush:
        for path in [*partial.rglob("*"), partial] if partial.is_dir() else [partial]:
            _flush(path)
    os.replace(partial, target)
    if flush:
        _flush(target.parent)


@contextmanager
def written_beside(target: Path, flush: bool = True) -> Iterator[Path]:
    """The path at which the block writes one file; it stands at `target` when the block ends well, else nowhere.

    flush False: see `put_in_place`; no folder is made for such news either.
    """
    if flush:
        target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    try:
        yield partial
        put_in_place(partial, target, flush)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(partial):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes, flush: bool = True) -> None:
    """Replace the content of `target`."""
    with written_beside(target, flush) as partial:
        partial.write_bytes(data)


def write_text(target: Path, text: str, flush: bool = True) -> None:
    """Replace the content of `target`, UTF-8."""
    write_bytes(target, text.encode(), flush)


def write_json(target: Path, content: Any, indent: int | None = 1, flush: bool = True) -> None:
    """Replace the content of `target` by JSON and a newline, as `json_text`."""
    write_text(target, json_text(content, indent) + "\n", flush)


def json_text(content: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON that every reader takes: null for a number that is not finite, which JSON cannot say and browsers refuse."""
    try:
        return json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), indent=indent, sort_keys=sort_keys)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def begin_folder(target: Path, error: type[VlaEdgeError]) -> Path:
    """A new hidden folder beside `target`, for `finish_folder`; raises `error` when `target` exists."""
    if target.exists() or target.is_symlink():
        raise error(f"{target}: exists already; choose another folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    partial.mkdir()
    return partial


def finish_folder(partial: Path, target: Path, error: type[VlaEdgeError]) -> None:
    """Give the folder its name; raises `error` when `target` has appeared meanwhile."""
    if target.exists():
        raise error(f"{target}: appeared while it was written; move it away and run again")
    put_in_place(partial, target)


@contextmanager
def new_folder(path: Path | str, error: type[VlaEdgeError]) -> Iterator[Path]:
    """A folder for the block to fill; it stands at `path` when the block ends well, else nowhere."""
    target = Path(path)
    partial = begin_folder(target, error)
    try:
        yield partial
        finish_folder(partial, target, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Give the folder `partial` the name `target`; a folder that had it is removed after the new one stands there."""
    if not target.exists():
        put_in_place(partial, target)
        return
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    _exchange(partial, target)
    _flush(target.parent)
    shutil.rmtree(partial)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, a copy where the file system has no links. For files that are replaced,
    never edited."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _LINKLESS:
            raise
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step of the file system; in three where it has no such step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    if renameat2 and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    aside = partial_path(other)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
