#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run tests many times beside two busy loops a core: a test whose verdict depends on the machine's speed fails here.

python scripts/under_load.py [--times N] FILES… [-k WORDS]    (files or folders; `make load` names them)

One pytest process runs them all, N times in turn. Each loop is a session of its own, so that the kernel's grouping of
processes by session gives it as much of a core as the tests get. Exit code: pytest's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

LOOPS_PER_CORE = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=20, metavar="N", help="repetitions (default: %(default)s)")
    parser.add_argument("tests", nargs="+", metavar="FILES", help="files or folders of tests")
    parser.add_argument("-k", metavar="WORDS", default="", help="only tests whose names have them, as pytest takes it")
    options = parser.parse_args()
    busy = [sys.executable, "-c", "while True: pass"]
    loops = []
    try:
        for _ in range(LOOPS_PER_CORE * (os.cpu_count() or 1)):
            loops.append(subprocess.Popen(busy, start_new_session=True))
        pytest = [sys.executable, "-m", "pytest", "--keep-duplicates", "-p", "no:cacheprovider", "-k", options.k]
        return subprocess.run([*pytest, *options.tests * options.times]).returncode
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    sys.exit(main())
