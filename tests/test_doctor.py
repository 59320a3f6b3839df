# SPDX-License-Identifier: Apache-2.0
"""vla-doctor: what is missing is named with its fix, and only what is needed decides the exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vla_edge import doctor
from vla_edge.installation import EXTRAS


def states(findings):
    return {finding.check: finding.state for finding in findings}


def test_here_everything_that_is_always_needed_is_found(capsys):
    pytest.importorskip("vla_edge._core")
    pytest.importorskip("onnxruntime")
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {item["check"]: item for item in told["findings"]}
    assert told["missing"] == [] and found["python"]["state"] == "ok"
    assert {"host", "numpy", "C core", "onnxruntime", "onnxruntime providers", "GPU driver", "TensorRT"} <= set(found)
    assert all(item["fix"] for item in told["findings"] if item["state"] == "missing")


def test_the_table_names_check_found_needed_and_fix(monkeypatch, capsys):
    fix = 'python -m pip install -e "somewhere/that/is/deep/below/the/working/folder[gpu]" --and --more'
    absent = [doctor.Finding(name, doctor.MISSING, "none", "10.3", fix) for name in ("TensorRT", "cuda-bindings")]
    monkeypatch.setitem(doctor.OPTIONAL, "tensorrt", lambda: absent)
    monkeypatch.setenv("COLUMNS", "80")
    doctor.main([])
    text = capsys.readouterr().out
    assert "how to fix" in text and "needed" in text and "numpy" in text
    assert f"  TensorRT, cuda-bindings: {fix}\n" in text  # one line, whatever the terminal's width


def test_what_is_not_there_fails_only_when_it_is_needed(monkeypatch, capsys):
    absent = [doctor.Finding("TensorRT", doctor.MISSING, "not installed", "10.3", "pip install it")]
    monkeypatch.setitem(doctor.OPTIONAL, "tensorrt", lambda: absent)
    assert doctor.main(["--json"]) == 0
    assert doctor.main(["--need", "tensorrt"]) == 1
    assert "missing: TensorRT" in capsys.readouterr().err


def test_everything_the_commands_need_is_looked_for_with_the_command_that_installs_it(monkeypatch, capsys):
    for package in EXTRAS:
        monkeypatch.setitem(sys.modules, doctor.NAMES.get(package, ("", package))[1], None)
    assert doctor.main(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = {item["check"].lower(): item for item in told["findings"]}
    names = {package: doctor.NAMES.get(package, (package,))[0].lower() for package in EXTRAS}
    assert set(names.values()) | {"huggingface_hub"} <= set(found)
    for package, extras in EXTRAS.items():
        if names[package] in found:
            item = found[names[package]]
            assert item["state"] == "missing" and "install" in item["fix"]
            assert any(f"[{extra}]" in item["fix"] for extra in extras)
    assert told["missing"] == ["onnxruntime"]


def test_in_the_robots_environment_doctor_and_deploy_run_without_the_other_extras(tmp_path):
    """Neither torch nor onnx, pyarrow, av: exit codes 0, and one line where a dataset is asked for."""
    bundle = Path(__file__).resolve().parents[1] / "examples" / "reach-cube" / "bundle"
    pytest.importorskip("vla_edge._core")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'pyarrow', 'av', 'transformers', 'accelerate', 'peft'):\n"
        "    sys.modules[name] = None\n"
        "from vla_edge.doctor import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def doctor_with(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=240)

    assert doctor_with().returncode == 0
    plain = doctor_with("deploy", str(bundle), "--task", "reach the red cube", "--threads", "1")
    assert plain.returncode == 0, plain.stderr
    data = doctor_with("deploy", str(bundle), "--dataset", str(tmp_path), "--threads", "1")
    assert data.returncode == 2 and "Traceback" not in data.stderr
    assert "pyarrow is not installed here; install it with: " in data.stderr and "[data]" in data.stderr


def test_a_missing_core_or_engine_fails_with_the_way_out(monkeypatch, capsys):
    for module, check, way in (
        ("vla_edge._core", "C core", "apt-get install gcc"),
        ("onnxruntime", "onnxruntime", '[ort]"'),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            if module == "vla_edge._core":
                patch.delattr(module, raising=False)  # what `from vla_edge import _core` looks at first
            assert doctor.main(["--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["missing"] == [check]
        assert way in next(item["fix"] for item in told["findings"] if item["check"] == check)


def test_a_package_that_is_there_but_does_not_load_is_missing_with_its_own_words(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (finding,) = doctor.tensorrt()
    assert finding.state == doctor.MISSING and "libnvinfer" in finding.found


def test_devices_are_listed_under_the_name_that_survives_replugging(tmp_path):
    (tmp_path / "video0").touch()
    (tmp_path / "v4l" / "by-id").mkdir(parents=True)
    (tmp_path / "v4l" / "by-id" / "usb-Logi-index0").symlink_to(tmp_path / "video0")
    (finding,) = doctor.cameras(tmp_path)
    assert finding.state == doctor.OK and finding.found.endswith("video0 = usb-Logi-index0")
    assert states(doctor.cameras(tmp_path / "none")) == {"cameras": doctor.MISSING}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_port_without_permission_names_the_group(tmp_path):
    (tmp_path / "ttyUSB0").touch(mode=0)
    (finding,) = doctor.serial(tmp_path, tmp_path)
    assert finding.state == doctor.MISSING and "dialout" in finding.fix


def test_a_slow_latency_timer_is_noticed(tmp_path):
    (tmp_path / "ttyUSB0").touch()
    (tmp_path / "usb" / "ttyUSB0").mkdir(parents=True)
    timer = tmp_path / "usb" / "ttyUSB0" / "latency_timer"
    timer.write_text("16\n")
    assert states(doctor.serial(tmp_path, tmp_path / "usb"))["latency timer"] == doctor.NOTE
    timer.write_text("1\n")
    assert "latency timer" not in states(doctor.serial(tmp_path, tmp_path / "usb"))
    assert states(doctor.serial(tmp_path / "none")) == {"serial ports": doctor.MISSING}


def test_asking_for_priority_leaves_the_process_as_it_was():
    before = os.sched_getscheduler(0)
    assert doctor.host()[1].check == "real-time priority" and os.sched_getscheduler(0) == before


@pytest.mark.parametrize(("root", "advice"), [(False, "limits.d"), (True, "take CPUWeight and CPUQuota out")])
def test_priority_that_is_refused_where_it_is_allowed_is_a_matter_of_groups(monkeypatch, root, advice):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(doctor.os, "sched_setscheduler", refuse)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (0, 0))
    finding = doctor.host()[1]
    assert finding.state == doctor.NOTE and advice in finding.fix


def test_a_guardian_is_started_and_ended_and_the_arms_that_need_one_are_named():
    pytest.importorskip("vla_edge._core")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()
    (finding,) = doctor.guardian()
    assert children.read_text() == before, "it was ended and waited for"
    assert finding.state == (doctor.OK if doctor.host()[1].state == doctor.OK else doctor.NOTE), finding
    assert finding.found.startswith("started") and "so100, so101 have no watchdog" in finding.needed


def test_without_room_for_a_guardian_the_limit_and_its_remedy_are_named(monkeypatch, capsys):
    pytest.importorskip("vla_edge._core")

    def refused() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refused)
    (finding,) = doctor.guardian()
    assert finding.state == doctor.MISSING and "no guardian can be started" in finding.found
    assert "`ulimit -u`" in finding.fix and "TasksMax=" in finding.fix
    monkeypatch.setitem(doctor.OPTIONAL, "guardian", lambda: [finding])
    assert doctor.main(["--need", "guardian"]) == 1
    assert "missing: guardian" in capsys.readouterr().err


def test_an_unknown_need_is_refused():
    assert doctor.main(["--need", "luck"]) == 2
