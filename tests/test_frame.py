"""Frames: the bytes of calls on a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import frame
from protocol.errors import Malformed
from protocol.frame import PART_BYTES, Frame, FrameKind, FrameReader, Refusal, Request

CALLS = st.integers(0, (1 << 32) - 1)
BODIES = st.binary(max_size=600) | st.integers(0, 3 * PART_BYTES).map(bytes)


def read(data: bytes, cuts: list[int] | None = None) -> list[Frame]:
    """The frames of `data`, fed in pieces that end at `cuts`."""
    reader = FrameReader()
    found = []
    ends = sorted({min(cut, len(data)) for cut in cuts or []} | {len(data)})
    start = 0
    for end in ends:
        reader.feed(data[start:end])
        while (item := reader.next()) is not None:
            found.append(item)
        start = end
    return found


def test_the_bytes_of_each_frame_are_pinned() -> None:
    golden = {
        "request": b"".join(frame.request_frames(7, "fetch/1", 60_000, b"body")),
        "answer": b"".join(frame.answer_frames(7, b"body")),
        "error": frame.refusal_frame(7, "busy", "later"),
        "cancel": frame.cancel_frame(7),
    }
    assert {name: data.hex() for name, data in golden.items()} == {
        "request": "0000001901000000070766657463682f310000ea6000000004626f6479",
        "answer": "000000090300000007626f6479",
        "error": "00000011040000000792a462757379a56c61746572",
        "cancel": "000000050500000007",
    }


@given(CALLS, BODIES, st.integers(1, frame.MAX_DEADLINE_MS), st.lists(st.integers(0, 300_000)))
def test_a_request_comes_back_however_the_stream_cuts_it(
    call: int, body: bytes, deadline_ms: int, cuts: list[int]
) -> None:
    first, *rest = read(b"".join(frame.request_frames(call, "a/1", deadline_ms, body)), cuts)
    request = frame.parse_request(first.payload)
    assert (first.kind, first.call) == (FrameKind.REQUEST, call)
    assert (request.name, request.deadline_ms) == ("a/1", deadline_ms)
    assert request.body_bytes == len(body)
    assert {(part.kind, part.call) for part in rest} <= {(FrameKind.PART, call)}
    assert request.body + b"".join(part.payload for part in rest) == body


@given(CALLS, BODIES, st.lists(st.integers(0, 300_000)))
def test_an_answer_comes_back_however_the_stream_cuts_it(
    call: int, body: bytes, cuts: list[int]
) -> None:
    *parts, last = read(b"".join(frame.answer_frames(call, body)), cuts)
    assert (last.kind, last.call) == (FrameKind.ANSWER, call)
    assert {(part.kind, part.call) for part in parts} <= {(FrameKind.PART, call)}
    assert b"".join(item.payload for item in [*parts, last]) == body


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 300_000])
def test_the_closed_form_of_bytes_is_exact(size: int) -> None:
    request = b"".join(frame.request_frames(1, "records/1", 1, bytes(size)))
    answer = b"".join(frame.answer_frames(1, bytes(size)))
    assert (frame.request_bytes("records/1", size), frame.answer_bytes(size)) == (
        len(request),
        len(answer),
    )


@pytest.mark.parametrize("size", [PART_BYTES - 16, PART_BYTES - 15, PART_BYTES - 11])
def test_no_frame_is_longer_than_the_limit_at_the_edge_of_one_payload(size: int) -> None:
    items = read(b"".join(frame.request_frames(1, "a/1", 1, bytes(size))))
    assert max(len(item.payload) for item in items) <= PART_BYTES
    assert frame.request_bytes("a/1", size) == sum(item.size_bytes for item in items)


@pytest.mark.parametrize("length", [0, 4, 5 + PART_BYTES + 1, 1 << 30, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_refused_before_anything_is_awaited(length: int) -> None:
    reader = FrameReader()
    reader.feed(length.to_bytes(4, "big") + b"\x01\x00\x00\x00\x00")
    with pytest.raises(Malformed, match=f"a frame of {length} bytes"):
        reader.next()


@pytest.mark.parametrize("kind", [0, 6, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    reader = FrameReader()
    reader.feed(b"\x00\x00\x00\x05" + bytes([kind]) + b"\x00\x00\x00\x00")
    with pytest.raises(Malformed, match="unknown kind"):
        reader.next()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(payload: bytes) -> None:
    try:
        request = frame.parse_request(payload)
    except Malformed:
        return
    first = next(frame.request_frames(0, request.name, request.deadline_ms, request.body))
    assert len(first) == frame.HEADER_BYTES + len(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_refusal_or_malformed(payload: bytes) -> None:
    try:
        refusal = frame.parse_refusal(payload)
    except Malformed:
        return
    assert isinstance(refusal, Refusal)


@pytest.mark.parametrize(
    ("name", "deadline_ms", "body_bytes"),
    [("", 1, 0), ("a" * 33, 1, 0), ("a/1", 0, 0), ("a/1", 1, frame.MAX_BODY_BYTES + 1)],
)
def test_a_request_out_of_bounds_does_not_exist(
    name: str, deadline_ms: int, body_bytes: int
) -> None:
    with pytest.raises(ValueError, match="expected"):
        Request(name, deadline_ms, body_bytes, b"")


def test_a_long_sentence_is_cut_at_a_whole_character() -> None:
    (item,) = read(frame.refusal_frame(1, "busy", "a" + "é" * 300))
    assert frame.parse_refusal(item.payload) == Refusal("busy", "a" + "é" * 99)
