# SPDX-License-Identifier: Apache-2.0
"""Parts of records and reports by themselves: the recorder's limits, the log on a full disk, the plots."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vla_edge.errors import RecordError
from vla_edge.runtime.inference.input_record import Entry, InputRecorder, read_inputs
from vla_edge.runtime.records.plots import line_plot


def test_a_long_line_keeps_its_peaks_and_a_hole_stays_a_hole():
    y = np.zeros(10_000)
    y[777], y[5000:5100] = 42, np.nan
    svg = line_plot(np.arange(10_000.0), {"y": y}, "ms")
    assert ">42<" in svg and svg.count("M") == 2
    assert "nothing was recorded" in line_plot(np.zeros(0), {"y": np.zeros(0)}, "ms")


def test_an_axis_tells_close_values_apart():
    x, y = np.arange(3.0), np.array([0.99986, 0.99990, 0.99994])
    assert ">0.999860<" in line_plot(x, {"y": y}, "cosine", floor=None) and ">0.00<" in line_plot(x, {"y": y}, "cosine")
    assert ">62.7<" in line_plot(x, {"y": np.full(3, 62.7)}, "degrees", floor=None)


def test_the_size_limit_ends_the_recording_with_one_line_and_a_whole_file(tmp_path):
    said: list[str] = []
    recorder = InputRecorder(tmp_path / "x.rec", 1 << 20, said.append)
    for index in range(20):
        recorder.put(Entry({"kind": "picture", "number": index}, {"picture/a": np.full((100, 1000), index, np.uint8)}))
    recorder.close()
    kept = list(read_inputs(tmp_path / "x.rec"))
    assert [entry.head["number"] for entry in kept] == list(range(10)) and (
        tmp_path / "x.rec"
    ).stat().st_size <= 1 << 20
    assert len(said) == 1 and "limit of 1 MB is reached; the record ends here, inference goes on" in said[0]
    with pytest.raises(RecordError, match="exists already"):
        InputRecorder(tmp_path / "x.rec", 1 << 20, said.append)
    with pytest.raises(RecordError, match="File exists"):
        InputRecorder(tmp_path / "x.rec" / "y.rec", 1 << 20, said.append)
    recorder = InputRecorder(tmp_path / "none" / "x.rec", 1 << 20, said.append)
    recorder.close()


def test_a_record_without_an_inference_leaves_no_file(tmp_path):
    recorder = InputRecorder(tmp_path / "x.rec", 1 << 20, print)
    recorder.put(Entry({"kind": "session", "session": 1}, {}))
    recorder.close()
    assert not (tmp_path / "x.rec").exists()


def test_a_log_that_cannot_be_written_stops_with_a_line_and_not_with_an_error(tmp_path, capsys):
    from vla_edge.runtime.control.inference_log import InferenceLog
    from vla_edge.runtime.inference.cache import CacheCounts

    (tmp_path / "inference.jsonl").symlink_to("/dev/full")
    log = InferenceLog(tmp_path)
    for _ in range(3):
        log.line({"x": 1})
    assert log.summary("ready", None, CacheCounts(), {})["state"] == "ready"
    log.close()
    assert capsys.readouterr().err.count("No space left on device; the arm goes on") == 1


def test_entries_are_left_out_rather_than_waited_for_and_the_gap_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("vla_edge.runtime.inference.input_record._WAITING_BYTES", 250_000)
    slow = threading.Event()
    whole = InputRecorder._write

    def write(self, data):
        slow.wait()
        whole(self, data)

    monkeypatch.setattr(InputRecorder, "_write", write)
    recorder = InputRecorder(tmp_path / "x.rec", 1 << 30, print)
    for index in range(10):  # none of them waits for the writing thread, which waits for us
        recorder.put(Entry({"kind": "picture", "number": index}, {"picture/a": np.zeros((100, 1000), np.uint8)}))
    slow.set()
    recorder.put(Entry({"kind": "picture", "number": 10}, {}))
    recorder.close()
    kept = [entry.head for entry in read_inputs(tmp_path / "x.rec")]
    gaps = [head["entries"] for head in kept if head["kind"] == "gap"]
    # Several, when the writing thread takes its first entry only after some were left out.
    assert gaps and sum(gaps) + sum(head["kind"] == "picture" for head in kept) == 11
