# SPDX-License-Identifier: Apache-2.0
"""A recorded run for tests: the control loop on an arm without a bus, and `vla-runtime inference` on still pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from tests.runtime.control.inference_rig import PATIENT, Control

from vla_edge.bundle import open_bundle
from vla_edge.runtime.command import main
from vla_edge.runtime.control.run_folder import open_run_folder

GOLDEN = Path(__file__).parents[2] / "golden" / "koch-bfloat16.npz"
T = 33_333_333


def record_run(
    root: Path,
    bundle: Path,
    *words: str,
    seconds: float = 4.0,
    fps: int = 15,
    task: str | None = "Place the bracelet into the box",
    size: tuple[int, int] | None = None,
    still: str = "",
) -> Path:
    """Control (an arm without a bus) and inference on the golden pictures; the run folder with both records. task: None
    gives none. size: width and height of the pictures, None: the golden ones'. still: a camera that shows one of
    its two pictures alone. Again and longer where a machine is so busy that hardly a chunk came within the seconds."""
    cameras = []
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        for name in ("laptop", "phone"):
            (root / name).mkdir()
            picture = recorded[f"raw/image/observation.images.{name}"]
            picture = picture if size is None else cv2.resize(picture, size)
            for index in range(2):
                shown = picture if name == still else np.roll(picture, 40 * index, 1)
                cv2.imwrite(str(root / name / f"{index}.png"), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
            cameras += ["--camera", f"{name}=file:{root / name},{fps}fps"]
    told = ["--threads", "1", "--nice", "0", *([] if task is None else ["--task", task]), *cameras, *words]
    while True:
        folder = open_run_folder(root / "run")
        control = Control(folder, open_bundle(bundle).digest, **PATIENT)
        try:
            run = ["--bundle", str(bundle), "--run-dir", str(folder.path), "--seconds", str(seconds)]
            assert main(["inference", *run, *told]) == 0
        finally:
            control.stop()
        if control.reader()["chunks"]["taken"] >= 3:
            return folder.path
        seconds *= 2
        shutil.rmtree(folder.path)
        if "--record-inputs" in words:
            Path(words[words.index("--record-inputs") + 1]).unlink(missing_ok=True)
