# SPDX-License-Identifier: Apache-2.0
"""Every rule of the prefix cache and the gate (RUNTIME.md §3), on pictures and features made by hand; no graph runs."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.contract import Frame
from vla_edge.errors import BundleError, ConfigError
from vla_edge.runtime.control.planning import WatchedScene, still
from vla_edge.runtime.inference import scene_gate
from vla_edge.runtime.inference.cache import CacheKey, CacheMode, PrefixCache, Reason
from vla_edge.runtime.inference.scene_gate import (
    GateSettings,
    SceneGate,
    SceneVerdict,
    block_means,
    read_gate,
    settings_of,
    similarity,
    still_reading,
)

SETTINGS = GateSettings("00", threshold=0.9, still_mean=1.0, still_worst=8.0, max_reuse=3, max_age_s=10.0)
KEY = CacheKey("digest", "pick it up", (True, True), "")
SECOND = 1_000_000_000
SAME = {"cls": np.array([[1, 0], [0, 1]], np.float32)}
OTHER = {"cls": np.array([[0, 1], [1, 0]], np.float32)}


def pictures(first=100, second=100):
    return [np.full((480, 640, 3), value, np.uint8) for value in (first, second)]


class Driver:
    """Plays the part of the session: decide, "run", report back."""

    def __init__(self, policy=CacheMode.GATED, settings=SETTINGS):
        self.cache = PrefixCache(policy, settings)
        self.now_s = 0.0

    def __call__(self, frames=None, features=SAME, key=KEY, queued=False, after_s=0.1):
        self.now_s += after_s
        frames, now_ns = pictures() if frames is None else frames, int(self.now_s * SECOND)
        decision = self.cache.decide(key, frames, now_ns, queued)
        if decision.prefix:
            self.cache.computed(decision, key, frames, features, now_ns)
        else:
            self.cache.reused(decision, key)
        return decision

    def reasons(self, count, **arguments):
        return [self(**arguments).reason for _ in range(count)]


def test_always_recomputes_every_piece_and_says_so():
    drive = Driver(CacheMode.OFF, None)
    for _ in range(3):
        decision = drive()
        assert (decision.reason, decision.look, decision.prefix, decision.hit) == (Reason.ALWAYS, (0, 1), True, False)
    assert drive.cache.counts.misses == 3 and drive.cache.counts.hits == 0


def test_cls_reuses_only_after_a_stable_verdict():
    drive = Driver()
    # The first prefix is the reference, the second is judged stable, then reuse may begin.
    assert drive.reasons(4) == [Reason.NO_HISTORY, Reason.NO_HISTORY, Reason.REUSED, Reason.REUSED]
    assert drive.cache.gate.verdict is SceneVerdict.STABLE


def test_guard_drops_the_verdict_and_keeps_the_other_conditions():
    drive = Driver(CacheMode.STILL)
    assert drive.reasons(6) == [Reason.NO_HISTORY] + [Reason.REUSED] * 3 + [Reason.MAX_REUSE, Reason.REUSED]


def test_a_refresh_without_history_is_not_counted_as_a_miss():
    drive = Driver()
    drive.reasons(4)
    counts = drive.cache.counts
    assert (counts.inferences, counts.no_history, counts.misses, counts.hits) == (4, 2, 0, 2)


def test_a_changed_camera_alone_is_looked_at_again():
    drive = Driver()
    drive.reasons(3)
    decision = drive(pictures(second=130))
    assert (decision.reason, decision.look, decision.prefix) == (Reason.PICTURE_CHANGED, (1,), True)
    # Runs: both at start, both for the first verdict, then camera 1 alone. Kept: both on the hit, camera 0 now.
    assert drive.cache.counts.vision_runs == {0: 2, 1: 3} and drive.cache.counts.vision_hits == {0: 2, 1: 1}


def test_one_bad_block_is_enough_though_the_mean_is_small():
    drive = Driver()
    drive.reasons(2)
    frames = pictures()
    frames[0][:20, :20] = 120
    decision = drive(frames)
    assert decision.reason is Reason.PICTURE_CHANGED and decision.look == (0,)
    assert decision.still[0].mean < SETTINGS.still_mean and decision.still[0].worst > SETTINGS.still_worst


def test_the_guard_compares_with_the_picture_of_the_cached_tokens_so_drift_adds_up():
    drive = Driver(settings=replace(SETTINGS, max_reuse=1000, max_age_s=1000))
    drive.reasons(2)
    reasons = [drive([pictures(100 + level)[0], pictures()[1]]).reason for level in (1, 1, 2)]
    # Each step is one grey level, the limit of the mean; two steps away from the cached picture are over it.
    assert reasons == [Reason.REUSED, Reason.REUSED, Reason.PICTURE_CHANGED]


def test_noise_of_one_grey_level_is_no_change():
    rng = np.random.default_rng(1)
    drive = Driver(settings=replace(SETTINGS, still_mean=0.2, still_worst=0.5))
    noisy = [
        [(picture + rng.integers(-1, 2, picture.shape)).astype(np.uint8) for picture in pictures()] for _ in range(3)
    ]
    assert [drive(frames).reason for frames in noisy][-1] is Reason.REUSED


def test_stillness_is_read_in_levels_of_grey():
    frames = pictures(100, 107)
    reading = still_reading(block_means(frames[1]), block_means(frames[0]))
    assert reading.mean == pytest.approx(7, abs=1e-3) and reading.worst == pytest.approx(7, abs=1e-3)


def test_limits_are_read_from_files_of_before_that_call_stillness_a_guard(golden_bundle, tmp_path):
    old = {"similarity": "pooled", "threshold": 0.9, "guard_mean": 0.885, "guard_worst": 16.8}
    expected = GateSettings("pooled", 0.9, still_mean=0.885, still_worst=16.8)
    assert settings_of(old, "x") == settings_of(asdict(expected), "x") == expected
    for wrong, why in (({**old, "threshold": "high"}, "threshold is 'high', must be a"), ({}, "field similarity is")):
        with pytest.raises(BundleError, match=f"x: gate: {why} .*; run vla-calibrate gate again"):
            settings_of(wrong, "x")
    bundle = open_bundle(golden_bundle)
    for gate in ({**old, "max_reuse": 10, "max_age_s": 2.0, "bound": 0.01}, asdict(expected)):
        assert read_gate(replace(bundle, manifest=replace(bundle.manifest, gate=gate))) == expected


def test_a_pictures_blocks_are_made_once_however_many_ask_and_go_with_it(monkeypatch):
    made: list[int] = []
    convert = scene_gate.cv2.cvtColor

    def counted(image, code):
        made.append(id(image))
        return convert(image, code)

    monkeypatch.setattr(scene_gate.cv2, "cvtColor", counted)
    before = len(scene_gate._MEANS)
    drive, seen = Driver(), pictures()
    frames = {str(slot): Frame(str(slot), picture, 0, 0) for slot, picture in enumerate(seen)}
    drive(seen)
    watched = WatchedScene(frames, mean=2, worst=16)
    newer = {name: replace(frame, captured_ns=1) for name, frame in frames.items()}
    assert still(frames, newer) and not watched.broken_by(newer)
    drive(seen)
    assert drive(seen).reason is Reason.REUSED
    assert len(made) == 2 and len(scene_gate._MEANS) == before + 2
    changed = pictures(first=101)
    assert block_means(changed[0])[0, 0] == pytest.approx(block_means(seen[0])[0, 0] + 1)
    del seen, frames, watched, newer, changed
    assert len(scene_gate._MEANS) == before


def test_a_changed_verdict_forces_a_refresh_of_every_camera_and_moves_the_reference():
    drive = Driver()
    drive.reasons(3)
    drive(pictures(first=130), features=OTHER)
    assert drive.cache.gate.verdict is SceneVerdict.CHANGED
    decision = drive(pictures(first=130), features=OTHER)
    assert (decision.reason, decision.look) == (Reason.SCENE_CHANGED, (0, 1))
    assert drive.cache.gate.verdict is SceneVerdict.STABLE
    assert drive(pictures(first=130)).reason is Reason.REUSED


def test_a_stable_verdict_never_moves_the_reference():
    gate, angle, verdicts = SceneGate(), 0.0, []
    for _ in range(8):
        features = {"cls": np.array([[np.cos(angle), np.sin(angle)]], np.float32)}
        verdicts.append(gate.judge(features, SETTINGS))
        angle += 0.1
    # cos(0.4) = 0.921, cos(0.5) = 0.878: stable against the first until the fifth step of a slow turn.
    assert (
        verdicts
        == [SceneVerdict.NO_HISTORY] + [SceneVerdict.STABLE] * 4 + [SceneVerdict.CHANGED] + [SceneVerdict.STABLE] * 2
    )


def test_a_similarity_equal_to_the_threshold_is_not_above_it():
    gate = SceneGate()
    gate.judge(SAME, replace(SETTINGS, threshold=1.0))
    assert gate.judge(SAME, replace(SETTINGS, threshold=1.0)) is SceneVerdict.CHANGED


def test_the_reference_is_a_copy_of_the_buffer_it_came_from():
    gate, buffer = SceneGate(), {"cls": SAME["cls"].copy()}
    gate.judge(buffer, SETTINGS)
    buffer["cls"][:] = OTHER["cls"]
    assert gate.judge(buffer, SETTINGS) is SceneVerdict.CHANGED


def test_each_similarity_compares_the_tokens_in_its_name():
    now = {"cls": np.array([[1, 0], [0, 2]], np.float32), "pooled": np.array([3, 0], np.float32)}
    reference = {"cls": np.array([[5, 0], [1, 0]], np.float32), "pooled": np.array([-1, 0], np.float32)}
    assert [similarity(kind, now, reference) for kind in ("00", "11", "01", "pooled")] == [1, 0, 1, -1]
    assert similarity("pooled", {"pooled": np.zeros(2, np.float32)}, reference) == 0


def test_a_bundle_without_cls_tokens_is_gated_by_the_pooled_feature():
    drive = Driver(settings=replace(SETTINGS, similarity="pooled"))
    pooled = {"pooled": np.array([1, 2], np.float32)}
    assert drive.reasons(3, features=pooled)[-1] is Reason.REUSED


def test_reuses_end_at_max_reuse_and_every_camera_is_looked_at_again():
    drive = Driver()
    drive.reasons(5)
    decision = drive()
    assert (decision.reason, decision.look) == (Reason.MAX_REUSE, (0, 1))
    assert drive().reason is Reason.REUSED


def test_max_age_bounds_everything():
    drive = Driver(CacheMode.STILL)
    drive()
    assert drive(after_s=10.0).reason is Reason.REUSED
    decision = drive(after_s=0.001)
    assert (decision.reason, decision.look) == (Reason.MAX_AGE, (0, 1))
    assert decision.age_s == pytest.approx(10.001)
    assert drive(after_s=9.9).reason is Reason.REUSED


def test_the_age_is_that_of_the_oldest_tokens_in_the_prefix():
    drive = Driver(CacheMode.STILL)
    drive()
    drive(pictures(second=130), after_s=6)
    decision = drive(pictures(second=130), after_s=6)
    assert decision.reason is Reason.MAX_AGE and decision.look == (0, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": "put it down"}, Reason.INSTRUCTION),
        ({"bundle": "another"}, Reason.BUNDLE),
        ({"preprocessing": "cut"}, Reason.PREPROCESSING),
    ],
)
def test_what_makes_a_prefix_incomparable_is_named_and_ends_all_history(change, reason):
    drive = Driver()
    drive.reasons(3)
    other = replace(KEY, **change)
    decision = drive(key=other)
    assert (decision.reason, decision.look, decision.prefix) == (reason, (0, 1), True)
    assert drive.cache.gate.verdict is SceneVerdict.NO_HISTORY
    assert drive(key=other).reason is Reason.NO_HISTORY
    assert drive(key=other).reason is Reason.REUSED


def test_a_camera_that_goes_or_comes_is_a_miss():
    drive = Driver()
    drive.reasons(3)
    alone = replace(KEY, cameras=(True, False))
    decision = drive([pictures()[0], None], key=alone)
    assert (decision.reason, decision.look) == (Reason.CAMERAS, (0,))
    assert drive(key=KEY).reason is Reason.CAMERAS


def test_a_reset_is_a_miss_once_and_without_history_it_is_none():
    drive = Driver()
    drive.cache.reset()
    assert drive().reason is Reason.NO_HISTORY
    drive.reasons(2)
    drive.cache.reset()
    assert drive.reasons(3) == [Reason.RESET, Reason.NO_HISTORY, Reason.REUSED]


def test_an_inference_that_failed_leaves_no_history():
    drive = Driver(CacheMode.STILL)
    drive.reasons(2)
    drive.cache.decide(KEY, pictures(first=200), SECOND, False)
    assert drive(pictures(first=200)).reason is Reason.NO_HISTORY


def test_after_a_failure_the_gate_starts_anew_and_an_earlier_reset_is_not_named_again():
    drive = Driver()
    drive()
    drive.cache.reset()
    drive.reasons(3)
    drive.cache.decide(KEY, pictures(first=200), SECOND, False)
    assert drive.reasons(3) == [Reason.NO_HISTORY, Reason.NO_HISTORY, Reason.REUSED]


def test_delta_corrects_only_a_queued_chunk_in_a_stable_scene_and_is_counted_apart():
    drive = Driver(CacheMode.DELTA)
    assert not drive(queued=True).delta and not drive(queued=True).delta
    assert drive(queued=True).delta and not drive(queued=False).delta
    assert not drive(pictures(first=200), queued=True).delta
    assert (drive.cache.counts.delta_runs, drive.cache.counts.hits) == (1, 2)


def test_cls_and_guard_never_run_delta():
    for policy in (CacheMode.STILL, CacheMode.GATED):
        drive = Driver(policy)
        drive.reasons(2)
        assert not drive(queued=True).delta


def test_an_audit_refreshes_everything_and_is_neither_hit_nor_miss():
    drive = Driver(CacheMode.STILL)
    drive.reasons(2)
    decision = drive.cache.audit(KEY, pictures())
    drive.cache.computed(decision, KEY, pictures(), SAME, 2 * SECOND)
    assert (decision.reason, decision.look) == (Reason.AUDIT, (0, 1))
    counts = drive.cache.counts
    assert (counts.audits, counts.inferences, counts.hits, counts.misses) == (1, 2, 1, 0)
    assert drive.cache.gate.verdict is SceneVerdict.STABLE


def test_tightening_moves_every_limit_towards_never_and_ends_the_history():
    drive = Driver(CacheMode.STILL)
    drive.reasons(2)
    tight = drive.cache.tighten()
    assert (tight.still_mean, tight.still_worst, tight.threshold) == (0.5, 4.0, 0.95)
    assert drive().reason is Reason.NO_HISTORY
    assert drive(pictures(first=101)).reason is Reason.PICTURE_CHANGED


@pytest.mark.parametrize(
    "wrong",
    [{"similarity": "10"}, {"threshold": 1.5}, {"still_mean": -1.0}, {"max_age_s": float("nan")}, {"max_reuse": -1}],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(SETTINGS, **wrong)


def test_reasons_are_counted_by_name():
    drive = Driver(CacheMode.STILL)
    drive.reasons(5)
    assert drive.cache.counts.reasons == {"no_history": 1, "reused": 3, "max_reuse": 1}
