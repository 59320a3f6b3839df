# SPDX-License-Identifier: Apache-2.0
"""Makes so101_units.json: joint units of an SO-101 as LeRobot computes them, both ways. Run it where LeRobot is."""

import json
import random
from pathlib import Path
from typing import Any

from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus

RANGES = {"shoulder_pan": (760, 3451), "wrist_roll": (0, 4095), "gripper": (2035, 3501)}
MODES = {"degrees": MotorNormMode.DEGREES, "range_m100_100": MotorNormMode.RANGE_M100_100}

random.seed(1)
rows: list[dict[str, Any]] = []
for units, mode in MODES.items():
    for number, (name, (low, high)) in enumerate(RANGES.items(), 1):
        norm = MotorNormMode.RANGE_0_100 if name == "gripper" else mode
        told: dict[str, Any] = {"id": number, "drive_mode": 0, "homing_offset": -37}
        told |= {"range_min": low, "range_max": high}
        bus = object.__new__(FeetechMotorsBus)  # without a port
        bus.motors = {name: Motor(number, "sts3215", norm)}
        bus.calibration = {name: MotorCalibration(**told)}
        bus._id_to_model_dict, bus._id_to_name_dict = {number: "sts3215"}, {number: name}
        ticks = [random.randrange(4096) for _ in range(40)]
        values = [random.uniform(-130, 130) for _ in range(40)]
        rows.append(
            {
                "units": units,
                "joint": {"name": name, **told},
                "ticks": ticks,
                "read": [bus._normalize({number: tick})[number] for tick in ticks],
                "values": values,
                "written": [bus._unnormalize({number: value})[number] for value in values],
            }
        )
Path(__file__).with_name("so101_units.json").write_text(json.dumps({"lerobot": "0.6.1", "rows": rows}) + "\n")
