"""The wire format is frozen, and nothing a peer sends can do worse than be refused."""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import DIGEST, VALUES

from protocol.codec import decode, encode
from protocol.errors import Malformed
from protocol.ids import Round, digest_of
from protocol.messages import (
    Abort,
    Accept,
    Commit,
    Exchange,
    Have,
    Message,
    Presence,
    Propose,
    Refuse,
)
from protocol.rpc import METHODS
from protocol.spec import RunSpec

GOLDEN = Path(__file__).parent / "golden" / "wire.txt"

digests = st.binary(min_size=32, max_size=32).map(digest_of)
rounds = st.integers(0, 10**7).map(Round)
sizes, tokens = st.integers(1, 1 << 33), st.integers(1, 1 << 48)
seconds = st.floats(0, 3600)
peers = st.sampled_from(["12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"])
exchanges = st.builds(
    Exchange,
    round=rounds,
    fragment=st.integers(0, 4096),
    proposer=peers,
    partner=peers,
    proposer_digest=digests,
    partner_digest=digests,
    proposer_tokens=tokens,
    partner_tokens=tokens,
)
messages = st.one_of(
    st.builds(Propose, rounds, st.integers(0, 4096), digests, sizes, tokens, seconds),
    st.builds(Accept, digests, rounds, digests, sizes, tokens),
    st.builds(Refuse, digests, st.sampled_from(["taken", "later"]), seconds),
    st.builds(Have, exchanges),
    st.builds(Commit, exchanges),
    st.builds(Abort, digests),
)


def test_golden_bytes() -> None:
    """A change here is a new protocol version: docs/protocol.md says how."""
    lines = "".join(f"{name} {encode(value).hex()}\n" for name, value in VALUES.items())
    if os.environ.get("SHOAL_REWRITE"):
        GOLDEN.write_text(lines)
    assert lines == GOLDEN.read_text()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_kind_round_trips(value: object) -> None:
    assert decode(type(value), encode(value), max_bytes=4096) == value


@given(messages)
def test_messages_round_trip_by_tag(message: Message) -> None:
    assert decode(Message, encode(message), max_bytes=4096) == message  # type: ignore[arg-type]


ABORT = encode(Abort(DIGEST)).hex()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "ValueError"),
        ("92 63 c4 00", "unknown tag 99"),
        ("90", "no tag"),
        ("91 06", "1 fields, found 0"),
        ("92 06 c4 01 00", "proposed has 1 bytes"),
        ("92 c3 " + ABORT[4:], "unknown tag True"),  # true is an int to Python, not to us
        ("92 cc 06 " + ABORT[4:], "canonical"),  # 6 in two bytes
        (ABORT + "00", "ExtraData"),
        ("81 01 02", "max_map_len"),
    ],
)
def test_refuses(data: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode(Message, bytes.fromhex(data), max_bytes=4096)  # type: ignore[arg-type]


def test_refuses_more_bytes_than_the_limit() -> None:
    with pytest.raises(Malformed, match="34 bytes, at most 33"):
        decode(bytes, bytes(34), max_bytes=33)


shapes = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text() | st.binary(),
    st.lists,
)
junk = st.binary(max_size=100) | shapes.map(msgpack.packb) | messages.map(encode)


@given(junk, st.sampled_from([Message, Presence, RunSpec]))
def test_decode_is_total_and_canonical(data: bytes, kind: type) -> None:
    try:
        value: object = decode(kind, data, max_bytes=4096)
    except Malformed:
        return
    assert encode(value) == data


@given(messages.map(encode), st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_another_message(data: bytes, at: int, flip: int) -> None:
    broken = bytearray(data)
    broken[at % len(data)] ^= flip
    try:
        value: object = decode(Message, bytes(broken), max_bytes=4096)  # type: ignore[arg-type]
    except Malformed:
        return
    assert encode(value) == broken


def test_the_specification_lists_every_method_with_its_limits() -> None:
    text = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `") and "/1`" in line]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    told = [
        (name, deadline, per_peer, in_all) for name, _, _, deadline, _, _, per_peer, in_all in found
    ]
    table = [
        (f"`{m.name}`", f"{m.deadline_s:g} s", f"{m.per_peer}", f"{m.in_all}") for m in METHODS
    ]
    assert told == table
