# SPDX-License-Identifier: Apache-2.0
"""The GPU seen from Python: the gate before anything of CUDA or TensorRT is touched, and memory, streams and copies.

Handles and device addresses are integers, so that TensorRT, the C launcher
(`_core.CudaLoop`) and either Python binding of CUDA can use each other's.
Capture and launch are the C core's; this is the slow path around it.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vla_edge.errors import EngineError
from vla_edge.installation import missing_package

DRIVER = "libcuda.so.1"
ALIGNMENT = 256
"""bytes; what TensorRT asks of an address, and what every device allocation here is rounded to"""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The device an engine file binds to. cuda: what the driver supports, "13.0"; driver: the kernel module's version,
    or
    "unknown"; memory: bytes; integrated: the GPU shares the host's memory (Jetson)."""

    name: str
    compute_capability: str
    sm_count: int
    memory: int
    integrated: bool
    cuda: str
    driver: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """Page-locked host memory: its address, and the address by which the device reaches the same bytes."""

    host: int
    device: int


@dataclass(frozen=True, slots=True)
class RowCopy:
    """`rows` pieces of `width` bytes between device addresses, `pitch` bytes apart."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    rows: int


class Cuda(Protocol):
    """One device's primary context through some Python binding, usable from every thread: each call makes the context
    current on its own. Copies and fills are ordered on `stream`. Who allocates frees (`Holdings`). EngineError: the
    driver's failure, by the name of the call."""

    detail: str
    facts: GpuFacts

    def enter(self) -> None:
        """Make the context current on this thread, for calls that do not go through here (TensorRT's)."""

    def stream(self, high_priority: bool) -> int: ...
    def destroy_stream(self, stream: int) -> None: ...
    def event(self) -> int: ...
    def destroy_event(self, event: int) -> None: ...
    def allocate(self, size: int) -> int: ...
    def free(self, device: int) -> None: ...
    def pinned(self, size: int) -> Pinned: ...
    def free_pinned(self, host: int) -> None: ...
    def zero(self, device: int, size: int, stream: int) -> None: ...
    def to_device(self, device: int, host: int, size: int, stream: int) -> None: ...
    def to_host(self, host: int, device: int, size: int, stream: int) -> None: ...
    def copy_rows(self, rows: RowCopy, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...


def require_gpu(library: str = DRIVER, otherwise: str = "choose backend ort") -> int:
    """Pass only where the driver works and sees a device; returns the number of devices. otherwise: what a person
    can do without one.

    Without a driver TensorRT's objects are null inside and end the process when touched, so every use of it begins
    here. EngineError names which of dlopen, cuInit and the device count failed.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise EngineError(
            f"no NVIDIA driver: dlopen of {library} failed ({error}); install the driver, or {otherwise}"
        ) from None
    status = driver.cuInit(0)
    if status != 0:
        raise EngineError(
            f"the NVIDIA driver does not start: cuInit gave error {status}; look at nvidia-smi (a new driver needs a "
            f"reboot), or {otherwise}"
        )
    count = ctypes.c_int()
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value < 1:
        raise EngineError(
            f"the NVIDIA driver sees no GPU: device count {count.value}, error {status}; check the device and "
            f"CUDA_VISIBLE_DEVICES, or {otherwise}"
        )
    return count.value


def open_cuda(device: int = 0) -> Cuda:
    """The device through NVIDIA's cuda-bindings. EngineError: no driver, or the package is missing."""
    require_gpu()
    try:
        from cuda.bindings import driver
    except ImportError:
        raise EngineError(f"{missing_package('cuda')}; or choose --backend tensorrt-pycuda") from None
    return CudaBindings(driver, device)


class CudaBindings:
    """`Cuda` over cuda-bindings (12 and 13), whose calls return (error, values …)."""

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver = driver
        self._thread = threading.local()
        self.detail = "cuda-bindings"
        self._checked("cuInit", 0)
        device = self._checked("cuDeviceGet", ordinal)
        self._context = self._checked("cuDevicePrimaryCtxRetain", device)
        self.facts = self._facts(device)
        # (least, greatest): the greatest priority is the smallest number.
        self._least, self._greatest = self._call("cuCtxGetStreamPriorityRange")

    def enter(self) -> None:
        if not getattr(self._thread, "entered", False):
            self._checked("cuCtxSetCurrent", self._context)
            self._thread.entered = True

    def stream(self, high_priority: bool) -> int:
        flags = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._call("cuStreamCreateWithPriority", flags, self._greatest if high_priority else self._least))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def event(self) -> int:
        return int(self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", rounded(size)))

    def free(self, device: int) -> None:
        self._call("cuMemFree", device)

    def pinned(self, size: int) -> Pinned:
        flags = int(self._driver.CU_MEMHOSTALLOC_PORTABLE) | int(self._driver.CU_MEMHOSTALLOC_DEVICEMAP)
        host = int(self._call("cuMemHostAlloc", rounded(size), flags))
        return Pinned(host, int(self._call("cuMemHostGetDevicePointer", host, 0)))

    def free_pinned(self, host: int) -> None:
        self._call("cuMemFreeHost", host)

    def zero(self, device: int, size: int, stream: int) -> None:
        self._call("cuMemsetD8Async", device, 0, size, stream)

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", device, host, size, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", host, device, size, stream)

    def copy_rows(self, rows: RowCopy, stream: int) -> None:
        copy = self._driver.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = rows.source, rows.source_pitch
        copy.dstDevice, copy.dstPitch = rows.target, rows.target_pitch
        copy.WidthInBytes, copy.Height = rows.width, rows.rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def _facts(self, device: Any) -> GpuFacts:
        attribute = self._driver.CUdevice_attribute

        def number(name: str) -> int:
            return int(self._checked("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

        name = self._checked("cuDeviceGetName", 128, device).split(b"\0")[0].decode()
        capability = f"{number('COMPUTE_CAPABILITY_MAJOR')}.{number('COMPUTE_CAPABILITY_MINOR')}"
        memory = int(self._checked("cuDeviceTotalMem", device))
        version = int(self._checked("cuDriverGetVersion"))
        count, integrated = number("MULTIPROCESSOR_COUNT"), bool(number("INTEGRATED"))
        return GpuFacts(name, capability, count, memory, integrated, cuda_version(version), kernel_driver())

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call that needs the context."""
        self.enter()
        return self._checked(name, *arguments)

    def _checked(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if int(error) != 0:
            raise EngineError(f"{name} failed: {getattr(error, 'name', error)}; look at nvidia-smi and the kernel log")
        return values[0] if len(values) == 1 else tuple(values)


def rounded(size: int) -> int:
    """The next multiple of `ALIGNMENT`, at least one."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def cuda_version(number: int) -> str:
    """cuDriverGetVersion's number in words: 12060 → "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def kernel_driver(read: Callable[[Path], str] = Path.read_text) -> str:
    """The version of NVIDIA's kernel module, "unknown" where it does not say."""
    try:
        text = read(Path("/proc/driver/nvidia/version"))
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]+)", text)
    return found.group(1) if found else "unknown"
