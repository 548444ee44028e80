"""Frames: how calls share one stream.

A stream carries the requests of the side that opened it one way and their answers the other
way; many calls are under way on it at once.  On the wire a frame is

    length u32 | kind u8 | call u32 | payload            (big-endian; length counts the rest)

    REQUEST  name length u8, name ("fetch/1"), deadline u32 in ms, body length u32, body
    PART     more of a body: of the request from the caller, of the answer from the other
    ANSWER   the last or only part of the answer
    ERROR    msgpack [code, sentence]: there is no answer, or no rest of it
    CANCEL   from the caller: it no longer wants the answer

`call` is chosen by the caller, counts up from 0 and is not used twice on a stream.  Every
REQUEST gets exactly one ANSWER or ERROR, a cancelled one too; then the id is done.  A body is
cut into payloads of `PART_BYTES`, and whoever writes lets the bodies under way take turns.

Pure, like h11: `FrameReader.feed` takes the bytes as they come, `next` returns frames; what it
holds is bounded by one frame and one feed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import msgpack

from protocol import check
from protocol.errors import Malformed

PART_BYTES = 63 * 1024
"""Largest payload.  With the headers of frame, Yamux and Noise it fits one Noise message of
65,535 bytes; 64 KiB would need two for each frame."""
MAX_NAME_BYTES = 32
MAX_BODY_BYTES = 1 << 20
"""Largest request body; the largest that any method allows today is 256 KiB."""
MAX_CODE_BYTES = 32
MAX_SENTENCE_BYTES = 200
MAX_CALLS = 1 << 32
MAX_DEADLINE_MS = 3_600_000

_HEADER = struct.Struct("!IBI")
HEADER_BYTES = _HEADER.size
_COUNTED_BYTES = HEADER_BYTES - 4
_AFTER_NAME = struct.Struct("!II")


class FrameKind(IntEnum):
    """What a frame is; the numbers are on the wire."""

    REQUEST = 1
    PART = 2
    ANSWER = 3
    ERROR = 4
    CANCEL = 5


_KINDS = {kind.value: kind for kind in FrameKind}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, its payload not looked at yet."""

    kind: FrameKind
    call: int
    payload: bytes | memoryview
    """A view of what was fed, which lives as long as the view."""

    @property
    def size_bytes(self) -> int:
        """What it takes on the stream."""
        return HEADER_BYTES + len(self.payload)


@dataclass(frozen=True, slots=True)
class Request:
    """The payload of a REQUEST."""

    name: str
    deadline_ms: int
    body_bytes: int
    """Length of the whole body; what is missing here follows in PARTs."""
    body: bytes

    def __post_init__(self) -> None:
        check.text("method", self.name, MAX_NAME_BYTES, least=1)
        check.integer("deadline_ms", self.deadline_ms, 1, MAX_DEADLINE_MS)
        check.integer("body_bytes", self.body_bytes, len(self.body), MAX_BODY_BYTES)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The payload of an ERROR: a code for programs and a sentence for people."""

    code: str
    sentence: str

    def __post_init__(self) -> None:
        check.text("code", self.code, MAX_CODE_BYTES, least=1)
        check.text("sentence", self.sentence, MAX_SENTENCE_BYTES)


class FrameReader:
    """Cuts the bytes of one stream into frames."""

    def __init__(self) -> None:
        self._data: bytes | bytearray | memoryview = b""
        self._at = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream; call `next` until None before the next feed.

        They are not copied where they begin with a frame, so they must not change any more.
        """
        if self._at < len(self._data):
            self._data = b"".join((memoryview(self._data)[self._at :], data))
        else:
            self._data = data
        self._at = 0

    def next(self) -> Frame | None:
        """The next whole frame, or None until more is fed.

        Raises:
            Malformed: no frame; the stream is beyond repair.
        """
        at = self._at
        there = len(self._data) - at
        if there < HEADER_BYTES:
            return None
        length, kind, call = _HEADER.unpack_from(self._data, at)
        if not _COUNTED_BYTES <= length <= _COUNTED_BYTES + PART_BYTES:
            raise Malformed(
                f"a frame of {length} bytes, expected {_COUNTED_BYTES} "
                f"to {_COUNTED_BYTES + PART_BYTES}"
            )
        if kind not in _KINDS:
            raise Malformed(f"a frame of unknown kind {kind}")
        if there < 4 + length:
            return None
        self._at = at + 4 + length
        payload = memoryview(self._data)[at + HEADER_BYTES : self._at]
        return Frame(_KINDS[kind], call, payload)


def parse_request(payload: bytes | memoryview) -> Request:
    """The payload of a REQUEST.

    Raises:
        Malformed: anything else.
    """
    payload = bytes(payload)
    try:
        end = 1 + payload[0]
        name = payload[1:end].decode("ascii")
        deadline_ms, body_bytes = _AFTER_NAME.unpack_from(payload, end)
        return Request(name, deadline_ms, body_bytes, payload[end + _AFTER_NAME.size :])
    except (IndexError, struct.error, ValueError) as error:
        raise Malformed(f"no request: {error}") from error


def parse_refusal(payload: bytes | memoryview) -> Refusal:
    """The payload of an ERROR.

    Raises:
        Malformed: anything else.
    """
    try:
        match msgpack.unpackb(payload, max_array_len=2, max_map_len=0, max_ext_len=0):
            case [str(code), str(sentence)]:
                return Refusal(code, sentence)
    except (ValueError, msgpack.exceptions.StackError) as error:
        raise Malformed(f"no refusal: {error}") from error
    raise Malformed("no refusal: not [code, sentence]")


def request_frames(call: int, name: str, deadline_ms: int, body: bytes) -> Iterator[bytes]:
    """The frames of a request, made one by one as they are asked for."""
    Request(name, deadline_ms, len(body), b"")  # checks them
    head = bytes([len(name)]) + name.encode("ascii") + _AFTER_NAME.pack(deadline_ms, len(body))
    room = PART_BYTES - len(head)
    yield _frame(FrameKind.REQUEST, call, head, body[:room])
    for start in range(room, len(body), PART_BYTES):
        yield _frame(FrameKind.PART, call, body[start : start + PART_BYTES])


def answer_frames(call: int, body: bytes | memoryview) -> Iterator[bytes]:
    """The frames of an answer; of a memoryview only the part under way is copied."""
    body = memoryview(body).cast("B")
    last = max(0, len(body) - 1) // PART_BYTES * PART_BYTES
    for start in range(0, last, PART_BYTES):
        yield _frame(FrameKind.PART, call, body[start : start + PART_BYTES])
    yield _frame(FrameKind.ANSWER, call, body[last:])


def refusal_frame(call: int, code: str, sentence: str) -> bytes:
    """An ERROR; a long sentence is cut."""
    cut = sentence.encode("utf-8", "replace")[:MAX_SENTENCE_BYTES].decode("utf-8", "ignore")
    Refusal(code, cut)  # checks them
    return _frame(FrameKind.ERROR, call, msgpack.packb([code, cut]))


def cancel_frame(call: int) -> bytes:
    """A CANCEL."""
    return _frame(FrameKind.CANCEL, call)


def request_bytes(name: str, body_bytes: int) -> int:
    """What a request takes on the stream, exactly: the closed form of bytes."""
    payload = 1 + len(name) + _AFTER_NAME.size + body_bytes
    return payload + HEADER_BYTES * max(1, -(-payload // PART_BYTES))


def answer_bytes(body_bytes: int) -> int:
    """What an answer takes on the stream, exactly."""
    return body_bytes + HEADER_BYTES * max(1, -(-body_bytes // PART_BYTES))


def _frame(kind: FrameKind, call: int, *pieces: bytes | memoryview) -> bytes:
    length = _COUNTED_BYTES + sum(len(piece) for piece in pieces)
    return b"".join((_HEADER.pack(length, kind, call), *pieces))
