# SPDX-License-Identifier: Apache-2.0
"""`vla-doctor`: what this machine has, what is needed, and how to fix what is not there.

Exit code 1 when something needed is missing. Needed by everything: Python, the
base packages, the C core and an engine; more with `--need`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_edge.command_line import Command, Subcommand, answer
from vla_edge.errors import BusError, CheckFailed, ControlError, CoreError
from vla_edge.installation import EXTRAS, install_command
from vla_edge.robot.arm_description import arm_names, load_arm
from vla_edge.robot.port import open_port
from vla_edge.robot.sim.render import BACKENDS, rendering_fault
from vla_edge.runtime.control.children import guarded

OK, MISSING, NOTE = "ok", "missing", "note"
NEEDED = {"torch": "2.5 or newer", "onnx": "1.16 or newer", "mujoco": "3.1 or newer", "tensorrt": "10.3 or newer"}
NAMES = {
    "tensorrt": ("TensorRT", "tensorrt"),
    "cuda": ("cuda-bindings", "cuda.bindings"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt_rtx_bindings"),
}
"""Importable name → the package's name, and what must import."""
OPENCV = "opencv-python-headless"
GUARDIAN_TICK_NS = 11_111_111
"""90 Hz, as control runs where the bus is fast enough."""
HEAVY = ("torch", "transformers", "accelerate", "peft", "openvino", "wandb", "tensorboard")
"""Packages that take seconds to import: their being there is enough."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. state: "ok", "missing" (counts when the check is needed) or "note" (works, but look at it)."""

    check: str
    state: str
    found: str
    needed: str = ""
    fix: str = ""


def judged(check: str, good: bool, found: str, needed: str, fix: str, otherwise: str = MISSING) -> Finding:
    """Fine where `good`; `otherwise` in that state, with the fix."""
    return Finding(check, OK, found, needed) if good else Finding(check, otherwise, found, needed, fix)


def host() -> list[Finding]:
    """System, processors, memory, and what the kernel allows the control loop."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    system = f"{platform.system()} {platform.release()} {platform.machine()}, {cores} cores, {memory_gb:.0f} GB"
    enough = platform.system() == "Linux" and cores >= 2 and memory_gb >= 3.5
    fix = "use a larger machine for the full-size policy"
    return [judged("host", enough, system, "Linux, 2 cores, 4 GB", fix, NOTE), _priority(), _locked_memory()]


_LIMIT = "echo '@dialout - {}' | sudo tee -a /etc/security/limits.d/vla-edge.conf, log in again; services have it"


def _priority() -> Finding:
    """Asked by trying: limits, capabilities and containers all have a say."""
    name, needed = "real-time priority", "60, so that load cannot delay the control loop"
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
    except PermissionError:
        fix = _LIMIT.format("rtprio 60")
        if os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_RTPRIO)[0] >= 60:
            fix = (
                "it is allowed, but not in this group of processes: take CPUWeight and CPUQuota out of systemd's units"
            )
        return Finding(name, NOTE, "SCHED_FIFO refused", needed, fix)
    os.sched_setscheduler(0, *before)
    return Finding(name, OK, "SCHED_FIFO allowed", needed)


def _locked_memory() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    root, unlimited = os.geteuid() == 0, limit == resource.RLIM_INFINITY
    allowed = root or unlimited or limit >= 256 << 20
    found = "root: no limit" if root else "unlimited" if unlimited else f"{limit >> 20} MB"
    needed, fix = "256 MB, so that a tick meets no page fault", _LIMIT.format("memlock unlimited")
    return judged("locked memory", allowed, found, needed, fix, NOTE)


def python() -> list[Finding]:
    """The interpreter and the packages everything needs."""
    good = sys.version_info >= (3, 10)
    made = [judged("python", good, platform.python_version(), "3.10 or newer", "install Python 3.10 or newer")]
    for package in ("numpy", "safetensors", "tokenizers", "huggingface_hub", "rich", "PyYAML", OPENCV):
        found = _version(package) or (_version("opencv-python") if package == OPENCV else None)
        made.append(judged(package, found is not None, found or "not installed", "any", install_command()))
    return made


def core() -> list[Finding]:
    """The C extension: servo buses, the control loop, native engine sessions."""
    try:
        module = import_module("vla_edge._core")
    except ImportError as error:
        fix = f"install a C compiler (apt-get install gcc python3-dev), then: {install_command()}"
        return [Finding("C core", MISSING, str(error), "vla_edge._core", fix)]
    return [Finding("C core", OK, Path(module.__file__ or "").name, "vla_edge._core")]


def engine() -> list[Finding]:
    """ONNX Runtime and its providers."""
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        return [Finding("onnxruntime", MISSING, "not installed", "1.20 or newer", install_command("ort"))]
    new = tuple(int(part) for part in runtime.__version__.split(".")[:2]) >= (1, 20)
    fix = f"{install_command('ort')} --upgrade"
    return [
        judged("onnxruntime", new, runtime.__version__, "1.20 or newer", fix),
        Finding("onnxruntime providers", OK, ", ".join(runtime.get_available_providers()), "CPUExecutionProvider"),
    ]


def gpu() -> list[Finding]:
    """The NVIDIA driver, asked through its own library."""
    name = "GPU driver"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        fix = "install the NVIDIA driver; without one use --backend ort, on the CPU"
        return [Finding(name, MISSING, "no libcuda.so.1", "an NVIDIA driver", fix)]
    status = driver.cuInit(0)
    if status != 0:
        fix = "look at nvidia-smi; a new driver needs a reboot"
        return [Finding(name, MISSING, f"cuInit failed with {status}", "a working NVIDIA driver", fix)]
    number, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        text = ctypes.create_string_buffer(96)
        driver.cuDeviceGetName(text, len(text), index)
        names.append(text.value.decode())
    found = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}, {', '.join(names) or 'no device'}"
    fix = "check that the GPU is visible to this user or container"
    return [judged(name, bool(names), found, "a CUDA device", fix)]


def packages(extra: str) -> list[Finding]:
    """The optional packages behind one of our extras; heavy ones are looked for, not loaded."""
    fix = install_command(extra)
    return [_package(package, NEEDED.get(package, "any"), fix) for package, extras in EXTRAS.items() if extra in extras]


def tensorrt() -> list[Finding]:
    """TensorRT and what its engines run with."""
    fix = f"{install_command('gpu')} (on a Jetson: apt-get install python3-libnvinfer)"
    return [_package("tensorrt", NEEDED["tensorrt"], fix)]


def sim() -> list[Finding]:
    """What the simulated arm needs. Rendering comes first: MuJoCo takes the way to render from its first import."""
    fault = rendering_fault()
    package = _package("mujoco", NEEDED["mujoco"], install_command("sim"))
    if package.state != OK:
        return [package]
    fix = f"apt-get install {BACKENDS['egl']}"
    found = fault or "a picture came out"
    return [package, judged("rendering", fault is None, found, "off-screen rendering through EGL", fix)]


def cameras(devices: Path = Path("/dev")) -> list[Finding]:
    """V4L2 devices and whether this user may open them."""
    nodes = sorted(devices.glob("video*"))
    if not nodes:
        fix = "plug one in; in a container pass it through; files and the simulated arm need none"
        return [Finding("cameras", MISSING, "no /dev/video*", "one for each camera of the policy", fix)]
    return [_device("camera", node, _by_id(devices / "v4l" / "by-id", node), "video") for node in nodes]


def serial(devices: Path = Path("/dev"), usb: Path = Path("/sys/bus/usb-serial/devices")) -> list[Finding]:
    """Serial ports, whether this user may open them, and the USB adapter's latency timer (1 ms is wanted)."""
    nodes = sorted([*devices.glob("ttyUSB*"), *devices.glob("ttyACM*")])
    if not nodes:
        fix = "plug the adapter in; in a container pass it through; the simulated arm needs none"
        return [Finding("serial ports", MISSING, "no ttyUSB* or ttyACM*", "one for the servo bus", fix)]
    made = []
    for node in nodes:
        made.append(_device("serial port", node, _by_id(devices / "serial" / "by-id", node), "dialout"))
        timer = usb / node.name / "latency_timer"
        if timer.is_file() and (wait := timer.read_text().strip()) != "1":
            made.append(Finding("latency timer", NOTE, f"{node.name}: {wait} ms", "1 ms", f"echo 1 | sudo tee {timer}"))
    return made


def guardian() -> list[Finding]:
    """The process that watches control where servos have no watchdog: started on a port that nobody is behind."""
    unwatched = [arm for arm in map(load_arm, arm_names()) if not arm.has_watchdog]
    needed = f"servos of {', '.join(arm.name for arm in unwatched)} have no watchdog: a second process stops them"
    ours, theirs = os.openpty()
    try:
        port = open_port(os.ttyname(theirs), unwatched[0], list(unwatched[0].ids.values()))
        with closing(port), guarded(port, GUARDIAN_TICK_NS, close=()):
            pass
    except (CoreError, ControlError, BusError) as error:
        found, _, fix = str(error).partition("; ")
        return [Finding("guardian", MISSING, found, needed, fix)]
    finally:
        os.close(ours)
        os.close(theirs)
    slow = _priority()
    if slow.state != OK:
        return [Finding("guardian", NOTE, "started, but load can delay it: SCHED_FIFO refused", needed, slow.fix)]
    return [Finding("guardian", OK, "started, in real time", needed)]


def _device(kind: str, node: Path, stable: str, group: str) -> Finding:
    usable = os.access(node, os.R_OK | os.W_OK)
    found = f"{node}{f' = {stable}' if stable else ''}{'' if usable else ': no permission'}"
    return judged(kind, usable, found, "read and write access", f"sudo usermod -aG {group} $USER, then log in again")


def _by_id(folder: Path, node: Path) -> str:
    """The name of a device that survives replugging."""
    return next((link.name for link in sorted(folder.glob("*")) if link.resolve() == node.resolve()), "")


def _package(package: str, needed: str, fix: str) -> Finding:
    """An optional package: there when it imports, not when a file of it lies somewhere."""
    name, module = NAMES.get(package, (package, package))
    try:
        if package not in HEAVY:
            import_module(module)
        elif find_spec(package) is None:
            raise ModuleNotFoundError(package)
    except (ImportError, OSError) as error:
        found = "not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        return Finding(name, MISSING, found, needed, fix)
    return Finding(name, OK, _version(name) or _version(package) or "unknown version", needed)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def disk() -> list[Finding]:
    """Room where bundles are written by default: the working folder."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    found, needed = f"{free_gb:.0f} GB free here", "5 GB for exporting the full-size policy"
    return [judged("disk", free_gb >= 5, found, needed, "free some, or export to another disk", NOTE)]


ALWAYS: dict[str, Callable[[], list[Finding]]] = {
    "host": host, "python": python, "core": core, "engine": engine, "disk": disk,
}  # fmt: skip
OPTIONAL: dict[str, Callable[[], list[Finding]]] = {
    **{extra: partial(packages, extra) for extra in ("export", "data", "plot", "train", "track", "serve", "openvino")},
    "sim": sim,
    "gpu": gpu,
    "tensorrt": tensorrt,
    "pycuda": partial(packages, "pycuda"),
    "rtx": partial(packages, "rtx"),
    "cameras": cameras,
    "serial": serial,
    "guardian": guardian,
}


def examine(need: Sequence[str]) -> tuple[list[Finding], list[Finding]]:
    """(all findings, those that are needed and missing). need: names of OPTIONAL checks that are needed here."""
    findings: list[Finding] = []
    lacking: list[Finding] = []
    for name, check in {**ALWAYS, **OPTIONAL}.items():
        made = check()
        listed = {finding.check for finding in findings}
        findings += [finding for finding in made if finding.check not in listed]
        if name in ALWAYS or name in need:
            lacking += [finding for finding in made if finding.state == MISSING]
    return findings, lacking


main = Command(
    "vla-doctor",
    "What this machine has, what is needed, how to fix what is missing.",
    {
        "": Subcommand(
            "vla_edge.doctor", "what this machine has, what is needed, how to fix what is missing", "--need export"
        ),
        "deploy": Subcommand(
            "vla_edge.trials.deploy_check",
            "checks of a bundle, and of where the robot stands, before it moves",
            'deploy BUNDLE --dataset DATASET --task "pick up the cube"',
        ),
    },
    default="",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--need",
        action="append",
        default=[],
        choices=sorted(OPTIONAL),
        help="exit with 1 when this is missing; may be given several times",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; CheckFailed (exit code 1) when something needed is missing."""
    findings, lacking = examine(arguments.need)
    answer({"findings": [asdict(finding) for finding in findings], "missing": [finding.check for finding in lacking]})
    _print(findings, lacking)
    if lacking:
        raise CheckFailed(f"missing: {', '.join(finding.check for finding in lacking)}")
    print("everything needed is here")
    return 0


def _print(findings: Sequence[Finding], lacking: Sequence[Finding]) -> None:
    """A table, and below it what to type, on lines of their own that can be copied."""
    table = Table()
    for head in ("check", "found", "needed"):
        table.add_column(head, overflow="fold")
    marks = {OK: "[green]ok[/]", NOTE: "[yellow]look[/]", MISSING: "[dim]not here[/]"}
    for finding in findings:
        mark = "[red]MISSING[/]" if finding in lacking else marks[finding.state]
        table.add_row(f"{mark} {finding.check}", escape(finding.found), escape(finding.needed))
    Console().print(table)
    fixes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.fix:
            fixes.setdefault(finding.fix, []).append(finding.check)
    if fixes:
        print("how to fix what is not here:")
    for fix, checks in fixes.items():
        print(f"  {', '.join(checks)}: {fix}")


if __name__ == "__main__":
    sys.exit(main())
