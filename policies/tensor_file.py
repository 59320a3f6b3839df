# SPDX-License-Identifier: Apache-2.0
"""Writing safetensors files so that a full disk is an ordinary error of the operating system."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_CODE = re.compile(r"\(os error (\d+)\)")


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` (copied to contiguous CPU memory) to `file`.

    OSError with its number and the file's name when the system refuses: the library tells that as an error of its own
    kind, with the number in the text.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, file, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = _CODE.search(str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(file)) from None
