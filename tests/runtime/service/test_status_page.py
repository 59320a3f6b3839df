# SPDX-License-Identifier: Apache-2.0
"""The status page in a real browser: values change, pictures are shown, nothing comes from outside."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.runtime.control.run_folder import open_run_folder
from vla_edge.runtime.service.serve_app import PAGE

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.runtime.control.inference_rig import PATIENT, Control
from tests.runtime.service.headless_page import chromium, opened
from tests.runtime.service.serve_world import GOLDEN, served

pytest.importorskip("aiohttp")


def test_the_page_needs_nothing_from_outside():
    assert not re.findall(r"(?:src|href)=\"(?!data:)", PAGE) and "http" not in PAGE.replace(
        "http://www.w3.org/2000/svg", ""
    )


@pytest.fixture
def robot(golden_bundle, tmp_path):
    """A run folder with control (an arm without a bus) and the inference process on pictures of files."""
    folder = open_run_folder(tmp_path / "run")
    control = Control(folder, open_bundle(golden_bundle).digest, **PATIENT)
    words = [
        sys.executable,
        "-m",
        "vla_edge.runtime.command",
        "inference",
        "--bundle",
        str(golden_bundle),
        "--run-dir",
        str(folder.path),
    ]
    words += ["--task", "Place the bracelet into the box", "--threads", "1", "--nice", "0"]
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        for name in ("laptop", "phone"):
            (tmp_path / name).mkdir()
            cv2.imwrite(
                str(tmp_path / name / "0.png"),
                cv2.cvtColor(recorded[f"raw/image/observation.images.{name}"], cv2.COLOR_RGB2BGR),
            )
            words += ["--camera", f"{name}=file:{tmp_path / name}"]
    inference = subprocess.Popen(words)
    yield folder
    inference.terminate()
    inference.wait(240)
    control.stop()


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed here")
def test_the_page_shows_changing_values_and_takes_the_lease(robot, golden_bundle, tmp_path):
    async def look(service):
        async with opened(service.url + "/", tmp_path / "profile") as page:
            await page.until(
                "document.getElementById('ready').textContent === 'ready' && "
                "Number(document.getElementById('tick').textContent) > 0"
            )
            first = await page.value("Number(document.getElementById('tick').textContent)")
            await page.until(f"Number(document.getElementById('tick').textContent) > {first}")
            before = await page.until("Number(document.getElementById('inferences').textContent)")
            await page.until(f"Number(document.getElementById('inferences').textContent) > {before}")
            await page.until(
                "[...document.querySelectorAll('#cameras img')].filter(i => i.naturalWidth === 320).length === 2"
            )
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True
            )
            assert await page.value("document.documentElement.scrollWidth") <= 390, (
                "on a phone nothing lies beside the page"
            )
            await page.call("Emulation.clearDeviceMetricsOverride")
            shown = await page.value(
                "['joints', 'parts', 'reasons', 'chunks'].map(id => document.querySelectorAll('#' + id + ' "
                ".row').length)"
            )
            wrong = await page.value("document.getElementById('faults').textContent")
            # Inference ended: its last picture must not stand there as if it were now.
            gone = await page.value(
                "cameras({}); document.querySelectorAll('#cameras figure').length === 0 && "
                "!document.getElementById('nocamera').hidden"
            )
            await page.value("document.getElementById('take').click()")
            await page.until(
                "document.getElementById('holder').textContent === 'you hold the control lease' && "
                "!document.querySelector('[data-word=hold]').disabled"
            )
            assert await page.value("document.getElementById('task').textContent") == "Place the bracelet into the box"
            await page.value("document.querySelector('[data-word=hold]').click()")
            await page.until("document.getElementById('state').textContent === 'hold'")
            await page.until("document.getElementById('still').textContent.endsWith('Arm goes on')")
            await page.value("lease = ''")  # lost, as after a long sleep of the computer
            await page.until(
                "document.getElementById('take').textContent === 'Take control' && "
                "document.querySelector('[data-word=hold]').disabled"
            )
            service.process.send_signal(signal.SIGSTOP)  # what is shown is no longer so
            await page.until("document.getElementById('state').textContent === 'no answer'")
            service.process.send_signal(signal.SIGCONT)
            await page.until("document.getElementById('state').textContent === 'hold'")
            return shown, wrong, gone

    with served(golden_bundle, robot.path) as service:
        (joints, parts, reasons, chunks), wrong, gone = asyncio.run(look(service))
    assert gone and joints == 6 and parts == 6 and reasons == 1 and chunks >= 1
    assert wrong == "" or "no chunk came in time" in wrong, wrong  # which a busy machine may be told
