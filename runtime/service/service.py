# SPDX-License-Identifier: Apache-2.0
"""The running service: engine, sessions, listening socket, and the watch over the control lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vla_edge.bundle import Bundle
from vla_edge.command_line import answer
from vla_edge.contract import Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import ConfigError, ControlError, ObservationError, ServeError
from vla_edge.runtime.control.inference_log import InferenceLog
from vla_edge.runtime.control.inference_process import say
from vla_edge.runtime.control.operator import ask
from vla_edge.runtime.control.run_folder import RunFolder
from vla_edge.runtime.inference.input_record import InputRecorder, RecordedSession
from vla_edge.runtime.inference.prepare import other_aspects
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, read_gate
from vla_edge.runtime.inference.session import PolicySession, SessionOptions
from vla_edge.runtime.service.serve_access import Access, ControlLease
from vla_edge.runtime.service.serve_app import ServedPolicy, Service, application, message_limit
from vla_edge.runtime.service.serve_sessions import SessionPool
from vla_edge.runtime.service.serve_status import RobotView

FIRST_REQUEST_S = 10.0
"""A connection that has not sent a whole request head by then is closed."""
HOLD_TRIES = 5
"""A control process that does not answer at once is asked again."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the service is told at its start. record: file for the exact inputs of every inference, None: not recorded.
    trust_cameras: pictures of another aspect than the policy's data are taken."""

    engine: str
    threads: int
    session: SessionOptions
    sessions: int
    connections: int
    port: int
    record: Path | None
    record_limit_bytes: int
    trust_cameras: bool


async def serve(
    bundle: Bundle | None, folder: RunFolder, allowed: Access, options: ServeOptions, started_ns: int
) -> None:
    """Until SIGTERM or SIGINT. bundle: None shows the robot's status alone and loads no engine. ServeError: the address
    cannot be used."""
    with contextlib.ExitStack() as closing:
        policy = None if bundle is None else served(bundle, folder, options, closing)
        gate = None if bundle is None else read_gate(bundle)
        view = RobotView(folder, None if gate is None or gate.similarity == NO_SIMILARITY else gate.threshold)
        service = Service(policy, view, folder, allowed, ControlLease())
        await listen_until_stopped(service, options, started_ns)


def served(bundle: Bundle, folder: RunFolder, options: ServeOptions, closing: contextlib.ExitStack) -> ServedPolicy:
    """Engine, sessions and logs of the policy for clients; `closing` gets what has to be closed."""
    bundle.manifest.policy.checked_steps(options.session.steps)
    engine = load_engine(options.engine, EngineOptions(threads=options.threads, spin=False))
    recorder = None if options.record is None else InputRecorder(options.record, options.record_limit_bytes, say)

    def make(number: int) -> PolicySession:
        each = options.session
        made = PolicySession(bundle, engine, replace(each, seed=each.seed + number - 1))
        if recorder is not None:
            made.observer = RecordedSession(recorder, number, made, options.engine, options.threads)
        return made

    if recorder is not None:
        closing.callback(recorder.close)
    log_folder = folder.path / "serve"
    log_folder.mkdir(mode=0o700, exist_ok=True)
    log = InferenceLog(log_folder)
    closing.callback(log.close)

    def check(observation: Observation) -> None:
        pictures = {name: frame.image for name, frame in observation.frames.items()}
        for fact, _ in other_aspects(bundle.manifest.cameras, pictures if not options.trust_cameras else {}):
            raise ObservationError(f"{fact}; send pictures of that aspect, or start serve with --trust-cameras")

    pool = SessionPool(make, options.sessions, check, log)
    closing.callback(pool.close)
    say(f"serve: bundle {bundle.digest[:12]}, {engine.detail}")
    return ServedPolicy(bundle.manifest, bundle.digest, pool, message_limit(bundle.manifest))


async def listen_until_stopped(service: Service, options: ServeOptions, started_ns: int) -> None:
    """Open the address, warm the policy up, answer until a signal ends it, then hold what a client had armed."""
    folder, allowed = service.folder, service.access
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    app = application(service)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    doors = Doors(app, options.connections)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None, keepalive_timeout=30, shutdown_timeout=2)
    await runner.setup()
    lapse = asyncio.create_task(hold_when_the_lease_lapses(service.lease, folder))
    try:
        listener = await doors.open(runner, allowed, options.port)
        port = listener.sockets[0].getsockname()[1]
        scheme = "http" if allowed.tls is None else "https"
        url = f"{scheme}://{_shown(allowed.host)}:{port}/"
        print(url, flush=True)
        answer({"url": url, "bundle": None if service.policy is None else service.policy.digest})
        if service.policy is None:
            say("serve: the robot's status alone; --bundle BUNDLE serves a policy too")
        else:
            await service.policy.pool.warm_up(started_ns)
            ready_s = service.policy.pool.cold_start_s
            say(f"serve: ready {ready_s:.1f} s after the start, at most {options.sessions} sessions, disarmed")
        await stopping.wait()
    finally:
        lapse.cancel()
        doors.close()
        await runner.cleanup()
        if service.lease.end():
            await _hold(folder, "the service ends, and a client had armed the arm")


async def hold_when_the_lease_lapses(lease: ControlLease, folder: RunFolder) -> None:
    """A client that armed the arm and fell silent cannot stop it: the arm holds then."""
    while True:
        await asyncio.sleep(0.2)
        if lease.lapsed(time.monotonic_ns()):
            await _hold(folder, "the holder of the control lease fell silent")


async def _hold(folder: RunFolder, why: str) -> None:
    reply = ""
    for _ in range(HOLD_TRIES):
        try:
            reply = (await asyncio.to_thread(ask, folder, "hold")).word
            break
        except (ControlError, ConfigError) as error:
            reply = str(error)
            await asyncio.sleep(0.2)
    say(f"serve: {why}; hold: {reply}")


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of aiohttp's log tells of an error of ours, not of bytes that are no HTTP or of a client that went
    away: strangers could fill the journal with those."""
    error = None if record.exc_info is None else record.exc_info[1]
    return not isinstance(error, (HttpProcessingError, ConnectionError))


class Doors:
    """The listening socket: so many connections at a time, and none that holds its place without asking for
    anything."""

    def __init__(self, app: web.Application, connections: int) -> None:
        self._server: Any = None
        self._limit = connections
        self._places: dict[Any, _Place] = {}
        """of every connection, by aiohttp's handler of it"""
        self._listener: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        app.middlewares.insert(0, self._note())

    async def open(self, runner: web.AppRunner, allowed: Access, port: int) -> asyncio.Server:
        """ServeError: the address cannot be used."""
        self._server = runner.server
        loop = asyncio.get_running_loop()
        patience = None if allowed.tls is None else FIRST_REQUEST_S
        try:
            self._listener = await loop.create_server(
                self._connection, allowed.host, port, ssl=allowed.tls, ssl_handshake_timeout=patience, backlog=64
            )
        except (OSError, socket.gaierror) as error:
            raise ServeError(
                f"{allowed.host}:{port}: {error.strerror or error}; give another --host or --port"
            ) from None
        self._watch = asyncio.create_task(self._close_the_silent())
        return self._listener

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._watch is not None:
            self._watch.cancel()

    def _connection(self) -> asyncio.Protocol:
        if len(self._places) >= self._limit:
            return _Full()
        handler = self._server()
        place = self._places[handler] = _Place(handler, time.monotonic(), self._places)
        return place

    def _note(self) -> Any:
        @web.middleware
        async def note(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            place = self._places.get(request.protocol)
            if place is not None:
                place.asked = True
            return await handler(request)

        return note

    async def _close_the_silent(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            oldest = time.monotonic() - FIRST_REQUEST_S
            for handler, place in list(self._places.items()):
                if not place.asked and place.since <= oldest:
                    del self._places[handler]
                    if place.transport is not None:  # else its TLS handshake came to nothing
                        place.transport.abort()


class _Place(asyncio.Protocol):
    """One connection, passed on to aiohttp's handler; it leaves `places` when it is over."""

    def __init__(self, handler: Any, since: float, places: dict[Any, _Place]) -> None:
        self.since, self.asked = since, False
        self.transport: asyncio.Transport | None = None
        self._handler, self._places = handler, places
        for name in ("data_received", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(handler, name))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._handler.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._places.pop(self._handler, None)
        self._handler.connection_lost(error)


class _Full(asyncio.Protocol):
    """Says that there is no place and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        with contextlib.suppress(OSError):
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"
            )
        transport.close()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
