#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run tests many times beside two busy loops a core: a test whose verdict depends on the machine's speed fails here.

python scripts/under_load.py [--times N] [--side-by-side N] [--out FOLDER] FILES… [-k WORDS]

`make load` names the folders. One pytest process runs them all, N times in turn; several share the repetitions, are
load for each other and begin at different files. Each loop and each pytest is a session of its own, so that the
kernel's grouping of processes by session gives a loop as much of a core as one pytest gets. What they print goes to
FOLDER/1.txt and on. Exit code: the largest of theirs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

LOOPS_PER_CORE = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=20, metavar="N", help="repetitions (default: %(default)s)")
    parser.add_argument(
        "--side-by-side", type=int, default=1, metavar="N", help="pytest processes (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/load"), metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("tests", nargs="+", metavar="FILES", help="files or folders of tests")
    parser.add_argument("-k", metavar="WORDS", default="", help="only tests whose names have them, as pytest takes it")
    options = parser.parse_args()
    busy = [sys.executable, "-c", "while True: pass"]
    options.out.mkdir(parents=True, exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", "--keep-duplicates", "-p", "no:cacheprovider", "-k", options.k]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    loops, runs = [], []
    files = tempfile.mkdtemp(prefix="load-")  # pytest's own folder is one that other runs of it clear
    try:
        for _ in range(LOOPS_PER_CORE * (os.cpu_count() or 1)):
            loops.append(subprocess.Popen(busy, start_new_session=True))
        for number in range(options.side_by_side):
            first = number * len(options.tests) // options.side_by_side
            turned = options.tests[first:] + options.tests[:first]
            words = [*pytest, f"--basetemp={files}/{number}"]
            words += turned * len(range(number, options.times, options.side_by_side))
            with (options.out / f"{number + 1}.txt").open("wb") as said:
                runs.append(subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True))
        codes = [run.wait() for run in runs]
    finally:
        for process in (*loops, *runs):
            process.kill()
            process.wait()
        shutil.rmtree(files, ignore_errors=True)
    print(f"exit codes: {codes}; what each printed: {options.out}")
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
