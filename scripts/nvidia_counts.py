# SPDX-License-Identifier: Apache-2.0
"""Count what NVIDIA's compiler makes of a float32 bundle's graphs, in each precision that backend tensorrt runs.

python scripts/nvidia_counts.py BUNDLE > benchmarks/results/nvidia_counts.json

TensorRT-RTX (extra `rtx`) builds without a GPU, half a minute at most for a graph of full size; nothing is run.
`float32_around` is INT8 with everything else in float32, as it was written before half precision went around it. INT8's
ranges come from one synthetic observation: they change scales, not kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.precision.ranges import Ranges, gather
from vla_edge.calibration.precision.synthetic import synthetic
from vla_edge.calibration.precision.variant import Choice, VariantSettings, groups_of, in_memory
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.tensorrt.engine_build import RTX, load_compiler
from vla_edge.export.nvidia_verdict import counts as counts_of

AROUND = "float32_around"
PRECISIONS = [Treatment.FLOAT32.value, Treatment.FLOAT16.value, AROUND, Treatment.INT8_STATIC.value]


def counts(bundle: Bundle, name: str, precision: str, ranges: Ranges | None) -> dict[str, Any]:
    """Counts of one graph with all its linear maps in one precision. ranges: for INT8."""
    treatment = Treatment.INT8_STATIC if precision == AROUND else Treatment(precision)
    plan = {group.name: Choice(treatment) for group in groups_of(bundle.graph(name)) if not group.products}
    half = treatment is not Treatment.FLOAT32 and precision != AROUND
    graph = in_memory(bundle.graph(name), plan, VariantSettings(ranges, signed=True, half=half))
    return counts_of(graph, load_compiler(RTX))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help="float32 bundle")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="of %(default)s")
    arguments = parser.parse_args()
    bundle, precisions = open_bundle(arguments.bundle), arguments.precisions.split(",")
    ranges = None
    if {AROUND, Treatment.INT8_STATIC.value} & set(precisions):
        engine = load_engine("ort-python", EngineOptions(spin=False))
        ranges = gather(bundle, engine, synthetic(bundle, 1, 1), None, lambda done, of: None)
    made: dict[str, Any] = {"compiler": f"{RTX} {load_compiler(RTX).version}", "run": "nothing: built on a CPU"}
    for precision in precisions:
        for name in bundle.manifest.graphs:
            made.setdefault(precision, {})[name] = counts(bundle, name, precision, ranges)
            print(precision, name, made[precision][name], file=sys.stderr, flush=True)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
