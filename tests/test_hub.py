# SPDX-License-Identifier: Apache-2.0
"""Hub ids and paths → folders: made-up caches, and a server on this machine in the Hub's place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub_server import commit_of, hub_server
from vla_edge import hub
from vla_edge.errors import CheckpointError, DatasetError

ROOT = Path(__file__).resolve().parent.parent
FILES = {"config.json": "{}", "model.safetensors": "w", "optimizer.bin": "o", "training_state/s.safetensors": "t"}
DATA = {"meta/info.json": "{}", "data/chunk-000/file-000.parquet": "p", "videos/a/chunk-000/file-000.mp4": "v"}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the Hub's client; nothing may be downloaded."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    return tmp_path / "home" / "hub"


def snapshot(caches: Path, repository: str, reference: str, files: dict[str, str], kind: str = "model") -> Path:
    place = caches / f"{kind}s--{repository.replace('/', '--')}"
    write(place, {f"refs/{reference}": commit_of(reference)})
    return write(place / "snapshots" / commit_of(reference), files)


def test_a_path_is_itself_even_where_it_looks_like_an_id(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot(caches, "someone/policy", "main", FILES)
    write(tmp_path / "someone" / "policy", FILES)
    assert hub.local_folder("someone/policy", "model") == Path("someone/policy")
    assert hub.local_folder("/nowhere/at/all", "model") == Path("/nowhere/at/all")
    with pytest.raises(CheckpointError, match="a folder here has no revision v1"):
        hub.local_folder(tmp_path, "model", "v1")


def test_an_id_is_its_main_branch_or_the_revision_asked_for(caches: Path) -> None:
    main = snapshot(caches, "someone/policy", "main", FILES)
    tag = snapshot(caches, "someone/policy", "v1", FILES)
    assert hub.local_folder("someone/policy", "model") == main
    assert hub.local_folder(Path("someone/policy"), "model", "v1") == tag
    assert hub.local_folder("someone/policy@v1", "model") == tag
    assert hub.local_folder(f"someone/policy@{commit_of('v1')}", "model") == tag


def test_what_the_cache_lacks_is_one_line_offline(caches: Path) -> None:
    snapshot(caches, "someone/half", "main", {"config.json": "{}"})
    with pytest.raises(CheckpointError, match="model someone/half: no folder here, not whole in the cache .*unset"):
        hub.local_folder("someone/half", "model")
    assert hub.local_folder("someone/half", "model", files=["config.json"]).name == commit_of("main")
    with pytest.raises(DatasetError, match="dataset someone/data at revision v9: .*hf download --repo-type dataset"):
        hub.local_folder("someone/data@v9", "dataset")


def test_a_dataset_is_found_where_lerobot_keeps_it(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = snapshot(caches.parent / "lerobot" / "hub", "someone/data", "v3.0", DATA, "dataset")
    assert hub.local_folder("someone/data", "dataset") == tagged
    recorded = write(caches.parent / "lerobot" / "someone" / "data", DATA)
    assert hub.local_folder("someone/data", "dataset") == recorded
    assert hub.local_folder("someone/data@v3.0", "dataset") == tagged
    monkeypatch.setenv("HF_LEROBOT_HOME", str(caches.parent / "elsewhere"))
    elsewhere = write(caches.parent / "elsewhere" / "someone" / "data", DATA)
    assert hub.local_folder("someone/data", "dataset") == elsewhere


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., str]:
    """A function that asks for a folder in a process of its own, with HF_ENDPOINT at a server: path or error."""

    def asked(url: str, call: str, **environment: str) -> str:
        code = (
            "from vla_edge.hub import local_folder\nfrom vla_edge.errors import VlaEdgeError\n"
            f"try: print({call})\nexcept VlaEdgeError as error: print('error:', error)"
        )
        here = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **here, **environment}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return asked


def test_a_repository_is_downloaded_once_and_then_read_without_the_hub(tmp_path: Path, ask: Callable[..., str]) -> None:
    policies = {"main": write(tmp_path / "main", FILES), "v1": write(tmp_path / "v1", {**FILES, "config.json": "[1]"})}
    with hub_server({"models/someone/policy": policies, "datasets/a/b": {"main": write(tmp_path / "b", DATA)}}) as hub:
        found = Path(ask(hub.url, "local_folder('someone/policy', 'model')"))
        assert {file.relative_to(found).as_posix() for file in found.rglob("*")} == {"config.json", "model.safetensors"}
        tagged = Path(ask(hub.url, "local_folder('someone/policy', 'model', 'v1')"))
        assert (found / "config.json").read_text() == "{}" and (tagged / "config.json").read_text() == "[1]"
        data = Path(ask(hub.url, "local_folder('a/b', 'dataset')"))
        assert {file.relative_to(data).as_posix() for file in data.rglob("*") if file.is_file()} == set(DATA)
        before = len(hub.asked)
        assert ask(hub.url, "local_folder('someone/policy', 'model')") == str(found)
        assert len(hub.asked) == before
    assert ask(hub.url, "local_folder('someone/policy@v1', 'model')", HF_HUB_OFFLINE="1") == str(tagged)


def test_what_the_hub_refuses_is_one_line(tmp_path: Path, ask: Callable[..., str]) -> None:
    main = {"main": write(tmp_path / "main", FILES)}
    with hub_server({"models/someone/policy": main, "models/big/gated": main}) as hub:
        hub.gated = ("big/gated",)
        says = ask(hub.url, "local_folder('someone/polcy', 'model')")
        assert says.startswith("error: model someone/polcy: no folder here and nothing of that name at http")
        says = ask(hub.url, "local_folder('someone/policy@v7', 'model')")
        assert says.startswith("error: model someone/policy at revision v7: ") and "no such revision" in says
        says = ask(hub.url, "local_folder('big/gated', 'model')")
        assert "accept them at http" in says and says.endswith("/big/gated and run `hf auth login`")
    says = ask(hub.url, "local_folder('someone/policy', 'model')")
    assert "did not give it" in says and "\n" not in says and "check the network" in says
