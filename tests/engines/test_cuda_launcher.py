# SPDX-License-Identifier: Apache-2.0
"""The C launcher against a stub driver library that records the calls: order, arguments, error paths. No GPU is used,
and nothing here says how the real driver behaves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.emulated_gpu import stub_driver

from vla_edge import _core
from vla_edge.engines.engine import load_engine
from vla_edge.engines.tensorrt.cuda import cuda_version, kernel_driver, require_gpu
from vla_edge.errors import EngineError

HIGH, LOW = 0xA0, 0xB0
EVENTS = (0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5)
"""filled 0 and 1, idle 0 and 1, stepped 0 and 1"""
PREFIX, STATE, ENDS = (0x100, 0x101), (0x200, 0x201), (0x300, 0x301)
GROUPS, SINGLE = (0x400, 0x401, 0x402, 0x403), (0x500, 0x501)
SHAPE = (2, 2, 3)
"""rows, columns, width of the time bias"""
STEPS = 4

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the stub driver")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver(tmp_path_factory.mktemp("stub"))


class Stub:
    """The stub's own side: what was called, and which call shall fail."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.stub_log.restype = ctypes.c_char_p
        self.reset()

    def reset(self, failing: str = "", after: int = 0) -> None:
        self._library.stub_reset(failing.encode(), after)

    def calls(self) -> list[str]:
        return self._library.stub_log().decode().splitlines()

    def loop(self, chunk_in: np.ndarray, step_in: np.ndarray, x_out: np.ndarray, layout: dict[str, int]) -> None:
        """The buffers of the loop under test: launches of its graphs do what its steps would, with velocity 1."""
        names = ("target", "weights", "step_floats", "dt")
        numbers = (ctypes.c_int * 6)(*SHAPE[:2], *(layout[name] for name in names))
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (chunk_in, step_in, x_out))
        self._library.stub_loop(*pointers, numbers)


@pytest.fixture
def stub(library: Path) -> Iterator[Stub]:
    made = Stub(library)
    yield made
    made.reset()


def equal(steps: int) -> np.ndarray:
    """t, dt and rest of equal steps."""
    return np.array([(1 - k / steps, -1 / steps, -(steps - k) / steps) for k in range(steps)])


class Rig:
    """A launcher on the stub for chunks of [2, 2]."""

    def __init__(self, library: Path, stub: Stub) -> None:
        self.driver = _core.CudaDriver(str(library))
        layout = _core.cuda_loop_layout(*SHAPE)
        self.dt = slice(layout["dt"], layout["dt"] + SHAPE[0])
        self.chunk_in = np.zeros(layout["chunk_floats"], np.float32)
        self.step_in = np.zeros((5, layout["step_floats"]), np.float32)
        self.x_out = np.zeros((2, 2), np.float32)
        self.loop = self.made()
        stub.loop(self.chunk_in, self.step_in, self.x_out, layout)
        stub.reset()

    def made(self, **changed: Any) -> _core.CudaLoop:
        parts: dict[str, Any] = {"driver": self.driver, "streams": (HIGH, LOW), "events": EVENTS, "prefix": PREFIX}
        parts |= {"state": STATE, "ends": ENDS, "groups": GROUPS, "single": SINGLE, "shape": SHAPE}
        parts |= {"chunk_in": self.chunk_in, "step_in": self.step_in, "x_out": self.x_out}
        return _core.CudaLoop(**parts | changed)

    def denoise(
        self, side: int, noise: np.ndarray, steps: int = STEPS, **given: np.ndarray
    ) -> tuple[bool, tuple[int, ...]]:
        return self.loop.denoise(side, noise, np.zeros((steps, SHAPE[2]), np.float32), equal(steps), steps, **given)


@pytest.fixture
def rig(library: Path, stub: Stub) -> Rig:
    return Rig(library, stub)


def test_the_driver_is_started_in_order_and_its_primary_context_is_used(library: Path, stub: Stub) -> None:
    driver = _core.CudaDriver(str(library))
    assert driver.version == 12060
    del driver
    assert stub.calls() == [
        "cuInit(0)",
        "cuDriverGetVersion()",
        "cuDeviceGetCount()",
        "cuDeviceGet(0)",
        "cuDevicePrimaryCtxRetain(0)",
        "cuDevicePrimaryCtxRelease_v2(0)",
    ]


@pytest.mark.parametrize(
    "call", ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
)
def test_a_driver_call_that_fails_at_the_start_is_named(library: Path, stub: Stub, call: str) -> None:
    stub.reset(call)
    with pytest.raises(RuntimeError, match=f"{call} failed: CUDA_ERROR_UNKNOWN"):
        _core.CudaDriver(str(library))


def test_no_library_no_symbol_and_no_device_are_told_apart(library: Path, stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="dlopen failed: .*nowhere.so"):
        _core.CudaDriver(str(tmp_path / "nowhere.so"))
    other = tmp_path / "libempty.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "-", "-o", str(other)], input=b"int nothing;", check=True)
    with pytest.raises(RuntimeError, match="cuInit failed: the driver library does not have it"):
        _core.CudaDriver(str(other))
    stub.reset("no device")
    with pytest.raises(RuntimeError, match="device count failed: device 0 was asked for, there are 0"):
        _core.CudaDriver(str(library))


def test_a_capture_is_thread_local_instantiated_uploaded_and_its_template_destroyed(rig: Rig, stub: Stub) -> None:
    rig.driver.begin_capture(LOW)
    assert rig.driver.end_capture(LOW) == 0x900
    assert stub.calls() == [
        "cuCtxSetCurrent(0xc0)",
        "cuStreamBeginCapture_v2(0xb0, 1)",
        "cuStreamEndCapture(0xb0)",
        "cuGraphInstantiateWithFlags(0x800, 0)",
        "cuGraphDestroy(0x800)",
        "cuGraphUpload(0x900, 0xb0)",
        "cuStreamSynchronize(0xb0)",
    ]


def test_the_default_stream_is_not_captured(rig: Rig) -> None:
    with pytest.raises(RuntimeError, match="default stream"):
        rig.driver.begin_capture(0)


@pytest.mark.parametrize(
    ("failing", "name", "cleaned"),
    [
        ("cuStreamEndCapture", "cuStreamEndCapture", []),
        ("invalidated", "cuStreamEndCapture failed: the capture was invalidated", []),
        ("cuGraphInstantiateWithFlags", "cuGraphInstantiate", ["cuGraphDestroy(0x800)"]),
        ("cuGraphUpload", "cuGraphUpload", ["cuGraphDestroy(0x800)", "cuGraphExecDestroy(0x900)"]),
        ("cuStreamSynchronize", "cuStreamSynchronize", ["cuGraphDestroy(0x800)", "cuGraphExecDestroy(0x900)"]),
    ],
)
def test_a_capture_that_fails_leaves_no_graph_behind(
    rig: Rig, stub: Stub, failing: str, name: str, cleaned: list[str]
) -> None:
    rig.driver.begin_capture(LOW)
    stub.reset(failing)
    with pytest.raises(RuntimeError, match=name):
        rig.driver.end_capture(LOW)
    for call in cleaned:
        assert call in stub.calls()


def test_a_cancelled_capture_is_ended_and_its_graph_destroyed(rig: Rig, stub: Stub) -> None:
    rig.driver.begin_capture(HIGH)
    stub.reset()
    rig.driver.cancel_capture(HIGH)
    assert stub.calls() == ["cuStreamEndCapture(0xa0)", "cuGraphDestroy(0x800)"]


def test_encode_runs_the_prefix_on_the_low_stream_and_the_state_behind_it_on_the_high_one(rig: Rig, stub: Stub) -> None:
    prefix_ns, state_ns = rig.loop.encode(1, True)
    assert prefix_ns > 0 and state_ns > 0
    assert stub.calls() == [
        "cuCtxSetCurrent(0xc0)",
        "cuStreamWaitEvent(0xb0, 0xe3, 0)",
        "cuGraphLaunch(0x101, 0xb0)",
        "cuEventRecord(0xe1, 0xb0)",
        "cuEventSynchronize(0xe1)",
        "cuStreamWaitEvent(0xa0, 0xe1, 0)",
        "cuGraphLaunch(0x201, 0xa0)",
        "cuEventRecord(0xe3, 0xa0)",
        "cuStreamSynchronize(0xa0)",
    ]


def test_encode_without_a_prefix_still_waits_for_one_that_was_started(rig: Rig, stub: Stub) -> None:
    assert rig.loop.encode(0, False)[0] == 0
    assert stub.calls()[1:4] == [
        "cuEventSynchronize(0xe0)",
        "cuStreamWaitEvent(0xa0, 0xe0, 0)",
        "cuGraphLaunch(0x200, 0xa0)",
    ]


def test_a_refresh_waits_on_the_device_for_the_last_reader_of_its_side_and_returns(rig: Rig, stub: Stub) -> None:
    rig.loop.refresh(1)
    assert stub.calls() == [
        "cuCtxSetCurrent(0xc0)",
        "cuStreamWaitEvent(0xb0, 0xe3, 0)",
        "cuGraphLaunch(0x101, 0xb0)",
        "cuEventRecord(0xe1, 0xb0)",
    ]


def launches(stub: Stub) -> list[str]:
    return [call for call in stub.calls() if "Launch" in call or "EventSynchronize" in call]


def test_every_read_of_a_side_lies_between_its_filled_and_its_idle_event(rig: Rig, stub: Stub) -> None:
    rig.denoise(0, np.ones((2, 2), np.float32), signal=np.zeros(1, np.int32))
    calls = stub.calls()
    found = [index for index, call in enumerate(calls) if call.startswith("cuGraphLaunch")]
    assert calls.index("cuStreamWaitEvent(0xa0, 0xe0, 0)") < found[0]
    assert calls.index("cuEventRecord(0xe2, 0xa0)") > found[-1]


@pytest.mark.parametrize("given", [{}, {"signal": np.zeros(1, np.int32)}])
def test_steps_go_two_a_graph_in_turns_one_launch_ahead(rig: Rig, stub: Stub, given: dict[str, np.ndarray]) -> None:
    """The same launches whether anyone may stop the loop or not: what a bench measures is what the robot runs."""
    noise = np.arange(4, dtype=np.float32).reshape(2, 2)
    abandoned, step_ns = rig.denoise(1, noise, 6, **given)
    assert not abandoned and len(step_ns) == 6
    np.testing.assert_allclose(rig.x_out, noise - 1, atol=1e-6)
    assert launches(stub) == [
        "cuGraphLaunch(0x300, 0xa0)", "cuGraphLaunch(0x402, 0xa0)", "cuGraphLaunch(0x403, 0xa0)",
        "cuEventSynchronize(0xe4)", "cuGraphLaunch(0x402, 0xa0)", "cuEventSynchronize(0xe5)",
        "cuGraphLaunch(0x301, 0xa0)",
    ]  # fmt: skip


def test_an_odd_number_of_steps_ends_with_a_single_one(rig: Rig, stub: Stub) -> None:
    noise = np.ones((2, 2), np.float32)
    _, step_ns = rig.denoise(0, noise, 3)
    assert len(step_ns) == 3 and launches(stub)[1:3] == ["cuGraphLaunch(0x400, 0xa0)", "cuGraphLaunch(0x500, 0xa0)"]
    np.testing.assert_allclose(rig.x_out, noise - 1, atol=1e-6)
    stub.reset()
    rig.denoise(0, noise, 1)
    assert launches(stub)[1:2] == ["cuGraphLaunch(0x500, 0xa0)"]
    np.testing.assert_allclose(rig.x_out, noise - 1, atol=1e-6)


def test_every_step_reads_its_own_row_of_the_time_table(rig: Rig) -> None:
    biases = np.arange(12, dtype=np.float32).reshape(STEPS, 3)
    moments = np.array([(1, -0.5, -1), (0.5, -0.25, -0.5), (0.25, -0.125, -0.25), (0.125, -0.125, -0.125)])
    rig.loop.denoise(0, np.zeros((2, 2), np.float32), biases, moments, STEPS)
    for row in range(SHAPE[0]):  # of the chunk: one of every input
        np.testing.assert_array_equal(rig.step_in[:4, 3 * row : 3 * row + 3], biases)
        np.testing.assert_array_equal(rig.step_in[:4, rig.dt][:, row], moments[:, 1])
    np.testing.assert_array_equal(rig.x_out, -np.ones((2, 2)))


def test_an_abandoned_loop_has_launched_one_graph_and_waits_for_it(rig: Rig, stub: Stub) -> None:
    abandoned, step_ns = rig.denoise(0, np.zeros((2, 2), np.float32), signal=np.array([2], np.int32))
    assert abandoned and len(step_ns) == 2
    calls = stub.calls()
    assert [call for call in calls if "Launch" in call][1:] == ["cuGraphLaunch(0x400, 0xa0)"]
    assert calls[-2:] == ["cuStreamSynchronize(0xa0)", "cuEventRecord(0xe2, 0xa0)"]


def test_a_hurried_loop_takes_the_rest_in_one_step(rig: Rig, stub: Stub) -> None:
    noise = np.ones((2, 2), np.float32)
    abandoned, step_ns = rig.denoise(0, noise, signal=np.array([1], np.int32))
    assert not abandoned and len(step_ns) == 3
    # Two steps of a quarter each, one of the remaining half.
    np.testing.assert_array_equal(rig.step_in[[0, 1, 4], rig.dt], np.tile([[-0.25], [-0.25], [-0.5]], SHAPE[0]))
    np.testing.assert_array_equal(rig.x_out, noise - 1)


def test_a_frozen_row_ends_in_its_target_and_a_free_one_does_not_see_it(rig: Rig) -> None:
    noise, target = np.ones((2, 2), np.float32), np.full((2, 2), 7, np.float32)
    rig.denoise(0, noise, target=target, weights=np.array([1, 0], np.float32))
    np.testing.assert_array_equal(rig.x_out, [[7, 7], [0, 0]])
    rig.denoise(0, noise)
    np.testing.assert_array_equal(rig.x_out, np.zeros((2, 2)))


@pytest.mark.parametrize(
    "call", ["cuCtxSetCurrent", "cuStreamWaitEvent", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"]
)
def test_every_failing_call_of_the_loop_ends_it_with_its_name(rig: Rig, stub: Stub, call: str) -> None:
    for arguments in ({}, {"signal": np.zeros(1, np.int32)}):
        stub.reset(call)
        with pytest.raises(RuntimeError, match=f"{call} failed: CUDA_ERROR_UNKNOWN"):
            rig.denoise(0, np.zeros((2, 2), np.float32), **arguments)  # type: ignore[arg-type]
    stub.reset(call)
    with pytest.raises(RuntimeError, match=f"{call} failed"):
        rig.loop.encode(0, True)


def test_a_failure_in_the_middle_of_the_steps_stops_the_launches(rig: Rig, stub: Stub) -> None:
    stub.reset("cuGraphLaunch", 2)
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed"):
        rig.denoise(0, np.zeros((2, 2), np.float32), 8, signal=np.zeros(1, np.int32))
    assert sum("Launch" in call for call in stub.calls()) == 3


def test_what_does_not_fit_is_refused(rig: Rig) -> None:
    noise = np.zeros((2, 2), np.float32)
    biases = np.zeros((STEPS, 3), np.float32)
    for arguments, message in [
        ((2, noise, biases, equal(STEPS), STEPS), "side is 2"),
        ((0, noise, biases, equal(STEPS), 0), "steps is 0, must be 1 to 64"),
        ((0, noise, biases, equal(STEPS), 3), "bias_rows has 48 bytes, must have 36"),
        ((0, noise, biases, equal(3), STEPS), "moments has 72 bytes, must have 96"),
        ((0, noise[:1], biases, equal(STEPS), STEPS), "noise has 8 bytes, must have 16"),
        ((0, noise, biases, equal(STEPS), STEPS, noise), "come together"),
    ]:
        with pytest.raises(ValueError, match=message):
            rig.loop.denoise(*arguments)  # type: ignore[arg-type]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"events": EVENTS[:5]}, "events must be a tuple of 6"),
        ({"streams": (HIGH, 0)}, "streams: handle 1 is 0"),
        ({"chunk_in": rig.chunk_in[1:].copy()}, "chunk_in has 127 floats, must have 128"),
        ({"shape": (0, 2, 3)}, "must be 1 or more"),
    ]
    for changed, message in refused:
        with pytest.raises(ValueError, match=message):
            rig.made(**changed)


def test_the_gate_names_which_of_dlopen_cuinit_and_device_count_failed(
    library: Path, stub: Stub, tmp_path: Path
) -> None:
    assert require_gpu(str(library)) == 1
    with pytest.raises(EngineError, match="no NVIDIA driver: dlopen of .*backend ort"):
        require_gpu(str(tmp_path / "nowhere.so"))
    stub.reset("cuInit")
    with pytest.raises(EngineError, match="cuInit gave error 999"):
        require_gpu(str(library))
    stub.reset("no device")
    with pytest.raises(EngineError, match="device count 0"):
        require_gpu(str(library))


def test_a_backend_without_its_driver_is_an_error_that_says_so() -> None:
    try:
        require_gpu()
    except EngineError:
        for name in ("tensorrt", "tensorrt-pycuda"):
            with pytest.raises(EngineError, match="no NVIDIA driver|does not start|sees no GPU"):
                load_engine(name)
    else:
        pytest.skip("this machine has a working driver")


def test_versions_are_read_as_the_driver_writes_them() -> None:
    assert (cuda_version(12060), cuda_version(13000)) == ("12.6", "13.0")
    assert (
        kernel_driver(lambda path: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun") == "535.54.03"
    )
    assert (
        kernel_driver(lambda path: "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release")
        == "540.4.0"
    )
    assert kernel_driver(lambda path: "nothing known") == "unknown"
