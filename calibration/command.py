# SPDX-License-Identifier: Apache-2.0
"""`vla-calibrate`: a table of subcommands."""

from __future__ import annotations

import sys

from vla_edge.command_line import Command, Subcommand

main = Command(
    "vla-calibrate",
    "Numbers measured from recorded data, written into a new bundle.",
    {
        "gate": Subcommand(
            "vla_edge.calibration.gate.gate_calibration",
            "limits of the prefix cache from recorded episodes, with a bound on the action error",
            "gate --bundle BUNDLE --dataset DATASET --out CALIBRATED",
        )
    },
    old={"--data": "--dataset", "--engine": "--backend"},
    extras="ort,data,plot",
)

if __name__ == "__main__":
    sys.exit(main())
