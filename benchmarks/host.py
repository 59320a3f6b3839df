# SPDX-License-Identifier: Apache-2.0
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
        "power_mode": _power_mode(),
        "gpu": _gpu(),
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
        found = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def memory_mb(process: int) -> dict[str, float]:
    """Resident memory of a running process in MB: `peak` so far (VmHWM) and `now` (VmRSS); 0 where the system does not
    tell."""
    fields = {"peak": "VmHWM", "now": "VmRSS"}
    return {
        name: round(int((_first(f"/proc/{process}/status", field) or "0 kB").split()[0]) / 1e3, 1)
        for name, field in fields.items()
    }


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "not told"


def _power_mode() -> str:
    """Jetson's power mode by its name, "" where there is no nvpmodel."""
    lines = _told("nvpmodel", "-q").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("NV Power Mode")), "")


def _gpu() -> str:
    """Name, clocks and limit of a desktop GPU, or the clock of Jetson's (now and at most, MHz); "" without one."""
    desktop = _told(
        "nvidia-smi", "--query-gpu=name,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"
    ).strip()
    for folder in sorted(Path("/sys/class/devfreq").glob("*gpu*")) or sorted(
        Path("/sys/class/devfreq").glob("*ga10b*")
    ):
        now, most = (int((folder / name).read_text()) / 1e6 for name in ("cur_freq", "max_freq"))
        return f"{folder.name}, {now:.0f} of {most:.0f} MHz"
    return desktop


def _told(*command: str) -> str:
    """What a program of the system prints, "" where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _first(file: str, field: str) -> str:
    return next(iter(_all(file, field)), "")


def _all(file: str, field: str) -> list[str]:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field]
