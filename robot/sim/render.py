# SPDX-License-Identifier: Apache-2.0
"""Off-screen rendering: which OpenGL MuJoCo uses, and what a machine without one lacks."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from vla_edge.errors import CameraError
from vla_edge.installation import missing_package

BACKENDS = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
"""Name of each way to render and the Debian/Ubuntu packages it needs."""


def load_mujoco(backend: str = "egl") -> ModuleType:
    """The `mujoco` module, rendering through `backend` ("egl" or "osmesa").

    MuJoCo reads its switch MUJOCO_GL once, when it is imported, so this is the one place that imports it. Errors:
    CameraError when the package or the OpenGL library is missing, or when this process already uses another backend.
    """
    if "mujoco" in sys.modules and os.environ.get("MUJOCO_GL") != backend:
        chosen = os.environ.get("MUJOCO_GL", "its default")
        raise CameraError(f"MuJoCo was already loaded in this process with {chosen}; start a new process for {backend}")
    os.environ["MUJOCO_GL"] = backend
    os.environ["PYOPENGL_PLATFORM"] = backend
    try:
        import mujoco
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise CameraError(_missing(backend, str(error))) from None
        raise CameraError(missing_package("mujoco")) from None
    except (ImportError, AttributeError, OSError) as error:
        # Without the library PyOpenGL fails while MuJoCo is imported, with one of these.
        sys.modules.pop("mujoco", None)
        raise CameraError(_missing(backend, str(error))) from None
    return mujoco


def _missing(backend: str, reason: str) -> str:
    other = next(name for name in BACKENDS if name != backend)
    return (
        f"off-screen rendering with {backend} does not work here ({reason}); apt-get install {BACKENDS[backend]},"
        f" or choose --renderer {other} (apt-get install {BACKENDS[other]})"
    )


def new_renderer(mujoco: ModuleType, model: object, height: int, width: int, backend: str) -> object:
    """A `mujoco.Renderer` with shadows and reflections off; it belongs to the calling thread.

    Shadows cost ten times the picture on a CPU. Errors: CameraError names the packages when OpenGL cannot start.
    """
    try:
        renderer = mujoco.Renderer(model, height, width)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise CameraError(_missing(backend, str(error))) from None
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer


def rendering_fault(backend: str = "egl") -> str | None:
    """What keeps this machine from rendering, in one line with the fix; None when a small picture came out."""
    try:
        mujoco = load_mujoco(backend)
        model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
        renderer: Any = new_renderer(mujoco, model, 8, 8, backend)
        renderer.update_scene(mujoco.MjData(model))
        renderer.render()
        renderer.close()
    except CameraError as error:
        return str(error)
    return None
