"""What both ends of a stream of calls share.

A stream is read and written by two tasks that wait for nothing but that stream.  It ends by
itself (one of `STREAM_ERRORS`), or because the peer broke the protocol (`Blamed`, which carries
the sentence); either way it is reset and all its calls end.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import trio
from libp2p.exceptions import BaseLibp2pError

from node.p2p.outbox import Outbox
from protocol.errors import Malformed
from protocol.frame import Frame, FrameReader

T = TypeVar("T")
P = ParamSpec("P")

MAX_CALLS = 256
"""Calls under way on one stream, cancelled ones included until they are ended.  Several times
what any peer serves at once, so only a dead peer meets it."""
READ_BYTES = 1 << 18
"""One read of a stream is no larger: the window that a Yamux stream starts with."""
RESET_S = 1.0
"""How long a stream's last frame, or its reset, may wait for a peer that does not read."""

STREAM_ERRORS = (BaseLibp2pError, OSError, EOFError, trio.ClosedResourceError)
"""How a stream of the library ends."""


class Stream(Protocol):
    """What is needed of a stream of the library; `node.p2p.yamux_stream.LaneStream` has it."""

    async def read(self, most_bytes: int) -> bytes | bytearray | memoryview:
        """What has come, at most so much of it; it is the reader's from now on."""

    async def write(self, frames: Sequence[bytes]) -> None: ...

    async def reset(self) -> None: ...


class Blamed(Exception):
    """The peer broke the protocol on this stream."""


async def read_and_write(
    stream: Stream,
    outbox: Outbox,
    take: Callable[[Frame], None],
    *others: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Write what is in the outbox and hand every frame to `take`, until the stream ends.

    Raises:
        Blamed: by `take`, or what comes is no frame.
        STREAM_ERRORS: the stream broke.
    """
    error: BaseException | None = None

    async def until_end(task: Coroutine[Any, Any, None]) -> None:
        nonlocal error
        try:
            await task
        except (*STREAM_ERRORS, Blamed) as end:
            error = error or end
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_end, outbox.run())
            for other in others:
                nursery.start_soon(other)
            await until_end(_read(stream, take))
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(RESET_S):
            await stream.reset()
    if error is not None:
        raise error


async def _read(stream: Stream, take: Callable[[Frame], None]) -> None:
    reader = FrameReader()
    while data := await stream.read(READ_BYTES):
        reader.feed(data)
        while (frame := parsed(reader.next)) is not None:
            take(frame)


def parsed(parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `parse` makes of a peer's bytes, or the peer is blamed."""
    try:
        return parse(*args, **kwargs)
    except Malformed as error:
        raise Blamed(str(error)) from error
