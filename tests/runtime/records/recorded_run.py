# SPDX-License-Identifier: Apache-2.0
"""A recorded run for tests: the control loop on an arm without a bus, and `vla-runtime inference` on still pictures."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.command import main
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits, LoopFiles
from vla_edge.runtime.control.run_folder import listen, open_run_folder

GOLDEN = Path(__file__).parents[2] / "golden" / "koch-bfloat16.npz"
T = 33_333_333


def record_run(
    root: Path,
    bundle: Path,
    *words: str,
    seconds: float = 6.0,
    fps: int = 15,
    task: str | None = "Place the bracelet into the box",
    size: tuple[int, int] | None = None,
) -> Path:
    """Control (an arm without a bus) and inference on the golden pictures; the run folder with both records. task: None
    gives none. size: width and height of the pictures, None: the golden ones'."""
    core = pytest.importorskip("vla_edge._core")
    folder = open_run_folder(root / "run")
    cameras = []
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        for name in ("laptop", "phone"):
            (root / name).mkdir()
            picture = recorded[f"raw/image/observation.images.{name}"]
            picture = picture if size is None else cv2.resize(picture, size)
            for index in range(2):
                cv2.imwrite(
                    str(root / name / f"{index}.png"), cv2.cvtColor(np.roll(picture, 40 * index, 1), cv2.COLOR_RGB2BGR)
                )
            cameras += ["--camera", f"{name}=file:{root / name},{fps}fps"]
    limits = tuple(JointLimits(0, 4095, scale=4096 / 360, offset=2048) for _ in range(6))
    # Starting inference takes long on a busy machine: the wait for its first chunk must not latch.
    settings = ControlSettings(
        limits, T, session=7, bundle_digest=open_bundle(bundle).digest, patience_min_ns=10**12, patience_max_ns=10**12
    )
    listener = listen(folder)
    files = LoopFiles(
        folder.ring,
        folder.state,
        folder.record,
        record_cells=1 << 13,
        socket_fd=listener.fileno(),
        priority=0,
        arm_at_start=True,
    )
    thread = threading.Thread(target=core.control_run, args=(StillArm([2048] * 6), settings, files), daemon=True)
    thread.start()
    try:
        told = [
            "--bundle",
            str(bundle),
            "--run-dir",
            str(folder.path),
            "--seconds",
            str(seconds),
            *([] if task is None else ["--task", task]),
        ]
        assert main(["inference", *told, "--threads", "1", "--nice", "0", *cameras, *words]) == 0
    finally:
        from vla_edge.runtime.control.operator import ask

        ask(folder, "stop")
        thread.join(240)
        listener.close()
    assert not thread.is_alive()
    return folder.path
