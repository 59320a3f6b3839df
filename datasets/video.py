"""Videos: exact frames by time, encoding of an episode, joining episodes without re-encoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from vla_edge.errors import DatasetError

TOLERANCE_S = 1e-4
"""A frame belongs to a time when they differ by less (LeRobot's `tolerance_s`)."""
_FORWARD_FRAMES = 16
"""A frame at most this far ahead is reached by decoding on; further ahead a seek is cheaper."""


class VideoReader:
    """One open video; remembers where it stands, so reading in order decodes each frame once.

    Not shared between threads. Raises DatasetError naming the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except FileNotFoundError:
            raise DatasetError(f"video {path} is missing; restore it from the source of the data set") from None
        except (FFmpegError, IndexError) as error:
            raise DatasetError(f"video {path} cannot be opened ({error}); restore it from the source") from None
        base = self._stream.time_base
        rate = self._stream.average_rate
        if base is None or rate is None:
            self._container.close()
            raise DatasetError(f"video {path} has no time base or frame rate; restore it from the source")
        self._base = float(base)
        self._forward_s = _FORWARD_FRAMES / float(rate)
        self._decoded: Iterator[av.VideoFrame] | None = None
        self._frame: av.VideoFrame | None = None

    def frame_at(self, time_s: float) -> NDArray[np.uint8]:
        """The frame shown at `time_s` of the file's clock: uint8 [height, width, 3], RGB, a new array."""
        try:
            frame = self._find(time_s)
        except FFmpegError as error:
            self._decoded = None
            raise DatasetError(f"video {self.path} cannot be decoded at {time_s:.4f} s ({error}); restore it") from None
        if frame is None:
            raise DatasetError(f"video {self.path} has no frame at {time_s:.4f} s (within {TOLERANCE_S} s); restore it")
        return frame.to_ndarray(format="rgb24")

    def close(self) -> None:
        self._decoded = None
        self._frame = None
        self._container.close()

    def _find(self, time_s: float) -> av.VideoFrame | None:
        now = self._time(self._frame)
        if self._frame is not None and abs(now - time_s) <= TOLERANCE_S:
            return self._frame
        if self._decoded is None or time_s < now or time_s > now + self._forward_s:
            self._seek(time_s)
        frame = self._decode_to(time_s)
        if frame is None:
            # A seek may land behind the frame (reordered frames at a key frame): the start never does.
            self._seek(0.0)
            frame = self._decode_to(time_s)
        return frame

    def _seek(self, time_s: float) -> None:
        self._container.seek(round(time_s / self._base), stream=self._stream, backward=True)
        self._decoded = self._container.decode(self._stream)
        self._frame = None

    def _decode_to(self, time_s: float) -> av.VideoFrame | None:
        assert self._decoded is not None
        for frame in self._decoded:
            self._frame = frame
            now = self._time(frame)
            if abs(now - time_s) <= TOLERANCE_S:
                return frame
            if now > time_s:
                return None
        self._decoded = None
        self._frame = None
        return None

    def _time(self, frame: av.VideoFrame | None) -> float:
        return -1.0 if frame is None or frame.pts is None else frame.pts * self._base


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the writer encodes. Key frame every 2nd frame and quality 30 are LeRobot's choice."""

    codec: str
    options: tuple[tuple[str, str], ...]


AV1 = Encoding("libsvtav1", (("g", "2"), ("crf", "30"), ("preset", "10")))
H264 = Encoding("libx264", (("g", "2"), ("crf", "23"), ("preset", "veryfast"), ("bf", "0")))


def best_encoding() -> Encoding:
    """AV1 where PyAV's FFmpeg can encode it, else H.264; `info.json` says which was used."""
    for encoding in (AV1, H264):
        if encoding.codec in av.codecs_available:
            return encoding
    raise DatasetError("this PyAV build encodes neither AV1 (libsvtav1) nor H.264 (libx264); store images instead of video")


class VideoEncoder:
    """Encodes one episode of one camera to `path` while it is recorded; holds only the encoder's own frames."""

    def __init__(self, path: Path, fps: float, encoding: Encoding) -> None:
        # SVT-AV1 prints a page per encoder; it has no other switch than this variable of the C library.
        os.putenv("SVT_LOG", "1")
        self._container = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = self._container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
        self._stream.pix_fmt = "yuv420p"
        self._step = 1 / rate
        self._count = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """image: uint8 [height, width, 3], RGB; height and width even."""
        if self._count == 0:
            self._stream.height, self._stream.width = image.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._count, self._step
        self._container.mux(self._stream.encode(frame))
        self._count += 1

    def close(self) -> None:
        """Write out what the encoder holds and close the file."""
        if self._count:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class VideoJoiner:
    """One video file that grows by whole episodes, packets copied bit for bit.

    `identity` of the first video decides what fits: a video of another codec,
    size, header or time base cannot continue this file.
    """

    def __init__(self, path: Path, first: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.identity = video_identity(first)
        self.bytes = 0
        self.end_s = 0.0
        self._end_pts = 0
        self._out = av.open(str(path), "w")
        with open_video(first) as source:
            self._stream = self._out.add_stream_from_template(source.streams.video[0])
            self._stream.time_base = source.streams.video[0].time_base

    def append(self, path: Path) -> tuple[float, float]:
        """Copy the video `path` behind what is there. Returns (from, to) in seconds of this file's clock."""
        try:
            with open_video(path) as source:
                stream = source.streams.video[0]
                duration = stream.duration
                if not duration or stream.time_base is None:
                    raise DatasetError(f"video {path} states no duration; restore it from the source")
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts += self._end_pts
                    packet.dts += self._end_pts
                    packet.stream = self._stream
                    self._out.mux(packet)
        except FFmpegError as error:
            raise DatasetError(f"video {path} cannot be copied ({error}); restore it from the source") from None
        start = self.end_s
        # Seconds add up as LeRobot's converter adds them, so both write the same numbers.
        self.end_s += float(duration * stream.time_base)
        self._end_pts += duration
        self.bytes += path.stat().st_size
        return start, self.end_s

    def close(self) -> None:
        self._out.close()


def open_video(path: Path) -> Any:
    """An open PyAV container with a video stream. Raises DatasetError naming the file."""
    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise DatasetError(f"video {path} is missing; restore it from the source of the data set") from None
    except FFmpegError as error:
        raise DatasetError(f"video {path} cannot be opened ({error}); restore it from the source") from None
    if not container.streams.video:
        container.close()
        raise DatasetError(f"video {path} holds no video stream; restore it from the source")
    return container


def video_identity(path: Path) -> tuple[Any, ...]:
    """What two videos must share to stand in one file."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return context.codec.canonical_name, context.width, context.height, context.extradata, stream.time_base


def video_facts(path: Path, fps: float) -> dict[str, Any]:
    """The `info` entry of a video feature in info.json, field by field as LeRobot writes it."""
    with open_video(path) as container:
        context = container.streams.video[0].codec_context
        return {
            "video.height": context.height,
            "video.width": context.width,
            "video.codec": context.codec.canonical_name,
            "video.pix_fmt": context.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": int(fps) if float(fps).is_integer() else fps,
            "video.channels": 3,
            "has_audio": False,
        }
