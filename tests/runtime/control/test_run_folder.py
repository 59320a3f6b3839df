# SPDX-License-Identifier: Apache-2.0
"""The run folder: the last run is found again, a held folder is told from a free one, old records make room."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.runtime.control.control_rig import short_folder
from tests.runtime.control.inference_rig import Control

from vla_edge.errors import ControlError
from vla_edge.runtime.command import main
from vla_edge.runtime.control import operator, run_folder


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "default"
    monkeypatch.setattr(run_folder, "default_run_folder", lambda: folder)
    return folder


def test_the_last_run_is_the_newest_one_that_is_still_there(default: Path, tmp_path: Path) -> None:
    assert run_folder.last_run_folder() == default
    for name in ("one", "two"):
        run_folder.note_run(run_folder.open_run_folder(tmp_path / name))
    assert run_folder.last_run_folder() == tmp_path / "two"
    (tmp_path / "two").rmdir()
    assert run_folder.last_run_folder() == default
    (default / run_folder.LAST_RUN).write_bytes(b"\xff")
    assert run_folder.last_run_folder() == default


def test_a_default_folder_that_cannot_be_written_stops_nothing(default: Path, tmp_path: Path) -> None:
    default.write_text("a file")
    run_folder.note_run(run_folder.open_run_folder(tmp_path / "one"))
    assert run_folder.last_run_folder() == default


def test_commands_without_a_record_or_folder_mean_the_last_run(default: Path, tmp_path: Path, capsys) -> None:
    run_folder.note_run(run_folder.open_run_folder(tmp_path / "one"))
    assert main(["report", "--out", str(tmp_path / "page.html")]) == 2
    assert f"{tmp_path}/one/flight.record" in capsys.readouterr().err
    assert main(["replay"]) == 2 and f"{tmp_path}/one/flight.record" in capsys.readouterr().err
    assert main(["hold"]) == 2 and f"{tmp_path}/one" in capsys.readouterr().err


def test_a_held_folder_is_told_from_a_free_one(default: Path) -> None:
    folder = run_folder.open_run_folder(None)
    assert not run_folder.control_runs(folder)
    lock = run_folder.lock_for_control(folder)
    assert run_folder.control_runs(folder)
    os.close(lock)
    assert not run_folder.control_runs(folder)


def test_in_a_small_folder_the_oldest_records_make_room_and_the_last_runs_is_kept(tmp_path: Path) -> None:
    """S14: three records of 32 bytes in a folder of 100, of which the next run needs 40."""
    folder, names = run_folder.RunFolder(tmp_path), ["flight.record", "flight.record.1", "flight.record.2"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode().ljust(32))

    def left(path: Path) -> int:
        return 100 - sum(record.stat().st_size for record in path.glob("flight.record*"))

    removed = run_folder.keep_old_records(folder, needed_bytes=40, free_bytes=left)
    assert [record.name for record in removed] == ["flight.record.3", "flight.record.2"]
    assert [(record.name, record.read_bytes().strip()) for record in tmp_path.iterdir()] == [
        ("flight.record.1", b"flight.record")
    ]
    assert (
        run_folder.keep_old_records(folder, needed_bytes=40, free_bytes=left) == []
        and (tmp_path / "flight.record.2").exists()
    )


def test_a_folder_that_was_taken_can_be_asked_however_long_its_path_is() -> None:
    """A word's answer comes to a socket in the same folder, whose path has the same limit; one that a killed process
    left behind is no hindrance."""
    with short_folder() as base:
        path = base / ("x" * (100 - len(os.fsencode(base / "x" / "control.sock")) + 1))
        folder = run_folder.open_run_folder(path)
        with pytest.raises(ControlError, match="too long"):
            run_folder.open_run_folder(path.with_name(path.name + "x"))
        with run_folder.listen(folder) as listener:
            listener.setblocking(True)

            def answer_one() -> None:
                _, asker = listener.recvfrom(128)
                listener.sendto(b"done hold - -1", asker)

            (path / f"{os.getpid():x}.{next(operator._ASKED) + 1:x}").touch()
            answering = threading.Thread(target=answer_one)
            answering.start()
            assert operator.ask(folder, "hold", timeout_s=240) == operator.Answer("done", "hold", "", "")
            answering.join()
        assert sorted(path.iterdir()) == [folder.socket]


def test_a_status_that_its_writer_has_not_marked_yet_is_none_and_another_mark_is_damage(tmp_path: Path) -> None:
    control = Control(run_folder.open_run_folder(tmp_path / "run"), "ef" * 32)
    try:
        control.wait(lambda status: status["tick"] > 0)
    finally:
        control.stop()
    file = tmp_path / "state"
    file.write_bytes(bytes(control.folder.state.stat().st_size))
    assert control.core.StateReader(file).read() is None
    file.write_bytes(b"another mark".ljust(control.folder.state.stat().st_size, b"\0"))
    with pytest.raises(OSError, match="Invalid argument"):
        control.core.StateReader(file)
