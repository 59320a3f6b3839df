# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime report`: one HTML page on a flight record: timing, the blame of each missed tick, the cache's
behaviour."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_edge.command_line import answer, file_to_write
from vla_edge.errors import RecordError
from vla_edge.files import write_json, write_text
from vla_edge.runtime.control.flight_record import (
    add_record_argument,
    chunks_of,
    faults_of,
    open_record,
    tick_times,
    ticks_after_damage,
    ticks_of,
)
from vla_edge.runtime.control.inference_log import PARTS
from vla_edge.runtime.control.picture_tap import newest_pictures
from vla_edge.runtime.control.run_folder import RunFolder, facts_in
from vla_edge.runtime.records.blame import camera_faults_of, count_by_cause, missed_ticks, spans_of
from vla_edge.runtime.records.episodes import gap_ticks, trials_of
from vla_edge.runtime.records.report_page import RunFacts, page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_record_argument(parser)
    parser.add_argument(
        "--inference", type=Path, metavar="FILE", help="inference.jsonl of the run (default: beside the record)"
    )
    parser.add_argument(
        "--out", type=file_to_write, default=Path("report.html"), help="page to write; replaced when it exists"
    )
    parser.add_argument(
        "--trials",
        type=file_to_write,
        metavar="JSON",
        help="write how each trial went, for `vla-train compare --trials`: one that was marked with r has failed",
    )


def run(arguments: argparse.Namespace) -> int:
    facts = gather(arguments.record, arguments.inference)
    if arguments.trials:
        row_ticks = facts.header["action_ns"] / facts.header["period_ns"]
        trials = [trial.facts() for trial in trials_of(facts.ticks, gap_ticks(row_ticks))]
        write_json(arguments.trials, {"trials": trials})
        print(f"{arguments.trials}: {len(trials)} trials, {sum(trial['succeeded'] for trial in trials)} succeeded")
    write_text(arguments.out, page(facts))
    skipped, idle = (count_by_cause(facts.missed, kind) for kind in (True, False))
    fields = [
        f"{count.total()} {what}"
        + (f" ({', '.join(f'{cause} {ticks}' for cause, ticks in count.items())})" if count else "")
        for count, what in ((skipped, "skipped"), (idle, "without action"))
    ]
    print(f"{arguments.out}: {', '.join([f'{len(facts.ticks)} ticks', *fields])}")
    for fault in facts.faults:
        print(f"tick {fault['tick']}: {fault['state']}, {fault['fault']}")
    missed = [{**asdict(item), "cause": item.cause.value} for item in facts.missed]
    counts = {"ticks": len(facts.ticks), "skipped": dict(skipped), "without_action": dict(idle)}
    answer({**counts, "missed": missed, "faults": facts.faults})
    return 0


def gather(record: Path, inference: Path | None) -> RunFacts:
    """Everything the page shows. RecordError: no tick in the record, or a log that is none."""
    reader = open_record(record)
    ticks = list(ticks_of(reader))
    if not ticks:
        raise RecordError(f"{record}: no whole tick in it; give the flight.record of a run that ticked")
    header = reader.header()
    lines = _lines(inference or record.with_name("inference.jsonl"), inference is not None)
    within = [
        line
        for line in lines
        if ticks[0]["now_ns"] <= line.get("time_ns", 0) <= ticks[-1]["now_ns"] + 10 * header["period_ns"]
    ]
    rows = {sequence: chunk["n"] for sequence, chunk in chunks_of(reader).items()}
    missed = missed_ticks(
        ticks, header["period_ns"], rows, spans_of(within), camera_faults_of(within), ticks_after_damage(reader)
    )
    start, arm = _start(lines, ticks[-1]["now_ns"]), _arm(record, header["session"])
    folder = RunFolder(record.parent)
    pictures = newest_pictures(folder) if arm and record == folder.record else {}
    fields = ("task", "bundle", "bundle_path", "cache", "handover")
    return RunFacts(
        str(record),
        header,
        ticks,
        within,
        missed,
        tick_times(reader),
        gate=start.get("gate"),
        faults=faults_of(ticks),
        run={**arm, **{name: start[name] for name in fields if name in start}},
        pictures=pictures,
    )


def _lines(path: Path, asked: bool) -> Sequence[Mapping[str, Any]]:
    """The log's lines, the part that was moved aside first; a last one that was cut off is left out. Without a log:
    none (a run without inference)."""
    found = [part for part in (path.with_name(path.name + ".1"), path) if part.is_file()]
    if not found and asked:
        raise RecordError(f"{path}: no such file; give the inference.jsonl of the run")
    lines = []
    for part in found:
        *whole, _ = part.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if not _is_entry(line):
                raise RecordError(
                    f"{part}: line {number} is not an entry of inference.jsonl; cut it out of a copy and give that "
                    "with --inference"
                )
            lines.append(line)
    return lines


def _is_entry(line: Any) -> bool:
    """Whether the page and the blame can work with it: numbers where they look for them."""
    if not isinstance(line, dict) or type(line.get("time_ns", 0)) is not int:
        return False
    if "reason" not in line and "delay_ms" not in line:
        return True
    ms = line.get("ms")
    if not isinstance(ms, dict) or not isinstance(line.get("reason"), str) or not {"time_ns", "prefix"} <= set(line):
        return False
    numbers = [line.get("delay_ms", 0), line.get("similarity") or 0, *(ms.get(name) for name in PARTS)]
    return all(isinstance(number, (int, float)) for number in numbers)


def _start(lines: Sequence[Mapping[str, Any]], end_ns: int) -> Mapping[str, Any]:
    """What the last inference that began before `end_ns` was started with."""
    before = [line for line in lines if line.get("time_ns", 0) <= end_ns]
    starts = [line["start"] for line in before if isinstance(line.get("start"), dict)]
    return starts[-1] if starts else {}


def _arm(record: Path, session: int) -> dict[str, Any]:
    """What control wrote of the arm it drove, where it was the run of this record."""
    facts = facts_in(RunFolder(record.parent).arm)
    return facts if facts.get("session") == session else {}
