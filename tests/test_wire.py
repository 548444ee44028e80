"""The wire format is frozen, and nothing a peer sends can do worse than be refused."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

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
from protocol.rosters import Contribution, Later, SignedRoster
from protocol.rpc import METHODS
from protocol.spec import RunSpec
from protocol.spsa import (
    LOG_BYTES,
    Behind,
    Frames,
    LogId,
    SignedBase,
    SignedFrame,
    Want,
    packed,
)

GOLDEN = Path(__file__).parent / "golden" / "wire.txt"

digests = st.binary(min_size=32, max_size=32).map(digest_of)
rounds = st.integers(0, 10**7).map(Round)
fragments = st.integers(0, 4096)
sizes, tokens = st.integers(1, 1 << 33), st.integers(1, 1 << 48)
seconds = st.floats(0, 3600)
signatures = st.binary(min_size=64, max_size=64)
peers = st.sampled_from(["12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"])
frames = st.builds(SignedFrame, st.binary(min_size=1, max_size=256), signatures)
logs = st.binary(min_size=LOG_BYTES, max_size=LOG_BYTES).map(LogId)
horizons = st.dictionaries(logs, st.integers(1, (1 << 32) - 1), max_size=20).map(packed)
exchanges = st.builds(
    Exchange,
    fragment=fragments,
    proposer=peers,
    partner=peers,
    proposer_round=rounds,
    partner_round=rounds,
    proposer_digest=digests,
    partner_digest=digests,
    proposer_tokens=tokens,
    partner_tokens=tokens,
)
messages = st.one_of(
    st.builds(Propose, rounds, fragments, digests, sizes, tokens, seconds),
    st.builds(Accept, digests, rounds, digests, sizes, tokens),
    st.builds(Refuse, digests, st.sampled_from(["taken", "later"]), seconds),
    st.builds(Have, exchanges),
    st.builds(Commit, exchanges),
    st.builds(Abort, digests),
    st.builds(
        Contribution,
        round=rounds,
        fragment=fragments,
        anchor=digests,
        anchor_tokens=tokens,
        digest=digests,
        size_bytes=sizes,
        tokens=tokens,
    ),
    st.builds(Later, round=rounds, anchor=digests, anchor_tokens=tokens, is_coming=st.booleans()),
    st.builds(SignedRoster, st.binary(min_size=1, max_size=3072), signatures),
    st.builds(Frames, st.lists(frames, max_size=3).map(tuple), st.booleans()),
    st.builds(Want, horizons, st.integers(0, 1 << 32)),
    st.just(Behind()),
    st.builds(SignedBase, st.binary(min_size=1, max_size=999), signatures),
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
    told = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    table = [
        (
            f"`{m.name}`",
            m.lane.name.lower(),
            f"{m.request.__name__} -> {'raw bytes' if m.answer is bytes else m.answer.__name__}",
            f"{m.deadline_s:g} s",
            size(m.max_request_bytes),
            size(m.max_answer_bytes),
            f"{m.per_peer}",
            f"{m.in_all}",
        )
        for m in METHODS
    ]
    assert told == table


def size(count: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count >> power} {unit}"
    return f"{count} B"


def test_the_specification_lists_every_message_with_its_fields() -> None:
    text = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    rows = re.findall(
        r"^\| (\d+) \| (\w+) \| ([^|]*)\| (?:noloco|groups|spsa) \|$", text, re.MULTILINE
    )
    told = [(int(tag), name, fields_in(words)) for tag, name, words in rows]
    kinds: tuple[type, ...] = get_args(Message)
    assert told == [
        (kind.TAG, kind.__name__, [field.name for field in fields(kind)])  # type: ignore[attr-defined]
        for kind in kinds
    ]


def fields_in(words: str) -> list[str]:
    """The names in a list of fields, without what stands in brackets."""
    return [name for name in re.sub(r"\([^)]*\)", "", words).replace(",", " ").split() if name]
