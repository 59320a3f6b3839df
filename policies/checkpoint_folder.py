"""Where a checkpoint's files lie, and those of the backbone and the tokenizer that it names.

A name is a folder (given as is, or relative to the checkpoint) or a repository
of the model hub, which is looked up in the hub's local cache by path. Nothing
is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_edge.errors import CheckpointError
from vla_edge.fields import read_object

VLM_FOLDER = "vlm"
"""Where a self-contained checkpoint keeps its backbone's config and tokenizer."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    return read_object(
        file, CheckpointError, "copy the checkpoint again", "missing; give the folder that save_pretrained wrote"
    )


def find_folder(name: str, checkpoint: Path, files: tuple[str, ...]) -> Path:
    """The folder that holds all of `files` for the backbone or tokenizer `name`.

    Looked for in this order: `name` relative to the checkpoint, `name` as given,
    the checkpoint's `vlm` folder, the hub's cache. CheckpointError lists the places.
    """
    places = [checkpoint / name, Path(name).expanduser(), checkpoint / VLM_FOLDER, *_cached_snapshots(name)]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    tried = ", ".join(str(place) for place in places)
    raise CheckpointError(
        f"{checkpoint}: {' and '.join(files)} of {name!r} not found in {tried} or the hub's cache; "
        f"copy that folder to {checkpoint / VLM_FOLDER} or download {name} once with the hub's own tool"
    )


def given_folder(folder: Path, files: tuple[str, ...]) -> Path:
    """`folder`, named by the user: no other place is tried. CheckpointError when one of `files` is not in it."""
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder / file}: missing; give the folder that holds the backbone's config.json and tokenizer"
            )
    return folder


def _cached_snapshots(name: str) -> list[Path]:
    if name.count("/") != 1 or name.startswith((".", "/")):
        return []
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        return [repository / "snapshots" / reference.read_text().strip()]
    snapshots = repository / "snapshots"
    return sorted(snapshots.iterdir()) if snapshots.is_dir() else []


def hub_cache() -> Path:
    """Where the model hub's client keeps its files on this machine."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)
