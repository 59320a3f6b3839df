# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vla_edge.errors import ExportError, VlaEdgeError
from vla_edge.files import (
    json_text,
    link_or_copy,
    new_folder,
    partial_path,
    put_in_place,
    replace_folder,
    write_bytes,
    write_json,
    write_text,
    written_beside,
)

FAILURES = (VlaEdgeError("no"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt())


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes into one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_written_file_holds_what_was_given_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    for flush in (True, False):
        write_bytes(tmp_path / "a.bin", b"\x00\xff", flush)
        write_text(tmp_path / "b.txt", "Grüße\n", flush)
        write_json(tmp_path / "c.json", {"x": [1]}, flush=flush)
    assert names(tmp_path) == ["a.bin", "b.txt", "c.json"]
    assert (tmp_path / "b.txt").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "c.json").read_text() == '{\n "x": [\n  1\n ]\n}\n'


def test_a_number_that_json_does_not_have_is_null_in_it(tmp_path: Path) -> None:
    """Python writes `Infinity` and `NaN` where it is let to, and every other reader refuses the whole text."""
    content = {
        "plain": 1.5,
        "worst": float("inf"),
        "rows": [(np.float64("nan"), 2), {"deep": -float("inf")}],
        "n": None,
    }
    write_json(tmp_path / "a.json", content)
    for text in (json_text(content), json_text(content, 1, sort_keys=True), (tmp_path / "a.json").read_text()):
        assert json.loads(text, parse_constant=pytest.fail) == {
            "plain": 1.5,
            "worst": None,
            "rows": [[None, 2], {"deep": None}],
            "n": None,
        }


def test_the_folders_of_a_file_are_made_but_not_for_news(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "deep" / "a", "a")
    assert names(tmp_path) == ["new", "new/deep", "new/deep/a"]
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "status", "running", flush=False)
    assert not (tmp_path / "gone").exists()


def test_old_content_survives_a_write_that_the_system_refuses_and_the_error_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    write_bytes(target, b"old")
    with largest_file(1000), pytest.raises(OSError) as caught:
        write_bytes(target, bytes(5000))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(target)
    assert target.read_bytes() == b"old" and names(tmp_path) == ["status.json"]


@pytest.mark.parametrize("step", ("fsync", "replace"))
def test_old_content_survives_a_disk_that_fails_at_the_last_step(tmp_path: Path, monkeypatch, step: str) -> None:
    target = tmp_path / "status.json"
    write_bytes(target, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(OSError) as caught:
        write_bytes(target, b"new")
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old" and names(tmp_path) == ["status.json"]


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_is_flushed_after(tmp_path, monkeypatch) -> None:
    steps: list[str] = []
    flush, rename = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def noted_replace(partial: Path, target: Path) -> None:
        steps.append("rename")
        rename(partial, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with new_folder(tmp_path / "out", ExportError) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"w")
    at = steps.index("rename")
    assert {Path(path).name for path in steps[:at]} == {folder.name, "inner", "weights"}
    assert steps[at + 1 :] == [str(tmp_path)]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, failure: BaseException) -> None:
    write_bytes(tmp_path / "a.npz", b"old")
    with pytest.raises(type(failure)):
        with written_beside(tmp_path / "a.npz") as partial:
            partial.write_bytes(b"half")
            raise failure
    assert names(tmp_path) == ["a.npz"] and (tmp_path / "a.npz").read_bytes() == b"old"


def test_the_name_beside_is_hidden_keeps_the_ending_and_is_never_the_same(tmp_path: Path) -> None:
    one, other = (partial_path(tmp_path / "run.mp4") for _ in range(2))
    assert one != other and one.parent == tmp_path and one.name.startswith(".run.mp4.") and one.suffix == ".mp4"
    assert partial_path(tmp_path / "000100").name.endswith(".partial")
    with written_beside(tmp_path / "a.npz") as partial:
        np.savez(partial, x=np.zeros(3))  # numpy adds its own ending to any other
    assert names(tmp_path) == ["a.npz"]


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    for target in ("000100", "000200"):
        with written_beside(tmp_path / "last", flush=False) as partial:
            partial.symlink_to(target)
    assert os.readlink(tmp_path / "last") == "000200" and names(tmp_path) == ["last"]


def test_a_new_folder_refuses_an_existing_one_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("out", "gone"):
        with pytest.raises(ExportError, match="exists already"):
            with new_folder(tmp_path / name, ExportError):
                raise AssertionError("the block must not run")
    assert names(tmp_path) == ["gone", "out"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_new_folder_leaves_nothing_behind_when_its_block_fails(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        with new_folder(tmp_path / "out", ExportError) as partial:
            (partial / "half").write_bytes(b"half")
            raise failure
    assert not names(tmp_path)


def test_a_new_folder_does_not_replace_one_that_appeared_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ExportError, match="appeared while it was written"):
        with new_folder(target, ExportError) as partial:
            (partial / "ours").write_bytes(b"")
            target.mkdir()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", (True, False))
def test_a_replaced_folder_holds_only_the_new_files(tmp_path: Path, monkeypatch, exchange: bool) -> None:
    if not exchange:  # a file system that cannot swap two names
        monkeypatch.setattr("vla_edge.files.ctypes.CDLL", lambda *_, **__: object())
    for content in ("first", "second"):
        partial = partial_path(tmp_path / "000100")
        partial.mkdir()
        (partial / content).write_text(content)
        replace_folder(partial, tmp_path / "000100")
    assert names(tmp_path) == ["000100", "000100/second"]


def test_a_replaced_folder_is_whole_until_the_new_one_stands_there(tmp_path: Path, monkeypatch) -> None:
    old, partial = tmp_path / "meta", tmp_path / ".new"
    for folder in (old, partial):
        folder.mkdir()
        (folder / "info").write_text(folder.name)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError):
        replace_folder(partial, old)
    assert (old / "info").read_text() == "meta"


@pytest.mark.parametrize("code", (None, errno.EXDEV, errno.EPERM, errno.EMLINK))
def test_a_file_is_linked_and_copied_where_links_cannot_be(tmp_path: Path, monkeypatch, code: int | None) -> None:
    source, target = tmp_path / "weights.bin", tmp_path / "out" / "graphs" / "weights.bin"
    source.write_bytes(b"weights")

    def refuse(*_: object) -> None:
        raise OSError(code, "no links here")

    if code is not None:
        monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, target)
    assert target.read_bytes() == b"weights" and target.samefile(source) == (code is None)


def test_what_a_long_writer_made_is_put_in_place(tmp_path: Path) -> None:
    partial = partial_path(tmp_path / "a.mp4")
    partial.write_bytes(b"film")
    put_in_place(partial, tmp_path / "a.mp4")
    assert names(tmp_path) == ["a.mp4"]
