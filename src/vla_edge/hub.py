# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint or a dataset lies on this machine: its path, or the snapshot of a Hugging Face Hub repository.

A Hub id is `owner/name`, or `owner/name@revision` (branch, tag or commit). It is looked for in the caches first
(`huggingface_hub`'s, and for datasets LeRobot's own folders too), and downloaded into `huggingface_hub`'s cache where
they do not hold it; `HF_HUB_OFFLINE=1` forbids that. What a cache holds is taken as it is: nobody asks the Hub for
anything newer.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import constants

from vla_edge.errors import CheckpointError, DatasetError, VlaEdgeError

RepoType = Literal["model", "dataset"]

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@]+))?")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_SMALL = ("*.json", "*.txt", "*.jinja", "*.model")


class _Kind(NamedTuple):
    """needs: patterns, each of which a whole snapshot has a file for; takes: patterns of what is downloaded;
    references: the revisions looked for in the caches where none was asked for."""

    error: type[VlaEdgeError]
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    references: tuple[str, ...]


_KINDS = {
    "model": _Kind(CheckpointError, ("*config.json", "*.safetensors"), (*_SMALL, "*.safetensors"), ("main",)),
    "dataset": _Kind(
        DatasetError,
        ("meta/info.json", "data/*/*.parquet"),
        ("meta/*", "data/*", "videos/*", "images/*"),
        ("main", "v3.0", "v2.1", "v2.0"),
    ),
}


def local_folder(
    name: str | Path, repo_type: RepoType, revision: str = "", files: Sequence[str] = (), weights: bool = True
) -> Path:
    """The folder or file that `name` means: itself where there is such a path or where it is no Hub id, else the
    repository's snapshot.

    files: what the snapshot must hold, where that is not what every checkpoint or dataset has; weights: download
    .safetensors files too. CheckpointError or DatasetError, by repo_type: the Hub does not give it.
    """
    path = Path(name).expanduser()
    match = _ID.fullmatch(str(name))
    if match is None or path.exists():
        if revision:
            raise _KINDS[repo_type].error(f"{name}: a folder here has no revision {revision}; give a Hub id with it")
        return path
    kind = _KINDS[repo_type]
    repository, revision = match["name"], revision or match["revision"] or ""
    needs = tuple(files) or kind.needs
    for place in cached(repository, repo_type, revision):
        if all(any(place.glob(pattern)) for pattern in needs):
            return place
    takes = kind.takes if weights else (*_SMALL, *needs)
    return _download(repository, repo_type, revision, takes)


def is_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id."""
    return _ID.fullmatch(name) is not None


def cached(repository: str, repo_type: RepoType, revision: str = "") -> Iterator[Path]:
    """Where the caches may hold a repository, the best place first."""
    caches = [Path(constants.HF_HUB_CACHE)]
    if repo_type == "dataset":
        lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or Path(constants.HF_HOME) / "lerobot").expanduser()
        caches.append(lerobot / "hub")
        if not revision:
            yield lerobot / repository
    for cache in caches:
        place = cache / f"{repo_type}s--{repository.replace('/', '--')}"
        references = [revision] if revision else _KINDS[repo_type].references
        commits = [file.read_text().strip() for ref in references if (file := place / "refs" / ref).is_file()]
        if revision and not commits:
            commits = [revision]
        snapshots = list((place / "snapshots").glob("*"))
        if not commits and len(snapshots) == 1:
            commits = [snapshots[0].name]
        yield from (place / "snapshots" / commit for commit in commits)


def _download(repository: str, repo_type: RepoType, revision: str, takes: Sequence[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    error, cache = _KINDS[repo_type].error, constants.HF_HUB_CACHE
    what = f"{repo_type} {repository}" + (f" at revision {revision}" if revision else "")
    by_hand = "`hf download " + ("--repo-type dataset " if repo_type == "dataset" else "") + f"{repository}`"
    if constants.HF_HUB_OFFLINE:
        raise error(
            f"{what}: no folder here, not whole in the cache {cache}, and HF_HUB_OFFLINE forbids to download it; unset "
            f"HF_HUB_OFFLINE, or run {by_hand} where there is a network and copy the folder here"
        )
    try:
        found = snapshot_download(
            repository,
            repo_type=repo_type,
            revision=revision or None,
            allow_patterns=list(takes),
            ignore_patterns=["*training_state/*", "checkpoints/*"],
        )
    except errors.GatedRepoError:
        raise error(
            f"{what}: its owner gives it to those who accept terms; accept them at {constants.ENDPOINT}/{repository} "
            "and run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise error(
            f"{what}: no folder here and nothing of that name at {constants.ENDPOINT}; check the spelling, or run "
            "`hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise error(f"{what}: {constants.ENDPOINT} has no such revision; give a branch, a tag or a commit") from None
    except (errors.HTTPError, OSError) as problem:
        if getattr(problem, "errno", None) in _DISK:
            raise
        raise error(
            f"{what}: no folder here, not whole in the cache {cache}, and {constants.ENDPOINT} did not give it "
            f"({_first_line(problem)}); check the network and run it again, or copy the folder here"
        ) from None
    return Path(found)


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
