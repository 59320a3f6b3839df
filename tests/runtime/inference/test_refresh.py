# SPDX-License-Identifier: Apache-2.0
"""A prefix made beside the plans: what plans use meanwhile, when they go over, and that a replay does the same."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.inference.test_session import GOLDEN, LOOSE, STRICT, observation_of

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import Inpaint
from vla_edge.errors import ConfigError, EngineError
from vla_edge.runtime.inference.cache import CacheKey, CacheMode, Decision, Reason
from vla_edge.runtime.inference.input_record import InputRecorder, RecordedSession
from vla_edge.runtime.inference.refresh import NICE, BesideRefresh, Refresh, Started
from vla_edge.runtime.inference.scene_gate import SceneVerdict
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession, SessionOptions
from vla_edge.runtime.records.replay_inputs import replay_inputs

ONE = EngineOptions(threads=1, spin=False)
SEC = 10**9


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(GOLDEN, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return open_bundle(golden_bundle)


def session_of(bundle: Bundle, backend: str = "ort", **options: Any) -> PolicySession:
    given = {"cache": CacheMode.STILL, "gate": replace(STRICT, max_reuse=1000), "refresh": Refresh.BESIDE, **options}
    return PolicySession(bundle, load_engine(backend, ONE), SessionOptions(**given))


def infer(session: PolicySession, request: InferenceRequest) -> InferenceResult:
    result = session.infer(request)
    assert result is not None
    return result


def seen(recorded: dict[str, Any], now_s: float, brighter: int = 0, **more: Any) -> InferenceRequest:
    return InferenceRequest(
        observation_of(recorded, brighter, now_s), int(now_s * SEC), noise=recorded["noise"][0], **more
    )


@pytest.mark.parametrize("backend", ["ort", "ort-python", "openvino"])
def test_plans_go_on_with_the_last_prefix_until_the_next_is_adopted_between_two(
    bundle: Bundle, recorded: dict[str, Any], backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    session = session_of(bundle, backend)
    kept = session_of(bundle, backend, gate=LOOSE, refresh=Refresh.FRONT)
    fresh = session_of(bundle, backend, cache=CacheMode.OFF, gate=None, refresh=Refresh.FRONT)
    assert infer(session, seen(recorded, 0)).decision.reason is Reason.NO_HISTORY
    infer(kept, seen(recorded, 0))
    beside = infer(session, seen(recorded, 0.25, 40, adopt=False))
    assert beside.decision.reason is Reason.BESIDE and not beside.decision.prefix and not beside.decision.hit
    assert beside.decision.age_s == 0.25 and beside.adopted is None and beside.timings.vision == 0
    np.testing.assert_array_equal(beside.latent, infer(kept, seen(recorded, 0.25, 40)).latent)
    session.settle()
    still_not = infer(session, seen(recorded, 0.5, 40, adopt=False))
    assert still_not.decision.reason is Reason.BESIDE
    np.testing.assert_array_equal(still_not.latent, infer(kept, seen(recorded, 0.5, 40)).latent)
    over = infer(session, seen(recorded, 0.75, 40))
    assert over.decision.reason is Reason.REUSED and over.adopted is not None and session.went_over
    # The phone's new picture is half a second old, the laptop's is the first one still; neither is the age of the plan.
    assert (over.adopted.age_s, over.decision.age_s) == (0.5, 0.75)
    assert over.adopted.prefix_ms > 0 < over.adopted.vision_ms
    np.testing.assert_array_equal(over.latent, infer(fresh, seen(recorded, 0.75, 40)).latent)
    counts = session.cache.counts
    assert (counts.inferences, counts.misses, counts.hits, counts.beside, counts.refreshes) == (4, 0, 1, 2, 1)


def test_the_first_plan_from_newer_pictures_is_untied_where_the_scene_has_moved(
    bundle: Bundle, recorded: dict[str, Any]
) -> None:
    session = session_of(bundle)
    policy = bundle.manifest.policy
    tie = Inpaint(
        np.ones((policy.chunk_size, policy.max_action_dim), np.float32), np.ones(policy.chunk_size, np.float32)
    )
    infer(session, seen(recorded, 0))
    assert infer(session, seen(recorded, 0.1, inpaint=tie, moved=True)).tied, "it rests on the pictures of before"
    beside = infer(session, seen(recorded, 0.25, 40, adopt=False, inpaint=tie, moved=True))
    assert beside.tied and not beside.newer
    over = infer(session, seen(recorded, 0.5, 40, adopt=True, inpaint=tie, moved=True))
    assert over.newer and not over.tied
    fresh = session_of(bundle, cache=CacheMode.OFF, gate=None, refresh=Refresh.FRONT)
    np.testing.assert_array_equal(over.latent, infer(fresh, seen(recorded, 0.5, 40)).latent)
    assert infer(session, seen(recorded, 1, 40, inpaint=tie)).tied
    front = session_of(bundle, refresh=Refresh.FRONT)
    infer(front, seen(recorded, 0))
    assert not infer(front, seen(recorded, 0.25, 40, inpaint=tie, moved=True)).tied
    assert infer(front, seen(recorded, 0.5, 80, inpaint=tie)).tied


def test_a_prefix_too_old_or_a_plan_at_rest_waits_for_the_refresh_and_then_makes_its_own(
    bundle: Bundle, recorded: dict[str, Any]
) -> None:
    session = session_of(bundle, gate=replace(STRICT, max_age_s=1.0, max_reuse=1000))
    fresh = session_of(bundle, cache=CacheMode.OFF, gate=None, refresh=Refresh.FRONT)
    infer(session, seen(recorded, 0))
    infer(session, seen(recorded, 0.6, 40))
    waited = infer(session, seen(recorded, 1.25, 40, adopt=False))
    # What had grown old by half was looked at again as well, though it had not changed.
    assert waited.adopted is not None and waited.decision.reason is Reason.REUSED
    assert waited.decision.age_s == pytest.approx(0.65)
    infer(session, seen(recorded, 1.3, 80))
    at_rest = infer(session, seen(recorded, 1.4, 120, beside=False, adopt=False))
    assert at_rest.adopted is not None and at_rest.decision.reason is Reason.PICTURE_CHANGED
    np.testing.assert_array_equal(at_rest.latent, infer(fresh, seen(recorded, 1.4, 120)).latent)
    late = infer(session, seen(recorded, 9, 120))
    assert late.adopted is None and late.decision.reason is Reason.MAX_AGE and late.decision.prefix


def test_at_rest_a_prefix_is_made_anew_before_it_is_too_old_and_no_plan_waits(
    bundle: Bundle, recorded: dict[str, Any]
) -> None:
    session = session_of(bundle, gate=replace(STRICT, max_age_s=1.0, max_reuse=1000))
    infer(session, seen(recorded, 0))
    made = []
    for number in range(1, 30):
        made.append(infer(session, seen(recorded, number / 10)))
        session.settle()
    assert {result.decision.reason for result in made} == {Reason.REUSED}
    assert session.cache.counts.refreshes == sum(result.adopted is not None for result in made) == 4
    assert max(result.decision.age_s or 0 for result in made) < 1


def test_a_changed_verdict_of_a_refresh_voids_what_is_queued(bundle: Bundle, recorded: dict[str, Any]) -> None:
    told: list[int] = []
    session = session_of(bundle, cache=CacheMode.GATED, gate=replace(STRICT, threshold=0.9999999, max_reuse=1000))
    infer(session, seen(recorded, 0))
    infer(session, seen(recorded, 0.1))  # no verdict is given without history
    assert session.cache.gate.verdict is SceneVerdict.STABLE
    infer(session, seen(recorded, 0.2, 80, adopt=False, on_changed=lambda: told.append(1)))
    assert not told
    over = infer(session, seen(recorded, 0.3, 80, adopt=True, on_changed=lambda: told.append(2)))
    assert over.verdict is SceneVerdict.CHANGED and told == [2]


def test_another_instruction_a_reset_and_an_audit_drop_the_refresh(bundle: Bundle, recorded: dict[str, Any]) -> None:
    session = session_of(bundle)
    for drop in ("task", "reset", "audit"):
        infer(session, seen(recorded, 0))
        assert infer(session, seen(recorded, 0.1, 40)).decision.reason is Reason.BESIDE
        if drop == "reset":
            session.reset()
        request = seen(recorded, 0.2, 40)
        if drop == "task":
            request = replace(request, observation=replace(request.observation, task="another"))
        result = session.recompute(request) if drop == "audit" else infer(session, request)
        assert result is not None and result.decision.prefix and result.adopted is None, drop
        session.reset()


def test_what_fails_beside_is_raised_on_the_sessions_thread_and_plans_go_on_after_it(
    bundle: Bundle, recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(bundle)
    infer(session, seen(recorded, 0))
    see = session.graphs.see

    def fails(slot: int) -> None:
        assert threading.current_thread().name == "refresh"
        raise EngineError("graph vision: run failed")

    monkeypatch.setattr(session.graphs, "see", fails)
    infer(session, seen(recorded, 0.1, 40))
    with pytest.raises(EngineError, match="vision: run failed"):
        infer(session, seen(recorded, 0.2, 40, adopt=True))
    monkeypatch.setattr(session.graphs, "see", see)
    assert infer(session, seen(recorded, 0.3, 40)).decision.reason is Reason.BESIDE
    session.settle()


def test_a_replay_goes_over_where_the_run_did_and_gives_the_same_bits(
    bundle: Bundle, recorded: dict[str, Any], tmp_path: Path
) -> None:
    record = tmp_path / "inputs"
    recorder = InputRecorder(record, 64 << 20, print)
    session = session_of(bundle)
    session.observer = RecordedSession(recorder, 1, session, "ort", 1)
    reasons = []
    for number, adopt in enumerate([None, False, False, True, False, None, False, True, True]):
        request = seen(recorded, number / 8, 10 * number if number != 6 else 50, adopt=adopt)
        reasons.append(infer(session, request).decision.reason)
        if number == 4:
            session.settle()
    session.settle()
    recorder.close()
    assert Reason.BESIDE in reasons
    replayed = replay_inputs(record, bundle.path, lambda entries: entries)
    assert (replayed.inferences, replayed.differing) == (len(reasons), 0)


def test_what_cannot_refresh_beside_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for cache in (CacheMode.OFF, CacheMode.DELTA):
        with pytest.raises(
            ConfigError, match=f"--refresh beside goes with --cache still or gated, not with {cache.value}"
        ):
            SessionOptions(cache, refresh=Refresh.BESIDE)
    monkeypatch.delattr("vla_edge.engines.ort.OrtGraph._twin")
    with pytest.raises(ConfigError, match="backend ort cannot refresh a prefix beside .* --refresh front"):
        session_of(bundle, "ort-python")


def test_the_refreshing_thread_stands_behind_the_plans(bundle: Bundle, recorded: dict[str, Any]) -> None:
    heard: list[int] = []

    def work(started: Started) -> tuple[float, float, float]:
        heard.append(nice())
        return 0.0, 0.0, 0.0

    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, refresh = nice(), BesideRefresh(work)
    key = CacheKey("", "", (), "")
    refresh.start(Started(Decision(Reason.MAX_REUSE, (), True), key, [], 0))
    assert refresh.take()[1] == (0.0, 0.0, 0.0)
    assert heard == [min(19, before + NICE)] and nice() == before
