# SPDX-License-Identifier: Apache-2.0
"""The C extension `vla_edge._core`: the one place that loads it."""

from __future__ import annotations

from types import ModuleType

from vla_edge.errors import CoreError
from vla_edge.installation import install_command


def load_core() -> ModuleType:
    """`vla_edge._core`. CoreError: it was not built, or not for this Python."""
    try:
        from vla_edge import _core
    except ImportError as error:
        raise CoreError(
            f"the C extension vla_edge._core is not there ({error}); install a C compiler and Python's headers "
            f"(apt-get install gcc python3-dev), then: {install_command()}"
        ) from None
    return _core
