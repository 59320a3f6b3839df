# SPDX-License-Identifier: Apache-2.0
"""A real camera through OpenCV's V4L2 backend: one thread that always holds the newest picture."""

from __future__ import annotations

import os
import threading
import time

import cv2
import numpy as np

from vla_edge.contract import Frame
from vla_edge.errors import CameraError
from vla_edge.robot.camera_options import CameraOptions

_FIRST_PICTURE_S = 5.0


class V4l2Camera:
    """Capture time is CLOCK_MONOTONIC when the driver handed the picture over, before colour conversion.

    Errors: CameraError at opening (no such device, not a camera, another picture size, rate or pixel format than asked)
    and from `newest` when the device stopped delivering.
    """

    exempt_from_freshness = False

    def __init__(self, options: CameraOptions) -> None:
        self.name, self._options = options.name, options
        self._device = f"/dev/video{options.device}" if options.device.isdigit() else options.device
        if not os.path.exists(self._device):
            raise CameraError(
                f"camera {self.name}: {self._device} does not exist; vla-runtime cameras lists the devices there are"
            )
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise CameraError(f"camera {self.name}: no permission for {self._device}; add this user to the group video")
        self._capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera {self.name}: {self._device} is not a camera that can be opened, or another program holds it"
            )
        if options.fourcc:  # before size and rate: which there are depends on it
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*options.fourcc))
        if options.width:
            turned = options.rotation in (90, 270)
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.height if turned else options.width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.width if turned else options.height)
        if options.fps:
            self._capture.set(cv2.CAP_PROP_FPS, options.fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._refuse_other_settings()
        self._newest: Frame | None = None
        self._fault = ""
        self._arrived = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {self.name}", daemon=True)
        self._thread.start()
        if not self._arrived.wait(_FIRST_PICTURE_S) or self._newest is None:
            self.close()
            raise CameraError(
                f"camera {self.name}: {self._device} gave no picture in {_FIRST_PICTURE_S:.0f} s{self._fault}; "
                "replug it"
            )
        height, width = self._newest.image.shape[:2]
        if options.width and (height, width) != (options.height, options.width):
            self.close()
            raise CameraError(
                f"camera {self.name}: {self._device} gives {width}x{height}, asked for "
                f"{options.width}x{options.height};"
                " choose a size the camera has (v4l2-ctl --list-formats-ext)"
            )

    def _refuse_other_settings(self) -> None:
        """A driver that cannot do what it is asked does something else without a word; what it says it does counts."""
        options, given = self._options, int(self._capture.get(cv2.CAP_PROP_FOURCC))
        code = "".join(chr(given >> 8 * i & 0xFF) for i in range(4))
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))  # 0: it does not say
        fault = ""
        if options.fourcc and code != options.fourcc:
            fault = f"gives {code!r}, asked for fourcc={options.fourcc}; choose a format the camera has"
        elif options.fps and fps > 0 and abs(fps - options.fps) > 0.5:
            fault = f"gives {fps:g} pictures a second, asked for {options.fps}; choose a rate it has at this size, or "
            fault += "another format, as fourcc=MJPG" if not options.fourcc else "another size"
        if fault:
            self._capture.release()
            raise CameraError(f"camera {self.name}: {self._device} {fault} (v4l2-ctl --list-formats-ext)")

    def newest(self) -> Frame:
        """The newest picture; the same one again until the driver gives another."""
        if self._fault:
            raise CameraError(f"camera {self.name}: {self._device} stopped{self._fault}; check its cable")
        assert self._newest is not None
        return self._newest

    def close(self) -> None:
        """Stop the thread and release the device."""
        self._stopping.set()
        self._thread.join(timeout=2.0)
        self._capture.release()

    def _run(self) -> None:
        sequence, failures = 0, 0
        while not self._stopping.is_set():
            if not self._capture.grab():
                failures += 1
                if failures >= 10:
                    self._fault = ": the driver refused ten pictures in a row"
                    self._arrived.set()
                    return
                continue
            captured_ns = time.monotonic_ns()
            decoded, picture = self._capture.retrieve()
            if not decoded:
                failures += 1
                continue
            failures, sequence = 0, sequence + 1
            image = self._options.turned(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
            self._newest = Frame(self.name, image, captured_ns, sequence)
            self._arrived.set()
