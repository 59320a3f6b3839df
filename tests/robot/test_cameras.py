# SPDX-License-Identifier: Apache-2.0
"""Cameras: naming, files, shared frames, a V4L2 device that misbehaves, frozen pictures, the contact sheet."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vla_edge.contract import Frame
from vla_edge.errors import CameraError, ConfigError
from vla_edge.lerobot_data.video import AV1, VideoEncoder
from vla_edge.robot import camera_file
from vla_edge.robot.camera_file import FileCamera
from vla_edge.robot.camera_options import CameraOptions, parse_camera, parse_cameras
from vla_edge.robot.camera_report import list_v4l2
from vla_edge.robot.cameras import FreshnessWatch, open_camera
from vla_edge.robot.shared_frames import FrameWriter, SimCamera
from vla_edge.runtime.command import main

LAPTOP = "observation.images.laptop"
MS = 1_000_000


def picture(value: int, height: int = 6, width: int = 8) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def test_a_camera_text_names_its_device_kind_and_options() -> None:
    assert parse_camera("laptop=0") == CameraOptions(LAPTOP, "v4l2", "0")
    by_id = "/dev/v4l/by-id/usb-cam-index0"
    assert parse_camera(f"{LAPTOP}={by_id},640x480,30fps,noisy") == CameraOptions(
        LAPTOP, "v4l2", by_id, 480, 640, 30, True
    )
    assert parse_camera("phone=file:clips/a.mp4").kind == "file"
    assert parse_camera("phone=sim:run/frames.phone").device == "run/frames.phone"
    options = parse_camera("laptop=0,fourcc=MJPG,rotation=-90")
    assert (options.fourcc, options.rotation) == ("MJPG", 270)


def test_a_plain_path_to_a_file_or_a_folder_of_pictures_is_a_file_camera(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    for path in (tmp_path, tmp_path / "clip.mp4"):
        options = parse_camera(f"laptop={path},10fps")
        assert (options.kind, options.device, options.fps) == ("file", str(path), 10)
    assert parse_camera("laptop=/dev/null").kind == "v4l2", "a device, here or not"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("laptop", "is not NAME=DEVICE"),
        ("laptop=", "is not NAME=DEVICE"),
        ("a,b=0", "is not NAME=DEVICE"),
        ("laptop=webcam", "'webcam' is no device"),
        ("laptop=0,fast", "unknown option 'fast'; known: noisy"),
        ("laptop=file:", "file: needs a path"),
        ("laptop=gone.mp4", "'gone.mp4' is no device and no file that is there"),
        ("laptop=0,fourcc=JPG", "unknown option 'fourcc=JPG'"),
        ("laptop=0,rotation=45", "unknown option 'rotation=45'"),
        ("laptop=file:a.mp4,fourcc=MJPG", "fourcc=MJPG is a device's pixel format"),
        ("laptop=sim:a,rotation=90", "the simulated camera is not turned"),
    ],
)
def test_a_wrong_camera_text_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_camera(text)


def test_one_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="given 2 times"):
        parse_cameras(["laptop=0", f"{LAPTOP}=1"])


def test_shared_frames_cross_with_time_and_sequence(tmp_path: Path) -> None:
    path = tmp_path / "frames.laptop"
    writer = FrameWriter(path, 6, 8)
    camera = SimCamera(LAPTOP, path)
    with pytest.raises(CameraError, match="no picture yet"):
        camera.newest()
    for value in range(1, 8):
        writer.write(picture(value), value * 100)
        frame = camera.newest()
        assert (frame.sequence, frame.captured_ns) == (value, value * 100)
        assert (frame.image == value).all()
    assert camera.newest().sequence == 7


def test_a_reader_never_sees_half_of_two_pictures(tmp_path: Path) -> None:
    path = tmp_path / "frames.laptop"
    writer = FrameWriter(path, 120, 160)
    writer.write(picture(0, 120, 160), 1)
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            writer.write(picture(value, 120, 160), value)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        camera = open_camera(parse_camera(f"laptop=sim:{path}"))
        seen = 0
        while seen <= 20:
            frame = camera.newest()
            assert (frame.image == frame.image[0, 0, 0]).all()
            assert frame.sequence >= seen
            seen = frame.sequence
    finally:
        stop.set()
        thread.join()


def test_a_torn_or_foreign_frames_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="start the simulated arm first"):
        SimCamera(LAPTOP, tmp_path / "none")
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"x" * 500)
    with pytest.raises(CameraError, match="not a frames file"):
        SimCamera(LAPTOP, foreign)
    path = tmp_path / "frames.laptop"
    FrameWriter(path, 6, 8).write(picture(3), 1)
    data = bytearray(path.read_bytes())
    (tmp_path / "short").write_bytes(data[:-10])
    with pytest.raises(CameraError, match="not those of 8x6"):
        SimCamera(LAPTOP, tmp_path / "short")
    at = data.index(picture(3).tobytes())
    data[at] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(CameraError, match="no whole picture"):
        SimCamera(LAPTOP, tmp_path / "damaged").newest()


def test_a_folder_plays_in_order_at_its_rate_and_starts_over(tmp_path: Path) -> None:
    for value in (10, 20, 30):
        cv2.imwrite(str(tmp_path / f"{value}.png"), picture(value))
    now = [0]
    camera = open_camera(parse_camera(f"laptop=file:{tmp_path},10fps"))
    assert camera.exempt_from_freshness
    assert (camera.newest().image == 10).all()
    clock = FileCamera(LAPTOP, lambda index: picture(10 * index), 3, 10.0, lambda: now[0])
    values = []
    for now[0] in range(0, 500 * MS, 50 * MS):
        frame = clock.newest()
        values.append(int(frame.image[0, 0, 0]))
        assert frame.captured_ns == (frame.sequence - 1) * 100 * MS
    assert values == [0, 0, 10, 10, 20, 20, 0, 0, 10, 10]


def test_an_npz_and_a_video_are_cameras(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", laptop=np.stack([picture(5), picture(6)]), phone=picture(7))
    assert (open_camera(parse_camera(f"laptop=file:{tmp_path / 'a.npz'}")).newest().image == 5).all()
    assert (open_camera(parse_camera(f"phone=file:{tmp_path / 'a.npz'}")).newest().image == 7).all()
    video = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for value in (50, 150):
        video.write(picture(value, 48, 64))
    video.release()
    frame = open_camera(parse_camera(f"laptop=file:{tmp_path / 'v.mp4'}")).newest()
    assert abs(float(frame.image.mean()) - 50) < 4  # MPEG-4 rounds colours


def test_a_video_as_lerobot_records_it_plays_in_order_and_starts_over(tmp_path: Path) -> None:
    """AV1, which OpenCV's own FFmpeg does not decode."""
    path = tmp_path / "episode.mp4"
    encoder = VideoEncoder(path, 10, AV1)
    for value in (40, 120, 200):
        encoder.add(picture(value, 64, 96))
    encoder.close()
    now = [0]
    video = camera_file._Video(LAPTOP, path)
    camera = FileCamera(LAPTOP, video.read, video.count, video.fps, lambda: now[0])
    assert (video.count, video.fps) == (3, 10.0)
    values = []
    for now[0] in range(0, 700 * MS, 100 * MS):
        values.append(round(float(camera.newest().image.mean()) / 40))
    assert values == [1, 3, 5, 1, 3, 5, 1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CameraError, match="episode.mp4"):
        open_camera(parse_camera(f"laptop={path}")).newest()


@pytest.mark.parametrize("rotation", [90, 180, 270, -90])
def test_pictures_are_turned_clockwise_as_lerobot_turns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotation: int
) -> None:
    """The size that is asked for is that of the turned picture."""
    image = picture(0)
    image[0, 0] = 255
    np.savez(tmp_path / "a.npz", laptop=image)
    turned = open_camera(parse_camera(f"laptop={tmp_path / 'a.npz'},rotation={rotation}")).newest().image
    ways = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
    assert np.array_equal(turned, cv2.rotate(image, ways[rotation % 360]))
    device = tmp_path / "video0"
    device.touch()
    asked: dict[int, float] = {}
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "set", lambda self, key, value: asked.update({key: value}) or True)
    size = "8x6" if rotation == 180 else "6x8"
    open_camera(parse_camera(f"laptop={device},{size},rotation={rotation}")).close()
    assert (asked[cv2.CAP_PROP_FRAME_WIDTH], asked[cv2.CAP_PROP_FRAME_HEIGHT]) == (8, 6)


@pytest.mark.parametrize(
    ("options", "says", "told"),
    [
        ("30fps", {cv2.CAP_PROP_FPS: 5.0}, "gives 5 pictures a second, asked for 30; .* as fourcc=MJPG"),
        ("30fps,fourcc=MJPG", {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV"))}, "gives 'YUYV', asked for"),
    ],
)
def test_a_device_that_does_something_else_than_it_was_asked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, says: dict[int, float], told: str
) -> None:
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "says", says)
    with pytest.raises(CameraError, match=told):
        open_camera(parse_camera(f"laptop={device},{options}"))
    good = {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"MJPG"))}
    monkeypatch.setattr(FakeCapture, "says", good)
    open_camera(parse_camera(f"laptop={device},{options}")).close()


def test_a_rate_that_a_driver_promised_and_does_not_keep_is_said_once() -> None:
    said: list[str] = []
    watch = FreshnessWatch(LAPTOP, noisy=False, exempt=False, fps=30, say=said.append)
    for tick in range(1, 60):
        watch.check(frame(tick, tick * 200), tick * 200 * MS)
    assert len(said) == 1 and "gives 5.0 pictures a second, asked for 30" in said[0]
    kept = FreshnessWatch(LAPTOP, noisy=False, exempt=False, fps=30, say=said.append)
    for tick in range(1, 200):
        kept.check(frame(tick, tick * 34), tick * 34 * MS)
    assert len(said) == 1


@pytest.mark.parametrize("device", ["gone.mp4", "empty", "text.mp4", "text.npz"])
def test_a_file_that_is_no_camera_is_named(tmp_path: Path, device: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(CameraError, match=device):
        open_camera(parse_camera(f"laptop=file:{tmp_path / device}"))


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", laptop=picture(5))
    with pytest.raises(CameraError, match="holds 8x6, asked for 640x480"):
        open_camera(parse_camera(f"laptop=file:{tmp_path / 'a.npz'},640x480"))


class FakeCapture:
    """A V4L2 device in place of OpenCV's: gives `good` pictures of 8x6, then refuses."""

    good = 10**9
    says: dict[int, float] = {}

    def __init__(self, device: str, backend: int) -> None:
        self.given = 0

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> bool:
        return True

    def get(self, key: int) -> float:
        return self.says.get(key, 0.0)

    def grab(self) -> bool:
        time.sleep(0.002)
        self.given += 1
        return self.given <= self.good

    def retrieve(self) -> tuple[bool, NDArray[np.uint8]]:
        image = picture(0)
        image[..., 0] = self.given % 200  # BGR: blue
        return True, image

    def release(self) -> None:
        pass


def test_a_v4l2_camera_gives_its_newest_picture_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    camera = open_camera(parse_camera(f"laptop={device},8x6"))
    first = camera.newest()
    second = first
    while second.sequence <= first.sequence + 5:
        second = camera.newest()
    now = time.monotonic_ns()
    camera.close()
    assert first.captured_ns < second.captured_ns <= now
    assert second.image[0, 0, 2] > 0 and second.image[0, 0, 0] == 0, "pictures are RGB"


def test_a_v4l2_camera_that_stops_or_has_another_size_is_a_named_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "video0"
    with pytest.raises(CameraError, match="does not exist; vla-runtime cameras lists"):
        open_camera(parse_camera(f"laptop={device}"))
    device.touch()
    with pytest.raises(CameraError, match="not a camera that can be opened"):
        open_camera(parse_camera(f"laptop={device}"))
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    with pytest.raises(CameraError, match="gives 8x6, asked for 640x480"):
        open_camera(parse_camera(f"laptop={device},640x480"))
    monkeypatch.setattr(FakeCapture, "good", 3)
    camera = open_camera(parse_camera(f"laptop={device}"))
    with pytest.raises(CameraError, match="stopped: the driver refused ten pictures"):
        while True:
            camera.newest()
    camera.close()


def frame(sequence: int, captured_ms: int, value: int = 0) -> Frame:
    return Frame(LAPTOP, picture(value), captured_ms * MS, sequence)


def test_a_camera_whose_sequence_stops_is_frozen_after_the_limit() -> None:
    watch = FreshnessWatch(LAPTOP, noisy=False, exempt=False, limit_s=0.5)
    for tick in range(10):
        watch.check(frame(tick, tick * 33, 1), tick * 33 * MS)
    watch.check(frame(9, 297), 780 * MS)
    with pytest.raises(CameraError, match="frozen: no new picture for 0.5 s"):
        watch.check(frame(9, 297), 810 * MS)


def test_a_camera_whose_capture_time_stops_is_frozen_although_it_counts_on() -> None:
    watch = FreshnessWatch(LAPTOP, noisy=False, exempt=False, limit_s=0.5)
    watch.check(frame(1, 0), 0)
    for tick in range(2, 16):
        watch.check(frame(tick, 0), tick * 33 * MS)
    with pytest.raises(CameraError, match="frozen"):
        watch.check(frame(17, 0), 17 * 33 * MS)


def test_equal_bytes_freeze_only_a_camera_declared_noisy() -> None:
    still = FreshnessWatch(LAPTOP, noisy=False, exempt=False)
    noisy = FreshnessWatch(LAPTOP, noisy=True, exempt=False)
    for tick in range(1, 30):
        still.check(frame(tick, tick * 33), tick * 33 * MS)
        noisy.check(frame(tick, tick * 33), tick * 33 * MS)
    still.check(frame(60, 2000), 2000 * MS)
    with pytest.raises(CameraError, match="every picture was the same for 2.0 s"):
        noisy.check(frame(60, 2000), 2000 * MS)


def test_a_file_camera_is_exempt_from_freshness() -> None:
    watch = FreshnessWatch(LAPTOP, noisy=True, exempt=True)
    watch.check(frame(1, 0), 0)
    watch.check(frame(1, 0), 60_000 * MS)


def test_devices_are_listed_by_their_stable_path(tmp_path: Path) -> None:
    system = tmp_path / "sys"
    for node, index, name in (
        ("video0", 0, "C920"),
        ("video1", 1, "C920"),
        ("video10", 0, "Phone"),
        ("video2", 0, "Laptop"),
    ):
        (system / node).mkdir(parents=True)
        (system / node / "index").write_text(f"{index}\n")
        (system / node / "name").write_text(f"{name}\n")
    links = tmp_path / "by-id"
    links.mkdir()
    (links / "usb-C920-index0").symlink_to("/dev/video0")
    assert list_v4l2(system, links, tmp_path / "none", lambda _: None) == [
        (str(links / "usb-C920-index0"), "C920"),
        ("/dev/video2", "Laptop"),
        ("/dev/video10", "Phone"),
    ]
    assert list_v4l2(tmp_path / "none", links) == []


def nodes(system: Path, *rows: tuple[int, int, str]) -> None:
    for number, index, name in rows:
        (system / f"video{number}").mkdir(parents=True)
        (system / f"video{number}/index").write_text(f"{index}\n")
        (system / f"video{number}/name").write_text(f"{name}\n")


def test_two_cameras_of_one_model_are_told_apart_by_their_sockets(tmp_path: Path) -> None:
    """Without serial numbers both want the same link under by-id; it names the one that was plugged in last."""
    system, by_id, by_path = (tmp_path / name for name in ("sys", "by-id", "by-path"))
    nodes(system, (0, 0, "HD USB Camera"), (1, 1, "HD USB Camera"), (2, 0, "HD USB Camera"), (3, 1, "HD USB Camera"))
    for folder, name, node in (
        (by_id, "usb-HD_USB_Camera-index0", 2),
        (by_path, "pci-usb-0:1:1.0-video-index0", 0),
        (by_path, "pci-usb-0:2:1.0-video-index0", 2),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(f"/dev/video{node}")
    assert [path for path, _ in list_v4l2(system, by_id, by_path, lambda _: None)] == [
        str(by_path / "pci-usb-0:1:1.0-video-index0"),
        str(by_path / "pci-usb-0:2:1.0-video-index0"),
    ]
    (by_id / "usb-HD_USB_Camera_SN2-index0").symlink_to("/dev/video0")  # with serial numbers each has its own
    assert all("by-id" in path for path, _ in list_v4l2(system, by_id, by_path, lambda _: None))


@pytest.mark.parametrize("known", [True, False])
def test_the_colour_node_of_a_depth_camera_is_listed(tmp_path: Path, known: bool) -> None:
    nodes(tmp_path / "sys", *((10 + index, index, "RealSense") for index in range(6)))
    given = {"/dev/video10": ["Z16 "], "/dev/video12": ["GREY", "Y8I "], "/dev/video14": ["YUYV", "MJPG"]}
    found = list_v4l2(tmp_path / "sys", tmp_path, tmp_path, lambda path: given.get(path, []) if known else None)
    colour = ("/dev/video14", "RealSense")
    assert found == [colour] if known else colour in found and len(found) == 3


def test_the_cameras_command_writes_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", laptop=picture(200))
    sheet = tmp_path / "sheet.png"
    code = main(
        [
            "cameras",
            "--camera",
            f"laptop=file:{tmp_path / 'a.npz'}",
            "--camera",
            f"phone=file:{tmp_path / 'gone'}",
            "--out",
            str(sheet),
        ]
    )
    out = capsys.readouterr()
    assert code == 1, "one camera of two gave no picture"
    assert "laptop" in out.out and "8x6" in out.out
    assert "1 of 2 cameras gave no picture" in out.err and "gone does not exist" in out.err
    image = cv2.imread(str(sheet))
    assert image is not None and image.shape == (264, 640, 3)
    assert abs(float(image[100, 100].mean()) - 200) < 2 and abs(float(image[100, 420].mean()) - 90) < 2
