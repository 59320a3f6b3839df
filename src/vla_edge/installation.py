# SPDX-License-Identifier: Apache-2.0
"""How we were installed: which optional packages belong to which of our extras, and the command that brings one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[2]
"""The clone, when this is one."""
EXTRAS = {
    "torch": ("export", "train"),
    "onnx": ("export", "train"),
    "onnxruntime": ("ort",),
    "openvino": ("openvino",),
    "tensorrt": ("gpu",),
    "cuda": ("gpu", "rtx"),
    "pycuda": ("pycuda",),
    "tensorrt_rtx_bindings": ("rtx",),
    "mujoco": ("sim",),
    "pyarrow": ("data", "train"),
    "av": ("data", "train"),
    "matplotlib": ("plot", "train"),
    "transformers": ("train",),
    "accelerate": ("train",),
    "peft": ("train",),
    "wandb": ("track",),
    "tensorboard": ("track",),
    "aiohttp": ("serve",),
    "msgpack": ("serve",),
}
"""Importable name of an optional package → our extras that bring it, the smallest first."""


def missing_package(package: str, extras: str = "") -> str:
    """One line on an optional package that does not import. extras: what the command that runs is installed with."""
    brought_by = EXTRAS[package]
    wanted = extras if set(brought_by) & set(extras.split(",")) else brought_by[0]
    return f"{package} is not installed here; install it with: {install_command(wanted)}"


def install_command(extras: str = "") -> str:
    """The command that installs us again with optional packages, as it can be typed in the working folder.

    From the clone that runs, else from the wheel that was installed, else the packages by their own names: another
    project has our name on the package index.
    """
    pip = Path(sys.executable).with_name("pip")
    tool = _from_here(pip) if pip.is_file() else f"{_from_here(Path(sys.executable))} -m pip"
    bracket = f"[{extras}]" if extras else ""
    if (ROOT / "pyproject.toml").is_file():
        return f'{tool} install -e "{_from_here(ROOT)}{bracket}"'
    wheel = _wheel()
    if wheel is not None:
        return f'{tool} install "{_from_here(wheel)}{bracket}"'
    return " ".join([tool, "install", *(f'"{name}"' for name in _requirements(extras.split(",")))])


def _from_here(path: Path) -> str:
    """Relative where it lies below the working folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _wheel() -> Path | None:
    """The wheel file we were installed from, where it still lies there."""
    from importlib.metadata import PackageNotFoundError, distribution  # an eighth of what a command's start takes

    try:
        text = distribution("vla-edge").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    url = urlparse(json.loads(text)["url"]) if text else urlparse("")
    file = Path(unquote(url.path))
    return file if url.scheme == "file" and file.suffix == ".whl" and file.is_file() else None


def _requirements(extras: Sequence[str]) -> list[str]:
    """The packages behind our extras, from the metadata of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        lines = distribution("vla-edge").requires or []
    except PackageNotFoundError:
        lines = []
    found: list[str] = []
    for line in lines:
        name, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if not extra or extra[1] not in extras:
            continue
        ours = re.match(r"vla-edge\[([\w,-]+)\]", name)
        found += _requirements(ours[1].split(",")) if ours else [name.strip()]
    return list(dict.fromkeys(found))
