# SPDX-License-Identifier: Apache-2.0
"""`scripts/jetson_run.sh`: what it prints and refuses, and that everything before the device works without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.random_policy import RandomPolicy, write_random_policy

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "jetson_run.sh"


def jetson_run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("jetpack", "cuda"), [("6.2", "'cuda-bindings>=12.6,<13'"), ("7.2", "'cuda-bindings>=13'")])
def test_a_dry_run_prints_every_step_as_it_would_be_typed_and_runs_none(
    tmp_path: Path, jetpack: str, cuda: str
) -> None:
    work = tmp_path / "it's work"
    ran = jetson_run("--dry-run", "--jetpack", jetpack, "--work", str(work), "--checkpoint", "DIR", "--synthetic")
    assert ran.returncode == 0 and not work.exists() and ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("== ")] == ["1", "2", "3", "4", "5", "6"]
    assert any(cuda in line and "[export,ort]" in line for line in lines)
    typed = [line[2:] for line in lines if line.startswith("+ ")]
    for line in typed:  # a shell reads each line as the words it was made of
        assert subprocess.run(["sh", "-nc", line]).returncode == 0, line
    said = subprocess.run(["sh", "-c", f'set -- {typed[-1]}; printf "%s\\n" "$@"'], capture_output=True, text=True)
    assert said.stdout.splitlines()[1:5] == ["--preset", "orin-nano", "--bundle", f"tensorrt:{work}/bundle-fp16"]


def test_a_bundle_needs_neither_torch_nor_an_export(tmp_path: Path) -> None:
    ran = jetson_run("--dry-run", "--jetpack", "7.2", "--work", str(tmp_path / "work"), "--bundle", "B")
    assert "[export" not in ran.stdout and "--checkpoint" not in ran.stdout
    assert "export-engines --bundle B --backend tensorrt" in ran.stdout


def test_a_dataset_needs_what_reads_it(tmp_path: Path) -> None:
    words = ("--dry-run", "--jetpack", "7.2", "--work", str(tmp_path / "work"), "--checkpoint", "DIR")
    assert "[export,ort,data]" in jetson_run(*words, "--dataset", "D").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --checkpoint DIR, or --bundle DIR"),
        (("--checkpoint", "C", "--bundle", "B"), "give one"),
        (("--checkpoint", "C"), "--synthetic for random weights"),
        (("--bundle", "B", "--jetpack", "5"), "must be 6.2 or 7.2"),
        (("--bundle", "B", "--precision", "int8"), "must be fp16 or fp32"),
        (("--bundle",), "--bundle needs a value"),
        (("--fast",), "unknown word --fast"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], said: str) -> None:
    ran = jetson_run("--dry-run", *words)
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_everything_before_the_device_runs_in_a_fresh_environment_from_the_wheel(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(wheels),
        str(ROOT),
    ]
    subprocess.run(words, check=True)
    write_random_policy(tmp_path / "policy", RandomPolicy())
    given = ["--work", str(tmp_path / "work"), "--wheel", str(next(wheels.iterdir())), "--synthetic"]
    ran = jetson_run("--jetpack", "7.2", "--checkpoint", str(tmp_path / "policy"), *given)
    assert "== 5 engines" in ran.stdout and (tmp_path / "work" / "bundle-fp16.tar").exists(), ran.stderr
    if not Path("/proc/driver/nvidia/version").exists():
        assert ran.returncode == 2 and "NVIDIA driver" in ran.stderr and "== 6" not in ran.stdout
