"""`vla-calibrate`: a table of subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from vla_edge.errors import run_command

SUBCOMMANDS = {
    "gate": (
        "vla_edge.calibration.gate.gate_calibration",
        "limits of the prefix cache from recorded episodes, with a bound on the action error",
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vla-calibrate", description="numbers measured from recorded data, written into a new bundle"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    wanted = next((word for word in argv if word in SUBCOMMANDS), None)
    for name, (module, purpose) in SUBCOMMANDS.items():
        sub = subparsers.add_parser(name, help=purpose, description=purpose)
        if name == wanted:  # the others' imports are not waited for
            import_module(module).add_arguments(sub)
    arguments = parser.parse_args(argv)
    return int(import_module(SUBCOMMANDS[arguments.command][0]).run(arguments))


if __name__ == "__main__":
    sys.exit(main())
