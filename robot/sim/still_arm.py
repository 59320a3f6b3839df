# SPDX-License-Identifier: Apache-2.0
"""An arm without a bus for the C control loop: its joints are where the last goals put them.

For tests and for timing the loop alone. It is no part of what is shipped: `still_arm.c` is compiled when first used.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
INCLUDE = SOURCE.resolve().parent.parent / "bus"
CAPSULE = b"vla_edge._core.arm_port"
"""ARM_PORT_CAPSULE of runtime/core/glue/module.h; kept for as long as capsules may name it."""


@cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="vla-still-arm-") as folder:
        built = Path(folder) / "still_arm.so"
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{INCLUDE}"]
        subprocess.run(["cc", *flags, str(SOURCE.resolve()), "-o", str(built)], check=True)
        library = ctypes.CDLL(str(built))  # stays mapped when the file is gone
    library.still_arm_new.restype = ctypes.c_void_p
    return library


class StillArm:
    """positions: counts of the joints. `port`: for `_core.control_run`. Needs a C compiler."""

    def __init__(self, positions: Sequence[int]) -> None:
        address = _library().still_arm_new((ctypes.c_int32 * len(positions))(*positions), len(positions))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.port: object = new(address, CAPSULE, None)
