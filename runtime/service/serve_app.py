# SPDX-License-Identifier: Apache-2.0
"""The service's HTTP face: openpi's websocket, KServe v2, metrics, health, the status page, the lease and its words."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web
from numpy.typing import NDArray

from vla_edge.bundle import Manifest
from vla_edge.camera_names import short_name
from vla_edge.errors import ConfigError, ControlError, ObservationError, WireError
from vla_edge.files import json_text
from vla_edge.runtime.control.operator import WORDS, ask
from vla_edge.runtime.control.run_folder import RunFolder
from vla_edge.runtime.inference.infer import observation_of
from vla_edge.runtime.inference.session import InferenceResult
from vla_edge.runtime.service import kserve
from vla_edge.runtime.service.serve_access import Access, ControlLease
from vla_edge.runtime.service.serve_sessions import Busy, Client, SessionPool
from vla_edge.runtime.service.serve_status import RobotView, metrics, status
from vla_edge.runtime.service.wire import decode, encode

PAGE = Path(__file__).with_name("status_page.html").read_text(encoding="utf-8")
"""The status page: one document without anything from outside; it polls `/status.json`."""
NO_POLICY = "only the robot's status is shown here; a policy is served with `vla-runtime serve --bundle BUNDLE`"
BODY_S = 20.0
"""How long the body of one request may take to arrive."""
HEARTBEAT_S = 20.0
_SLACK_BYTES = 1 << 20
_WITHOUT_TOKEN = ("/", "/healthz")
"""The page holds no data, and a health probe is told one word."""
_TEXTS = {"task": "task", "prompt": "task"}


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """What clients may ask: the bundle's manifest and digest, the sessions that answer, the bytes of the largest
    message that is taken."""

    manifest: Manifest
    digest: str
    pool: SessionPool
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers need. policy: None where only the robot's status is shown. refusals: counted by reason."""

    policy: ServedPolicy | None
    view: RobotView
    folder: RunFolder
    access: Access
    lease: ControlLease
    refusals: Counter[str] = field(default_factory=Counter)

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1


def message_limit(manifest: Manifest) -> int:
    """Bytes that the largest message of a sincere client has: pictures, noise as 64-bit numbers, and some slack."""
    pictures = sum(camera.height * camera.width * 3 for camera in manifest.cameras)
    return pictures + 8 * manifest.policy.chunk_size * manifest.policy.max_action_dim + _SLACK_BYTES


def application(service: Service) -> web.Application:
    """The routes. Handlers run on the event loop and never block it; inference is the pool's."""

    @web.middleware
    async def guarded(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        refusal = service.access.refusal(request.headers)
        open_page = request.path in _WITHOUT_TOKEN and request.headers.get("Upgrade") is None
        if refusal is not None and not (refusal[0] == 401 and open_page):
            service.refused("access")
            return web.json_response({"error": refusal[1]}, status=refusal[0])
        if request.headers.get("Content-Encoding", "identity") != "identity":
            service.refused("encoding")
            return web.json_response({"error": "compressed bodies are not taken"}, status=415)
        try:
            response = await handler(request)
        except Busy as error:
            service.refused("busy")
            return web.json_response({"error": str(error)}, status=503, headers={"Retry-After": "1"})
        except WireError as error:
            service.refused("message")
            return web.json_response({"error": str(error)}, status=400)
        except (ObservationError, ConfigError) as error:
            service.refused("observation")
            return web.json_response({"error": str(error)}, status=400)
        except ControlError as error:
            return web.json_response({"error": str(error)}, status=409)
        except asyncio.TimeoutError:
            service.refused("slow")
            return web.json_response({"error": f"the request took over {BODY_S:.0f} s to arrive"}, status=408)
        if not isinstance(response, web.WebSocketResponse):
            response.headers.setdefault("Cache-Control", "no-store")
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    app = web.Application(
        middlewares=[guarded], client_max_size=service.policy.most_bytes if service.policy else _SLACK_BYTES
    )

    async def page(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if service.policy is None:
                return web.json_response({"error": NO_POLICY}, status=404)
            return await openpi(service, service.policy, request)
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src "
            "blob: data:; frame-ancestors 'none'"
        )
        return web.Response(
            text=PAGE,
            content_type="text/html",
            headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"},
        )

    async def health(request: web.Request) -> web.Response:
        cold_start_s = service.policy.pool.cold_start_s if service.policy else None
        ready = service.policy is None or service.policy.pool.ready
        return web.json_response({"ready": ready, "cold_start_s": cold_start_s}, status=200 if ready else 503)

    async def state(request: web.Request) -> web.Response:
        holder = service.lease.holder(time.monotonic_ns())
        shown = await asyncio.to_thread(status, service.view, _pool(service), service.refusals, holder)
        return web.json_response(text=json_text(shown))

    async def prometheus(request: web.Request) -> web.Response:
        return web.Response(
            text=await asyncio.to_thread(metrics, service.view, _pool(service), service.refusals),
            content_type="text/plain",
            charset="utf-8",
        )

    async def picture(request: web.Request) -> web.Response:
        data = await asyncio.to_thread(service.view.picture, request.match_info["name"])
        if data is None:
            return web.json_response({"error": "no such camera"}, status=404)
        return web.Response(body=data, content_type="image/jpeg")

    async def nothing(request: web.Request) -> web.Response:
        return web.json_response({"error": NO_POLICY}, status=404)

    app.router.add_get("/", page)
    app.router.add_get("/healthz", health)
    app.router.add_get("/status.json", state)
    app.router.add_get("/metrics", prometheus)
    app.router.add_get("/camera/{name}.jpg", picture)
    _add_control(app, service)
    if service.policy is not None:
        _add_kserve(app, service, service.policy)
    else:
        app.router.add_route("*", "/v2{rest:.*}", nothing)
    return app


def _pool(service: Service) -> SessionPool | None:
    return None if service.policy is None else service.policy.pool


async def openpi(service: Service, policy: ServedPolicy, request: web.Request) -> web.StreamResponse:
    """One client of openpi's protocol: our metadata first, then a message of actions for each observation.

    An observation the policy does not take is answered with a text (which the client raises) and the connection stays;
    a message that is none ends it. Messages up to the size of pictures as 64-bit floats are read to be answered so; a
    larger one ends the connection with code 1009.
    """
    readable = 8 * policy.most_bytes
    socket = web.WebSocketResponse(max_msg_size=readable, heartbeat=HEARTBEAT_S, compress=False)
    await socket.prepare(request)
    try:
        client = await policy.pool.acquire()
    except Busy as error:
        service.refused("busy")
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=str(error).encode()[:120])
        return socket
    try:
        await socket.send_bytes(encode(_metadata(policy)))
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                service.refused("message")
                await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"observations are binary messages")
                break
            if len(message.data) > policy.most_bytes:
                service.refused("size")
                await socket.send_str(too_large(policy, len(message.data)))
                continue
            try:
                await socket.send_bytes(encode(await _answer(policy, client, message.data)))
            except WireError as error:
                service.refused("message")
                await socket.send_str(str(error))
                await socket.close(code=WSCloseCode.INVALID_TEXT)
                break
            except ObservationError as error:
                service.refused("busy" if isinstance(error, Busy) else "observation")
                await socket.send_str(str(error))
            except ConnectionResetError:
                break
    finally:
        policy.pool.release(client)
        if socket.close_code == WSCloseCode.MESSAGE_TOO_BIG:
            service.refused("size")
    return socket


def too_large(policy: ServedPolicy, size: int) -> str:
    """What a client is told whose message has `size` bytes."""
    shapes = ", ".join(f"{short_name(c.source)} [{c.height}, {c.width}, 3]" for c in policy.manifest.cameras)
    limit = policy.most_bytes
    return (
        f"the message has {size / 1e6:.1f} MB, at most {limit / 1e6:.1f} MB are taken: send pictures as uint8 of the "
        f"policy's size ({shapes}), not as floats or larger ones"
    )


async def _answer(policy: ServedPolicy, client: Client, message: bytes) -> dict[str, Any]:
    start = time.monotonic()
    content = await asyncio.to_thread(decode, message, policy.most_bytes)
    result = await policy.pool.infer(client, observation_of(_arrays(content), "message", policy.manifest))
    timing = {"infer_ms": (time.monotonic() - start) * 1e3, "policy_ms": result.timings.total}
    return {"actions": result.actions, "actions_normalized": result.normalized, "server_timing": timing}


def _metadata(served: ServedPolicy) -> dict[str, Any]:
    policy, manifest = served.manifest.policy, served.manifest
    return {
        "bundle": served.digest,
        "cameras": {camera.source: [camera.height, camera.width, 3] for camera in manifest.cameras},
        "joints": list(manifest.joints),
        "joint_units": manifest.joint_units,
        "fps": manifest.fps,
        "action_shape": [policy.chunk_size, policy.action_dim],
        "n_action_steps": policy.n_action_steps,
    }


def _arrays(content: Any) -> dict[str, NDArray[Any]]:
    """A message's fields as arrays; texts only where one belongs."""
    if not isinstance(content, Mapping):
        raise WireError(f"the message is a {type(content).__name__}; send a map of names to arrays")
    fields: dict[str, NDArray[Any]] = {}
    for key, value in content.items():
        name = _TEXTS.get(key, key)
        if not isinstance(name, str) or name in fields:
            raise WireError(f"the field {key!r:.60} is no name, or is there twice as task and prompt")
        if name == "task":
            if not isinstance(value, str):
                raise WireError(f"{key} is {type(value).__name__}; send a text")
            fields[name] = np.array([value])
        elif isinstance(value, np.ndarray):
            fields[name] = value
        elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            fields[name] = np.asarray(value)
        else:
            raise WireError(f"{name:.60} is {type(value).__name__}; send an array")
    return fields


def _add_kserve(app: web.Application, service: Service, policy: ServedPolicy) -> None:
    def known(request: web.Request) -> None:
        if request.match_info["model"] != kserve.MODEL or request.match_info.get("version", "1") != "1":
            raise WireError(f"there is no such model; the service has {kserve.MODEL!r}, version 1")

    async def server(request: web.Request) -> web.Response:
        return web.json_response(
            {"name": "vla-edge", "version": policy.digest[:12], "extensions": ["binary_tensor_data", "sequence"]}
        )

    async def live(request: web.Request) -> web.Response:
        return web.Response()

    async def ready(request: web.Request) -> web.Response:
        if "model" in request.match_info:
            known(request)
        return web.Response(status=200 if policy.pool.ready else 503)

    async def model(request: web.Request) -> web.Response:
        known(request)
        return web.json_response(kserve.model_metadata(policy.manifest))

    async def infer(request: web.Request) -> web.Response:
        known(request)
        try:
            if (request.content_length or 0) > policy.most_bytes:
                raise web.HTTPRequestEntityTooLarge(policy.most_bytes, request.content_length or 0)
            body = await asyncio.wait_for(request.read(), BODY_S)
        except web.HTTPRequestEntityTooLarge:
            service.refused("size")
            return web.json_response({"error": too_large(policy, request.content_length or 0)}, status=413)
        asked = await asyncio.to_thread(kserve.parse_request, body, request.headers.get(kserve.HEADER_LENGTH))
        given = observation_of(asked.inputs, "request", policy.manifest)
        result = await _in_session(asked, lambda client: policy.pool.infer(client, given))
        outputs = {"action": result.actions, "action_normalized": result.normalized}
        data, length = kserve.response(asked, outputs, {"infer_ms": result.timings.total})
        return web.Response(
            body=data, content_type="application/octet-stream", headers={kserve.HEADER_LENGTH: str(length)}
        )

    async def _in_session(
        asked: kserve.InferRequest, infer_in: Callable[[Client], Awaitable[InferenceResult]]
    ) -> InferenceResult:
        """Without a sequence every request is an episode of its own."""
        pool = policy.pool
        if asked.sequence == 0:
            client = await pool.acquire()
            try:
                return await infer_in(client)
            finally:
                pool.release(client)
        client = await pool.sequence(asked.sequence, asked.start)
        try:
            return await infer_in(client)
        finally:
            if asked.end:
                pool.end_sequence(asked.sequence)

    app.router.add_get("/v2", server)
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", ready)
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        app.router.add_get(path, model)
        app.router.add_get(path + "/ready", ready)
        app.router.add_post(path + "/infer", infer)


def _add_control(app: web.Application, service: Service) -> None:
    async def take(request: web.Request) -> web.Response:
        secret = service.lease.take(str(request.remote), time.monotonic_ns())
        if secret is None:
            return web.json_response({"error": "another client holds the lease; read-only until it ends"}, status=409)
        return web.json_response({"lease": secret})

    async def keep(request: web.Request) -> web.Response:
        do = service.lease.renew if request.method == "PUT" else service.lease.release
        held = do(request.headers.get("X-Lease", ""), time.monotonic_ns())
        return web.json_response({} if held else {"error": "the lease is over"}, status=200 if held else 403)

    async def word(request: web.Request) -> web.Response:
        name = request.match_info["word"]
        if name not in WORDS:
            return web.json_response({"error": f"unknown word; known: {', '.join(WORDS)}"}, status=404)
        if not service.lease.renew(request.headers.get("X-Lease", ""), time.monotonic_ns()):
            service.refused("lease")
            return web.json_response(
                {"error": "this client does not hold the control lease; it may only read"}, status=403
            )
        if name == "arm":
            service.lease.armed()  # before it is asked: when the answer is lost it may be armed
        answer = await asyncio.to_thread(ask, service.folder, WORDS[name])
        if name == "arm":
            service.lease.armed()  # again: where the answer took longer than the lease, a hold may have come before it
        reply = {"answer": answer.word, "state": answer.state, "reason": answer.reason, "joint": answer.joint}
        return web.json_response(reply, status=200 if answer.word == "done" else 409)

    app.router.add_post("/lease", take)
    app.router.add_put("/lease", keep)
    app.router.add_delete("/lease", keep)
    app.router.add_post("/control/{word}", word)
