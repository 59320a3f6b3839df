# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint's files lie, and those of the backbone and the tokenizer that it names.

A name is a folder (given as is, or relative to the checkpoint) or a Hugging Face Hub id (`vla_edge.hub`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vla_edge.errors import CheckpointError
from vla_edge.fields import read_object
from vla_edge.files import refuse_pointer
from vla_edge.hub import is_id, local_folder

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
VLM_FOLDER = "vlm"
"""Where a self-contained checkpoint keeps its backbone's config and tokenizer."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    return read_object(
        file, CheckpointError, "copy the checkpoint again", "missing; give the folder that save_pretrained wrote"
    )


def resolve_checkpoint(path: Path, revision: str = "") -> Path:
    """The policy's folder that `path` leads to: itself, the folder of a file, a checkpoint of a run (`pretrained_model`
    in it), a run (its last checkpoint), or the snapshot of a Hub id. A path that leads nowhere is returned as it is;
    reading it says what is missing. CheckpointError: a file there is a Git LFS pointer, or the Hub does not give it."""
    path = local_folder(path, "model", revision)
    if path.is_file():
        path = path.parent
    steps = sorted((path / "checkpoints").glob("[0-9]*"), key=lambda step: (len(step.name), step.name))
    places = [path, path / "pretrained_model", path / "checkpoints" / "last" / "pretrained_model"]
    places += [step / "pretrained_model" for step in reversed(steps)]
    found = next((place for place in places if (place / "config.json").is_file()), path)
    check_pointers(found)
    return found


def checkpoint_name(folder: Path) -> str:
    """`RUN@step` for a checkpoint of a run, `owner/name@commit` for the snapshot of a Hub id, else the folder's own
    name."""
    place = folder.resolve()
    if place.name == "pretrained_model" and place.parent.parent.name == "checkpoints":
        step = place.parent.name
        return f"{place.parent.parent.parent.name}@{int(step) if step.isdecimal() else step}"
    repository = place.parent.parent.name
    if place.parent.name == "snapshots" and repository.startswith("models--"):
        return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{place.name[:12]}"
    return place.name


def check_pointers(folder: Path) -> None:
    """CheckpointError names a file in `folder` that is only a Git LFS pointer."""
    for file in sorted(folder.rglob("*")) if (folder / "config.json").is_file() else ():
        refuse_pointer(file, CheckpointError)


def find_folder(name: str, checkpoint: Path, files: tuple[str, ...]) -> Path:
    """The folder that holds all of `files` for the backbone or tokenizer `name`.

    Looked for in this order: `name` relative to the checkpoint, `name` as given,
    the checkpoint's `vlm` folder, the Hub. CheckpointError lists the places.
    """
    places = [checkpoint / name, Path(name).expanduser(), checkpoint / VLM_FOLDER]
    for place in places:
        if all((place / file).is_file() for file in files):
            check_pointers(place)
            return place
    tried, why = ", ".join(_with_gaps(place, files) for place in places), "that path is another machine's"
    if is_id(name):
        try:
            return local_folder(name, "model", files=files, weights=False)
        except CheckpointError as error:
            why = str(error)
    raise CheckpointError(
        f"{checkpoint}: {' and '.join(files)} of {name!r} not found in {tried}; {why}; "
        f"give the folder with --vlm DIR or copy it to {checkpoint / VLM_FOLDER}"
    )


def _with_gaps(place: Path, files: tuple[str, ...]) -> str:
    """The place, and what it lacks where it has some of `files`."""
    gaps = [file for file in files if not (place / file).is_file()]
    return f"{place} (has no {' and no '.join(gaps)})" if len(gaps) < len(files) else str(place)


def vlm_of_base(name: str, folder: Path, base: Path | None) -> Path | None:
    """Where the base policy of the LoRA folder `folder` keeps its backbone `name`; None where it does not, or where
    the folder has it."""
    own, inherited = ([home / name, home / VLM_FOLDER] if home else [] for home in (folder, base))
    if any((place / "config.json").is_file() for place in own):
        return None
    return next((place for place in inherited if (place / "config.json").is_file()), None)


def given_folder(folder: Path, files: tuple[str, ...]) -> Path:
    """`folder`, named by the user: no other place is tried. CheckpointError when one of `files` is not in it."""
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder / file}: missing; give the folder that holds the backbone's config.json and tokenizer"
            )
    return folder


def write_backbone(folder: Path, source: Path, tokenizer: Path) -> None:
    """Copy the backbone's files to `folder/vlm`, its weights left out, and the tokenizer's when it lies elsewhere.

    CheckpointError when they are no longer where the policy was loaded from."""
    for place, name in ((source, "config.json"), (tokenizer, "tokenizer.json")):
        if not (place / name).is_file():
            raise CheckpointError(
                f"{place / name}: gone since the policy was loaded; put it back to save a complete checkpoint"
            )
    target = folder / VLM_FOLDER
    target.mkdir()
    for place, pattern in ((source, "*"), (tokenizer, "tokenizer*.json")):
        for file in sorted(place.glob(pattern)):
            if file.is_file() and file.suffix not in _WEIGHTS:
                shutil.copyfile(file, target / file.name)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write one JSON file as LeRobot lays it out."""
    file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
