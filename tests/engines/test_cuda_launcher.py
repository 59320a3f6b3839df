"""The C launcher against a stub driver library that records the calls: order, arguments, error paths. No GPU is used,
and nothing here says how the real driver behaves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_edge import _core
from vla_edge.engines.engine import load_engine
from vla_edge.engines.tensorrt.cuda import cuda_version, kernel_driver, require_gpu
from vla_edge.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
HIGH, LOW = 0xA0, 0xB0
EVENTS = (0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5)
"""filled 0 and 1, idle 0 and 1, stepped 0 and 1"""
PREFIX, STATE, WHOLE = (0x100, 0x101), (0x200, 0x201), 0x400
X = (0x10000, 0x10100)
STEPS = 4
DT = tuple(0x10200 + 4 * k for k in range(STEPS))

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the stub driver")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stub") / "libstub_cuda.so"
    words = [
        "gcc",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        str(ROOT / "tests" / "runtime" / "core" / "c" / "stub_cuda.c"),
        "-o",
        str(out),
    ]
    subprocess.run(words, check=True)
    return out


class Stub:
    """The stub's own side: what was called, and which call shall fail."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.stub_log.restype = ctypes.c_char_p
        self._library.stub_memory.restype = ctypes.c_void_p
        self.reset()

    def reset(self, failing: str = "", after: int = 0) -> None:
        self._library.stub_reset(failing.encode(), after)

    def calls(self) -> list[str]:
        return self._library.stub_log().decode().splitlines()

    def floats(self, address: int, count: int) -> np.ndarray:
        start = self._library.stub_memory() + address - 0x10000
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(start))


@pytest.fixture
def stub(library: Path) -> Iterator[Stub]:
    made = Stub(library)
    yield made
    made.reset()


class Rig:
    """A launcher on the stub with four captured steps of [2, 2] for side 0."""

    def __init__(self, library: Path, stub: Stub) -> None:
        self.driver = _core.CudaDriver(str(library))
        self.x_in, self.x_out = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32)
        self.loop = _core.CudaLoop(self.driver, (HIGH, LOW), EVENTS, PREFIX, STATE, X, self.x_in, self.x_out, 2)
        finish = np.array([*(-(STEPS - k) / STEPS for k in range(STEPS)), -1 / STEPS], np.float32)
        self.loop.add_steps(0, WHOLE, tuple(0x500 + k for k in range(STEPS)), DT, finish)
        stub.floats(DT[0], STEPS)[:] = -1 / STEPS
        stub.reset()


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


def test_every_read_of_a_side_lies_between_its_filled_and_its_idle_event(rig: Rig, stub: Stub) -> None:
    noise, signal = np.ones((2, 2), np.float32), np.zeros(1, np.int32)
    for arguments in ({}, {"signal": signal}):
        stub.reset()
        rig.loop.denoise(0, noise, STEPS, **arguments)  # type: ignore[arg-type]
        calls = stub.calls()
        launches = [index for index, call in enumerate(calls) if call.startswith("cuGraphLaunch")]
        assert calls.index("cuStreamWaitEvent(0xa0, 0xe0, 0)") < launches[0]
        assert calls.index("cuEventRecord(0xe2, 0xa0)") > launches[-1]


def test_a_loop_nobody_may_stop_is_one_launch(rig: Rig, stub: Stub) -> None:
    noise = np.arange(4, dtype=np.float32).reshape(2, 2)
    abandoned, step_ns = rig.loop.denoise(0, noise, STEPS)
    assert not abandoned and len(step_ns) == STEPS and len(set(step_ns)) == 1
    np.testing.assert_array_equal(rig.x_in[0], noise)
    assert stub.calls() == [
        "cuCtxSetCurrent(0xc0)",
        "cuStreamWaitEvent(0xa0, 0xe0, 0)",
        "cuGraphLaunch(0x400, 0xa0)",
        "cuEventRecord(0xe2, 0xa0)",
        "cuStreamSynchronize(0xa0)",
    ]


def test_with_a_signal_steps_are_launched_one_ahead_and_give_the_same_result(rig: Rig, stub: Stub) -> None:
    noise = np.arange(4, dtype=np.float32).reshape(2, 2)
    abandoned, step_ns = rig.loop.denoise(0, noise, STEPS, signal=np.zeros(1, np.int32))
    assert not abandoned and len(step_ns) == STEPS
    np.testing.assert_array_equal(rig.x_out[0], noise - 1)
    order = [call for call in stub.calls() if "Launch" in call or "EventSynchronize" in call]
    assert order == [
        "cuGraphLaunch(0x500, 0xa0)", "cuGraphLaunch(0x501, 0xa0)", "cuEventSynchronize(0xe4)", "cuGraphLaunch(0x502, 0xa0)",
        "cuEventSynchronize(0xe5)", "cuGraphLaunch(0x503, 0xa0)", "cuEventSynchronize(0xe4)",
    ]  # fmt: skip


def test_an_abandoned_loop_has_launched_one_step_and_waits_for_it(rig: Rig, stub: Stub) -> None:
    abandoned, step_ns = rig.loop.denoise(0, np.zeros((2, 2), np.float32), STEPS, signal=np.array([2], np.int32))
    assert abandoned and len(step_ns) == 1
    calls = stub.calls()
    assert sum("Launch" in call for call in calls) == 1
    assert calls[-2:] == ["cuStreamSynchronize(0xa0)", "cuEventRecord(0xe2, 0xa0)"]


def test_a_hurried_loop_takes_the_rest_in_one_step_and_puts_dt_back(rig: Rig, stub: Stub) -> None:
    noise = np.ones((2, 2), np.float32)
    abandoned, step_ns = rig.loop.denoise(0, noise, STEPS, signal=np.array([1], np.int32))
    assert not abandoned and len(step_ns) == 2
    # Step 0 goes 1/4 of the way, step 1 the remaining 3/4.
    np.testing.assert_array_equal(rig.x_out[0], noise - 1)
    np.testing.assert_array_equal(stub.floats(DT[0], STEPS), np.full(STEPS, -0.25, np.float32))


def test_a_frozen_row_ends_in_its_target_and_a_free_one_does_not_see_it(rig: Rig) -> None:
    noise, target = np.ones((2, 2), np.float32), np.full((2, 2), 7, np.float32)
    rig.loop.denoise(0, noise, STEPS, target=target, weights=np.array([1, 0], np.float32))
    np.testing.assert_array_equal(rig.x_out[0], [[7, 7], [0, 0]])


@pytest.mark.parametrize(
    "call", ["cuCtxSetCurrent", "cuStreamWaitEvent", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"]
)
def test_every_failing_call_of_the_loop_ends_it_with_its_name(rig: Rig, stub: Stub, call: str) -> None:
    for arguments in ({}, {"signal": np.zeros(1, np.int32)}):
        stub.reset(call)
        with pytest.raises(RuntimeError, match=f"{call} failed: CUDA_ERROR_UNKNOWN"):
            rig.loop.denoise(0, np.zeros((2, 2), np.float32), STEPS, **arguments)  # type: ignore[arg-type]
    stub.reset(call)
    with pytest.raises(RuntimeError, match=f"{call} failed"):
        rig.loop.encode(0, True)


def test_a_failure_in_the_middle_of_the_steps_stops_the_launches(rig: Rig, stub: Stub) -> None:
    stub.reset("cuGraphLaunch", 2)
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed"):
        rig.loop.denoise(0, np.zeros((2, 2), np.float32), STEPS, signal=np.zeros(1, np.int32))
    assert sum("Launch" in call for call in stub.calls()) == 3


def test_requests_that_do_not_fit_are_refused(rig: Rig) -> None:
    noise = np.zeros((2, 2), np.float32)
    for arguments, message in [
        ((2, noise, STEPS), "side is 2"),
        ((0, noise, 3), "3 steps are not captured for side 0"),
        ((1, noise, STEPS), "not captured for side 1"),
        ((0, noise[:1], STEPS), "noise has 8 bytes, must have 16"),
        ((0, noise, STEPS, noise), "come together"),
    ]:
        with pytest.raises(ValueError, match=message):
            rig.loop.denoise(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="events must be a tuple of 6"):
        _core.CudaLoop(rig.driver, (HIGH, LOW), EVENTS[:5], PREFIX, STATE, X, rig.x_in, rig.x_out, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="handle 1 is 0"):
        _core.CudaLoop(rig.driver, (HIGH, 0), EVENTS, PREFIX, STATE, X, rig.x_in, rig.x_out, 2)


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
