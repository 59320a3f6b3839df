"""The run folder: old flight records are kept as long as there is space for a new one."""

from __future__ import annotations

from pathlib import Path

from vla_edge.runtime.control.run_folder import KEPT_RECORDS, RunFolder, keep_old_records


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_records_move_aside_and_the_oldest_is_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for run in range(KEPT_RECORDS + 2):
        folder.record.write_text(str(run))
        assert keep_old_records(folder) == []
    assert records(tmp_path) == [f"flight.record.{age}" for age in range(1, KEPT_RECORDS + 1)]
    assert (tmp_path / "flight.record.1").read_text() == str(KEPT_RECORDS + 1)


def test_where_a_new_record_does_not_fit_the_oldest_make_room_until_it_does(tmp_path: Path) -> None:
    """A folder for 64 bytes, records of 20, and one more of 32 to come."""
    folder = RunFolder(tmp_path)
    for age in ("", ".1", ".2"):
        (tmp_path / f"flight.record{age}").write_bytes(bytes(20))

    def free(path: Path) -> int:
        return 64 - sum(file.stat().st_size for file in path.iterdir())

    assert keep_old_records(folder, 32, free) == [tmp_path / "flight.record.3", tmp_path / "flight.record.2"]
    assert records(tmp_path) == ["flight.record.1"]
