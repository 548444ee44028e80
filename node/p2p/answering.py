"""A stream that the peer opened: its requests in, our answers out.

Here the limits of the method table are kept: a call takes a place until its answer is written,
one call too many is refused as busy, and nobody keeps a place beyond the deadline of the call.
What a request means is the handler's business, in the other thread.  Trio side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from node.p2p.counters import PeerCounters
from node.p2p.outbox import Outbox, Sending
from node.p2p.streams import (
    MAX_CALLS,
    STREAM_ERRORS,
    Blamed,
    Stream,
    parsed,
    read_and_write,
)
from protocol import frame
from protocol.frame import Frame, FrameKind, Request
from protocol.ids import PeerId
from protocol.rpc import Kind, Lane, Method

MAX_WAITING_REFUSALS = 512
"""Refusals that a peer leaves unread before its stream is closed: an honest one has at most
`MAX_CALLS` calls under way."""
GRACE_S = 2.0
"""How long after a caller's deadline its call may still hold a place."""

UNKNOWN = "unknown"
BUSY = "busy"
MALFORMED = "malformed"
LATE = "late"
CANCELLED = "cancelled"
TRANSIENT = (BUSY, LATE)
"""Refusals that pass by themselves: the peer has much to do."""


class Places:
    """How many calls of each method are being served, for each peer and in all."""

    def __init__(self) -> None:
        self._taken: dict[tuple[PeerId | None, str], int] = {}

    def take(self, peer: PeerId, method: Method[Any, Any]) -> bool:
        """A place for one more call, unless there is none."""
        mine, all = (peer, method.name), (None, method.name)
        if self._taken.get(mine, 0) >= method.per_peer or self._taken.get(all, 0) >= method.in_all:
            return False
        for key in (mine, all):
            self._taken[key] = self._taken.get(key, 0) + 1
        return True

    def leave(self, peer: PeerId, method: Method[Any, Any]) -> None:
        """A call has ended."""
        for key in ((peer, method.name), (None, method.name)):
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


@dataclass(slots=True, eq=False)
class Incoming:
    """A request of a peer, on its way through the node."""

    peer: PeerId
    method: Method[Any, Any]
    deadline_s: float
    body: bytearray
    body_bytes: int
    call: int
    stream: Answering
    expires_at: float
    handed_over: bool = False
    sending: Sending | None = None
    """The answer on its way."""

    def answer(self, body: bytes | memoryview) -> None:
        """Send the answer; trio side."""
        self.stream.send_answer(self, body)

    def refuse(self, code: str, sentence: str) -> None:
        """Send a refusal; trio side."""
        self.stream.send_refusal(self, code, sentence)


class Handler(Protocol):
    """Who serves the requests: called on the trio side, must not wait."""

    @property
    def methods(self) -> Mapping[str, Method[Any, Any]]: ...

    def request(self, incoming: Incoming) -> None: ...

    def cancel(self, incoming: Incoming) -> None: ...


class Answering:
    """A stream that the peer opened."""

    def __init__(
        self,
        peer: PeerId,
        lane: Lane,
        stream: Stream,
        counters: PeerCounters,
        places: Places,
        handler: Handler,
    ) -> None:
        self._peer = peer
        self._lane = lane
        self._stream = stream
        self._counters = counters
        self._places = places
        self._handler = handler
        self._outbox = Outbox(stream.write, counters)
        self._calls: dict[int, Incoming] = {}
        self._next = 0
        self._skipping: dict[int, int] = {}
        """Refused calls whose request has not wholly come: bytes still to be dropped."""
        self._waiting_refusals = 0

    async def run(self) -> None:
        """Read and write until the stream ends; all calls are cancelled then.

        Raises:
            Blamed: the peer broke the protocol.
        """
        try:
            await read_and_write(self._stream, self._outbox, self._take, self._expire)
        except STREAM_ERRORS:
            return
        finally:
            for incoming in list(self._calls.values()):
                self._end(incoming)

    def send_answer(self, incoming: Incoming, body: bytes | memoryview) -> None:
        """Queue the answer; the call holds its place until it is written."""
        if self._calls.get(incoming.call) is not incoming:
            return  # cancelled meanwhile
        incoming.handed_over = False
        answer = frame.answer_frames(incoming.call, body)
        kind = incoming.method.kind
        incoming.sending = Sending(incoming.call, answer, kind, lambda: self._end(incoming))
        self._outbox.add(incoming.sending)

    def send_refusal(self, incoming: Incoming, code: str, sentence: str) -> None:
        """Refuse a call that has begun, or the rest of its answer."""
        if self._calls.get(incoming.call) is not incoming:
            return
        if incoming.sending is not None and incoming.sending.is_taken:
            self._end(incoming)  # the end of its answer is on the way: one end is all it gets
            return
        self._outbox.drop(incoming.call)
        missing = incoming.body_bytes - len(incoming.body)
        self._end(incoming)
        self._refuse(incoming.call, incoming.method.kind, code, sentence, missing)

    def _end(self, incoming: Incoming) -> None:
        if self._calls.pop(incoming.call, None) is None:
            return
        self._places.leave(incoming.peer, incoming.method)
        if incoming.handed_over:
            self._handler.cancel(incoming)

    def _refuse(self, call: int, kind: Kind | None, code: str, sentence: str, rest: int) -> None:
        if rest:
            self._skipping[call] = rest
        self._waiting_refusals += 1
        refusal = iter([frame.refusal_frame(call, code, sentence)])
        self._outbox.add(Sending(call, refusal, kind, self._refusal_written))

    def _refusal_written(self) -> None:
        self._waiting_refusals -= 1

    async def _expire(self) -> None:
        """Free the places of calls whose callers ought to have gone."""
        while True:
            await trio.sleep(GRACE_S / 2)
            now = trio.current_time()
            for incoming in list(self._calls.values()):
                if incoming.expires_at < now:
                    self.send_refusal(incoming, LATE, "the deadline of the call has passed")

    def _take(self, item: Frame) -> None:
        match item.kind:
            case FrameKind.REQUEST:
                self._begin(item)
            case FrameKind.PART:
                self._continue(item)
            case FrameKind.CANCEL:
                self._cancel(item)
            case _:
                raise Blamed(f"{item.kind.name} where requests are expected")

    def _begin(self, item: Frame) -> None:
        request = parsed(frame.parse_request, item.payload)
        if item.call < self._next:
            raise Blamed(f"call {item.call}, expected {self._next} or later")
        self._next = item.call + 1
        if self._waiting_refusals > MAX_WAITING_REFUSALS or len(self._skipping) > MAX_CALLS:
            raise Blamed(f"left {self._waiting_refusals} refusals unread")
        method = self._handler.methods.get(request.name)
        rest = request.body_bytes - len(request.body)
        if method is None or method.lane is not self._lane:
            self._refuse(item.call, None, UNKNOWN, self._unknown(request), rest)
            return
        self._counters.frame_down(method.kind, item.size_bytes)
        if request.body_bytes > method.max_request_bytes:
            raise Blamed(
                f"a {request.name} of {request.body_bytes} bytes, "
                f"at most {method.max_request_bytes} are allowed"
            )
        if not self._places.take(self._peer, method):
            sentence = f"{request.name} is served {method.per_peer} times for a peer at once"
            self._refuse(item.call, method.kind, BUSY, sentence, rest)
            return
        deadline_s = request.deadline_ms / 1000
        incoming = Incoming(
            peer=self._peer,
            method=method,
            deadline_s=deadline_s,
            body=bytearray(request.body),
            body_bytes=request.body_bytes,
            call=item.call,
            stream=self,
            expires_at=trio.current_time() + deadline_s + GRACE_S,
        )
        self._calls[item.call] = incoming
        self._hand_over_if_whole(incoming)

    def _continue(self, item: Frame) -> None:
        size = len(item.payload)
        incoming = self._calls.get(item.call)
        if incoming is not None and len(incoming.body) + size <= incoming.body_bytes and size:
            self._counters.frame_down(incoming.method.kind, item.size_bytes)
            incoming.body += item.payload
            self._hand_over_if_whole(incoming)
        elif 0 < size <= self._skipping.get(item.call, 0):
            self._skipping[item.call] -= size
            if not self._skipping[item.call]:
                del self._skipping[item.call]
        else:
            raise Blamed(f"{size} bytes for call {item.call}, which expects none")

    def _cancel(self, item: Frame) -> None:
        if item.payload or item.call >= self._next:
            raise Blamed(f"a CANCEL of call {item.call}, next is {self._next}")
        self._skipping.pop(item.call, None)  # whoever cancels sends no more of the body
        incoming = self._calls.get(item.call)
        if incoming is not None:
            self._counters.frame_down(incoming.method.kind, item.size_bytes)
            incoming.body_bytes = len(incoming.body)
            self.send_refusal(incoming, CANCELLED, "as you wish")

    def _hand_over_if_whole(self, incoming: Incoming) -> None:
        if len(incoming.body) == incoming.body_bytes:
            incoming.handed_over = True
            self._handler.request(incoming)

    def _unknown(self, request: Request) -> str:
        name = request.name.partition("/")[0]
        known = [m for m in self._handler.methods if m.partition("/")[0] == name]
        if known:
            return f"no method {request.name} here, but {', '.join(sorted(known))}"
        return f"no method {request.name} here"
