# SPDX-License-Identifier: Apache-2.0
"""What the service is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_edge.errors import ConfigError
from vla_edge.runtime.inference.session import SessionOptions


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the service is told. record: file for the exact inputs of every inference, None: not recorded.
    trust_cameras: pictures of another aspect than the policy's data are taken."""

    engine: str
    threads: int
    session: SessionOptions
    sessions: int
    connections: int
    port: int
    record: Path | None
    record_limit_bytes: int
    trust_cameras: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("sessions", 1, 64), ("connections", 1, 1024), ("port", 0, 65535)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be {least} to {most}")
