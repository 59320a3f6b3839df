# SPDX-License-Identifier: Apache-2.0
"""Recorded inputs through the same bundle and engine again: the same chunks, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import Inpaint
from vla_edge.errors import IdentityError, RecordError
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.input_record import PICTURE, Entry, read_inputs
from vla_edge.runtime.inference.refresh import Refresh
from vla_edge.runtime.inference.scene_gate import settings_of
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

Progress = Callable[[Iterable[Entry]], Iterable[Entry]]


@dataclass(slots=True)
class InputsReplay:
    """differing: chunks of which a bit is not the recorded one. gaps: entries the recorder had to leave out; the cache
    of a session with a gap may have seen what we did not. worst: largest difference of a latent value."""

    inferences: int = 0
    differing: int = 0
    gaps: int = 0
    worst: float = 0.0
    first_differing: int | None = None


def replay_inputs(record: Path, bundle_path: Path, progress: Progress) -> InputsReplay:
    """RecordError: the file is damaged or holds no session. IdentityError: it was recorded with another bundle."""
    bundle = open_bundle(bundle_path)
    sessions: dict[int, PolicySession] = {}
    result = InputsReplay()
    for entry in progress(read_inputs(record)):
        kind = entry.head.get("kind")
        if kind == "gap":
            result.gaps += int(entry.head["entries"])
        elif kind == "session":
            sessions[entry.head["session"]] = _session(bundle, entry)
        elif kind in ("reset", "inference"):
            session = sessions.get(entry.head["session"])
            if session is None:
                raise RecordError(
                    f"{record}: session {entry.head['session']} does not begin in it; give the whole file"
                )
            if kind == "reset":
                session.reset()
            else:
                _again(session, entry, result)
    if not sessions:
        raise RecordError(f"{record}: no session in it; give the file of --record-inputs")
    return result


def _session(bundle: Bundle, entry: Entry) -> PolicySession:
    head = entry.head
    if head["bundle"] != bundle.digest:
        raise IdentityError(
            f"recorded with bundle {head['bundle'][:12]}, {bundle.path} is {bundle.digest[:12]}; give the bundle it "
            "was recorded with"
        )
    engine = load_engine(head["engine"], EngineOptions(threads=head["threads"], spin=False))
    cache = CacheMode(head["cache"] if "cache" in head else head["policy"])  # its name in records of before
    gate = None if head["gate"] is None else settings_of(head["gate"], "the record")
    options = SessionOptions(cache, head["seed"], head["steps"], gate, head["allow_truncation"])
    return PolicySession(bundle, engine, replace(options, refresh=Refresh(head.get("refresh", Refresh.FRONT.value))))


def _again(session: PolicySession, entry: Entry, result: InputsReplay) -> None:
    head, arrays = entry.head, entry.arrays
    _tighten_to(session, head["gate"])
    request = InferenceRequest(
        _observation(entry),
        head["now_ns"],
        head.get("steps"),
        arrays.get("noise"),
        arrays.get("queued"),
        _inpaint(arrays),
        adopt=bool(head.get("adopt", False)),
        beside=bool(head.get("beside", True)),
        moved=bool(head.get("moved", False)),
    )
    made = session.recompute(request) if head["audit"] else session.infer(request)
    assert made is not None
    if head["abandoned"]:
        return  # it touched the cache, as here, and gave no chunk
    result.inferences += 1
    recorded = arrays["latent"]
    if (
        made.latent.shape != recorded.shape
        or made.latent.tobytes() != recorded.tobytes()
        or made.actions.tobytes() != arrays["actions"].tobytes()
    ):
        result.differing += 1
        if result.first_differing is None:
            result.first_differing = head["sequence"]
        same_shape = made.latent.shape == recorded.shape
        result.worst = max(result.worst, float(np.abs(made.latent - recorded).max()) if same_shape else np.inf)


def _observation(entry: Entry) -> Observation:
    head = entry.head
    frames = {}
    for name, array in entry.arrays.items():
        if name.startswith(PICTURE):
            camera = name.removeprefix(PICTURE)
            frames[camera] = Frame(camera, array, head["captured_ns"][camera], 0)
    return Observation(
        head["sequence"], frames, JointReading(head["tick"], head["reading_ns"], entry.arrays["state"]), head["task"]
    )


def _inpaint(arrays: Any) -> Inpaint | None:
    if "inpaint/target" not in arrays:
        return None
    return Inpaint(np.array(arrays["inpaint/target"]), np.array(arrays["inpaint/weights"]))


def _tighten_to(session: PolicySession, gate: Any) -> None:
    """An audit tightened the limits between the last inference and this one."""
    wanted = None if gate is None else settings_of(gate, "the record")
    for _ in range(64):
        if session.cache.settings == wanted or session.cache.settings is None:
            return
        session.cache.tighten()
    raise RecordError(
        "the recorded limits of the gate do not follow from those the session began with; the file is not of this "
        "version"
    )
