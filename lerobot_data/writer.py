# SPDX-License-Identifier: Apache-2.0
"""Write a LeRobot v3.0 dataset while it is recorded.

    features = {"observation.state": Feature("float32", (6,), names), "action": ...,
                "observation.images.front": Feature("video", (480, 640, 3), ["height", "width", "channels"])}
    with DatasetWriter(path, 30, features) as writer:
        writer.add_frame({"observation.state": q, "action": a, "observation.images.front": rgb}, task="...")
        writer.save_episode()

Everything goes to a hidden folder beside `path`, which is renamed when the
writer closes: `path` holds a whole dataset or nothing. An error that leaves the
`with` block removes the recording; a recorder that wants to keep what was saved
catches it inside, discards the open episode and lets the writer close.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.files import begin_folder, finish_folder
from vla_edge.lerobot_data import layout, tables
from vla_edge.lerobot_data.episode_table import EpisodeRow, EpisodeTable
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Feature
from vla_edge.lerobot_data.stats import ImageMoments, Stats, aggregate, number_stats, sampled_frames
from vla_edge.lerobot_data.video import Encoding, VideoEncoder, best_encoding
from vla_edge.lerobot_data.video_files import VideoFiles, video_facts


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """Target sizes of files in MiB, files per chunk folder, and how video is encoded (None: the best there is)."""

    data_file_mb: float = layout.DATA_FILE_MB
    video_file_mb: float = layout.VIDEO_FILE_MB
    chunks_size: int = layout.CHUNKS_SIZE
    encoding: Encoding | None = None


class DatasetWriter:
    """Frames in, one v3.0 folder out. Memory: one episode's numbers, never its video frames."""

    _frame_tasks: list[str]
    _values: dict[str, list[Any]]
    _moments: dict[str, ImageMoments]
    _encoders: dict[str, VideoEncoder]

    def __init__(
        self,
        target: str | Path,
        fps: float,
        features: Mapping[str, Feature],
        robot_type: str | None = None,
        settings: WriterSettings = WriterSettings(),
    ) -> None:
        self._target = Path(target)
        _check_features(features)
        if not fps > 0:
            raise DatasetError(f"fps is {fps}; give the positive rate of the recording")
        self._fps, self._robot_type, self._settings = fps, robot_type, settings
        self._features = dict(features)
        self._all_features = self._features | INDEX_FEATURES
        self._schema = tables.frame_schema(self._all_features)
        self._cameras = [key for key, feature in features.items() if feature.is_camera]
        self._video_keys = [key for key in self._cameras if features[key].dtype == "video"]
        self._encoding = (settings.encoding or best_encoding()) if self._video_keys else None
        self._root = begin_folder(self._target, DatasetError)
        self._data = tables.TableFiles(
            self._root, layout.DATA_PATH, settings.data_file_mb * tables.MB, settings.chunks_size
        )
        self._videos = {
            key: VideoFiles(self._root, key, settings.video_file_mb * tables.MB, settings.chunks_size)
            for key in self._video_keys
        }
        self._episode_table = EpisodeTable(self._root, settings.data_file_mb, settings.chunks_size)
        self._tasks: dict[str, int] = {}
        self._stats: Stats = {}
        self.episodes = 0
        self.frames = 0
        self._start_episode()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()  # after a close that went well there is nothing left to remove

    @property
    def pending_frames(self) -> int:
        """Frames added since the last `save_episode`."""
        return len(self._frame_tasks)

    def add_frame(self, values: Mapping[str, Any], task: str) -> None:
        """One frame: every feature given at the start, images uint8 [height, width, 3] RGB; task: its instruction.

        Raises DatasetError naming the feature that is missing, unknown, of another
        shape or type, or not finite. The frame is then not part of the episode.
        """
        if set(values) != set(self._features):
            odd = sorted(set(values) ^ set(self._features))
            raise DatasetError(
                f"frame {self.pending_frames} has other features than the dataset: {odd}; give exactly "
                f"{sorted(self._features)}"
            )
        if not task.strip():
            raise DatasetError(f"frame {self.pending_frames} has an empty task; give the instruction in words")
        checked = {key: _checked_value(key, feature, values[key]) for key, feature in self._features.items()}
        for key, value in checked.items():
            if key in self._video_keys:
                self._encoder(key).add(value)
            elif key in self._cameras:
                self._values[key].append({"bytes": _png_bytes(value), "path": f"frame-{self.pending_frames:06d}.png"})
            else:
                self._values[key].append(value)
            if key in self._cameras:
                self._moments[key].add(value)
        self._frame_tasks.append(task)

    def save_episode(self) -> int:
        """End the episode that was recorded. Returns its index. Raises DatasetError when it holds no frame."""
        length = self.pending_frames
        if length == 0:
            raise DatasetError(f"episode {self.episodes} holds no frame; add frames before saving it")
        columns = self._episode_columns(length)
        stats = {
            key: number_stats(columns[key])
            for key, feature in self._all_features.items()
            if not feature.is_camera and feature.dtype != "string"
        }
        stats |= {key: self._moments[key].stats(sampled_frames(length)) for key in self._cameras}
        cells = {key: tables.column_cells(key, self._all_features[key], columns[key]) for key in self._schema.names}
        table = pa.table(cells, schema=self._schema)
        place = self._data.place(table.nbytes)
        self._data.write(table)
        videos = {}
        for key, encoder in self._encoders.items():
            encoder.close()
            videos[key] = self._videos[key].append(self._episode_video(key))
            self._episode_video(key).unlink()
        texts = list(dict.fromkeys(self._frame_tasks))
        span = self.frames, self.frames + length
        ordered = {key: stats[key] for key in self._all_features if key in stats}
        self._episode_table.append(EpisodeRow(self.episodes, place, *span, videos, texts, ordered))
        self._stats = aggregate([self._stats, ordered])
        self.frames += length
        self.episodes += 1
        self._start_episode()
        return self.episodes - 1

    def discard_episode(self) -> None:
        """Forget the frames added since the last `save_episode`."""
        for key, encoder in self._encoders.items():
            encoder.close()
            self._episode_video(key).unlink()
        self._start_episode()

    def close(self) -> None:
        """Write the meta files and rename the folder to its target.

        Raises DatasetError, with nothing at the target, when no episode was saved or
        frames of an unsaved episode are left; the writer stays open then.
        """
        if self.episodes == 0 or self.pending_frames:
            raise DatasetError(
                f"{self._target} is not written yet: {self.episodes} episodes saved, {self.pending_frames} "
                "frames in an unsaved one; save or discard the episode before closing"
            )
        try:
            self._close_files()
            tables.write_tasks(self._root / layout.TASKS_FILE, {index: text for text, index in self._tasks.items()})
            tables.write_json(self._root / layout.STATS_FILE, tables.stats_to_json(self._stats))
            tables.write_json(self._root / layout.INFO_FILE, self._info())
            finish_folder(self._root, self._target, DatasetError)
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def abort(self) -> None:
        """Remove everything that was written; the target stays as it was."""
        try:
            for encoder in self._encoders.values():
                encoder.close()
            self._encoders = {}
            self._close_files()
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def _close_files(self) -> None:
        self._data.close()
        self._episode_table.close()
        for files in self._videos.values():
            files.close()

    def _start_episode(self) -> None:
        self._frame_tasks = []
        self._values = {key: [] for key in self._features if key not in self._video_keys}
        self._moments = {key: ImageMoments() for key in self._cameras}
        self._encoders = {}

    def _episode_columns(self, length: int) -> dict[str, Any]:
        """The episode's columns: [length, *shape] arrays, index columns [length], image cells as a list."""
        frame_index = np.arange(length, dtype=np.int64)
        for text in self._frame_tasks:
            self._tasks.setdefault(text, len(self._tasks))
        columns: dict[str, Any] = {
            "timestamp": (frame_index / self._fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(length, self.episodes, np.int64),
            "index": frame_index + self.frames,
            "task_index": np.array([self._tasks[text] for text in self._frame_tasks], np.int64),
        }
        for key, values in self._values.items():
            is_array = not self._features[key].is_camera and self._features[key].dtype != "string"
            columns[key] = np.stack(values) if is_array else values
        return columns

    def _encoder(self, key: str) -> VideoEncoder:
        if key not in self._encoders:
            assert self._encoding is not None
            self._encoders[key] = VideoEncoder(self._episode_video(key), self._fps, self._encoding)
        return self._encoders[key]

    def _episode_video(self, key: str) -> Path:
        return self._root / f"episode-{key}.mp4"

    def _info(self) -> dict[str, Any]:
        features: dict[str, dict[str, Any]] = {}
        for key, feature in self._all_features.items():
            entry: dict[str, Any] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": feature.names}
            if feature.dtype == "video":
                path = layout.Location().path(layout.VIDEO_PATH, video_key=key)
                entry["info"] = video_facts(self._root / path, self._fps)
            else:
                entry["fps"] = self._fps
            features[key] = entry
        source = {
            "codebase_version": layout.V30,
            "robot_type": self._robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": self._settings.chunks_size,
            "fps": self._fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": "",
            "video_path": "",
            "features": {},
        }
        return tables.info_fields(source, features, self._settings.data_file_mb, self._settings.video_file_mb)


def _check_features(features: Mapping[str, Feature]) -> None:
    """Raises DatasetError naming the feature that v3.0 cannot hold."""
    reserved = sorted(set(features) & set(INDEX_FEATURES))
    if reserved or not features:
        raise DatasetError(
            f"features {reserved or 'are empty'}: the writer fills {list(INDEX_FEATURES)} itself; give the others"
        )
    for key, feature in features.items():
        if "/" in key or not key:
            raise DatasetError(f"feature name {key!r} is empty or holds '/'; LeRobot uses dots")
        if feature.is_camera:
            height, width, channels = feature.shape
            if channels != 3:
                raise DatasetError(f"feature {key} has shape {list(feature.shape)}; cameras are (height, width, 3)")
            if feature.dtype == "video" and (height % 2 or width % 2):
                raise DatasetError(
                    f"feature {key} is {width}x{height}; video needs even sizes: crop, or store dtype image"
                )
        elif feature.dtype not in layout.VALUE_DTYPES:
            raise DatasetError(
                f"feature {key} has dtype {feature.dtype!r}; known are image, video, {', '.join(layout.VALUE_DTYPES)}"
            )


def _checked_value(key: str, feature: Feature, value: Any) -> Any:
    """`value` as a new array of the feature's shape and dtype (texts as they are).

    Raises DatasetError for another shape, a type that would lose its kind, or numbers that are not finite.
    """
    if feature.dtype == "string":
        if not isinstance(value, str):
            raise DatasetError(f"feature {key} is {type(value).__name__}, a text is expected")
        return value
    array = np.asarray(value)
    wanted = np.dtype(np.uint8) if feature.is_camera else feature.numpy_dtype
    if array.shape != feature.shape and not (feature.shape == (1,) and array.shape == ()):
        raise DatasetError(f"feature {key} has shape {list(array.shape)}, {list(feature.shape)} is expected")
    if (feature.is_camera and array.dtype != wanted) or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise DatasetError(f"feature {key} is {array.dtype}, {wanted} is expected")
    array = np.array(array, dtype=wanted).reshape(feature.shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DatasetError(f"feature {key} is not finite; leave the frame out or mend its source")
    return array


def _png_bytes(image: NDArray[np.uint8]) -> bytes:
    """image: uint8 [height, width, 3], RGB. PNG keeps every bit."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()
