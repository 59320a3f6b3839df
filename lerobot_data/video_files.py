"""Video files that hold several episodes: joined without re-encoding, rolled over by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import Location
from vla_edge.lerobot_data.video import open_video


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


class VideoFiles:
    """All files of one camera: an episode that would pass the limit, or that cannot be joined, opens the next."""

    def __init__(self, root: Path, key: str, limit_bytes: float, chunks_size: int) -> None:
        self._root, self._key = root, key
        self._limit, self._chunks_size = limit_bytes, chunks_size
        self._location = Location()
        self._joiner: VideoJoiner | None = None

    def append(self, path: Path) -> tuple[Location, float, float]:
        """Copy an episode's video. Returns its file and (from, to) seconds of that file's clock."""
        joiner = self._joiner
        identity = video_identity(path)
        if joiner is not None and (joiner.bytes + path.stat().st_size > self._limit or identity != joiner.identity):
            joiner.close()
            joiner, self._joiner = None, None
            self._location = self._location.next(self._chunks_size)
        if joiner is None:
            target = self._root / self._location.path(layout.VIDEO_PATH, video_key=self._key)
            joiner = self._joiner = VideoJoiner(target, path)
        return self._location, *joiner.append(path)

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
