# SPDX-License-Identifier: Apache-2.0
"""The shadow audit: a random share of what the cache spared is computed again, and the error it finds is acted on.

An audit runs after its chunk was sent, when there is time. It compares the chunk from the cached prefix with the chunk
from a fresh one, same observation, same noise, so that the difference is what the cache did. Above the bound the limits
are tightened, and that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_edge.errors import ConfigError
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession
from vla_edge.runtime.inference.units import joint_ranges

PERCENTILE = 95


@dataclass(frozen=True, slots=True)
class AuditReport:
    """error: 95th percentile over joints and executed actions of |fresh − cached| as a share of the joint's range;
    bound: what was allowed; tightened: the new limits when it was above."""

    error: float
    bound: float
    tightened: GateSettings | None

    def sentence(self) -> str:
        """One line for the log and the status."""
        if self.tightened is None:
            return f"audit: cached chunk off by {self.error:.2%} of the joint range, bound {self.bound:.2%}"
        limits = self.tightened
        gate = "" if limits.similarity == NO_SIMILARITY else f", similarity {limits.threshold:.4f}"
        return (
            f"audit: cached chunk off by {self.error:.2%} of the joint range, above the bound {self.bound:.2%}; "
            f"limits tightened to still {limits.still_mean:.3g}/{limits.still_worst:.3g} grey levels{gate}"
        )


class ShadowAudit:
    """Audits one session. share: of what reused something, 0..1. ConfigError: a bundle without action statistics (no
    joint range)."""

    def __init__(self, session: PolicySession, share: float = 0.02, seed: int = 0) -> None:
        ranges = joint_ranges(session.preparer.tables, session.policy.action_dim)
        if ranges is None and share > 0:
            raise ConfigError(
                "the audit needs action statistics for the joints' ranges and the bundle has none; set its share to 0"
            )
        self._session = session
        self._ranges = ranges
        self._share = share
        self._random = np.random.default_rng(seed)
        self.worst = 0.0

    def due(self, result: InferenceResult) -> bool:
        """Whether this result shall be audited: a random share of those that reused something and whose flow ran all
        its steps."""
        whole = self._session.reuses(result.decision) and len(result.timings.step) == result.steps
        return whole and bool(self._random.random() < self._share)

    def run(self, request: InferenceRequest, result: InferenceResult) -> AuditReport | None:
        """Compute `result` again, everything fresh, and compare; None when the request's signal abandoned it."""
        assert self._ranges is not None and self._session.cache.settings is not None
        tie = request.inpaint if result.tied else None
        again = replace(request, noise=result.noise, steps=result.steps, queued=None, inpaint=tie, moved=False)
        fresh = self._session.recompute(again)
        if fresh is None:
            return None
        horizon = self._session.policy.n_action_steps
        error = action_error(result.actions[:horizon], fresh.actions[:horizon], self._ranges)
        self.worst = max(self.worst, error)
        bound = self._session.cache.settings.bound
        return AuditReport(error, bound, self._session.cache.tighten() if error > bound else None)


def action_error(cached: np.ndarray, fresh: np.ndarray, ranges: np.ndarray) -> float:
    """95th percentile over joints and actions of |fresh − cached| / range; all in joint units."""
    return float(np.percentile(np.abs(fresh - cached) / ranges, PERCENTILE))
