# SPDX-License-Identifier: Apache-2.0
"""What the benches share: options of their command lines, files of a result, and a latency result as markdown and as
a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_edge.benchmarks.host import REPOSITORY, commit
from vla_edge.benchmarks.subject import DELTA
from vla_edge.command_line import folder_to_write, threads
from vla_edge.command_parser import CommandParser
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import EngineError
from vla_edge.files import write_json, write_text

COLOURS = {
    "camera preparation": "#b5b5b5",
    "vision": "#3b6fb6",
    "prefix": "#5aa469",
    "state": "#c9a227",
    "loop": "#b5533c",
    "post-processing": "#777777",
}
"""Of a graph, and of what is done between them, the same in every bar."""
UNDIVIDED = "#d9d9d9"


def bench_parser(bench: str, about: str, bundle: str = "", cores: int = 1) -> CommandParser:
    """The options of every bench. bench: its module below this room. bundle: what `--bundle` is, where it takes one.
    cores: threads where nothing is said."""
    parser = CommandParser(prog=f"python -m vla_edge.benchmarks.{bench}", description=about)
    if bundle:
        parser.add_argument("--bundle", type=Path, required=True, help=bundle)
    parser.add_argument("--threads", type=threads, default=cores, help="CPU threads of a graph")
    results = REPOSITORY / "benchmarks" / "results"
    parser.add_argument("--out", type=folder_to_write, default=results, metavar="DIR", help="folder of the results")
    return parser


def add_against_lerobot(parser: CommandParser) -> None:
    parser.add_argument(
        "--against-lerobot", action="store_true", help="LeRobot's own policy too, where lerobot is installed"
    )


def backends_here(names: Sequence[str], threads: int, tell: Callable[[str], None]) -> Iterator[str]:
    """Those of the backends that can run here; `tell` is told of the others."""
    for name in names:
        try:
            load_engine(name, EngineOptions(threads=threads))
        except EngineError as error:
            tell(f"without {name}: {error}")
            continue
        yield name


def write_result(out: Path, name: str, result: Mapping[str, Any], page: str = "") -> None:
    """NAME.json with the commit of this checkout, and NAME.md where there is a page."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", {**result, "commit": commit()})
    if page:
        write_text(out / f"{name}.md", page)


def write_report(result: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """NAME.md and, where matplotlib is installed, NAME.png; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.md"]
    write_text(written[0], "\n".join(markdown(result)) + "\n")
    try:
        import matplotlib
    except ImportError:
        return written
    matplotlib.use("Agg")
    written.append(folder / f"{name}.png")
    draw(result, written[1])
    return written


def markdown(result: Mapping[str, Any]) -> Iterator[str]:
    """The tables, line by line."""
    host, ceilings = result["host"], result["ceilings"]
    clocks = ", ".join(f"{value:.0f}" for value in host["clock_mhz"])
    yield f"# Latency, {host['when']}"
    yield ""
    yield (
        f"{host['cpu']}, {host['cores']} cores, clocks {clocks} MHz (governor {host['governor']}), "
        f"{host['memory_gb']} GB, load before {host['load_before']}, commit {host['commit']}."
    )
    yield (
        f"Ceilings measured here: float32 {ceilings['float32']:.0f} GOP/s, INT8 {ceilings['int8']:.0f} GOP/s, memory "
        f"{ceilings['memory']:.1f} GB/s."
    )
    yield (
        f"{result['rounds']['rounds']} interleaved rounds after {result['rounds']['warm_up']} to warm up; ms; "
        f"baseline {result['baseline']}."
    )
    yield from (
        "",
        "| subject | actions a chunk | flow steps | case | p50 | p90 | p99 | max | CPU ms p50 |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    for name, subject in result["subjects"].items():
        for case, found in subject["cases"].items():
            whole = found["whole_tick_ms"]
            yield (
                f"| {name} | {subject.get('chunk', '–')} | {_steps(subject, case)} | {case} | {whole['p50']:.1f} | "
                f"{whole['p90']:.1f} | {whole['p99']:.1f} | {whole['max']:.1f} | {found['cpu_ms']['p50']:.0f} |"
            )
    yield from ("", "Graphs of a fresh inference, p50 / p99:", "")
    graphs = list(
        dict.fromkeys(
            graph for subject in result["subjects"].values() for graph in subject["cases"]["fresh"]["graphs_ms"]
        )
    )
    yield f"| subject | {' | '.join(graphs)} |"
    yield "|---" * (len(graphs) + 1) + "|"
    for name, subject in result["subjects"].items():
        cells = [subject["cases"]["fresh"]["graphs_ms"].get(graph) for graph in graphs]
        yield f"| {name} | {' | '.join('–' if cell is None else _pair(cell) for cell in cells)} |"
    yield from (
        "",
        "| subject | fresh × | cached × | one camera saved | fresh × by CPU time | cached × by CPU time | peak RSS "
        "MB (loading included) | resident MB after | cold start s | cosine | joint p95 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    for name, subject in result["subjects"].items():
        ratio, error = result["ratios"].get(name, {}), result["errors"].get(name, {})
        wall, cpu = ratio.get("wall", {}), ratio.get("cpu", {})
        yield (
            f"| {name} | {_number(wall.get('fresh'), 2)} | {_number(wall.get('cached'), 1)} | "
            f"{_number(wall.get('one_camera_saved'), 3)} | {_number(cpu.get('fresh'), 2)} "
            f"| {_number(cpu.get('cached'), 1)} | {subject['peak_rss_mb']:.0f} | {subject['resident_mb']:.0f} | "
            f"{subject['cold_start_s']:.1f} | {_number(error.get('cosine'), 5)} | "
            f"{_number(error.get('joint_p95'), 5)} |"
        )
    yield from _graphs(result)
    yield ""
    for name, subject in result["subjects"].items():
        verdicts = subject["verdicts"]
        for question in ("replan_every_tick", "action_output_with_chunks") if verdicts else ():
            answers = ", ".join(
                f"{case} {'yes' if holds else 'no'} ({verdicts['p99_ms'][case]:.0f} ms)"
                for case, holds in verdicts[question].items()
            )
            yield f"- {name}, 30 Hz {question.replace('_', ' ')}: {answers}"
    yield from slower_int8(result["subjects"])


def _steps(subject: Mapping[str, Any], case: str) -> str:
    """Flow steps of a case: its own where it is one of fewer ("fresh, 2 steps"), none of a correction."""
    few = case.partition(", ")[2].removesuffix(" steps")
    return "–" if case == DELTA else few or str(subject.get("steps", "–"))


def slower_int8(subjects: Mapping[str, Any]) -> Iterator[str]:
    """A line for every INT8 bundle and case that takes longer (median) than a bundle without INT8 on the same backend:
    quantising does not pay there."""
    bundles = {name: subject for name, subject in subjects.items() if subject.get("precision")}
    quantised = {
        name
        for name, subject in bundles.items()
        if any(kind.startswith("int8") for kind in subject["precision"].values())
    }
    for name, other in ((name, other) for name in bundles if name in quantised for other in bundles.keys() - quantised):
        if bundles[name]["backend"] != bundles[other]["backend"]:
            continue
        for case in bundles[name]["cases"].keys() & bundles[other]["cases"].keys():
            int8, plain = (bundles[each]["cases"][case]["whole_tick_ms"]["p50"] for each in (name, other))
            if int8 > plain:
                yield f"- {name}, {case}: INT8 is slower here, {int8:.1f} ms against {plain:.1f} ms of {other}"


def _graphs(result: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "| subject | graph | precision | GMAC | weights MB | GOP/s | of ceiling | floor ms | best ms |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    for name, subject in result["subjects"].items():
        for graph, found in subject["fractions"].items():
            work = subject["work"][graph]
            yield (
                f"| {name} | {graph} | {subject['precision'].get(graph, 'fp32')} | {work['multiply_adds'] / 1e9:.2f} "
                f"| {work['weight_bytes'] / 1e6:.0f} | {found['gops']:.0f} "
                f"| {100 * found['fraction']:.0f} % of {found['ceiling']} | {found['floor_ms']:.1f} | "
                f"{found['best_ms']:.1f} |"
            )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of every subject and case, cut into what their graphs take."""
    from matplotlib import pyplot

    bars = [
        (name, case, found) for name, subject in result["subjects"].items() for case, found in subject["cases"].items()
    ]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.42 * len(bars)), layout="constrained")
    for row, (name, case, found) in enumerate(bars):
        left = 0.0
        looked = {"fresh": result["subjects"][name].get("cameras", 2), "one_camera": 1}.get(case, 0)
        for graph, colour in COLOURS.items():
            width = found["graphs_ms"].get(graph, {}).get("p50", 0.0) * (
                max(1, looked) if graph in ("vision", "camera preparation") else 1
            )
            axes.barh(row, width, left=left, color=colour, label=graph if row == 0 else None)
            left += width
        if left == 0.0:  # a subject that tells no times of graphs
            left = found["whole_tick_ms"]["p50"]
            axes.barh(row, left, color=UNDIVIDED)
        axes.text(left, row, f"  {found['whole_tick_ms']['p50']:.0f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [f"{name} · {case}" for name, case, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("median ms of one inference")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{result['host']['cpu']}, {result['host']['cores']} cores · commit {result['host']['commit']}",
        fontsize=10,
        loc="left",
    )
    figure.legend(loc="outside upper center", ncols=len(COLOURS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pair(cell: Mapping[str, float]) -> str:
    return f"{cell['p50']:.2f} / {cell['p99']:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
