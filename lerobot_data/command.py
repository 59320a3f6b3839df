# SPDX-License-Identifier: Apache-2.0
"""`vla-data`: a table of subcommands on LeRobot datasets, v2.1 and v3.0."""

from __future__ import annotations

import sys

from vla_edge.command_line import Command, Subcommand, by_word

MODULE = "vla_edge.lerobot_data.data_commands"
EDITS = "vla_edge.lerobot_data.editing.edit_commands"

main = Command(
    "vla-data",
    "Look at, convert, check, mend and edit LeRobot datasets, v2.0 to v3.0.",
    by_word(
        {
            "info": Subcommand(MODULE, "what a dataset holds", "info DATASET"),
            "convert": Subcommand(
                MODULE,
                "write a dataset of v2.0 or v2.1 as v3.0 in a new folder; the source is only read",
                "convert DATASET CONVERTED",
            ),
            "verify": Subcommand(MODULE, "is a dataset sound? exit code 1 when a check fails", "verify DATASET"),
            "compare": Subcommand(
                MODULE, "do two datasets hold the same? exit code 1 when not", "compare DATASET CONVERTED"
            ),
            "stats": Subcommand(
                MODULE, "compute the statistics again and show how far the stored ones are off", "stats DATASET --write"
            ),
            "tasks": Subcommand(
                MODULE,
                "list task texts with their token counts; add or rename one, or give it to episodes",
                'tasks DATASET --assign "pick the red cube" --episodes 0-9,12',
            ),
            "merge": Subcommand(EDITS, "several datasets as one new one", "merge DATASET OTHER --out MERGED"),
            "split": Subcommand(
                EDITS,
                "several new datasets of the episodes of one",
                "split DATASET --part train=0.8 --part val=0.2 --out PARTS",
            ),
            "delete": Subcommand(
                EDITS, "a new dataset without some episodes", "delete DATASET --episodes 3,7-9 --out KEPT"
            ),
            "renumber": Subcommand(
                EDITS, "a new dataset whose episode numbers have no gaps", "renumber DATASET --out RENUMBERED"
            ),
        }
    ),
    extras="data",
)

if __name__ == "__main__":
    sys.exit(main())
