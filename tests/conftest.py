# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several parts share, and what makes a test give the same verdict every time: seeds, no deadlines."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the network
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of children would compile the same files
ON_THE_CLOCK = ("tests/robot/", "tests/runtime/control/", "tests/runtime/service/", "tests/runtime/records/")
"""Folders whose tests run control loops, emulators and services on the machine's clock."""
OFF_THE_CLOCK = {
    "test_arm_description.py", "test_bus_packet.py", "test_joint_calibration.py", "test_robot_file.py", "test_sim.py",
    "test_sts3215.py", "test_control_rate.py", "test_handover.py", "test_identity.py", "test_wire.py",
    "test_install_service.py", "test_old_records.py", "test_record_parts.py",
}  # fmt: skip
"""Files there that do not."""
BEGUN_FIRST = {"tests/training/test_training_learning.py", "tests/scripts/test_device_run.py"}
"""Long files of few tests, which would else be the last ones, with the other worker idle."""

try:
    import torch  # its first draws are random: it must be there to be seeded
except ImportError:
    torch = None  # type: ignore[assignment]

with contextlib.suppress(ImportError):  # a bare device has none
    from hypothesis import HealthCheck, settings

    # The same examples every time, however long this machine takes over one.
    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("same")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` has two workers: what runs on the clock stays on one of them, which is the longer one and waits half
    its time, and a file with its fixtures on one."""
    if config.getoption("dist") != "load":  # another way to share the files out was asked for
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "clock" if file.startswith(ON_THE_CLOCK) and Path(file).name not in OFF_THE_CLOCK else file

        def _assign_work_unit(self, node: Any) -> None:
            for file in BEGUN_FIRST & self.workqueue.keys():
                self.workqueue.move_to_end(file, last=False)
            super()._assign_work_unit(node)

    return ByRoom(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seeds what draws at random, before the fixtures of the test, those of its module included."""
    random.seed(0)
    np.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> None:
    """In the background of a script, or under nohup, SIGINT or SIGHUP is ignored, by our children as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def the_process_is_left_as_it_was() -> Iterator[None]:
    """The next test in this process would find a signal handler, and another priority as well: its children inherit
    it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    policy, parameter, niceness = os.sched_getscheduler(0), os.sched_getparam(0), os.nice(0)
    yield
    left_in = os.sched_getscheduler(0)
    os.sched_setscheduler(0, policy, parameter)
    assert left_in == policy, f"the test left its process in scheduling class {left_in}"
    left_at = os.nice(0)
    if left_at != niceness:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
    assert left_at == niceness, f"the test left its process at niceness {left_at}"
    left = [number.name for number, handler in before.items() if signal.getsignal(number) is not handler]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not left, f"the test left handlers of {', '.join(left)} behind"


@pytest.fixture
def random_policy(tmp_path: Path) -> Callable[..., Any]:
    """A function that writes a tiny random policy and loads it: fields of `RandomPolicy` and of config.json by name."""
    from tests.random_policy import RandomPolicy, write_random_policy
    from vla_edge.policies.smolvla.policy import SmolVLAPolicy

    torch.set_num_threads(1)
    makers = set(RandomPolicy.__dataclass_fields__) - {"config"}

    def make(name: str = "policy", **fields: Any) -> SmolVLAPolicy:
        how = {key: fields.pop(key) for key in makers & set(fields)}
        write_random_policy(tmp_path / name, RandomPolicy(config=fields, **how))
        return SmolVLAPolicy.from_pretrained(tmp_path / name)

    return make


@pytest.fixture
def observe() -> Callable[..., dict[str, Any]]:
    """A function that makes a raw observation for a policy: pictures of noise for the named cameras."""

    def make(policy: Any, present: tuple[str, ...] = ("laptop", "phone"), seed: int = 3) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        pictures = {
            f"observation.images.{name}": generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in present
        }
        state = generator.normal(0, 20, policy.config.state_dim).astype(np.float32)
        return {**pictures, "observation.state": state, "task": "Stack the red block on the blue one"}

    return make


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tests/golden/koch-bfloat16, exported once for the whole run. Not to be written to."""
    from vla_edge.export.assemble import ExportRequest, export_bundle

    out = tmp_path_factory.mktemp("golden") / "bundle"
    export_bundle(
        ExportRequest(checkpoint=Path(__file__).parent / "golden" / "koch-bfloat16", out=out, threads=1),
        lambda step: None,
    )
    return out


@pytest.fixture(scope="session")
def paced_bundle(golden_bundle: Path) -> Path:
    """The same, with the rate of its data: 30 actions a second at every control rate."""
    from dataclasses import replace

    from vla_edge.bundle import open_bundle, write_manifest

    out = golden_bundle.with_name("paced")
    shutil.copytree(golden_bundle, out)
    write_manifest(out, replace(open_bundle(out).manifest, fps=30.0))
    return out


@pytest.fixture(scope="session")
def distilled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the golden policy as if it had been distilled to two steps. Not to be written to."""
    from dataclasses import replace

    from vla_edge.export.assemble import ExportRequest, export_bundle
    from vla_edge.policies.smolvla.policy import SmolVLAPolicy

    folder = tmp_path_factory.mktemp("distilled")
    policy = SmolVLAPolicy.from_pretrained(Path(__file__).parent / "golden" / "koch-bfloat16")
    mark = {"flow_steps": 2, "teacher_steps": policy.config.num_steps, "teacher": policy.digest}
    policy.config = replace(policy.config, num_steps=2, distilled=mark)
    policy.save_pretrained(folder / "policy")
    export_bundle(ExportRequest(folder / "policy", folder / "bundle", threads=1), lambda step: None)
    return folder / "bundle"
