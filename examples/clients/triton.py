# SPDX-License-Identifier: Apache-2.0
"""One inference through KServe v2, as Triton speaks it: python triton.py PORT OBSERVATION.npz"""

import sys

import numpy as np
from tritonclient import http
from tritonclient.utils import np_to_triton_dtype

client = http.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
inputs = []
for name, array in np.load(sys.argv[2]).items():
    if array.dtype.kind == "U":
        array = np.array([str(array.item())], dtype=object)
    inputs.append(http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
    inputs[-1].set_data_from_numpy(array)
actions = client.infer("policy", inputs).as_numpy("action")
print(f"{len(actions)} actions; the first: {np.round(actions[0], 3)}")
np.save("actions.npy", actions)
