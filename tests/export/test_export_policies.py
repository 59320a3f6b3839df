# SPDX-License-Identifier: Apache-2.0
"""Every configuration a SmolVLA checkpoint may have, exported and compared with torch; and parity that can fail.

An export that returns has compared each graph with the plain torch policy on the runtime's own path: inputs, vision,
prefix, state, velocity, chunk, actions, with all cameras and with the first one missing. What is asserted beyond that
is what the configuration must have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.bundle import Manifest, open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import CheckpointError, ConfigError, ExportError, ObservationError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.command import main
from vla_edge.export.graph import Graph
from vla_edge.export.proof import WorstDeviations
from vla_edge.export.smolvla import attention, cuts, expert, layers
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.runtime.inference.prepare import Preparer
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.runtime.inference.units import read_tables, remarks

RECORDED = Path(__file__).parents[3] / "shared" / "golden061"
SEVEN = ("artifact062", "libero16", "quantiles", "aloha3cam", "relative", "lora", "basesize")

SMALL = {
    "num_vlm_layers": 2,
    "chunk_size": 6,
    "n_action_steps": 6,
    "num_steps": 3,
    "resize_imgs_with_padding": [64, 64],
    "tokenizer_max_length": 12,
}
"""Keeps a case under a second; what a case is about stands in the case."""

PLAIN_ROUNDING = 1e-5
"""Ten times below the export's own limit: these tiny policies show 2e-6 (another order of float32 sums)."""


def export(folder: Path, make: RandomPolicy) -> Manifest:
    write_random_policy(folder / "policy", make)
    return run_export(folder)


def run_export(folder: Path) -> Manifest:
    torch.set_num_threads(1)
    return export_bundle(ExportRequest(folder / "policy", folder / "bundle", threads=1), lambda step: None)


def small(cameras: tuple[str, ...] = ("laptop", "phone"), joints: int = 6, **config: Any) -> RandomPolicy:
    return RandomPolicy(cameras=cameras, image_width=64, image_height=48, joints=joints, config={**SMALL, **config})


CONFIGURATIONS: Mapping[str, tuple[RandomPolicy, Mapping[str, Any]]] = {
    "one camera": (small(("top",)), {"prefix_rows": 1 + 12}),
    "three cameras": (small(("a", "b", "c")), {"prefix_rows": 3 + 12}),
    "self attention everywhere": (small(attention_mode="self_attn"), {"self_layers": (0, 1), "cross_layers": ()}),
    "cross attention everywhere": (small(self_attn_every_n_layers=0), {"self_layers": (), "cross_layers": (0, 1)}),
    "self attention every third layer": (
        small(num_vlm_layers=4, self_attn_every_n_layers=3),
        {"self_layers": (0, 3), "cross_layers": (1, 2)},
    ),
    "fewer expert layers": (
        small(num_vlm_layers=4, num_expert_layers=2, self_attn_every_n_layers=4),
        {"self_layers": (0,), "cross_layers": (2,)},
    ),
    "one layer": (small(num_vlm_layers=1), {"layers": 1, "self_layers": (0,)}),
    "special image tokens": (
        small(add_image_special_tokens=True),
        {"image_start_tokens": 2, "image_end_tokens": 1, "prefix_rows": 2 * 4 + 12},
    ),
    "special tokens of empty cameras": (
        small(add_image_special_tokens=True, empty_cameras=2),
        {"empty_cameras": 2, "prefix_rows": 4 * 4 + 12},
    ),
    "empty cameras without special tokens add no rows": (
        small(empty_cameras=2),
        {"empty_cameras": 0, "prefix_rows": 2 + 12},
    ),
    "prefix_length adds no rows": (small(prefix_length=60), {"prefix_rows": 2 + 12}),
    "padding to the longest": (small(pad_language_to="longest"), {}),
    "a truncated instruction": (small(tokenizer_max_length=3), {"prefix_rows": 2 + 3}),
    "one action": (small(chunk_size=1, n_action_steps=1), {"chunk_size": 1}),
    "one step": (small(num_steps=1), {"num_steps": 1}),
    "no resizing": (small(resize_imgs_with_padding=None), {"resize_with_padding": False, "image_height": 64}),
    "pictures that are no multiple of the patch": (
        small(resize_imgs_with_padding=[70, 70]),
        {"image_width": 70, "tokens_per_image": 1},
    ),
    "larger pictures than the position table": (small(resize_imgs_with_padding=[192, 192]), {"tokens_per_image": 9}),
    "an Aloha's joints": (small(joints=14, adapt_to_pi_aloha=True), {"adapt_to_pi_aloha": True, "action_dim": 14}),
    "a narrow expert": (small(expert_width_multiplier=0.5), {"expert_width": 48}),
    "other periods and widths": (
        small(min_period=0.01, max_period=2.0, max_state_dim=8, max_action_dim=9),
        {"max_action_dim": 9},
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_equals_torch_graph_by_graph(tmp_path: Path, name: str) -> None:
    make, expected = CONFIGURATIONS[name]
    if make.config["resize_imgs_with_padding"] is None:
        make = RandomPolicy(image_width=64, image_height=64, config=make.config)
    manifest = export(tmp_path, make)
    assert {field: getattr(manifest.policy, field) for field in expected} == dict(expected)
    assert max(manifest.parity["graphs"].values()) < PLAIN_ROUNDING
    assert {"inputs", "vision", "prefix", "state", "expert", "chunk", "actions"} <= set(manifest.parity["graphs"])


@pytest.mark.parametrize("attention_mode", ("cross_attn", "self_attn"))
def test_a_delta_expert_and_a_trained_cls_head_come_along(tmp_path: Path, attention_mode: str) -> None:
    make = RandomPolicy(
        cls=True,
        delta=True,
        image_width=64,
        image_height=48,
        config={**SMALL, "cls_trained": True, "attention_mode": attention_mode},
    )
    manifest = export(tmp_path, make)
    assert manifest.gate["kind"] == "cls"
    assert {"cls", "delta"} <= set(manifest.parity["graphs"])
    assert max(manifest.parity["graphs"].values()) < PLAIN_ROUNDING
    assert ("delta_kv" in manifest.graphs) == (attention_mode == "cross_attn")


def test_an_untrained_cls_head_is_no_gate_and_the_manifest_says_why(tmp_path: Path) -> None:
    manifest = export(tmp_path, RandomPolicy(cls=True, config=SMALL))
    assert manifest.gate["kind"] == "pooled"
    assert "never trained" in manifest.gate["why_not_cls"]
    assert "cls" not in {spec.name for spec in manifest.graphs["prefix"].outputs}


def test_a_cls_head_changes_nothing_but_its_own_output(tmp_path: Path) -> None:
    """Same weights with and without the head: every other tensor of the prefix is equal bit for bit."""
    from vla_edge.engines.engine import EngineOptions, load_engine
    from vla_edge.runtime.inference.graphs import BoundGraphs

    write_random_policy(tmp_path / "policy", RandomPolicy(cls=True, config={**SMALL, "cls_trained": True}))
    run_export(tmp_path)
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "cls" not in name}, tmp_path / "policy" / "model.safetensors"
    )
    change_config(tmp_path / "policy", use_cls_head=False)
    export_bundle(ExportRequest(tmp_path / "policy", tmp_path / "plain", threads=1), lambda step: None)
    results = []
    for folder in ("bundle", "plain"):
        graphs = BoundGraphs(open_bundle(tmp_path / folder), load_engine("ort", EngineOptions(threads=1)))
        generator = np.random.default_rng(5)
        for name in ("image_tokens", "mask", "positions"):
            graphs.buffers[name][:] = (
                generator.standard_normal(graphs.buffers[name].shape) if name == "image_tokens" else 1.0
            )
        graphs.loaded("prefix").run()
        results.append(dict(graphs.buffers))
    assert "cls" in results[0] and "cls" not in results[1]
    for name in results[1]:
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


def change_config(policy: Path, **fields: Any) -> None:
    content = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**content, **fields}))


def test_mixed_types_and_compiled_keys_export_to_the_same_graphs(tmp_path: Path) -> None:
    for name in ("mixed", "compiled"):
        write_random_policy(tmp_path / name / "policy", RandomPolicy(dtype="bfloat16", config=SMALL))
    file = tmp_path / "compiled" / "policy" / "model.safetensors"
    weights = load_file(file)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16, torch.float32}
    save_file({name.replace("model.", "model._orig_mod.", 1): tensor for name, tensor in weights.items()}, file)
    mixed, compiled = (run_export(tmp_path / name) for name in ("mixed", "compiled"))
    assert mixed.files == compiled.files


def test_an_export_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(config=SMALL))
    first = run_export(tmp_path)
    (tmp_path / "bundle").rename(tmp_path / "earlier")
    assert run_export(tmp_path).files == first.files


def test_renamed_cameras_keep_both_names(tmp_path: Path) -> None:
    manifest = export(
        tmp_path, RandomPolicy(rename_map={"observation.images.front": "observation.images.laptop"}, config=SMALL)
    )
    assert [(camera.name, camera.source) for camera in manifest.cameras] == [
        ("observation.images.laptop", "observation.images.front"),
        ("observation.images.phone", "observation.images.phone"),
    ]


def test_unresized_cameras_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write_random_policy(
        tmp_path / "policy",
        RandomPolicy(image_width=64, image_height=64, config={**SMALL, "resize_imgs_with_padding": None}),
    )
    content = json.loads((tmp_path / "policy" / "config.json").read_text())
    content["input_features"]["observation.images.phone"]["shape"] = [3, 128, 128]
    change_config(tmp_path / "policy", input_features=content["input_features"])
    with pytest.raises(ConfigError, match="one size for all"):
        run_export(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["policy"]


def tensors_of(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def test_actions_without_statistics_are_refused_unless_they_are_said_to_be_joint_values(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(config=SMALL))
    file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("action.")]:
            tensors[f"so100.buffer.{key}"] = tensors.pop(key)

    tensors_of(tmp_path / "policy", file, rename)
    with pytest.raises(CheckpointError, match=r"are there: .*so100.buffer.action.*--outputs-are-joint-values"):
        run_export(tmp_path)
    request = ExportRequest(tmp_path / "policy", tmp_path / "bundle", threads=1, outputs_are_joint_values=True)
    export_bundle(request, lambda step: None)
    bundle = open_bundle(tmp_path / "bundle")
    assert "outputs are taken for joint values" in remarks(bundle, read_tables(bundle))[0]


def test_a_state_joint_without_spread_is_named_with_what_mends_it(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(config=SMALL))
    file = "policy_preprocessor_step_5_normalizer_processor.safetensors"
    tensors_of(tmp_path / "policy", file, lambda tensors: tensors["observation.state.std"][4].zero_())
    notes = run_export(tmp_path).notes
    bundle = open_bundle(tmp_path / "bundle")
    for said in (notes, remarks(bundle, read_tables(bundle))):
        assert any("wrist_roll has no spread" in line and "vla-data stats" in line for line in said)


def test_steps_of_unequal_sizes_are_compared_with_torch_and_taken_by_runs_of_so_many(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", small())
    tables = {}
    for name, sizes in (("all", (0.5, 0.3, 0.2)), ("two", (0.25, 0.75)), ("equal", ())):
        request = ExportRequest(tmp_path / "policy", tmp_path / name, threads=1, step_sizes=sizes)
        export_bundle(request, lambda step: None)
        tables[name] = read_tables(open_bundle(tmp_path / name))
    np.testing.assert_array_equal(tables["all"]["flow_times.3"], np.array([1, 0.5, 0.2, 0], np.float32))
    np.testing.assert_array_equal(tables["two"]["flow_times.2"], np.array([1, 0.75, 0], np.float32))
    assert not any(name.startswith("flow_times") for name in tables["equal"])
    assert not np.array_equal(tables["all"]["time_bias.3"], tables["equal"]["time_bias.3"])
    np.testing.assert_array_equal(tables["two"]["time_bias.3"], tables["equal"]["time_bias.3"])


def test_step_sizes_that_make_no_way_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_random_policy(tmp_path / "policy", small())
    for text in ("0.5,0.4", "0.5,-0.5,1", "half,half", "nan,1", ""):
        assert main(["--checkpoint", str(tmp_path / "policy"), "--step-sizes", text]) == 2
        assert "give shares above 0 that make 1 together, such as 0.4,0.3,0.2,0.1" in capsys.readouterr().err
    many = ExportRequest(tmp_path / "policy", tmp_path / "bundle", step_sizes=(0.25,) * 4)
    with pytest.raises(ConfigError, match="--step-sizes gives 4 steps, the policy of .* takes at most 3; give fewer"):
        export_bundle(many, lambda step: None)


@pytest.mark.parametrize("more", [{}, {"attention_mode": "self_attn"}, {"num_expert_layers": 1}])
def test_a_bundle_of_the_first_actions_makes_them_as_the_whole_one_does(tmp_path: Path, more: dict[str, Any]) -> None:
    """An action depends on no later one: only the order of summing differs, as between two sizes of a product."""
    write_random_policy(tmp_path / "policy", small(**more))
    noise = np.random.default_rng(0).standard_normal((6, 32), np.float32)
    images = {
        f"observation.images.{name}": np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
        for name in ("laptop", "phone")
    }
    whole = run_export(tmp_path)
    made = infer(tmp_path / "bundle", images, np.zeros(6, np.float32), "go", noise)
    for size in (1, 4, 6):
        request = ExportRequest(tmp_path / "policy", tmp_path / f"first{size}", threads=1, chunk_size=size)
        short = export_bundle(request, lambda step: None)
        assert max(short.parity["graphs"].values()) < PLAIN_ROUNDING
        assert (short.policy.chunk_size, short.policy.n_action_steps) == (size, size)
        assert [note for note in short.notes if note not in whole.notes] == (
            [f"holds the first {size} of the policy's 6 actions a chunk (--chunk-size)"] if size < 6 else []
        )
        first = infer(tmp_path / f"first{size}", images, np.zeros(6, np.float32), "go", noise[:size])
        assert np.abs(first - made[:size]).max() <= PLAIN_ROUNDING * np.abs(made).max()
    many = ExportRequest(tmp_path / "policy", tmp_path / "more", chunk_size=7)
    with pytest.raises(ConfigError, match="makes 6 actions a chunk; give --chunk-size up to that"):
        export_bundle(many, lambda step: None)


def test_the_proof_of_the_first_actions_is_against_the_whole_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy, in torch and as a graph, whose actions see later ones: whole it is exported, shortened it is not."""
    write_random_policy(tmp_path / "policy", small())
    monkeypatch.setattr(torch.Tensor, "tril", lambda self: self)
    monkeypatch.setattr(np, "tri", lambda rows, dtype: np.ones((rows, rows), dtype))
    run_export(tmp_path)
    request = ExportRequest(tmp_path / "policy", tmp_path / "short", threads=1, chunk_size=3)
    with pytest.raises(ExportError, match="chunk"):
        export_bundle(request, lambda step: None)


def test_a_chunk_whose_delta_expert_was_measured_whole_is_not_shortened(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", replace(small(), delta=True))
    request = ExportRequest(tmp_path / "policy", tmp_path / "short", threads=1, chunk_size=3)
    with pytest.raises(ConfigError, match="delta expert was measured on the whole chunk; leave out --chunk-size"):
        export_bundle(request, lambda step: None)


def test_what_only_an_export_can_change_is_refused_for_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--chunk-size", "4"], ["--step-sizes", "0.5,0.5"], ["--fps", "30"], ["--take-empty-cameras"]):
        assert main(["--bundle", "bundle", "--precision", "int8", "--synthetic", *words]) == 2
        assert f"{words[0]} is for a checkpoint; give --checkpoint DIR instead of --bundle" in capsys.readouterr().err


def test_more_flow_steps_than_the_runtime_takes_are_refused_before_any_work(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(config={**SMALL, "num_steps": 65}))
    with pytest.raises(ConfigError, match="num_steps is 65, the runtime takes at most 64"):
        run_export(tmp_path)


def infer(bundle: Path, images: Mapping[str, Any], state: Any, task: str, noise: Any) -> Any:
    """The actions [C, n] that the runtime makes of raw values."""
    session = PolicySession(open_bundle(bundle), load_engine("ort", EngineOptions(threads=1)), SessionOptions())
    frames = {name: Frame(name, image, 0, 0) for name, image in images.items()}
    observation = Observation(0, frames, JointReading(0, 0, state), task)
    result = session.infer(InferenceRequest(observation, 0, noise=noise))
    assert result is not None
    return result.actions


def test_pictures_of_any_size_are_scaled_as_the_torch_policy_does(tmp_path: Path) -> None:
    """config.json of a fine-tune of smolvla_base says 256×256 whatever the data were, and a third camera."""
    manifest = export(
        tmp_path,
        RandomPolicy(cameras=("camera1", "camera2", "camera3"), image_width=256, image_height=256, config=SMALL),
    )
    assert not any(camera.seen for camera in manifest.cameras) and "256×256" in manifest.notes[-1]
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "policy")
    generator = np.random.default_rng(0)
    images = {
        f"observation.images.camera{index}": generator.integers(0, 256, (height, width, 3), np.uint8)
        for index, height, width in ((1, 96, 128), (2, 60, 81))
    }
    state, noise = np.zeros(6, np.float32), generator.standard_normal((6, 32), np.float32)
    batch = policy.preprocess({**images, "observation.state": state, "task": ""})
    actions = policy.predict_action_chunk(batch, torch.from_numpy(noise)[None])
    assert isinstance(actions, torch.Tensor)
    expected = policy.postprocess(actions)[0].numpy()
    found = infer(tmp_path / "bundle", images, state, "", noise)
    assert np.abs(found - expected).max() <= PLAIN_ROUNDING * np.abs(expected).max()


EMPTY = ("observation.images.empty_camera_0", "observation.images.empty_camera_1")


@pytest.mark.parametrize(("special", "listed"), ((False, False), (True, False), (True, True)))
def test_empty_cameras_that_may_be_given_a_picture_equal_torch_with_none_one_and_two(
    tmp_path: Path, special: bool, listed: bool
) -> None:
    """listed: config.json has one of them before the cameras, as LeRobot writes it back; their order is its order."""
    write_random_policy(tmp_path / "policy", small(empty_cameras=2, add_image_special_tokens=special))
    if listed:
        inputs = json.loads((tmp_path / "policy" / "config.json").read_text())["input_features"]
        change_config(
            tmp_path / "policy", input_features={EMPTY[1]: {"type": "VISUAL", "shape": [3, 480, 640]}, **inputs}
        )
    request = ExportRequest(tmp_path / "policy", tmp_path / "bundle", threads=1, take_empty_cameras=True)
    manifest = export_bundle(request, lambda step: None)
    assert sum(camera.placeholder for camera in manifest.cameras) == 2
    assert (manifest.cameras[0].name == EMPTY[1]) == listed
    assert all(camera.seen != camera.placeholder for camera in manifest.cameras)
    assert max(manifest.parity["graphs"].values()) < PLAIN_ROUNDING
    policy, generator = SmolVLAPolicy.from_pretrained(tmp_path / "policy"), np.random.default_rng(0)
    names = ("observation.images.laptop", "observation.images.phone", *EMPTY)
    pictures = {name: generator.integers(0, 256, (48, 64, 3), np.uint8) for name in names}
    state, noise = np.zeros(6, np.float32), generator.standard_normal((6, 32), np.float32)
    made = []
    for given in (names[:2], names[:3], names, names[1:], (names[0], names[3])):
        images = {name: pictures[name] for name in given}
        batch = policy.preprocess({**images, "observation.state": state, "task": "go"})
        actions = policy.predict_action_chunk(batch, torch.from_numpy(noise)[None])
        assert isinstance(actions, torch.Tensor)
        expected = policy.postprocess(actions)[0].numpy()
        made.append(infer(tmp_path / "bundle", images, state, "go", noise))
        assert np.abs(made[-1] - expected).max() <= PLAIN_ROUNDING * np.abs(expected).max(), given
    assert np.abs(made[1] - made[0]).max() > 1e-2, "the picture changes nothing"


def test_an_empty_camera_is_given_nothing_where_the_bundle_has_no_room_and_the_flag_is_named(tmp_path: Path) -> None:
    write_random_policy(tmp_path / "policy", small(empty_cameras=1))
    run_export(tmp_path)
    picture, noise = np.zeros((48, 64, 3), np.uint8), np.zeros((6, 32), np.float32)
    images = {"observation.images.laptop": picture, EMPTY[0]: picture}
    with pytest.raises(ObservationError, match="empty_camera_0'; export it again with --take-empty-cameras"):
        infer(tmp_path / "bundle", images, np.zeros(6, np.float32), "go", noise)
    change_config(tmp_path / "policy", empty_cameras=0)
    request = ExportRequest(tmp_path / "policy", tmp_path / "again", threads=1, take_empty_cameras=True)
    with pytest.raises(ConfigError, match="has no empty_cameras; leave out --take-empty-cameras"):
        export_bundle(request, lambda step: None)


def test_the_latent_of_a_relative_policy_goes_over_to_another_state(tmp_path: Path) -> None:
    """What `queued` and `inpaint` of a later inference take counts from no state: turned to a later state and
    un-normalised there it gives the same joint values."""
    write_random_policy(tmp_path / "policy", RandomPolicy(config=SMALL))
    for file, place, name in (("policy_preprocessor", 5, "relative"), ("policy_postprocessor", 1, "absolute")):
        content = json.loads((tmp_path / "policy" / f"{file}.json").read_text())
        content["steps"].insert(place, {"registry_name": f"{name}_actions_processor", "config": {"enabled": True}})
        (tmp_path / "policy" / f"{file}.json").write_text(json.dumps(content))
    assert run_export(tmp_path).policy.relative_joints == (0, 1, 2, 3, 4, 5)
    preparer, out = Preparer(open_bundle(tmp_path / "bundle")), np.empty((1, 32), np.float32)
    latent = np.random.default_rng(0).standard_normal((6, 32), np.float32)
    preparer.state(np.full(6, 20, np.float32), out)
    planned, kept = preparer.actions(latent)[0], preparer.anchored(latent)
    preparer.state(np.full(6, -35, np.float32), out)
    again = preparer.actions(preparer.unanchored(kept))[0]
    assert np.abs(again - planned).max() < 1e-3 and np.abs(preparer.actions(latent)[0] - planned + 55).max() < 1e-3


@pytest.mark.skipif(not RECORDED.is_dir(), reason="golden061 lies in ../shared, which is not here")
@pytest.mark.parametrize("name", SEVEN)
def test_a_bundle_reproduces_lerobot_061_from_raw_pictures(name: str, tmp_path: Path) -> None:
    with np.load(RECORDED / f"{name}.npz") as content:
        recorded = {key: content[key] for key in content.files}
    export_bundle(ExportRequest(RECORDED / name, tmp_path / "bundle", threads=1), lambda step: None)
    images = {key.removeprefix("raw/image/"): value for key, value in recorded.items() if "raw/image/" in key}
    task, noise = str(recorded["raw/task"]), recorded["noise"][0]
    found, wanted = infer(tmp_path / "bundle", images, recorded["raw/state"], task, noise), recorded["actions/final"][0]
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_graphs_take_no_more_room_than_the_tensors_they_use(tmp_path: Path) -> None:
    """On a policy of ordinary proportions; the graphs' own text (0.4 MB whatever the width) counts too."""
    write_random_policy(tmp_path / "policy", RandomPolicy(config={"num_vlm_layers": 4}))
    run_export(tmp_path)
    tensors = load_file(tmp_path / "policy" / "model.safetensors")
    unread = (
        "lm_head",
        "text_model.norm",
        "layers.3.mlp",
        "layers.3.self_attn.q_proj",
        "layers.3.self_attn.o_proj",
        "layers.3.post",
    )
    used = sum(
        tensor.numel() * 4
        for name, tensor in tensors.items()
        if not ("vlm.model.text_model" in name or "lm_head" in name) or not any(part in name for part in unread)
    )
    assert (tmp_path / "bundle" / "graphs" / "weights.bin").stat().st_size <= 1.05 * used


def wrong_gelu(graph: Graph, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
    if kind == "Gelu":
        attributes = {"approximate": "none"}
    return graph.ops(kind, *inputs, name=name, outputs=1, **attributes)[0]


def rotation_by_the_complement(graph: Graph, value: str, angles: attention.Angles, heads: Any) -> str:
    return attention_rotate(graph, value, attention.Angles(angles.sine, angles.cosine), heads)


def without_epsilon(graph: Graph, value: str, norm: Any, name: str) -> str:
    return layers_rms_norm(graph, value, type("Norm", (), {"eps": 0.01, "weight": norm.weight})(), name)


layers_rms_norm = layers.rms_norm
attention_rotate = attention.rotate


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "graph"),
    [
        (Graph, "op", wrong_gelu, "vision"),
        (attention, "rotate", rotation_by_the_complement, "prefix"),
        (layers, "rms_norm", without_epsilon, "prefix"),
        (cuts, "flow_moments", lambda steps, times: [(at, -1 / steps) for at in np.linspace(1, 0, steps)], "expert"),
        (
            expert,
            "time_waves",
            lambda time, width, low, high: torch.zeros(len(time), width, dtype=torch.float64),
            "expert",
        ),
    ],
    ids=("erf for tanh GELU", "sine for cosine in RoPE", "another epsilon", "another time grid", "no time"),
)
def test_a_mistake_in_a_graph_fails_the_export_and_names_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, attribute: str, wrong: Callable[..., Any], graph: str
) -> None:
    write_random_policy(tmp_path / "policy", RandomPolicy(config={**SMALL, "num_vlm_layers": 3}))
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(ExportError, match=f"parity: {graph} differs from torch by .*at most 0.0001"):
        run_export(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["policy"]


def test_a_result_that_is_not_finite_counts_as_a_deviation() -> None:
    deviations = WorstDeviations()
    deviations.add("vision", np.array([1.0, np.nan]), torch.tensor([1.0, 2.0]))
    assert deviations.worst["vision"] == np.inf
