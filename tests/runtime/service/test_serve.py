# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime serve`: the clients that exist get the actions of `vla-runtime infer`; strangers and bad messages do
not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.control.control_rig import EVENT_S, short_folder
from tests.runtime.control.inference_rig import PATIENT, Control
from tests.runtime.service.serve_world import MAKE_CERTIFICATE, golden_observation, served

from vla_edge.bundle import open_bundle
from vla_edge.errors import ServeError
from vla_edge.runtime.command import main
from vla_edge.runtime.control.run_folder import open_run_folder
from vla_edge.runtime.service.serve_access import Access, ControlLease, access
from vla_edge.runtime.service.wire import decode, encode

aiohttp = pytest.importorskip("aiohttp")
TOKEN = "a-token-of-this-test"
LARGE = 1 << 24


@pytest.fixture(scope="module")
def world(golden_bundle):
    """A service with a control process in its run folder: (service, control)."""
    with short_folder() as path:  # in memory, as by default
        folder = open_run_folder(path)
        control = Control(folder, open_bundle(golden_bundle).digest, armed=False, **PATIENT)
        with served(golden_bundle, folder.path, ["--sessions", "2", "--connections", "24"]) as service:
            yield service, control
        control.stop()


@pytest.fixture(scope="module")
def expected(golden_bundle, tmp_path_factory):
    """What `vla-runtime infer` makes of the observation."""
    folder = tmp_path_factory.mktemp("infer")
    np.savez(folder / "in.npz", **golden_observation())
    assert (
        main(
            [
                "infer",
                "--bundle",
                str(golden_bundle),
                "--observation",
                str(folder / "in.npz"),
                "--out",
                str(folder / "out.npz"),
                "--threads",
                "1",
            ]
        )
        == 0
    )
    with np.load(folder / "out.npz") as made:
        return made["action"]


def talk(service, *messages, headers=None):
    """Send messages over one websocket as openpi's client does; the metadata and what came back for each."""

    async def run():
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(service.url + "/", max_msg_size=0, headers=headers) as socket_,
        ):
            answers = [decode((await socket_.receive(timeout=EVENT_S)).data, LARGE)]
            for message in messages:
                await (socket_.send_str(message) if isinstance(message, str) else socket_.send_bytes(message))
                answers.append(await socket_.receive(timeout=EVENT_S))
            return answers

    return asyncio.run(run())


# ---- clients


def test_the_openpi_protocol_gives_the_actions_of_infer(world, expected):
    service, _ = world
    observation = golden_observation()
    observation["prompt"] = observation.pop("task")
    metadata, first, second = talk(service, encode(observation), encode(observation))
    assert metadata["action_shape"] == [50, 6] and list(metadata["cameras"]) == [
        "observation.images.laptop",
        "observation.images.phone",
    ]
    for answer in (first, second):
        content = decode(answer.data, LARGE)
        assert content["actions"].tobytes() == expected.tobytes() and content["server_timing"]["infer_ms"] > 0


def test_pictures_of_another_aspect_than_the_datas_are_refused_by_name(world):
    service, _ = world
    observation = golden_observation()
    observation["prompt"] = observation.pop("task")
    observation["observation.images.phone"] = np.zeros((360, 640, 3), np.uint8)
    _, answer = talk(service, encode(observation))
    assert "phone gives 640x360, the policy's data has 640x480; send pictures" in str(answer.data)


def test_the_triton_client_gets_the_actions_of_infer_with_and_without_a_sequence(world, expected):
    http = pytest.importorskip("tritonclient.http")
    service, _ = world
    client = http.InferenceServerClient(service.url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("policy")
    assert {item["name"] for item in client.get_model_metadata("policy")["inputs"]} >= {
        "observation.images.phone",
        "observation.state",
        "task",
    }
    kinds = {"uint8": "UINT8", "float32": "FP32"}
    inputs = []
    for name, value in golden_observation().items():
        array = np.array([value.encode()], dtype=object) if isinstance(value, str) else value
        made = http.InferInput(name, list(array.shape), "BYTES" if isinstance(value, str) else kinds[str(array.dtype)])
        made.set_data_from_numpy(array)
        inputs.append(made)
    plain = client.infer("policy", inputs)
    as_json = client.infer("policy", inputs, outputs=[http.InferRequestedOutput("action", binary_data=False)])
    in_sequence = client.infer("policy", inputs, sequence_id=9, sequence_start=True, sequence_end=True)
    for answer in (plain, as_json, in_sequence):
        assert answer.as_numpy("action").tobytes() == expected.tobytes()
    with pytest.raises(Exception, match="no field 'observation.state'"):
        client.infer("policy", inputs[:1])
    client.close()


EXAMPLES = Path(__file__).parents[3] / "examples" / "clients"


@pytest.mark.parametrize("name", ["in_process", "triton"])
def test_the_examples_give_the_actions_of_infer(world, expected, golden_bundle, tmp_path, name):
    if name == "triton":
        pytest.importorskip("tritonclient.http")
    np.savez(tmp_path / "in.npz", **golden_observation())
    first = str(golden_bundle if name == "in_process" else world[0].port)
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), first, "in.npz"]
    ran = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "no_proxy": "127.0.0.1"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("50 actions")
    made = np.load(tmp_path / "actions.npy")
    if name == "triton":
        assert made.tobytes() == expected.tobytes()
    assert np.allclose(made, expected, atol=1e-4)  # threads of its own: another order of sums


@pytest.mark.check
def test_the_openpi_client_of_pypi_gets_the_actions_of_infer(world, expected, request, tmp_path):
    """It pins numpy < 2, so it lives in an environment of its own, kept in pytest's cache."""
    service, _ = world
    home = request.config.cache.mkdir("openpi-client-0.1.2")
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(home)], capture_output=True, text=True)
        packages = [
            "openpi-client==0.1.2",
            "numpy<2",
            "typing_extensions",
        ]  # the client uses the last without saying so
        if made.returncode == 0:
            made = subprocess.run(
                [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
                capture_output=True,
                text=True,
            )
        if made.returncode != 0:
            pytest.skip(f"no environment for openpi-client could be made: {made.stderr.strip().splitlines()[-1:]}")
        (home / "ready").touch()
    np.savez(tmp_path / "in.npz", **golden_observation())
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    words = [str(python), str(EXAMPLES / "openpi.py"), str(service.port), "in.npz"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "actions.npy").tobytes() == expected.tobytes()
    np.savez(tmp_path / "in.npz", **golden_observation(), bad=np.zeros(2))
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "Error in inference server:" in ran.stderr and "unknown field 'bad'" in ran.stderr
    np.savez(tmp_path / "in.npz", **as_floats(golden_observation()))
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "at most" in ran.stderr and "send pictures as uint8 of the policy's size (laptop [480, 640, 3]" in ran.stderr


# ---- hostile clients


def as_floats(observation):
    """Pictures as torch's users have them, 0 to 1."""
    return {key: value / np.float32(255) if np.ndim(value) == 3 else value for key, value in observation.items()}


def test_hostile_messages_are_refused_and_the_control_loop_ticks_on(world, expected):
    service, control = world
    before = control.reader()
    held = service.memory_kb()
    observation = golden_observation()
    object_array = encode({"a": np.zeros(2, np.int64)}).replace(b"<i8", b"|O8")
    negative = encode({"a": np.zeros(2, np.int8)}).replace(b"\x91\x02", b"\x91\xff")
    for message, told in (
        (object_array, "dtype '|O8'"),
        (negative, "shape [-1]"),
        (encode({**observation, "evil": np.zeros(2)}), "unknown field 'evil'"),
        (encode({**observation, "observation.state": np.full(6, np.nan, np.float32)}), "not finite"),
        (encode({**observation, "task": "put it away " * 200}), "too long"),
        (encode({**observation, "steps": 10**6}), "steps is 1000000"),
        (encode([1, 2]), "is a list"),
        (b"\xc1", "not msgpack"),
        (encode(as_floats(observation)), "send pictures as uint8 of the policy's size (laptop [480, 640, 3], phone"),
    ):
        _, answer = talk(service, message)
        assert answer.type is aiohttp.WSMsgType.TEXT and told in answer.data, answer
    # An answer to a text is a close, and so it is to 100 MB, of which the service keeps no more than its limit.
    for refused_whole in ("hello", bytes(100 << 20)):
        try:
            _, answer = talk(service, refused_whole)
            assert answer.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        except (aiohttp.ClientError, ConnectionError):
            pass  # closed while we were still sending
    assert service.send("POST", "/v2/models/policy/infer", bytes(9 << 20))[0] == 413
    assert service.send("POST", "/v2/models/policy/infer", b"\x1f\x8b", {"Content-Encoding": "gzip"})[0] == 415
    assert service.send("POST", "/v2/models/other/infer", b"{}")[0] == 400
    # A sincere client is still served, and the loop has not missed anything by it.
    _, answer = talk(service, encode(observation))
    assert decode(answer.data, LARGE)["actions"].tobytes() == expected.tobytes()
    after = control.reader()
    assert after["tick"] > before["tick"] and service.memory_kb() - held < 64 << 10
    refused = service.status()["refused"]
    assert refused["message"] >= 4 and refused["observation"] >= 4 and refused["size"] >= 1


def test_many_and_silent_clients_find_no_place_and_leave_others_theirs(world, expected):
    service, control = world
    before = control.reader()
    message = encode(golden_observation())

    def crowd():
        silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(40)]
        try:
            for each in silent[:20]:
                each.sendall(b"GET / HTTP/1.1\r\nHost: 127")  # and never more
            # Beyond 24 connections there is a refusal at once instead of a place.
            for each in silent[24:]:
                each.settimeout(EVENT_S)
                assert each.recv(64).startswith(b"HTTP/1.1 503")
            # After 10 s the silent ones have lost theirs.
            wait_until(lambda: healthy(service))
        finally:
            for each in silent:
                each.close()

    async def run():
        async with aiohttp.ClientSession() as session, session.ws_connect(service.url + "/", max_msg_size=0) as client:
            await client.receive(timeout=EVENT_S)
            await asyncio.to_thread(crowd)
            await client.send_bytes(message)  # it said nothing for as long, but it had asked before
            return await client.receive(timeout=EVENT_S)

    assert decode(asyncio.run(run()).data, LARGE)["actions"].tobytes() == expected.tobytes()
    assert control.reader()["tick"] > before["tick"]


def healthy(service) -> bool:
    try:
        return bool(service.get("/healthz")[0] == 200)
    except OSError:
        return False


def test_what_clients_sent_is_recorded_and_gives_the_same_chunks_again(golden_bundle, tmp_path):
    from vla_edge.runtime.records.replay_inputs import replay_inputs

    observation = golden_observation()
    drawn = {name: value for name, value in observation.items() if name != "noise"}
    (tmp_path / "run").mkdir(mode=0o700)
    with served(
        golden_bundle, tmp_path / "run", ["--record-inputs", str(tmp_path / "inputs.rec"), "--seed", "3"]
    ) as service:
        for _ in range(2):
            _, first, second = talk(service, encode(observation), encode(drawn))
            assert decode(first.data, LARGE)["actions"].tobytes() != decode(second.data, LARGE)["actions"].tobytes()
    result = replay_inputs(tmp_path / "inputs.rec", golden_bundle, lambda work: work)
    # Two of each client, and the two of the warm-up.
    assert (result.inferences, result.differing, result.gaps) == (6, 0, 0)
    logged = [json.loads(line) for line in (tmp_path / "run" / "serve" / "inference.jsonl").read_text().splitlines()]
    assert len(logged) == 4 and all(line["reason"] == "always" and line["ms"]["flow"] > 0 for line in logged)


def test_more_clients_than_sessions_are_told_to_come_again(world):
    service, _ = world

    async def run():
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(service.url + "/") for _ in range(2)]
            for each in sockets:
                await each.receive(timeout=EVENT_S)
            late = await session.ws_connect(service.url + "/")
            told = await late.receive(timeout=EVENT_S)
            for each in sockets:
                await each.close()
            return told

    told = asyncio.run(run())
    assert told.type is aiohttp.WSMsgType.CLOSE and told.data == 1013 and "2 sessions are taken" in told.extra


@pytest.mark.soak
def test_a_client_that_never_reads_loses_its_session(golden_bundle, tmp_path):
    message = encode(golden_observation())

    async def run(service):
        async with aiohttp.ClientSession() as session:
            deaf = await session.ws_connect(service.url + "/")
            for _ in range(50):  # more answers than buffers take would block the service, if it waited for us
                await deaf.send_bytes(message)
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                late = await session.ws_connect(service.url + "/")
                told = await late.receive(timeout=EVENT_S)
                await late.close()
                if told.type is aiohttp.WSMsgType.BINARY:
                    return True
                await asyncio.sleep(1)
            return False

    (tmp_path / "run").mkdir(mode=0o700)
    with served(golden_bundle, tmp_path / "run", ["--sessions", "1"]) as service:
        assert asyncio.run(run(service))
        assert service.memory_kb() < 2 << 20


# ---- control, status


def test_one_client_may_give_words_and_the_others_only_read(world):
    service, control = world
    assert service.send("POST", "/control/arm")[0] == 403 and control.reader()["state"] != "planning"
    mine: dict[str, str] = {}

    def with_lease(method, path):
        """The answer's code; 403 when this machine was slower than the lease is long, which is taken again then."""
        if (code := service.send(method, path, headers=mine)[0]) == 403:
            taken, body = service.send("POST", "/lease")
            mine.update({"X-Lease": json.loads(body)["lease"]} if taken == 200 else {})
        return code

    def refused():
        with_lease("PUT", "/lease")
        another, guess = (
            service.send("POST", "/lease")[0],
            service.send("POST", "/control/hold", headers={"X-Lease": "guess"}),
        )
        return (another, guess[0]) == (409, 403) and service.status()["lease"] == "127.0.0.1"

    def armed():
        return with_lease("POST", "/control/arm") == 200 and control.reader()["state"] == "planning"

    wait_until(refused)
    wait_until(armed)
    wait_until(lambda: with_lease("POST", "/control/dance") == 404 and with_lease("PUT", "/lease") == 200)
    # The holder falls silent: its lease lapses after 5 s and the arm is told to hold.
    wait_until(lambda: control.reader()["latched"] and control.reader()["reason"] == "operator")
    assert service.status()["lease"] == "" and service.send("PUT", "/lease", headers=mine)[0] == 403


def test_what_inference_tells_is_json_that_a_browser_takes(world):
    """A file of an earlier version says Infinity where a host plans at rest."""
    service, control = world
    file = control.folder.path / "inference.json"
    file.write_text('{"state": "ready", "pace": {"latest_s": Infinity}}')
    assert service.status()["inference"]["pace"] == {"latest_s": None}
    file.unlink()


def test_metrics_are_prometheus_text_and_count(world):
    service, _ = world

    def samples():
        text = service.get("/metrics")[1].decode()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0 for line in lines)
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    first = samples()
    talk(service, encode(golden_observation()))
    second = samples()
    assert second["vla_control_up"] == 1 and second["vla_control_ticks_total"] > first["vla_control_ticks_total"]
    assert (
        second["vla_serve_inferences_total"] == first["vla_serve_inferences_total"] + 1
        and second["vla_serve_cold_start_seconds"] > 0
    )
    assert 'vla_serve_part_milliseconds{part="flow",quantile="p50"}' in second


def wait_until(condition):
    deadline = time.monotonic() + EVENT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


# ---- who is let in


def test_a_page_of_another_site_or_name_is_kept_out(world):
    service, _ = world
    assert service.get("/status.json", {"Origin": service.url})[0] == 200
    assert service.get("/status.json", {"Origin": "http://evil.example"})[0] == 403
    assert service.get("/status.json", {"Host": "evil.example"})[0] == 403
    with pytest.raises(aiohttp.WSServerHandshakeError):
        talk(service, headers={"Origin": "http://evil.example"})


@pytest.fixture(scope="module")
def secrets_of(tmp_path_factory):
    """Folder with a token file, a certificate and its key."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    try:
        subprocess.run(
            [*MAKE_CERTIFICATE, "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate here: {error}")
    return folder


def test_off_loopback_only_with_token_and_tls(secrets_of):
    token, certificate, key = (secrets_of / name for name in ("token", "cert.pem", "key.pem"))
    assert access("127.0.0.1", None, None, None).token is None and access("::1", None, None, None).tls is None
    for host in ("0.0.0.0", "::", "192.168.1.7", "robot.local"):
        with pytest.raises(ServeError, match="neither a token nor TLS"):
            access(host, None, None, None)
        with pytest.raises(ServeError, match="there is no TLS"):
            access(host, token, None, None)
        with pytest.raises(ServeError, match="there is no token"):
            access(host, None, certificate, key)
        assert access(host, token, certificate, key).tls is not None
    for content, mode, message in (
        (TOKEN, 0o644, "can be read by others"),
        ("short", 0o600, "16 or more"),
        ("with a blank in it ", 0o600, "visible ASCII"),
    ):
        bad = secrets_of / "bad"
        bad.write_text(content)
        bad.chmod(mode)
        with pytest.raises(ServeError, match=message):
            access("127.0.0.1", bad, None, None)


def test_the_token_is_asked_for_everywhere_but_on_the_empty_page(golden_bundle, tmp_path, secrets_of):
    words = [
        "--host",
        "0.0.0.0",
        "--token-file",
        str(secrets_of / "token"),
        "--certificate",
        str(secrets_of / "cert.pem"),
        "--key",
        str(secrets_of / "key.pem"),
    ]
    trusting = ssl.create_default_context(cafile=str(secrets_of / "cert.pem"))
    trusting.check_hostname = False

    async def run(service):
        url = f"https://127.0.0.1:{service.port}"
        codes = {}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
            for scheme, token in (
                ("", ""),
                ("Bearer", "wrong-token-of-this-test"),
                ("Bearer", TOKEN),
                ("Api-Key", TOKEN),
                ("Basic", TOKEN),
            ):
                headers = {"Authorization": f"{scheme} {token}"} if scheme else {}
                for path in ("/", "/healthz", "/status.json", "/metrics", "/v2/models/policy"):
                    async with session.get(url + path, headers=headers) as answer:
                        codes[scheme, token == TOKEN, path] = answer.status
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(url + "/")
            async with session.ws_connect(url + "/", headers={"Authorization": f"Api-Key {TOKEN}"}) as socket_:
                metadata = decode((await socket_.receive(timeout=EVENT_S)).data, LARGE)
        return codes, metadata

    (tmp_path / "run").mkdir(mode=0o700)
    with served(golden_bundle, tmp_path / "run", words) as service:
        codes, metadata = asyncio.run(run(service))
        # Plain HTTP finds no service behind the TLS port.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", service.port)) as plain:
            plain.settimeout(EVENT_S)
            plain.sendall(b"GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n")
            if not plain.recv(64).startswith(b"HTTP/1.1 2"):
                raise OSError("refused")
    assert metadata["action_shape"] == [50, 6]
    for (scheme, right, path), code in codes.items():
        allowed = (right and scheme in ("Bearer", "Api-Key")) or path in ("/", "/healthz")
        assert (code in (200, 503)) is allowed, (scheme, path, code)


@pytest.mark.parametrize(("words", "noise"), [([], "kept"), (["--noise", "fresh"], "fresh")])
def test_the_service_draws_noise_as_it_is_told(golden_bundle, tmp_path, monkeypatch, words, noise):
    seen = []

    async def serve(bundle, folder, allowed, options, started_ns):
        seen.append(options.session.noise.value)

    monkeypatch.setattr("vla_edge.runtime.service.service.serve", serve)
    monkeypatch.setattr("vla_edge.runtime.service.serve.os.nice", lambda nice: None)
    assert main(["serve", "--bundle", str(golden_bundle), "--run-dir", str(tmp_path), *words]) == 0
    assert seen == [noise]


def test_tokens_are_compared_whole():
    door = Access("0.0.0.0", TOKEN.encode(), None)
    for given in (TOKEN[:-1], TOKEN + "x", "", TOKEN.upper(), "\udcff" * 20):
        assert door.refusal({"Host": "x", "Authorization": f"Bearer {given}"}) is not None
    assert door.refusal({"Host": "x", "Authorization": f"Bearer {TOKEN}"}) is None


def test_a_lease_is_held_by_one_renewed_by_use_and_lapses():
    lease = ControlLease(seconds=5)
    first = lease.take("a", 0)
    assert first is not None and lease.take("b", 4_000_000_000) is None
    assert (
        lease.renew(first, 4_000_000_000)
        and lease.take("b", 8_000_000_000) is None
        and not lease.renew("guess", 8_000_000_000)
    )
    lease.armed()
    assert not lease.lapsed(8_000_000_000) and lease.lapsed(9_000_000_000) and not lease.lapsed(9_100_000_000)
    second = lease.take("b", 9_200_000_000)
    assert second is not None and not lease.renew(first, 9_300_000_000)
    lease.armed()
    assert lease.release(second, 9_400_000_000) and not lease.lapsed(20_000_000_000)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--port", "70000"], "--port: '70000' is not a number from 0 to 65535"),
        (["--sessions", "0"], "--sessions: '0' is not a number from 1 to 64"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(golden_bundle, tmp_path, capsys, words, message):
    assert (
        main(["serve", "--bundle", str(golden_bundle), "--nice", "0", "--run-dir", str(tmp_path / "run"), *words]) == 2
    )
    assert message in capsys.readouterr().err
