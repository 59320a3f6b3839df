# SPDX-License-Identifier: Apache-2.0
"""What the service tells about itself and the robot: one status for the page, Prometheus text, pictures of the
cameras."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_edge.errors import CameraError, ControlError
from vla_edge.robot.shared_frames import SimCamera
from vla_edge.runtime.control.faults import fault_of, heat_of, why_still
from vla_edge.runtime.control.operator import is_alive, read_status
from vla_edge.runtime.control.picture_tap import thumbnail, thumbnail_files
from vla_edge.runtime.control.run_folder import RunFolder, facts_in
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY
from vla_edge.runtime.service.serve_sessions import SessionPool

_TAIL_BYTES = 16_384


class RobotView:
    """Reads what control and inference leave in the run folder. Nothing here writes there or waits for them."""

    def __init__(self, folder: RunFolder, threshold: float | None) -> None:
        """threshold: the served bundle's own, also for a run whose log does not say which one it uses."""
        self._folder, self._log = folder, folder.path / "inference.jsonl"
        self.threshold = threshold

    def control(self) -> dict[str, Any] | None:
        """Control's newest status, None when none ever ran here."""
        try:
            status = read_status(self._folder)
        except ControlError:
            return None
        words = {"fault": fault_of(status), "why_still": why_still(status), "heat": heat_of(status)}
        return {**status, **words, "hz": 1e9 / status["period_ns"], "fps": 1e9 / status["action_ns"]}

    def start(self) -> dict[str, Any]:
        """What inference was started with: its log's first line; empty where there is none."""
        try:
            with self._log.open("rb") as file:
                start = json.loads(file.readline(_TAIL_BYTES))["start"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return start if isinstance(start, dict) else {}

    def run(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """What runs: task and bundle of inference's `start`, port and calibration of control; what is not known is left
        out."""
        arm = facts_in(self._folder.arm)
        arm = {name: arm[name] for name in ("arm", "port", "joints", "joint_units", "shadow", "machine") if name in arm}
        names = ("task", "bundle", "bundle_path", "cache")
        return {"folder": str(self._folder.path), **arm, **{name: start[name] for name in names if name in start}}

    def inference(self, start: Mapping[str, Any]) -> dict[str, Any] | None:
        """The inference process's summary with its newest inference (`last`) and its gate's threshold, from `start`."""
        summary = facts_in(self._folder.path / "inference.json")
        if not summary:
            return None
        return {**summary, "last": _last_inference(self._log), "threshold": _threshold(start, self.threshold)}

    def cameras(self) -> dict[str, float]:
        """Short name → age in seconds of the newest thumbnail."""
        ages = {}
        for name, path in thumbnail_files(self._folder).items():
            try:
                camera = SimCamera(name, path)
                ages[name] = (time.monotonic_ns() - camera.newest().captured_ns) / 1e9
                camera.close()
            except CameraError:
                continue  # it has not written a picture yet
        return ages

    def picture(self, name: str) -> bytes | None:
        """JPEG of the newest thumbnail of camera `name` (short), None without one."""
        path = thumbnail_files(self._folder).get(name)
        return None if path is None else thumbnail(name, path)


def faults(control: Mapping[str, Any] | None, inference: Mapping[str, Any] | None) -> list[str]:
    """What is wrong now, in words; empty when nothing is."""
    found = []
    if control is None:
        found.append("no control process has run in this folder")
    elif not control["alive"]:
        found.append(
            f"control is silent for {control['silent_s']:.1f} s"
            if is_alive(control["pid"])
            else "the control process has ended"
        )
    elif control["fault"]:
        found.append(f"control: {control['state']}{', latched' if control['latched'] else ''}: {control['fault']}")
    if inference is not None and inference.get("state") == "fault":
        found.append(f"inference: {inference.get('fault', 'fault')}")
    return found


def status(view: RobotView, pool: SessionPool | None, refusals: Counter[str], holder: str) -> dict[str, Any]:
    """All of it, ready for JSON; `serve` is null where no policy is served. Times as the names say, CLOCK_MONOTONIC."""
    start = view.start()
    control, inference = view.control(), view.inference(start)
    return {
        "time_ns": time.monotonic_ns(),
        "joints": list(control["joints"]) if control is not None else [],
        "run": view.run(start),
        "control": control,
        "inference": inference,
        "cameras": view.cameras(),
        "faults": faults(control, inference),
        "lease": holder,
        "refused": dict(refusals),
        "serve": None
        if pool is None
        else {
            "ready": pool.ready,
            "cold_start_s": pool.cold_start_s,
            "sessions": pool.lent,
            "inferences": pool.counts.inferences,
            "hits": pool.counts.hits,
            "reasons": dict(pool.counts.reasons),
            "parts_ms": pool.log.parts_ms(),
            "last": pool.counts.last,
            "threshold": view.threshold,
        },
    }


def metrics(view: RobotView, pool: SessionPool | None, refusals: Counter[str]) -> str:
    """Prometheus text format 0.0.4."""
    lines: list[str] = []

    def tell(name: str, purpose: str, values: float | Mapping[str, float]) -> None:
        """values: one number, or one by label."""
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.extend((f"# HELP vla_{name} {purpose}", f"# TYPE vla_{name} {kind}"))
        by_label = values if isinstance(values, Mapping) else {"": values}
        lines.extend(f"vla_{name}{label} {value:.9g}" for label, value in by_label.items())

    control = view.control()
    tell("control_up", "1 while the control process ticks", control is not None and control["alive"])
    if control is not None:
        tell("control_ticks_total", "ticks of the control loop", control["ticks"])
        tell("control_missed_ticks_total", "ticks that were skipped", control["missed"])
        tell("control_lost_readings_total", "joint readings that failed", control["lost_reads"])
        tell("control_late_seconds", "start of the newest tick after its time", control["late_ns"] / 1e9)
        tell("control_bus_seconds", "bus time of the newest tick", control["io_ns"] / 1e9)
    tell("serve_refused_total", "requests that were refused, by reason", _by("reason", refusals))
    if pool is not None:
        counts = pool.counts
        tell("serve_ready", "1 after warm-up", pool.ready)
        tell("serve_cold_start_seconds", "from the start to ready", pool.cold_start_s or 0.0)
        tell("serve_sessions", "policy sessions lent to clients", pool.lent)
        tell("serve_inferences_total", "inferences for clients", counts.inferences)
        tell("serve_cache_hits_total", "of them without a prefix run", counts.hits)
        tell("serve_inference_seconds_total", "time spent in them", counts.total_s)
        tell("serve_prefix_total", "inferences by why the prefix ran or was reused", _by("reason", counts.reasons))
        parts = {
            f'{{part="{part}",quantile="{name}"}}': value
            for part, quantiles in pool.log.parts_ms().items()
            for name, value in quantiles.items()
        }
        tell("serve_part_milliseconds", "of the last inferences", parts)
    return "\n".join(lines) + "\n"


def _by(label: str, counts: Counter[str]) -> dict[str, float]:
    return {f'{{{label}="{name}"}}': count for name, count in sorted(counts.items())}


def _threshold(start: Mapping[str, Any], otherwise: float | None) -> float | None:
    """Of the gate this run was started with; None where it has none."""
    if "gate" not in start:
        return otherwise
    try:
        gate = start["gate"]
        return None if gate is None or gate["similarity"] == NO_SIMILARITY else float(gate["threshold"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def _last_inference(path: Path) -> dict[str, Any] | None:
    """The newest line of an inference (not of an audit)."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            content = json.loads(line)
        except ValueError:
            continue  # cut by the window
        if isinstance(content, dict) and "reason" in content:
            return content
    return None
