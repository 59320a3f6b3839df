# SPDX-License-Identifier: Apache-2.0
"""What strangers send to the service's door in bytes of their own, and what happens to the arm when its holder is
gone."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vla_edge.errors import ControlError, ServeError
from vla_edge.runtime.command import main
from vla_edge.runtime.control.operator import Answer
from vla_edge.runtime.control.run_folder import RunFolder
from vla_edge.runtime.service.serve_access import Access, ControlLease
from vla_edge.runtime.service.serve_tls import certificate_ends, tls_context
from vla_edge.runtime.service.wire import decode, encode

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.runtime.service.serve_world import MAKE_CERTIFICATE, golden_observation, served

aiohttp = pytest.importorskip("aiohttp")
from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from vla_edge.runtime.service import serve_app  # noqa: E402
from vla_edge.runtime.service import service as running  # noqa: E402
from vla_edge.runtime.service.service import hold_when_the_lease_lapses  # noqa: E402

INFER = "/v2/models/policy/infer"


@pytest.fixture(scope="module")
def service(golden_bundle, tmp_path_factory):
    with served(golden_bundle, tmp_path_factory.mktemp("strangers") / "run") as service:
        yield service


def ask(service, head: bytes, body: bytes = b"") -> bytes:
    """The answer to a request of these very bytes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=240) as door:
        door.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        answer = b""
        while piece := door.recv(65_536):
            answer += piece
        return answer


def test_the_status_alone_needs_no_bundle_and_loads_no_network(tmp_path):
    with served(None, tmp_path / "run") as service:
        told = service.status()
        assert told["serve"] is None and told["run"] == {"folder": str(tmp_path / "run")}
        assert service.get("/")[0] == 200 and b"vla_control_up 0" in service.get("/metrics")[1]
        for path in ("/v2", "/v2/models/policy", INFER):
            code, body = service.get(path)
            assert code == 404 and b"vla-runtime serve --bundle" in body
        upgrade = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket" % service.port
        assert b"vla-runtime serve --bundle" in ask(service, upgrade)
        loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "onnxruntime" not in loaded and "torch" not in loaded


def test_with_json_the_service_says_at_its_end_where_it_was(tmp_path):
    words = [sys.executable, "-m", "vla_edge.runtime.command", "serve", "--run-dir", str(tmp_path / "run"), "--json"]
    with subprocess.Popen(
        [*words, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        url = process.stderr.readline().strip()
        process.terminate()
        out, _ = process.communicate(timeout=240)
    assert url.startswith("http://127.0.0.1:") and json.loads(out) == {"url": url, "bundle": None}


def test_headers_that_are_no_text_or_no_name_are_refused_and_no_error_of_ours(service):
    for host in (b"[", b"[::1", b"\xff\xfe", b"", b"127.0.0.1@evil.example"):
        assert b" 403 " in ask(service, b"GET /status.json HTTP/1.1\r\nHost: " + host)[:15], host
    for origin in (b"http://[", b"null", b"\xff", b"http://127.0.0.1:99999999999"):
        assert b" 403 " in ask(service, b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: " + origin)[:15], (
            origin
        )
    assert service.send("POST", "/lease")[0] == 200
    for word in (b"PUT /lease", b"DELETE /lease", b"POST /control/hold"):  # while the lease is held: it is compared
        assert b" 403 " in ask(service, word + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Lease: \xff\xfe")[:15], word


def test_a_body_that_is_said_to_be_too_large_is_refused_before_it_comes(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=240) as door:
        door.sendall(f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999\r\n\r\nabc".encode())
        assert b" 413 " in door.recv(65_536)[:15]


def test_actions_that_are_not_finite_are_no_answer(service):
    """`vla-runtime infer` writes none either; NaN is no JSON."""
    observation = golden_observation() | {"noise": np.full((50, 32), 3e38, np.float32)}

    async def run():
        async with aiohttp.ClientSession() as session, session.ws_connect(service.url + "/", max_msg_size=0) as client:
            await client.receive(timeout=240)
            answers = []
            for content in (observation, golden_observation()):
                await client.send_bytes(encode(content))
                answers.append(await client.receive(timeout=240))
            return answers

    refused, answered = asyncio.run(run())
    assert refused.type is aiohttp.WSMsgType.TEXT and "not finite" in refused.data
    assert np.isfinite(decode(answered.data, 1 << 24)["actions"]).all(), "the session goes on"


def test_the_journal_is_not_filled_by_strangers(golden_bundle, tmp_path, capfd):
    with served(golden_bundle, tmp_path / "run") as service:
        capfd.readouterr()
        for head in (
            b"\x16\x03\x01garbage",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 9000,
        ):
            assert b" 400 " in ask(service, head)[:15]
        with socket.create_connection(("127.0.0.1", service.port)) as door:  # goes away in the middle of its body
            door.sendall(f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\nabc".encode())
        assert service.get("/healthz")[0] == 200
        assert capfd.readouterr().err == ""


def test_an_error_of_ours_is_still_logged():
    def line(error: Exception) -> logging.LogRecord:
        return logging.LogRecord(
            "aiohttp.server", logging.ERROR, "", 0, "Error handling request", (), (type(error), error, None)
        )

    assert running._is_ours(line(KeyError("ms"))) and not running._is_ours(line(ConnectionResetError()))


def test_a_start_that_fails_leaves_no_record(golden_bundle, tmp_path, capsys):
    record = tmp_path / "inputs.rec"
    words = [
        "serve",
        "--bundle",
        str(golden_bundle),
        "--nice",
        "0",
        "--run-dir",
        str(tmp_path / "run"),
        "--record-inputs",
        str(record),
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*words, "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err and not record.exists()
    for more, message in (
        (["--record-mb", "0"], "--record-mb: '0' is not"),
        (["--nice", "-5"], "--nice: '-5' is not"),
        (["--nice", "20"], "--nice: '20' is not"),
        (["--sessions", "65"], "--sessions: '65' is not"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err and not record.exists()


def test_a_word_to_a_folder_that_is_none_makes_none(tmp_path, capsys):
    for word in ("status", "arm", "stop"):
        assert main([word, "--run-dir", str(tmp_path / "typo")]) == 2
        assert "there is none" in capsys.readouterr().err and not (tmp_path / "typo").exists()


# ---- the lease


def test_a_holder_who_armed_and_fell_silent_is_noticed_though_another_took_the_lease_at_once():
    lease = ControlLease(seconds=5)
    assert lease.take("a", 0) is not None
    lease.armed()
    second = lease.take("b", 6_000_000_000)
    assert second is not None and lease.lapsed(6_100_000_000), "the arm that the first one armed holds"
    assert not lease.lapsed(6_200_000_000) and lease.release(second, 6_300_000_000) and not lease.lapsed(20_000_000_000)


def test_a_service_that_ends_knows_whether_a_client_armed_the_arm():
    lease = ControlLease(seconds=5)
    secret = lease.take("a", 0)
    assert secret is not None and not lease.end()
    secret = lease.take("a", 0)
    assert secret is not None
    lease.armed()
    assert lease.release(secret, 1) and not lease.end(), "given back: nobody's any more"
    assert lease.take("a", 2) is not None
    lease.armed()
    assert lease.end()


def test_a_hold_that_is_not_answered_is_asked_again(monkeypatch, capsys):
    lease = ControlLease(seconds=0)
    assert lease.take("a", 0) is not None
    lease.armed()
    asked = []

    def deaf_at_first(folder, word):
        asked.append(word)
        if len(asked) < 3:
            raise ControlError("no control process answers")
        return Answer("done", "hold", "operator", "")

    monkeypatch.setattr(running, "ask", deaf_at_first)

    async def run():
        watch = asyncio.create_task(hold_when_the_lease_lapses(lease, RunFolder(Path("none"))))
        while len(asked) < 3:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        watch.cancel()

    asyncio.run(run())
    assert asked == ["hold"] * 3 and "fell silent; hold: done" in capsys.readouterr().err


def test_an_arm_word_that_was_answered_after_the_lease_was_over_is_followed_by_a_hold(monkeypatch):
    lease, clock = ControlLease(seconds=5), [0]
    monkeypatch.setattr(serve_app.time, "monotonic_ns", lambda: clock[0])
    secret = lease.take("a", 0)

    def slow(folder, word):
        clock[0] += 6_000_000_000
        assert lease.lapsed(clock[0])  # the watch asks for a hold, which finds an arm that is not armed yet
        return Answer("done", "planning", "", "")

    monkeypatch.setattr(serve_app, "ask", slow)

    async def run():
        app = aiohttp.web.Application()
        serve_app._add_control(app, cast(Any, SimpleNamespace(lease=lease, folder=None)))
        async with TestClient(TestServer(app)) as client:
            return (await client.post("/control/arm", headers={"X-Lease": secret})).status

    assert asyncio.run(run()) == 200 and lease.lapsed(clock[0]), "the arm must hold"


# ---- the certificate


def test_half_an_address_is_nobodys_name():
    door = Access("127.0.0.1", None, None)
    assert door.refusal({"Host": "[::1"}) is not None and door.refusal({"Host": "[::1]:8000"}) is None


def test_a_certificate_that_has_ended_and_a_key_with_a_passphrase_are_refused_without_a_question(tmp_path):
    key, certificate, ended, locked = (tmp_path / name for name in ("key.pem", "cert.pem", "ended.pem", "locked.pem"))
    try:
        subprocess.run(
            [*MAKE_CERTIFICATE, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
        )
        subprocess.run(
            ["openssl", "x509", "-in", str(certificate), "-days", "-1", "-signkey", str(key), "-out", str(ended)],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            ["openssl", "ec", "-aes128", "-passout", "pass:abcd", "-in", str(key), "-out", str(locked)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no such certificate here: {error}")
    assert abs(certificate_ends(certificate.read_text()) - datetime.now(timezone.utc) - timedelta(days=2)) < timedelta(
        hours=1
    )
    assert tls_context(certificate, key) is not None
    with pytest.raises(ServeError, match="expired on"):
        tls_context(ended, key)
    with pytest.raises(ServeError, match="without a passphrase"):
        tls_context(certificate, locked)
    for text in (
        "",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    ):
        with pytest.raises(ValueError):
            certificate_ends(text)
