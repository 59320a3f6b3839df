"""The machine and the code a number was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


def host_facts() -> dict[str, Any]:
    """CPU, cores, clocks, memory, load, commit and time: beside every result."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "clock_mhz": [float(value) for value in _all("/proc/cpuinfo", "cpu MHz")],
        "governor": _governor(),
        "memory_gb": round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1e6, 1),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The short commit of this checkout, "+" behind it when tracked files differ; "unknown" outside a clone."""
    try:
        found = subprocess.run(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def peak_rss_mb(process: int) -> float:
    """Largest resident memory of a running process so far, MB (VmHWM); 0 where the system does not tell."""
    return int((_first(f"/proc/{process}/status", "VmHWM") or "0 kB").split()[0]) / 1e3


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "not told"


def _first(file: str, field: str) -> str:
    return next(iter(_all(file, field)), "")


def _all(file: str, field: str) -> list[str]:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field]
