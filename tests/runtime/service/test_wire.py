# SPDX-License-Identifier: Apache-2.0
"""Bytes of strangers: openpi's messages and KServe's requests, whole and hostile."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.errors import ObservationError, WireError
from vla_edge.runtime.inference.infer import observation_of
from vla_edge.runtime.service import kserve
from vla_edge.runtime.service.wire import decode, encode

LIMIT = 1 << 20
CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus" / "wire"


def as_openpi(array, **changed):
    """The map the PyPI client makes, with fields changed or (None) left out."""
    fields = {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": array.shape, **changed}
    return msgpack.packb({"a": {name.encode(): value for name, value in fields.items() if value is not None}})


@pytest.mark.parametrize("dtype", ["?", "i1", "<i2", "<i4", ">i8", "u1", "<u2", "<u8", "<f2", "<f4", ">f8"])
def test_arrays_of_plain_numbers_cross_bit_for_bit(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    back = decode(encode({"x": array, "n": np.float32(1.5), "text": "put it away", "none": None}), LIMIT)
    assert back["x"].dtype == array.dtype and back["x"].tobytes() == array.tobytes() and back["x"].shape == array.shape
    assert back["n"] == 1.5 and type(back["n"]) is np.float32 and back["text"] == "put it away" and back["none"] is None


HOSTILE = {
    "object dtype": as_openpi(np.zeros(2), dtype="|O"),
    "text dtype": as_openpi(np.zeros(2), dtype="<U4"),
    "void dtype": as_openpi(np.zeros(2), dtype="|V8"),
    "structured dtype": as_openpi(np.zeros(2), dtype="i4,i4"),
    "complex dtype": as_openpi(np.zeros(2), dtype="<c16"),
    "dtype that is a map": as_openpi(np.zeros(2), dtype={"names": ["a"]}),
    "negative shape": as_openpi(np.zeros(2), shape=(-1,)),
    "two negative sizes": as_openpi(np.zeros(2), shape=(-1, -2)),
    "huge shape": as_openpi(np.zeros(2), shape=(1 << 40, 1 << 40)),
    "too many dimensions": as_openpi(np.zeros(1), shape=(1,) * 9),
    "bool as a size": as_openpi(np.zeros(1), shape=(True,)),
    "float as a size": as_openpi(np.zeros(2), shape=(2.0,)),
    "data too short": as_openpi(np.zeros(2), data=b"1234"),
    "data is a text": as_openpi(np.zeros(2), data="0123456789abcdef"),
    "no data": as_openpi(np.zeros(2), data=None),
    "bool bytes": as_openpi(np.zeros(2, bool), data=b"\x02\x01"),
    "extension type": msgpack.packb({"a": msgpack.ExtType(42, b"x")}),
    "timestamp": msgpack.packb({"a": msgpack.Timestamp(1, 2)}),
    "deep nesting": b"\x91" * 100_000 + b"\x90",
    "many lists": b"\xdc\x00\xff" + (b"\xdc\x00\xff" + b"\x90" * 255) * 255,
    "map with a map as key": b"\x81\x80\x01",
    "claims more than it has": b"\xdd\xff\xff\xff\xff",
    "claims a large binary": b"\xc6\xff\xff\xff\xff",
    "bytes behind the message": encode({}) + b"\x00",
    "text that is not UTF-8": b"\x81\xa1\xff\x01",
    "the same name twice": b"\x82\xa1a\x01\xc4\x01a\x02",
    "over the limit": b"\xc6" + (1 << 21).to_bytes(4, "big") + b"\0" * (1 << 21),
    "empty": b"",
    "a number that does not fit": msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}),
    "a number that is a text": msgpack.packb({"a": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_refused_in_one_line(name):
    with pytest.raises(WireError) as caught:
        decode(HOSTILE[name], LIMIT)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_message_costs_a_bounded_amount_of_memory():
    tracemalloc.start()
    try:
        for message in HOSTILE.values():
            with pytest.raises(WireError):
                decode(message, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The limit of a message is 1 MiB; nothing here may make eight times that of it.
    assert peak < 8 << 20


def check_any(data: bytes) -> None:
    """What the fuzz target checks: refused with our error, or a value that can be sent back."""
    try:
        value = decode(data, LIMIT)
    except WireError:
        return
    encode(value)


def mutated(seed: bytes, generator: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(generator.randint(1, 8)):
        kind = generator.randrange(4)
        at = generator.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] = generator.randrange(256)
        elif kind == 1:
            data[at:at] = generator.randbytes(generator.randint(1, 6))
        elif kind == 2:
            del data[at : at + generator.randint(1, 6)]
        else:
            data[at:at] = seed[generator.randrange(len(seed) + 1) :][:32]
    return bytes(data)


def seeds() -> list[bytes]:
    sincere = encode(
        {
            "observation.images.laptop": np.zeros((4, 4, 3), np.uint8),
            "observation.state": np.zeros(6, np.float32),
            "prompt": "go",
        }
    )
    return [sincere, *(message for message in HOSTILE.values() if 0 < len(message) < 4096)]


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*")), ids=lambda file: file.name)
def test_the_fuzz_corpus_ends_in_our_error_or_a_value(file):
    check_any(file.read_bytes())


def check_any_request(data: bytes, header_length: str | None) -> None:
    with contextlib.suppress(WireError):
        kserve.parse_request(data, header_length)


def fuzz(rounds: int, seed: int) -> None:
    generator = random.Random(seed)
    pool = [*seeds(), *(file.read_bytes() for file in CORPUS.glob("*"))]
    requests = [request for request in BAD_REQUESTS.values() if len(request[0]) < 4096] + [
        body([(STATE, b"\0" * 8)], outputs=[{"name": "action"}])
    ]
    for _ in range(rounds):
        check_any(mutated(generator.choice(pool), generator))
        data, length = generator.choice(requests)
        check_any_request(mutated(data, generator), length)


def test_random_damage_ends_in_our_error_or_a_value():
    fuzz(5_000, seed=1)


@pytest.mark.soak
def test_long_random_damage_ends_in_our_error_or_a_value():
    fuzz(2_000_000, seed=2)


# ---- KServe


def body(inputs, **fields):
    """Request bytes and the length of their JSON; binary inputs are (entry, bytes)."""
    entries, tail = [], b""
    for entry, data in inputs:
        if data is not None:
            entry = {**entry, "parameters": {"binary_data_size": len(data)}}
            tail += data
        entries.append(entry)
    head = json.dumps({"inputs": entries, **fields}).encode()
    return head + tail, str(len(head))


STATE = {"name": "observation.state", "datatype": "FP32", "shape": [2]}


def test_binary_and_json_inputs_are_the_same_arrays():
    values = np.array([1.5, -2], np.float32)
    binary = kserve.parse_request(
        *body([(STATE, values.tobytes()), ({"name": "task", "datatype": "BYTES", "shape": [1]}, b"\x02\0\0\0go")])
    )
    plain = kserve.parse_request(
        *body(
            [
                ({**STATE, "data": [1.5, -2]}, None),
                ({"name": "task", "datatype": "BYTES", "shape": [1], "data": ["go"]}, None),
            ]
        )
    )
    for request in (binary, plain):
        assert (
            request.inputs["observation.state"].tobytes() == values.tobytes() and str(request.inputs["task"][0]) == "go"
        )


BAD_REQUESTS = {
    "not JSON": (b"{", None),
    "not an object": (b"[]", None),
    "a header length beyond the body": (b"{}", "3"),
    "a header length that is no number": (b"{}", "-1"),
    "an unknown datatype": body([({**STATE, "datatype": "OBJECT"}, b"\0" * 8)]),
    "a negative size": body([({**STATE, "shape": [-2]}, b"\0" * 8)]),
    "a huge shape": body([({**STATE, "shape": [1 << 62, 1 << 62]}, b"\0" * 8)]),
    "too few bytes": body([(STATE, b"\0" * 7)]),
    "bytes behind the inputs": (body([(STATE, b"\0" * 8)])[0] + b"x", body([(STATE, b"\0" * 8)])[1]),
    "a size beyond the body": body([({**STATE, "parameters": {"binary_data_size": 1 << 40}}, None)]),
    "a text that lies about its length": body(
        [({"name": "task", "datatype": "BYTES", "shape": [1]}, b"\xff\xff\xff\xffgo")]
    ),
    "a text where numbers belong": body([({**STATE, "data": ["1", "2"]}, None)]),
    "a number that does not fit": body([({**STATE, "datatype": "UINT8", "data": [1, 256]}, None)]),
    "the same input twice": body([(STATE, b"\0" * 8), (STATE, b"\0" * 8)]),
    "deep nesting": (b"[" * 200_000, None),
    "an output that is no object": body([(STATE, b"\0" * 8)], outputs=["action"]),
    "a sequence that is a text": body([(STATE, b"\0" * 8)], parameters={"sequence_id": "x"}),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_in_one_line(name):
    with pytest.raises(WireError) as caught:
        kserve.parse_request(*BAD_REQUESTS[name])
    assert len(str(caught.value)) < 400


def test_an_observation_from_a_client_is_judged_like_one_from_a_file(golden_bundle):
    manifest = open_bundle(golden_bundle).manifest
    with pytest.raises(ObservationError, match="message: unknown field 'evil'"):
        observation_of({"evil": np.zeros(1)}, "message", manifest)
    with pytest.raises(ObservationError, match="no field 'observation.state'"):
        observation_of({"task": np.array(["go"])}, "message", manifest)
