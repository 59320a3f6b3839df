# SPDX-License-Identifier: Apache-2.0
"""One inference through openpi's client: python openpi.py PORT OBSERVATION.npz"""

import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
print("cameras and sizes:", policy.get_server_metadata()["cameras"])
observation = dict(np.load(sys.argv[2]))
observation["prompt"] = str(observation.pop("task"))
actions = policy.infer(observation)["actions"]
print(f"{len(actions)} actions; the first: {np.round(actions[0], 3)}")
np.save("actions.npy", actions)
