# SPDX-License-Identifier: Apache-2.0
"""Everything a machine without network needs, in pieces small enough to carry: one command.

    python scripts/carry_wheels.py jetpack-6.2 OUT [--piece-mb 20]

OUT gets `piece-000` … of at most that size, `pieces.sha256`, and `install.sh`, which checks and joins them and installs
vla-edge (its C core is compiled there: gcc and python3-dev must be present, as they are on JetPack). TensorRT and CUDA
are not among them: JetPack brings its own.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """python: version of the interpreter there; glibc: of its C library, whose older manylinux tags fit too;
    packages: what is fetched beside the project's own base dependencies."""

    python: str
    architecture: str
    glibc: int
    packages: tuple[str, ...]


TARGETS = {
    "jetpack-6.2": Target("3.10", "aarch64", 35, ("cuda-bindings>=12.6,<13",)),
    "jetpack-7.2": Target("3.12", "aarch64", 39, ("cuda-bindings>=13",)),
    "ubuntu-24.04-x86": Target("3.12", "x86_64", 39, ("cuda-bindings>=13", "onnxruntime>=1.20")),
}
BUILD = ("setuptools>=77", "wheel")
INSTALL = """#!/bin/sh
# Checks the pieces, joins them and installs vla-edge from them. Run in the folder that holds them:
#   sh install.sh PYTHON        (the interpreter of a virtual environment made with --system-site-packages)
set -e
cd "$(dirname "$0")"
sha256sum -c pieces.sha256
cat piece-* | tar -xf -
"${1:-python3}" -m pip install --no-index --find-links wheels --upgrade "setuptools>=77" wheel
"${1:-python3}" -m pip install --no-index --find-links wheels --no-build-isolation %s
"${1:-python3}" -c "import vla_edge._core; print('vla-edge and its C core are installed')"
"""


def fetch(target: Target, folder: Path) -> None:
    """Wheels of the base dependencies for the target, and this project as source, into `folder`."""
    tags = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, target.glibc + 1)), "linux"]
    platforms = [word for tag in tags for word in ("--platform", f"{tag}_{target.architecture}")]
    words = ["download", "-q", "--only-binary=:all:", "--python-version", target.python, "--implementation", "cp"]
    words += [*platforms, "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, *base_dependencies(), *target.packages, *BUILD], check=True)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", str(folder)], check=True, cwd=ROOT)


def base_dependencies() -> list[str]:
    """`dependencies` of pyproject.toml, read line by line: Python 3.10 has no TOML reader."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("\ndependencies = [", 1)[1].split("]", 1)[0]
    return [line.strip().strip(',"') for line in block.splitlines() if line.strip()]


def split(file: Path, out: Path, size: int) -> list[Path]:
    """`file` in pieces of at most `size` bytes with a checksum file that `sha256sum -c` reads."""
    pieces = []
    with file.open("rb") as whole:
        for index, data in enumerate(iter(lambda: whole.read(size), b"")):
            piece = out / f"piece-{index:03d}"
            piece.write_bytes(data)
            pieces.append(piece)
    sums = "".join(f"{hashlib.sha256(piece.read_bytes()).hexdigest()}  {piece.name}\n" for piece in pieces)
    (out / "pieces.sha256").write_text(sums)
    return pieces


def pack(wheels: Path, out: Path, size: int, requirement: str) -> list[Path]:
    """Pieces of a tar of `wheels`, and the script that installs `requirement` from them."""
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "wheels.tar"
        with tarfile.open(whole, "w") as archive:
            archive.add(wheels, "wheels")
        pieces = split(whole, out, size)
    (out / "install.sh").write_text(INSTALL % requirement)
    return pieces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--piece-mb", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.out.exists() or arguments.piece_mb < 1:
        print(f"error: {arguments.out} exists already, or --piece-mb is below 1", file=sys.stderr)
        return 2
    target = TARGETS[arguments.target]
    arguments.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Path(temporary) / "wheels"
        fetch(target, wheels)
        requirement = " ".join(["vla-edge", *(f'"{package}"' for package in target.packages)])
        pieces = pack(wheels, arguments.out, arguments.piece_mb * MB, requirement)
    total = sum(piece.stat().st_size for piece in pieces) / MB
    print(
        f"{arguments.out}: {len(pieces)} pieces, {total:.0f} MB for {arguments.target} (Python {target.python}); "
        "carry the folder, then: sh install.sh"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
