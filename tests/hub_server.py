# SPDX-License-Identifier: Apache-2.0
"""A server in the Hugging Face Hub's place: repositories are folders, asked for as `huggingface_hub` asks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


@dataclass
class HubServer:
    """repositories: `models/owner/name` or `datasets/owner/name` → revision → its folder. asked: paths in order."""

    repositories: dict[str, dict[str, Path]]
    url: str = ""
    gated: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def hub_server(repositories: dict[str, dict[str, Path]]) -> Iterator[HubServer]:
    """The server while the block runs, on a free port of this machine."""
    state = HubServer(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, state)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, state: HubServer) -> None:
    path = unquote(urlparse(request.path).path)
    state.asked.append(path)
    words = path.strip("/").split("/")
    listed = words[0] == "api"
    words = words[1:] if listed else words
    kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
    repository, words = "/".join(words[:2]), words[2:]
    revisions = state.repositories.get(f"{kind}/{repository}")
    if revisions is None or repository in state.gated:
        code = "GatedRepo" if revisions else "RepoNotFound"
        return send(request, 403 if revisions else 404, b"", {"X-Error-Code": code, "X-Error-Message": "not yours"})
    verb, revision = (words[0], words[1]) if words else ("revision", "main")
    revision = next((name for name in revisions if revision in (name, commit_of(name))), "")
    if not revision:
        return send(request, 404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"})
    folder = revisions[revision]
    if not listed:  # /owner/name/resolve/REVISION/FILE
        data = (folder / "/".join(words[2:])).read_bytes()
        tags = {"X-Repo-Commit": commit_of(revision), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return send(request, 200, data, tags)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    if verb == "tree":
        content: object = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": commit_of(name)}
            for name, file in zip(names, files)
        ]
    else:
        content = {
            "id": repository,
            "sha": commit_of(revision),
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in names],
        }
    send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def send(request: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict[str, str]) -> None:
    request.send_response(code)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
