# SPDX-License-Identifier: Apache-2.0
"""`Cuda` over pycuda, for machines where that is what there is; chosen by the backend name `tensorrt-pycuda`.

pycuda gives its streams no priority: both are alike, and a prefix that
refreshes beside the loop takes turns with it instead of yielding.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from vla_edge.engines.tensorrt.cuda import GpuFacts, Pinned, RowCopy, cuda_version, kernel_driver, require_gpu, rounded
from vla_edge.errors import EngineError
from vla_edge.installation import missing_package


def open_pycuda(device: int = 0) -> PyCuda:
    """EngineError: no driver, or pycuda is missing."""
    require_gpu()
    try:
        import pycuda.driver as driver
    except ImportError:
        raise EngineError(f"{missing_package('pycuda')}; or choose --backend tensorrt") from None
    return PyCuda(driver, device)


class PyCuda:
    """Integer handles out of pycuda's objects, which are kept alive here."""

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver = driver
        self.detail = "pycuda, streams of equal priority"
        driver.init()
        device = driver.Device(ordinal)
        self._context = device.retain_primary_context()
        self._thread = threading.local()
        self._kept: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self.enter()
        self.facts = _facts(driver, device)

    def enter(self) -> None:
        # pycuda keeps a stack of contexts for each thread; one push is enough for a thread.
        if not getattr(self._thread, "entered", False):
            self._context.push()
            self._thread.entered = True

    def stream(self, high_priority: bool) -> int:
        self.enter()
        stream = self._driver.Stream(1)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        self.enter()
        del self._streams[stream]

    def event(self) -> int:
        self.enter()
        event = self._driver.Event(self._driver.event_flags.DISABLE_TIMING)
        self._kept[int(event.handle)] = event
        return int(event.handle)

    def destroy_event(self, event: int) -> None:
        self.enter()
        del self._kept[event]

    def allocate(self, size: int) -> int:
        self.enter()
        memory = self._driver.mem_alloc(rounded(size))
        self._kept[int(memory)] = memory
        return int(memory)

    def free(self, device: int) -> None:
        self.enter()
        self._kept.pop(device).free()

    def pinned(self, size: int) -> Pinned:
        self.enter()
        flags = self._driver.host_alloc_flags.PORTABLE | self._driver.host_alloc_flags.DEVICEMAP
        array = self._driver.pagelocked_empty(rounded(size), np.uint8, mem_flags=flags)
        self._kept[array.ctypes.data] = array
        return Pinned(array.ctypes.data, int(array.base.get_device_pointer()))

    def free_pinned(self, host: int) -> None:
        self.enter()
        del self._kept[host]

    def zero(self, device: int, size: int, stream: int) -> None:
        self.enter()
        self._driver.memset_d8_async(device, 0, size, self._streams[stream])

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self.enter()
        self._driver.memcpy_htod_async(device, _bytes_at(host, size), self._streams[stream])

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self.enter()
        self._driver.memcpy_dtoh_async(_bytes_at(host, size), device, self._streams[stream])

    def copy_rows(self, rows: RowCopy, stream: int) -> None:
        self.enter()
        copy = self._driver.Memcpy2D()
        copy.set_src_device(rows.source)
        copy.set_dst_device(rows.target)
        copy.src_pitch, copy.dst_pitch = rows.source_pitch, rows.target_pitch
        copy.width_in_bytes, copy.height = rows.width, rows.rows
        copy(self._streams[stream])

    def synchronize(self, stream: int) -> None:
        self.enter()
        self._streams[stream].synchronize()


def _facts(driver: Any, device: Any) -> GpuFacts:
    attribute = driver.device_attribute
    major, minor = device.compute_capability()
    return GpuFacts(
        device.name(),
        f"{major}.{minor}",
        int(device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
        int(device.total_memory()),
        bool(device.get_attribute(attribute.INTEGRATED)),
        cuda_version(int(driver.get_driver_version())),
        kernel_driver(),
    )


def _bytes_at(address: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
