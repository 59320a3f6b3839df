# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime replay`: compute a record's goals again and compare; with recorded inputs the chunks too; export
episodes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vla_edge.command_line import answer, folder_to_write, not_negative
from vla_edge.errors import CheckFailed, ConfigError, RecordError
from vla_edge.runtime.control.flight_record import (
    add_record_argument,
    chunks_of,
    faults_of,
    open_record,
    tick_times,
    ticks_of,
)
from vla_edge.runtime.inference.input_record import read_inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_record_argument(parser)
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE", help="the record of inputs of the same run (--record-inputs)"
    )
    parser.add_argument(
        "--bundle", type=Path, help="run the recorded inputs through this bundle again and compare the chunks"
    )
    parser.add_argument(
        "--export",
        type=folder_to_write,
        metavar="FOLDER",
        help="write the episodes as a LeRobot v3.0 dataset; needs --inputs",
    )
    parser.add_argument(
        "--picture-age",
        type=not_negative,
        default=0.5,
        metavar="SECONDS",
        help="leave out ticks whose pictures are older than this; an episode ends there",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.inputs is None and (arguments.bundle is not None or arguments.export is not None):
        raise ConfigError("--bundle and --export need --inputs, the record of inputs of the same run")
    reader = open_record(arguments.record)
    if arguments.inputs is not None:
        check_same_run(reader, arguments.inputs)
    report: dict[str, Any] = {**reader.replay(), "times_us": tick_times(reader), "faults": faults_of(ticks_of(reader))}
    print(
        f"{report['ticks']} ticks and {report['chunks']} chunks computed again from tick {report['first_tick']}, "
        f"{report['differing']} differ" + (f"; {report['damaged']} cells are damaged" if report["damaged"] else "")
    )
    for name, quantiles in report["times_us"].items():
        print(f"{name:<6}" + "  ".join(f"{key} {value:.0f} µs" for key, value in quantiles.items()))
    for fault in report["faults"]:
        print(f"tick {fault['tick']}: {fault['state']}, {fault['fault']}")
    if arguments.bundle is not None:
        report["inputs"] = _replay_inputs(arguments.inputs, arguments.bundle)
    if arguments.export is not None:
        report["episodes"] = _export(reader, arguments.inputs, arguments.export, arguments.picture_age)
    answer(report)
    _judge(arguments.record, report)
    return 0


def check_same_run(reader: Any, inputs: Path) -> None:
    """RecordError: none of the chunks that control took was planned from these inputs."""
    taken = set(chunks_of(reader))
    if taken and all(
        entry.head.get("sequence") not in taken
        for entry in read_inputs(inputs)
        if entry.head.get("kind") == "inference"
    ):
        raise RecordError(
            f"{inputs}: no chunk of the flight record was planned from it; give the record of inputs of the same run"
        )


def _replay_inputs(inputs: Path, bundle: Path) -> dict[str, Any]:
    from vla_edge.runtime.records.replay_inputs import replay_inputs

    result = replay_inputs(
        inputs, bundle, lambda work: track(work, "inferences", console=Console(stderr=True), transient=True)
    )
    print(
        f"{result.inferences} inferences run again, {result.differing} differ; {result.gaps} were not recorded; "
        f"largest difference {result.worst:.3g} of a latent value"
    )
    return asdict(result)


def _export(reader: Any, inputs: Path, target: Path, picture_age_s: float) -> dict[str, Any]:
    from vla_edge.runtime.records.episodes import export_episodes

    made = export_episodes(reader, inputs, target, picture_age_s)
    print(
        f"{target}: {made.episodes} episodes, {made.frames} frames with the actions that were sent; "
        f"{made.left_out} ticks had no write; "
        + (f"{made.stale} ticks whose pictures were too old are left out; " if made.stale else "")
        + f"pictures at most {made.oldest_picture_s * 1e3:.0f} ms old"
    )
    return asdict(made)


def _judge(record: Path, report: dict[str, Any]) -> None:
    if report["differing"]:
        raise CheckFailed(
            f"{record}: {report['differing']} ticks differ, the first at tick {report['differing_at']}; replay with "
            "the build that recorded it"
        )
    if report["first_tick"] < 0:
        raise CheckFailed(f"{record}: neither its start nor an arming is left in it; nothing could be computed again")
    inputs = report.get("inputs")
    if inputs and inputs["differing"]:
        raise CheckFailed(
            f"{inputs['differing']} of {inputs['inferences']} chunks differ from the recorded ones, the first at "
            f"observation {inputs['first_differing']}; "
            "replay on the machine and with the versions that recorded them"
        )
