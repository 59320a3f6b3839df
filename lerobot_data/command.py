"""`vla-data`: a table of subcommands on LeRobot datasets, v2.1 and v3.0."""

from __future__ import annotations

import sys

from vla_edge.command_line import Command, Subcommand

MODULE = "vla_edge.lerobot_data.data_commands"

main = Command(
    "vla-data",
    "Convert, check and mend LeRobot datasets, v2.1 and v3.0.",
    {
        "convert": Subcommand(
            MODULE,
            "v2.1 to v3.0 in a new folder; the source is only read",
            "convert DATASET CONVERTED",
            "add_convert",
            "run_convert",
        ),
        "verify": Subcommand(
            MODULE, "is a dataset sound? exit code 1 when a check fails", "verify DATASET", "add_verify", "run_verify"
        ),
        "compare": Subcommand(
            MODULE,
            "do two datasets hold the same? exit code 1 when not",
            "compare DATASET CONVERTED",
            "add_compare",
            "run_compare",
        ),
        "stats": Subcommand(
            MODULE,
            "compute the statistics again and show how far the stored ones are off",
            "stats DATASET --write",
            "add_stats",
            "run_stats",
        ),
        "tasks": Subcommand(
            MODULE,
            "list task texts with their token counts; add or rename one",
            'tasks DATASET --tokenizer BUNDLE --rename "old text" "new text"',
            "add_tasks",
            "run_tasks",
        ),
    },
    extras="data",
)

if __name__ == "__main__":
    sys.exit(main())
