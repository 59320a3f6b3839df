# SPDX-License-Identifier: Apache-2.0
"""The full-size network (450 million parameters) in the runtime: `make full`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from vla_edge.bundle import open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

session = PolicySession(open_bundle(Path(sys.argv[1])), load_engine("ort", EngineOptions(threads=2)))
cameras = session.bundle.manifest.cameras
frames = {c.name: Frame(c.name, np.full((c.height, c.width, 3), 90, np.uint8), 0, 0) for c in cameras}
observation = Observation(0, frames, JointReading(0, 0, np.zeros(session.policy.state_dim, np.float32)), "put it away")
result = session.infer(InferenceRequest(observation, 0))
finite = bool(np.isfinite(result.actions).all())
print(json.dumps({"loop": session.loop.name, "finite": finite, "ms": result.timings.total,
                  "rss": kilobytes("VmRSS") * 1024, "peak": kilobytes("VmHWM") * 1024}))
"""


def measured(bundle: Path) -> dict[str, float]:
    """One inference in a process of its own, and its memory."""
    result = subprocess.run([sys.executable, "-c", MEASURE, str(bundle)], capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_full_size_policy_runs_in_less_than_one_and_a_half_times_its_tensors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.random_policy import RandomPolicy, write_random_policy

    from vla_edge.export.assemble import ExportRequest, export_bundle

    write_random_policy(tmp_path / "policy", RandomPolicy(size="full"))
    export_bundle(ExportRequest(checkpoint=tmp_path / "policy", out=tmp_path / "bundle"), lambda step: None)
    told = measured(tmp_path / "bundle")
    # Each tensor lies once in this file, in float32.
    tensors = (tmp_path / "bundle" / "graphs" / "weights.bin").stat().st_size
    print(
        f"\n{told['rss'] / tensors:.2f} × {tensors / 1e6:.0f} MB resident, peak {told['peak'] / tensors:.2f} ×, "
        f"{told['ms']:.0f} ms cold"
    )
    assert told["loop"] == "native" and told["finite"]
    assert told["peak"] < 1.5 * tensors
