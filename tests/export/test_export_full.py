# SPDX-License-Identifier: Apache-2.0
"""The full-size network (450 million parameters): `make full`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.random_policy import RandomPolicy, write_random_policy

PROGRAM = "import sys; from vla_edge.export.command import main; sys.exit(main())"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_full_size_policy_exports_in_6_minutes_8_gb_and_no_more_disk_than_its_tensors(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(size="full"))
    start = time.monotonic()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "--checkpoint",
        str(tmp_path / "policy"),
        "--out",
        str(tmp_path / "bundle"),
        "--json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    report = json.loads(result.stdout)
    used = used_bytes(tmp_path / "policy" / "model.safetensors")
    on_disk = sum(file.stat().st_size for file in (tmp_path / "bundle" / "graphs").iterdir())
    print(
        f"\n{seconds:.0f} s, peak {peak_gb:.2f} GB, {on_disk / 1e9:.3f} GB of graphs for {used / 1e9:.3f} GB of tensors"
    )
    assert report["parity"]["graphs"]["chunk"] <= 1e-4
    assert seconds < 360
    assert peak_gb < 8
    assert on_disk <= 1.05 * used


def used_bytes(file: Path) -> int:
    """float32 size of the tensors that inference reads: without lm_head, the text model's norm, and of the last text
    layer only keys, values and the norm before them."""
    last = "text_model.layers.15."
    kept = ("input_layernorm", "k_proj", "v_proj")
    total = 0
    with safe_open(file, "np") as content:
        for name in content.keys():  # noqa: SIM118 - not a dict
            unread = (
                "lm_head" in name
                or "text_model.norm" in name
                or (last in name and not any(part in name for part in kept))
            )
            size = 1
            for dimension in content.get_slice(name).get_shape():
                size *= dimension
            total += 0 if unread else 4 * size
    return total
