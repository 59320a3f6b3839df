# SPDX-License-Identifier: Apache-2.0
"""Video files that hold several episodes: joined without re-encoding, rolled over by size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import Location
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.video import open_video

_SEEK_MARGIN_S = 2.0


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
            # opaque: copy the parameters without looking for an encoder of that name (decoders have others).
            self._stream = self._out.add_stream_from_template(source.streams.video[0], opaque=True)

    def append(self, path: Path) -> tuple[float, float]:
        """Copy the video `path` behind what is there. Returns (from, to) in seconds of this file's clock."""
        with _copied(path) as source:
            stream = source.streams.video[0]
            duration = stream.duration
            if not duration or stream.time_base is None:
                raise DatasetError(f"video {path} states no duration; restore it from the source")
            self._mux(list(_packets(source, stream)), 0)
        start = self.end_s
        # Seconds add up as LeRobot's converter adds them, so both write the same numbers.
        self.end_s += float(duration * stream.time_base)
        self._end_pts += duration
        self.bytes += path.stat().st_size
        return start, self.end_s

    def append_part(self, path: Path, from_s: float, to_s: float) -> tuple[float, float]:
        """Copy the frames of `path` from `from_s` up to, not including, `to_s`. Returns (from, to) of this file's
        clock.

        Copied from the last key frame at or before `from_s` on, so nothing is encoded anew; frames between the two
        stand in the file before `from`.
        """
        with _copied(path) as source:
            stream = source.streams.video[0]
            base = float(stream.time_base)
            begin, end = (from_s - TOLERANCE_S) / base, (to_s - TOLERANCE_S) / base
            part: list[Any] = []
            for seek_s in (
                from_s - _SEEK_MARGIN_S,
                0.0,
            ):  # a seek may land behind reordered frames: the start never does
                source.seek(max(0, round(seek_s / base)), stream=stream, backward=True)
                packets = list(takewhile(lambda packet: packet.dts < end, _packets(source, stream)))
                keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= from_s / base + 1]
                wanted = [i for i, packet in enumerate(packets) if begin <= packet.pts < end]
                if keys and wanted:
                    first = packets[keys[-1]]
                    part = [packet for packet in packets[keys[-1] : wanted[-1] + 1] if packet.pts >= first.pts]
                    break
            else:
                raise DatasetError(f"video {path} has no frames from {from_s:.4f} s to {to_s:.4f} s; restore it")
            shift, after = first.pts, max(packet.pts + (packet.duration or 0) for packet in part)
            self.bytes += sum(packet.size for packet in part)
            self._mux(part, shift)
        start = self._end_pts * base + (from_s - shift * base)
        self._end_pts += after - shift
        self.end_s = self._end_pts * base
        return start, start + (to_s - from_s)

    def _mux(self, packets: list[Any], shift: int) -> None:
        for packet in packets:
            packet.pts += self._end_pts - shift
            packet.dts += self._end_pts - shift
            packet.stream = self._stream
            self._out.mux(packet)

    def close(self) -> None:
        self._out.close()


@contextmanager
def _copied(path: Path) -> Iterator[Any]:
    """The open video; an error of the block names it."""
    try:
        with open_video(path) as source:
            yield source
    except FFmpegError as error:
        raise DatasetError(f"video {path} cannot be copied ({error}); restore it from the source") from None


def _packets(source: Any, stream: Any) -> Iterator[Any]:
    """The packets of frames, in decoding order."""
    return (packet for packet in source.demux(stream) if packet.pts is not None and packet.dts is not None)


class VideoFiles:
    """All files of one camera: an episode that would pass the limit, or that cannot be joined, opens the next."""

    def __init__(self, root: Path, key: str, limit_bytes: float, chunks_size: int) -> None:
        self._root, self._key = root, key
        self._limit, self._chunks_size = limit_bytes, chunks_size
        self._location = Location()
        self._joiner: VideoJoiner | None = None

    def append(self, path: Path, part_s: tuple[float, float] | None = None) -> tuple[Location, float, float]:
        """Copy an episode's video, `part_s` of it or the whole. Returns its file and (from, to) seconds of that file's
        clock."""
        joiner = self._joiner
        identity = video_identity(path)
        # A part's size is known when it is copied: a file takes parts until it has passed the limit.
        size = path.stat().st_size if part_s is None else 0
        if joiner is not None and (joiner.bytes + size > self._limit or identity != joiner.identity):
            joiner.close()
            joiner, self._joiner = None, None
            self._location = self._location.next(self._chunks_size)
        if joiner is None:
            target = self._root / self._location.path(layout.VIDEO_PATH, video_key=self._key)
            joiner = self._joiner = VideoJoiner(target, path)
        span = joiner.append(path) if part_s is None else joiner.append_part(path, *part_s)
        return self._location, *span

    def close(self) -> None:
        if self._joiner is not None:
            self._joiner.close()
        self._joiner = None


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
