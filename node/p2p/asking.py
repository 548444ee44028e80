"""A stream that we opened: our requests out, the peer's answers in.

Many calls are under way at once, told apart by id.  A call that nobody waits for any more stays
known until the peer has ended it, so that what still comes of it is counted and dropped, and
anything else is the peer's fault.  Trio side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from protocol.frame import Frame, FrameKind, Refusal
from protocol.rpc import Kind, Lane, Method

SMALL_BYTES = 4096
"""A request and an answer of no more tell the round trip: they are sent in a millisecond even at
30 Mbit/s."""

# --- outcomes of a call: values, for they cross to the other thread --------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer; empty if it was written into the caller's memory."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """No answer, by nobody's fault: the stream broke, or the deadline passed."""

    reason: str
    stream_broke: bool = False
    """The stream did: the call may be made again over another link."""


@dataclass(frozen=True, slots=True)
class Broke:
    """The answer is none that an honest peer sends."""

    reason: str


Outcome = Answer | Refusal | Gone | Broke


@dataclass(slots=True, eq=False)
class Asked:
    """A call under way."""

    call: int
    kind: Kind
    max_bytes: int
    into: memoryview | None
    done: Callable[[Outcome], None]
    """Called once, with the outcome; must not wait."""
    small_since: float | None
    """When the request was written, if its answer tells the round trip."""
    parts: list[bytes] = field(default_factory=list)
    got_bytes: int = 0
    abandoned: bool = False
    """Nobody waits any more; what still comes is counted and dropped."""

    def take(self, payload: bytes | memoryview) -> None:
        """A piece of the answer; an answer that is too long ends the call."""
        end = self.got_bytes + len(payload)
        if end > self.max_bytes:
            self.finish(Broke(f"an answer of over {self.max_bytes} bytes"))
            return
        if self.into is None:
            self.parts.append(bytes(payload))
        else:
            self.into[self.got_bytes : end] = payload
        self.got_bytes = end

    def close(self) -> None:
        """The last piece has come."""
        if self.into is None:
            self.finish(Answer(b"".join(self.parts)))
        elif self.got_bytes < self.max_bytes:
            self.finish(Broke(f"an answer of {self.got_bytes} bytes, not {self.max_bytes}"))
        else:
            self.finish(Answer(b""))

    def finish(self, outcome: Outcome) -> None:
        """What the caller gets; from here on its memory is left alone."""
        self.into = None
        self.parts = []
        self.abandoned = True
        self.done(outcome)


class Asking:
    """A stream that we opened."""

    def __init__(self, stream: Stream, counters: PeerCounters) -> None:
        self._stream = stream
        self._counters = counters
        self._outbox = Outbox(stream.write, counters)
        self._calls: dict[int, Asked] = {}
        self._next = 0
        self.broken: str | None = None
        """Why no more calls can be made."""

    @property
    def under_way(self) -> int:
        """Calls that the peer has not ended, cancelled ones among them."""
        return len(self._calls)

    async def call(
        self,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome:
        """Ask, and wait for the outcome; cancelling it frees the peer."""
        ended = trio.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        asked = self.begin(method, body, deadline_s, into, done)
        try:
            await ended.wait()
        finally:
            if asked is not None:
                self.end(asked, Gone("cancelled"))
        return outcomes[0]

    def begin(
        self,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
        done: Callable[[Outcome], None],
    ) -> Asked | None:
        """Ask; `done` gets the outcome, perhaps at once, and then there is nothing to end.

        Args:
            deadline_s: what the peer is told; whoever calls this also ends the call then.
            into: gets the answer, which must be exactly as long; left alone after the outcome.
        """
        if self._next == frame.MAX_CALLS:
            self.broken = "all its call ids are used"  # the next call opens another
        if self.broken is None and len(self._calls) >= MAX_CALLS:
            done(Gone(f"{MAX_CALLS} calls to it are under way"))
            return None
        if self.broken is not None:
            done(Gone(self.broken, stream_broke=True))
            return None
        call = self._next
        self._next += 1
        max_bytes = method.max_answer_bytes if into is None else len(into)
        is_small = method.lane is Lane.CONTROL and len(body) <= SMALL_BYTES
        began = trio.current_time() if is_small else None
        asked = Asked(call, method.kind, max_bytes, into, done, began)
        self._calls[call] = asked
        deadline_ms = max(1, int(deadline_s * 1000))
        frames = frame.request_frames(call, method.name, deadline_ms, body)
        self._outbox.add(Sending(call, frames, method.kind))
        return asked

    def end(self, asked: Asked, outcome: Gone) -> None:
        """Nobody waits for this call any more; its outcome is this unless it has one."""
        if not asked.abandoned:
            asked.finish(outcome)
            self._abandon(asked.call, asked)

    async def run(self) -> None:
        """Read and write until the stream ends; all calls fail then.

        Raises:
            Blamed: the peer broke the protocol.
        """
        try:
            await read_and_write(self._stream, self._outbox, self._take)
            self._fail("the stream ended")
        except STREAM_ERRORS as error:
            self._fail(f"the stream broke ({type(error).__name__})")
        except Blamed as error:
            self._fail(str(error), again=False)
            raise
        finally:
            self._fail("the node stops", again=False)

    def _fail(self, reason: str, *, again: bool = True) -> None:
        if self.broken is None:
            self.broken = reason
        for asked in self._calls.values():
            if not asked.abandoned:
                asked.finish(Gone(self.broken, stream_broke=again))
        self._calls.clear()

    def _abandon(self, call: int, asked: Asked) -> None:
        """Free the other side: the id is done when its ANSWER or ERROR comes."""
        if self._calls.get(call) is not asked:
            return
        if self._outbox.drop(call):
            del self._calls[call]  # the peer never heard of it
        else:
            self._outbox.add(Sending(call, iter([frame.cancel_frame(call)]), asked.kind))

    def _take(self, item: Frame) -> None:
        asked = self._calls.get(item.call)
        if asked is None:
            raise Blamed(f"{item.kind.name} for call {item.call}, which is not under way")
        self._counters.frame_down(asked.kind, item.size_bytes)
        match item.kind:
            case FrameKind.PART | FrameKind.ANSWER:
                if not asked.abandoned:
                    asked.take(item.payload)
                    if asked.abandoned and item.kind is FrameKind.PART:
                        self._abandon(item.call, asked)  # too long: want no more of it
                if item.kind is FrameKind.ANSWER:
                    self._note_round_trip(asked, item)
                    if not asked.abandoned:
                        asked.close()
                    del self._calls[item.call]
            case FrameKind.ERROR:
                refusal = parsed(frame.parse_refusal, item.payload)
                if not asked.abandoned:
                    asked.finish(refusal)
                del self._calls[item.call]
            case _:
                raise Blamed(f"{item.kind.name} where answers are expected")

    def _note_round_trip(self, asked: Asked, last: Frame) -> None:
        if asked.small_since is not None and asked.got_bytes + last.size_bytes <= SMALL_BYTES:
            self._counters.round_trip(trio.current_time() - asked.small_since)
