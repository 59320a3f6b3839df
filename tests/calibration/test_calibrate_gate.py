# SPDX-License-Identifier: Apache-2.0
"""`vla-calibrate gate`: the choice of limits on pairs made by hand, and the whole command on recorded episodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from vla_edge.bundle import MANIFEST, open_bundle
from vla_edge.calibration.command import main
from vla_edge.calibration.gate.gate_limits import Pairs, auroc, choose, loosest, loosest_still
from vla_edge.calibration.gate.gate_pairs import PairPlan, planned_pairs
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import read_gate
from vla_edge.runtime.inference.session import PolicySession, SessionOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "koch-bfloat16.npz"
ACT = Path(__file__).parents[2] / "examples" / "reach-cube" / "act" / "red"


# ---- the choice


def pairs(mean, worst, error, **similarity) -> Pairs:
    count = len(error)
    places = np.arange(count)
    return Pairs(
        places,
        places + 1,
        np.ones(count),
        np.asarray(mean, float),
        np.asarray(worst, float),
        {k: np.asarray(v, float) for k, v in similarity.items()},
        np.asarray(error, float),
    )


def test_the_auroc_is_the_chance_to_rank_a_pair_right():
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([]), np.array([1.0])) is None


def test_the_loosest_limit_ends_where_the_error_begins():
    distance = np.arange(100.0)
    limit = loosest(distance, np.where(distance < 60, 0.001, 0.02), 0.01)
    # Candidates are forty quantiles; five per cent of the pairs may be above the bound, but not those at the edge.
    assert limit is not None and 56 <= limit <= 60
    assert loosest(distance, np.full(100, 0.02), 0.01) is None


def test_a_limit_keeps_half_the_distance_to_the_nearest_gross_error():
    distance = np.arange(100.0)
    limit = loosest(distance, np.where(distance < 60, 0.001, 0.1), 0.01)
    # The first of the gross ones stands at 60; a candidate every 2.5.
    assert limit is not None and 27 <= limit < 30


def test_many_still_pairs_do_not_pay_for_the_few_at_the_limit():
    # 1000 still pairs without error, 40 at a distance of 50 with a large one: 4 % over all, within the 95th percentile.
    distance = np.concatenate([np.linspace(0, 1, 1000), np.full(40, 50.0)])
    error = np.concatenate([np.zeros(1000), np.full(40, 0.5)])
    assert float(np.percentile(error, 95)) == 0
    limit = loosest(distance, error, 0.01)
    assert limit is not None and limit <= 1


def test_the_guard_keeps_out_a_small_object_by_its_worst_block_and_a_dim_room_by_its_mean():
    rng = np.random.default_rng(0)
    still = rng.uniform(0.1, 0.3, 100), rng.uniform(0.5, 2, 100), np.full(100, 0.001)
    moved = rng.uniform(0.3, 0.6, 100), rng.uniform(60, 90, 100), np.full(100, 0.2)
    dimmed = rng.uniform(8, 12, 100), rng.uniform(8, 12, 100), np.full(100, 0.2)
    harmless = rng.uniform(0.5, 2, 100), rng.uniform(3, 20, 100), np.full(100, 0.002)
    found = loosest_still(pairs(*(np.concatenate(part) for part in zip(still, moved, dimmed, harmless))), 0.01)
    assert found is not None
    mean, worst = found
    # All harmless pairs but the last few of a quantile are within, none of the two kinds of change is.
    # Halves of the nearest moved object's worst block and of the nearest dimmed room's mean are not exceeded.
    assert 1.7 < mean <= 6 and 15 < worst <= 45


def test_the_similarity_that_tells_harm_best_is_chosen_and_named_with_its_auroc():
    rng = np.random.default_rng(1)
    error = np.concatenate([np.full(100, 0.001), np.full(100, 0.2)])
    level = np.concatenate([rng.uniform(0, 1, 100), rng.uniform(5, 6, 100)])
    limits = choose(pairs(level, level, error, **{"01": rng.uniform(0, 1, 200), "00": 1 - level / 10}), 0.01)
    assert limits is not None and limits.similarity == "00" and limits.auroc["00"] == 1
    assert limits.auroc["01"] == pytest.approx(0.5, abs=0.1)
    assert 0.88 < limits.threshold < 0.95 and 0.4 < limits.allowed <= 0.5


def test_no_limits_are_chosen_where_every_reuse_is_harmful():
    assert choose(pairs([0, 1], [0, 1], [0.5, 0.5], pooled=[1, 1]), 0.01) is None


# ---- the command


def write_data(folder: Path, size: tuple[int, int] = (640, 480)) -> Path:
    """Four episodes of 12 frames at 10 a second: eight of LeRobot's pictures under noise of a grey level, then a bright
    square on the phone's; joints drift all along. The phone's key is another name than the policy's."""
    rng = np.random.default_rng(2)
    with np.load(GOLDEN, allow_pickle=False) as content:
        pictures = {name: content[f"raw/image/observation.images.{name}"] for name in ("laptop", "phone")}
        state, task = content["raw/state"].reshape(-1), str(content["raw/task"])
    keys = {"laptop": "observation.images.laptop", "phone": "observation.images.front"}
    features = {"observation.state": Feature("float32", (6,), None), "action": Feature("float32", (6,), None)}
    features |= {key: Feature("image", (*size[::-1], 3), ["height", "width", "channels"]) for key in keys.values()}
    with DatasetWriter(folder, 10, features, robot_type="koch") as writer:
        for episode in range(4):
            for frame in range(12):
                values = {
                    "observation.state": (state + 0.2 * frame).astype(np.float32),
                    "action": state.astype(np.float32),
                }
                for name, key in keys.items():
                    picture = pictures[name].copy()
                    if frame >= 8 and name == "phone":
                        cv2.rectangle(picture, (40 + 60 * episode, 60), (360 + 60 * episode, 400), (250, 250, 40), -1)
                    picture = picture if picture.shape[1::-1] == size else cv2.resize(picture, size)
                    values[key] = picture ^ rng.integers(0, 2, picture.shape, np.uint8)
                writer.add_frame(values, task)
            writer.save_episode()
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("gate") / "data")


def words(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    small = [
        "--references",
        "8",
        "--lags",
        "3",
        "--others",
        "1",
        "--max-age-s",
        "0.8",
        "--threads",
        "1",
        "--camera",
        "phone=front",
    ]
    return ["gate", "--bundle", str(bundle), "--dataset", str(data), "--out", str(out), "--json", *small, *more]


def test_a_calibrated_bundle_names_its_limits_and_their_evidence_and_runs_gated(
    golden_bundle, dataset, tmp_path, capsys
):
    out = tmp_path / "calibrated"
    # A random policy's actions follow the noise of a picture more than a trained one's: a wider bound than the default.
    assert main(words(golden_bundle, dataset, out, "--bound", "0.05")) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    bundle, old = open_bundle(out), open_bundle(golden_bundle)
    bundle.verify()
    assert told["digest"] == bundle.digest != old.digest and "threshold" not in old.manifest.gate
    assert bundle.manifest.graphs == old.manifest.graphs
    weights = out / "graphs" / "weights.bin"
    assert weights.read_bytes() == (golden_bundle / "graphs" / "weights.bin").read_bytes()
    assert weights.samefile(golden_bundle / "graphs" / "weights.bin"), "a link, not a copy of all weights"
    gate = bundle.manifest.gate
    assert (
        len(gate["data"]["digest"]) == 64
        and gate["data"]["cameras"]["observation.images.phone"] == "observation.images.front"
    )
    assert gate["similarity"] == "pooled" and set(gate["auroc"]) == {"pooled"} and gate["bound"] == 0.05
    plot = cv2.imread(str(out / "gate.png"))
    assert plot is not None and plot.shape == (800, 1100, 3)
    settings = read_gate(bundle)
    assert settings is not None
    # Noise of one grey level is within the guard, the square is not.
    assert 0.1 < settings.still_worst < 60
    for run in gate["replay"].values():
        assert run["error_joint_p95"] <= 0.05 and run["hit_rate"] > 0.2
    session = PolicySession(bundle, load_engine("ort", EngineOptions(threads=1)), SessionOptions(CacheMode.GATED))
    assert session.cache.settings == settings


def test_episodes_without_rest_are_said_to_give_limits_that_reuse_nothing(golden_bundle, tmp_path, capsys):
    """The picture changes with every frame but the second, so that there are limits to choose."""
    rng = np.random.default_rng(3)
    with np.load(GOLDEN, allow_pickle=False) as content:
        shape = content["raw/image/observation.images.phone"].shape
        state, task = content["raw/state"].reshape(-1).astype(np.float32), str(content["raw/task"])
    features = {"observation.state": Feature("float32", (6,), None), "action": Feature("float32", (6,), None)}
    names = ["height", "width", "channels"]
    features |= {f"observation.images.{name}": Feature("image", shape, names) for name in ("laptop", "front")}
    with DatasetWriter(tmp_path / "data", 10, features, robot_type="koch") as writer:
        for _ in range(4):
            for frame in range(6):
                if frame != 1:
                    picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), shape[1::-1])
                pictures = {name: picture for name in features if "images" in name}
                writer.add_frame({"observation.state": state, "action": state, **pictures}, task)
            writer.save_episode()
    more = ("--bound", "0.05", "--period-s", "0.2", "--references", "18")
    assert main(words(golden_bundle, tmp_path / "data", tmp_path / "out", *more)) == 0
    told, said = capsys.readouterr()
    assert "hardly anything is reused" in said and "rests for seconds" in said
    assert json.loads(told.splitlines()[-1])["replay"]["still"]["hit_rate"] < 0.1


def test_a_policy_without_a_prefix_gets_limits_of_stillness_for_each_cameras_tokens(tmp_path, capsys):
    export_bundle(ExportRequest(ACT, tmp_path / "act", threads=1), lambda step: None)
    data = write_data(tmp_path / "data", (128, 96))
    asked = words(tmp_path / "act", data, tmp_path / "out", "--bound", "0.02", "--max-age-s", "2")
    assert main([word for word in asked if word != "--json"]) == 0
    assert "similarity   none: this policy has no prefix" in capsys.readouterr().out
    told = open_bundle(tmp_path / "out").manifest.gate
    assert told["kind"] == told["similarity"] == "none" and told["auroc"] == {} and set(told["replay"]) == {"still"}
    # The square changes the phone's picture alone: the laptop's tokens stay, and no inference with it is a whole hit.
    run = told["replay"]["still"]
    assert run["error_joint_p95"] <= 0.02 and run["pictures_kept"] > 0.5 and run["reasons"]["picture_changed"] >= 1
    assert run["hit_rate"] * run["inferences"] > run["reasons"]["reused"]
    bundle = open_bundle(tmp_path / "out")
    bundle.verify()
    settings = read_gate(bundle)
    assert settings is not None and 0.1 < settings.still_worst < 60
    for mode in (CacheMode.STILL, CacheMode.OFF):
        PolicySession(bundle, load_engine("ort", EngineOptions(threads=1)), SessionOptions(mode))


def test_the_same_data_gives_the_same_limits_and_digest(golden_bundle, dataset, tmp_path, capsys):
    found = []
    for name in "ab":
        assert (
            main(words(golden_bundle, dataset, tmp_path / name, "--bound", "0.05", "--references", "3", "--lags", "2"))
            == 0
        )
        found.append(open_bundle(tmp_path / name).manifest.gate)
    same = ("similarity", "threshold", "still_mean", "still_worst", "auroc", "data", "tightened")
    assert [found[0][key] for key in same] == [found[1][key] for key in same]


def test_a_bound_that_no_reuse_keeps_fails_with_exit_code_1_and_writes_nothing(
    golden_bundle, dataset, tmp_path, capsys
):
    assert main(words(golden_bundle, dataset, tmp_path / "out", "--bound", "1e-9", "--references", "3")) == 1
    assert "no reuse keeps the action error under" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--camera", "wrist=front"], "the policy has no camera wrist"),
        (["--camera", "laptop=side"], "has no camera side; there is"),
        (["--camera", "laptop"], "give NAME=DATASET_NAME"),
        (["--bound", "0"], "--bound: '0' is not a share"),
        (["--references", "0"], "--references: '0' is not"),
    ],
)
def test_bad_input_is_refused_in_one_line(golden_bundle, dataset, tmp_path, capsys, more, message):
    assert main(words(golden_bundle, dataset, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_existing_bundle_is_never_written_to(golden_bundle, dataset, capsys):
    assert main(words(golden_bundle, dataset, golden_bundle)) == 2
    assert "bundles are never changed" in capsys.readouterr().err


def test_a_declared_camera_that_the_data_never_had_is_masked(golden_bundle, dataset, tmp_path, capsys):
    """As in fine-tunes of smolvla_base, whose config.json keeps three cameras whatever the data have."""
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    manifest = json.loads((bundle / MANIFEST).read_text())
    names = [camera["source"] for camera in manifest["cameras"]]
    manifest["cameras"][names.index("observation.images.laptop")]["seen"] = False
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["observation.images.other"] = info["features"].pop("observation.images.laptop")
    (data / "meta/info.json").write_text(json.dumps(info))
    for path in data.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        names = [name.replace("laptop", "other") for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    few = ("--bound", "0.05", "--references", "3", "--lags", "2")
    assert main(words(bundle, data, tmp_path / "out", *few)) == 0
    cameras = open_bundle(tmp_path / "out").manifest.gate["data"]["cameras"]
    assert list(cameras) == ["observation.images.phone"]
    assert main(words(golden_bundle, data, tmp_path / "refused", *few)) == 2
    assert "no camera laptop that the policy sees" in capsys.readouterr().err


def test_pairs_stay_within_an_episode_but_for_the_others_and_share_their_task(golden_bundle, dataset):
    from vla_edge.calibration.gate.gate_data import Recorded

    with open_dataset(dataset) as data:
        recorded = Recorded(data, {"observation.images.laptop": "observation.images.laptop"})
        found = planned_pairs(recorded, data.episodes[:3], PairPlan(references=10, lags=4, others=2, max_age_s=0.6))
        own = [(a, b) for a, b in found if data.episode_of(a).index == data.episode_of(b).index]
        assert len(found) - len(own) == 20 and all(0 < b - a <= 6 for a, b in own)
        assert max(b for _, b in found) < data.episodes[3].from_index, "held-out episodes are not looked at"
