# SPDX-License-Identifier: Apache-2.0
"""Observation to graph inputs without torch: against LeRobot's own run and against torch's interpolation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vla_edge import _core
from vla_edge.bundle import (
    TABLES,
    TOKENIZER,
    Bundle,
    CameraSpec,
    Manifest,
    NormalizationSpec,
    PolicySpec,
    TokenizerSpec,
    file_sha256,
    open_bundle,
    write_manifest,
)
from vla_edge.errors import BundleError, CoreError, ObservationError
from vla_edge.runtime.inference import picture as picture_module
from vla_edge.runtime.inference.picture import PictureScaler, resized_size
from vla_edge.runtime.inference.prepare import Preparer, lay_out
from vla_edge.runtime.inference.prompt import PromptEncoder
from vla_edge.runtime.inference.units import normalizer

GOLDEN = Path(__file__).parents[2] / "golden"
SHARED = Path(__file__).parents[4] / "shared" / "golden"
LAPTOP, PHONE = "observation.images.laptop", "observation.images.phone"

POLICY = PolicySpec(
    type="smolvla",
    chunk_size=50,
    n_action_steps=50,
    num_steps=10,
    min_steps=1,
    state_dim=6,
    action_dim=6,
    max_state_dim=32,
    max_action_dim=32,
    image_height=128,
    image_width=128,
    tokens_per_image=4,
    image_start_tokens=0,
    image_end_tokens=0,
    empty_cameras=0,
    prefix_rows=56,
    vlm_width=96,
    expert_width=72,
    layers=4,
    kv_heads=2,
    head_dim=16,
    self_layers=(0, 2),
    cross_layers=(1, 3),
)
TOKENS = TokenizerSpec(TOKENIZER, 48, "max_length", "right", "left", 2, True)
CAMERAS = (CameraSpec(LAPTOP, LAPTOP, 480, 640), CameraSpec(PHONE, PHONE, 480, 640))
MODES = (NormalizationSpec("observation.state", "MEAN_STD", 1e-8), NormalizationSpec("action", "MEAN_STD", 1e-8))


def bundle_without_graphs(folder: Path, source: Path, **changes: object) -> Bundle:
    """A bundle of a golden checkpoint's tokenizer and statistics: all that preparing reads."""
    stats = load_file(source / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    save_file(
        {name: value for name, value in stats.items() if not name.startswith("observation.images")}, folder / TABLES
    )
    (folder / TOKENIZER).write_bytes((source / "vlm" / "tokenizer.json").read_bytes())
    manifest = Manifest(
        policy=POLICY,
        cameras=CAMERAS,
        joints=tuple(f"joint_{i}" for i in range(6)),
        joint_units="unknown",
        tokenizer=TOKENS,
        normalization=MODES,
        graphs={},
        files={name: file_sha256(folder / name) for name in (TABLES, TOKENIZER)},
        checkpoint={},
        parity={},
        precision={},
        gate={},
        tools={},
    )
    write_manifest(folder, replace(manifest, **changes))  # type: ignore[arg-type]
    return open_bundle(folder)


@pytest.fixture(params=["koch-bfloat16", "koch-float32"])
def golden(request, tmp_path):
    """(bundle, LeRobot's arrays) of one golden policy."""
    folder = GOLDEN if (GOLDEN / request.param).is_dir() else SHARED
    if not (folder / request.param).is_dir():
        pytest.skip(f"{request.param} lies in ../shared/golden, which is not here")
    arrays = np.load(folder / f"{request.param}.npz", allow_pickle=False)
    return bundle_without_graphs(tmp_path, folder / request.param), arrays


@pytest.fixture
def bundle(tmp_path):
    return bundle_without_graphs(tmp_path, GOLDEN / "koch-bfloat16")


def test_images_equal_lerobots_padded_images(golden):
    bundle, arrays = golden
    prepare = Preparer(bundle)
    pictures = prepare.slots({key: arrays[f"raw/image/{key}"] for key in (PHONE, LAPTOP)})
    for slot, picture in enumerate(pictures):
        assert picture is not None
        pixels = np.empty((1, 3, 128, 128), np.float32)
        prepare.picture(slot, picture, pixels)
        # Two float32 interpolations of values in −1..1: a few ulp.
        assert np.abs(pixels - arrays[f"images/{slot}"]).max() <= 5e-7


def test_tokens_equal_lerobots_exactly(golden):
    bundle, arrays = golden
    prompt = PromptEncoder(bundle).encode(str(arrays["raw/task"]))
    assert np.array_equal(prompt.ids, arrays["tokens/ids"][0])
    assert np.array_equal(prompt.mask, arrays["tokens/mask"][0].astype(np.float32))


def test_state_and_actions_equal_lerobots(golden):
    bundle, arrays = golden
    prepare = Preparer(bundle)
    state = np.full((1, 32), 9, np.float32)
    prepare.state(arrays["raw/state"], state)
    # The same float32 operations in the same order.
    assert np.array_equal(state, arrays["state/padded"])
    actions, normalized = prepare.actions(arrays["steps/x_final"][0])
    assert np.array_equal(normalized, arrays["actions/normalized"][0])
    assert np.array_equal(actions, arrays["actions/final"][0])


def test_masks_and_positions_equal_lerobots(golden):
    bundle, arrays = golden
    layout = lay_out(POLICY, (True, True), PromptEncoder(bundle).encode(str(arrays["raw/task"])).mask)
    assert np.array_equal(layout.mask, arrays["prefix/pad_mask"][0].astype(np.float32))
    assert np.array_equal(layout.positions, arrays["prefix/position_ids"][0, :-1])
    assert layout.state_position == arrays["prefix/position_ids"][0, -1]
    assert layout.first_position == arrays["suffix/position_ids"][0, 0]


def test_resize_equals_torch_for_any_size():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    sizes = [
        (480, 640, 512, 512),
        (720, 1280, 512, 512),
        (1080, 1920, 512, 512),
        (640, 480, 224, 224),
        (481, 641, 511, 513),
    ]
    random = rng.integers(16, 500, (60, 4)).tolist()
    for height, width, target_height, target_width in sizes + random:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        pixels = np.empty((1, 3, target_height, target_width), np.float32)
        PictureScaler((height, width), (target_height, target_width), pad=True).into(image, pixels)
        inner = resized_size(height, width, target_height, target_width)
        source = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        scaled = torch.nn.functional.interpolate(source, size=inner, mode="bilinear", align_corners=False)
        padded = torch.nn.functional.pad(scaled, (target_width - inner[1], 0, target_height - inner[0], 0)) * 2 - 1
        # Two interpolations of float32 values up to 1, doubled: a few ulp of 1.2e-7. (A host whose torch has no
        # fused multiply-add places its samples differently, by up to 8e-5; every x86-64 with AVX2 and every ARM has.)
        assert np.abs(pixels - padded.numpy()).max() <= 6e-7, (height, width, target_height, target_width)


def test_a_640_by_480_picture_lies_under_128_rows_of_padding():
    pixels = np.empty((1, 3, 512, 512), np.float32)
    PictureScaler((480, 640), (512, 512), pad=True).into(np.full((480, 640, 3), 255, np.uint8), pixels)
    assert (pixels[:, :, :128] == -1).all() and (pixels[:, :, 128:] == 1).all()


def test_without_resizing_the_picture_passes_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    pixels = np.empty((1, 3, 24, 32), np.float32)
    PictureScaler((24, 32), (24, 32), pad=False).into(image, pixels)
    assert np.array_equal(pixels[0], image.transpose(2, 0, 1) / np.float32(255) * 2 - 1)


def test_scaling_allocates_no_picture():
    import tracemalloc

    scaler = PictureScaler((480, 640), (512, 512), pad=True)
    image, pixels = np.zeros((480, 640, 3), np.uint8), np.empty((1, 3, 512, 512), np.float32)
    scaler.into(image, pixels)
    tracemalloc.start()
    scaler.into(image, pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # numpy's conversion buffer (8192 elements) is all there may be; one row of planes alone is 2 MB.
    assert peak < 200_000


def test_a_newline_is_appended_once_only(bundle):
    encoder = PromptEncoder(bundle)
    assert np.array_equal(encoder.encode("pick it up").ids, encoder.encode("pick it up\n").ids)


def test_a_task_that_is_too_long_is_refused_with_both_numbers(bundle):
    with pytest.raises(ObservationError, match=r"too long: \d+ tokens, the policy takes at most 48"):
        PromptEncoder(bundle).encode("place the bracelet " * 40)


def test_truncation_where_allowed_cuts_on_the_tokenizers_side(bundle, tmp_path_factory):
    text = "place the bracelet " * 40
    left = PromptEncoder(bundle, allow_truncation=True).encode(text)
    folder = tmp_path_factory.mktemp("right")
    other = bundle_without_graphs(folder, GOLDEN / "koch-bfloat16", tokenizer=replace(TOKENS, truncation_side="right"))
    right = PromptEncoder(other, allow_truncation=True).encode(text)
    newline = PromptEncoder(bundle).encode("x").ids[1]
    assert left.truncated == right.truncated > 0 and left.mask.sum() == 48
    assert left.ids[-1] == newline != right.ids[-1]


@pytest.mark.parametrize(
    ("padding", "side", "first"), [("max_length", "right", 0), ("longest", "left", 0), ("max_length", "left", 36)]
)
def test_padding_side_moves_the_text_only_when_the_length_is_fixed(tmp_path, padding, side, first):
    bundle = bundle_without_graphs(
        tmp_path, GOLDEN / "koch-bfloat16", tokenizer=replace(TOKENS, padding=padding, padding_side=side)
    )
    prompt = PromptEncoder(bundle).encode("Place the bracelet into the box")
    assert prompt.mask.sum() == 12 and prompt.mask[first : first + 12].all()
    layout = lay_out(POLICY, (True, True), prompt.mask)
    assert layout.state_position == 8 + 12 and layout.first_position == 8 + 12 + 1


def test_an_empty_task_is_the_newline_that_lerobot_makes_of_it(bundle):
    assert PromptEncoder(bundle).encode("").mask.sum() == 1
    assert np.array_equal(PromptEncoder(bundle).encode("").ids, PromptEncoder(bundle).encode("\n").ids)


def test_a_missing_camera_is_masked_and_later_rows_move_up():
    prompt = np.array([1] * 10 + [0] * 38, np.float32)
    layout = lay_out(POLICY, (False, True), prompt)
    assert layout.mask[:4].sum() == 0 and layout.mask[4:8].all()
    assert layout.positions[4] == 0 and layout.positions[8] == 4 and layout.first_position == 4 + 10 + 1


def test_markers_of_an_empty_slot_stay_valid_and_those_of_a_missing_camera_do_not():
    policy = replace(POLICY, image_start_tokens=2, image_end_tokens=1, empty_cameras=1, prefix_rows=3 * 7 + 48)
    layout = lay_out(policy, (True, False), np.ones(48, np.float32))
    assert layout.mask[:21].tolist() == [1] * 7 + [0] * 7 + [1, 1, 0, 0, 0, 0, 1]


def picture(height=480, width=640, dtype=np.uint8):
    return np.zeros((height, width, 3), dtype)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "no camera picture"),
        (
            {"observation.images.front": picture()},
            "unknown camera 'observation.images.front'; the policy sees .*laptop",
        ),
        ({LAPTOP: picture(dtype=np.float32)}, "float32"),
        ({LAPTOP: np.zeros((3, 480, 640), np.uint8)}, r"\[3, 480, 640\]"),
        ({LAPTOP: np.zeros((480, 640), np.uint8)}, r"\[480, 640\]"),
    ],
)
def test_a_wrong_picture_is_refused_by_name(bundle, images, message):
    with pytest.raises(ObservationError, match=message):
        Preparer(bundle).slots(images)


def test_renamed_cameras_answer_to_both_names_but_not_at_once(tmp_path):
    cameras = (
        CameraSpec("observation.images.camera1", LAPTOP, 480, 640),
        CameraSpec("observation.images.camera2", PHONE, 480, 640),
    )
    prepare = Preparer(bundle_without_graphs(tmp_path, GOLDEN / "koch-bfloat16", cameras=cameras))
    seen = prepare.slots({PHONE: picture(), "observation.images.camera1": picture()})
    assert all(image is not None for image in seen)
    with pytest.raises(ObservationError, match="given twice"):
        prepare.slots({LAPTOP: picture(), "observation.images.camera1": picture()})


def test_swapped_cameras_follow_the_rename_map(tmp_path):
    cameras = (CameraSpec(LAPTOP, PHONE, 480, 640), CameraSpec(PHONE, LAPTOP, 480, 640))
    prepare = Preparer(bundle_without_graphs(tmp_path, GOLDEN / "koch-bfloat16", cameras=cameras))
    first, second = prepare.slots({LAPTOP: picture() + np.uint8(1), PHONE: picture() + np.uint8(2)})
    assert first is not None and second is not None and first.max() == 2 and second.max() == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.zeros(5, np.float32), r"float32 \[5\]; expected float32 \[6\]"),
        (np.array([0, 0, np.nan, 0, 0, 0]), "not finite in float32 at index 2"),
        (np.array(["a"] * 6), "expected float32"),
    ],
)
def test_a_wrong_state_is_refused(bundle, state, message):
    with pytest.raises(ObservationError, match=message):
        Preparer(bundle).state(state, np.empty((1, 32), np.float32))


def test_min_max_maps_the_range_and_keeps_lerobots_answer_for_no_range():
    stats = {"f.min": np.array([-2, 5], np.float32), "f.max": np.array([6, 5], np.float32)}
    norm = normalizer(_bundle_of("MIN_MAX"), stats, "f", 2)
    assert norm.normalize(np.array([2, 5], np.float32)).tolist() == [0, -1]
    assert norm.unnormalize(np.array([-1, -1], np.float32)).tolist() == [-2, 5]
    # A range of zero is replaced by eps: (5.5 − 5) / 1e-8 · 2 − 1.
    assert norm.normalize(np.array([2, 5.5], np.float32))[1] == pytest.approx(1e8, rel=1e-6)


def test_without_statistics_values_pass_unchanged_and_an_unknown_mode_is_refused():
    values = np.array([3, -4], np.float32)
    for mode, stats in (("IDENTITY", {"f.mean": values}), ("MEAN_STD", {})):
        norm = normalizer(_bundle_of(mode), stats, "f", 2)
        assert np.array_equal(norm.normalize(values), values) and np.array_equal(norm.unnormalize(values), values)
    with pytest.raises(BundleError, match="'QUANTILES'; known: MEAN_STD, MIN_MAX, IDENTITY"):
        normalizer(_bundle_of("QUANTILES"), {}, "f", 2)
    with pytest.raises(BundleError, match=r"statistics f.std are missing; expected \[2\]"):
        normalizer(_bundle_of("MEAN_STD"), {"f.mean": values}, "f", 2)


def test_mean_std_adds_its_epsilon_only_when_dividing():
    norm = normalizer(
        _bundle_of("MEAN_STD", eps=0.25),
        {"f.mean": np.ones(1, np.float32), "f.std": np.full(1, 0.5, np.float32)},
        "f",
        1,
    )
    four = np.full(1, 4, np.float32)
    assert norm.normalize(four) == 4 and norm.unnormalize(four) == 3


def test_the_pi_aloha_convention_flips_joints_and_bends_grippers(tmp_path):
    policy = replace(POLICY, state_dim=14, action_dim=14, adapt_to_pi_aloha=True)
    prepare = Preparer(bundle_without_graphs(tmp_path, GOLDEN / "koch-bfloat16", policy=policy, normalization=()))
    state = np.zeros((1, 32), np.float32)
    prepare.state(np.full(14, 0.5, np.float32), state)
    flipped = [1, 2, 8, 9]
    assert (state[0, flipped] == -0.5).all() and state[0, 0] == 0.5 and (state[0, 14:] == 0).all()
    # By hand: l = 0.5·0.03956 + 0.01844 = 0.03822 m; asin((0.022² + l² − 0.036²)/(2·0.022·l)) = 0.3958; (0.3958 −
    # 0.4)/1.1.
    length = 0.5 * 0.03956 + 0.01844
    angle = np.arcsin((0.022**2 + length**2 - 0.036**2) / (2 * 0.022 * length))
    assert state[0, [6, 13]] == pytest.approx((angle - 0.4) / 1.1, abs=1e-6)
    _, actions = prepare.actions(np.full((50, 32), 0.5, np.float32))
    assert (actions[:, flipped] == -0.5).all()
    # (0.5·1.1 + 0.4 + 0.6213) / 2.1123
    assert actions[:, [6, 13]] == pytest.approx(0.743881, abs=1e-6)


def test_the_pi_aloha_convention_needs_fourteen_joints(tmp_path):
    with pytest.raises(BundleError, match="needs 14 joints"):
        Preparer(
            bundle_without_graphs(tmp_path, GOLDEN / "koch-bfloat16", policy=replace(POLICY, adapt_to_pi_aloha=True))
        )


def test_a_damaged_tokenizer_or_table_is_named(bundle):
    for name in (TOKENIZER, TABLES):
        data = bytearray((bundle.path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match="tokenizer.json: sha256 differs"):
        PromptEncoder(open_bundle(bundle.path))
    with pytest.raises(BundleError, match="tables.safetensors: sha256 differs"):
        Preparer(open_bundle(bundle.path))


def _bundle_of(mode: str, eps: float = 1e-8) -> Bundle:
    return Bundle(Path("b"), Manifest(**{**_fields(), "normalization": (NormalizationSpec("f", mode, eps),)}), "")


def _fields() -> dict:
    empty: dict = dict.fromkeys(("graphs", "files", "checkpoint", "parity", "precision", "gate", "tools"), {})
    return {"policy": POLICY, "cameras": CAMERAS, "joints": (), "joint_units": "unknown", "tokenizer": TOKENS, **empty}


@pytest.mark.parametrize(
    ("source", "target", "pad"),
    [
        ((480, 640), (512, 512), True),
        ((37, 91), (64, 48), True),
        ((91, 37), (48, 64), True),
        ((24, 32), (24, 32), False),
    ],
)
def test_pictures_have_the_same_bits_with_and_without_the_c_core(
    monkeypatch: pytest.MonkeyPatch, source: tuple[int, int], target: tuple[int, int], pad: bool
) -> None:
    image = np.random.default_rng(7).integers(0, 256, (*source, 3), dtype=np.uint8)
    made = []
    for view in (image, image[:, :, ::-1]):
        made.append(np.zeros((1, 3, *target), np.float32))
        PictureScaler(source, target, pad).into(view, made[-1])

    def none() -> None:
        raise CoreError("not built")

    monkeypatch.setattr(picture_module, "load_core", none)
    for ours, view in zip(made, (image, image[:, :, ::-1])):
        pixels = np.ones((1, 3, *target), np.float32)
        PictureScaler(source, target, pad).into(view, pixels)
        assert ours.tobytes() == pixels.tobytes()


def test_samples_outside_a_picture_and_buffers_of_another_size_are_refused_by_the_core() -> None:
    image, pixels, row = np.zeros((4, 5, 3), np.uint8), np.zeros((1, 3, 6, 6), np.float32), np.zeros(15, np.float32)
    place, weight = np.zeros(6, np.int32), np.zeros(6, np.float32)
    fits: list[Any] = [image, pixels, row, place, place, weight, place, place, weight]
    _core.scale_picture(*fits)
    for index, wrong, words in (
        (3, place + 4, "a sample is 4, the picture has 4"), (7, place - 1, "a sample is -1"),
        (5, weight[:2], "of one length"), (2, row[:3], "scratch is not one row"), (0, image[0], "uint8"),
        (1, np.zeros((1, 3, 5, 6), np.float32), "more samples than pixels"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            given: list[Any] = [wrong if place == index else value for place, value in enumerate(fits)]
            _core.scale_picture(*given)
