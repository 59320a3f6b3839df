# SPDX-License-Identifier: Apache-2.0
"""The C extension: one module from the control core and the servo bus.

`optional` lets the package install where there is no compiler; everything but
the `koch` robot and the native loops works then, and those say what is missing.
"""

from glob import glob

from setuptools import Extension, setup

sources = sorted(glob("runtime/core/*/*.c") + glob("robot/bus/*.c"))

setup(
    ext_modules=[
        Extension(
            "vla_edge._core",
            sources=sources,
            depends=sorted(glob("runtime/core/*/*.h") + glob("robot/bus/*.h")),
            include_dirs=["runtime/core/control", "runtime/core/policy", "runtime/core/glue", "robot/bus"],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"],
            libraries=["dl", "rt", "pthread"],
            optional=True,
        )
    ]
    if sources
    else []
)
