# SPDX-License-Identifier: Apache-2.0
"""One inference in your own process: python in_process.py BUNDLE OBSERVATION.npz"""

import sys
from pathlib import Path

import numpy as np

from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import load_engine
from vla_edge.runtime.inference.infer import read_observation
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

bundle = open_bundle(Path(sys.argv[1]))
session = PolicySession(bundle, load_engine("ort"), SessionOptions())
given = read_observation(Path(sys.argv[2]), bundle.manifest)
result = session.infer(InferenceRequest(given.observation, 0, given.steps, given.noise))
assert result is not None
print(f"{len(result.actions)} actions in {result.timings.total:.0f} ms; the first: {np.round(result.actions[0], 3)}")
np.save("actions.npy", result.actions)
