"""Streams and connections of Yamux over memory, for tests: ours, and the library's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from libp2p.abc import INetStream, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from trio.testing import memory_stream_pair

from node.p2p.budget import Budgets
from node.p2p.yamux_stream import LaneStream, QuickStream
from protocol.rpc import Lane

KEYS = [create_new_key_pair(bytes([n]) * 32) for n in (1, 2)]
IDS = [ID.from_pubkey(pair.public_key) for pair in KEYS]


class Line:
    """`node.p2p.yamux_stream.Connection` that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.stream_events: dict[int, trio.Event] = {}

    async def send(self, frames: Sequence[bytes]) -> None:
        self.sent += frames

    def rtt(self) -> float:
        return 0.0

    async def _finalize_stream(self, stream: YamuxStream, *, fully_closed: bool) -> None:
        pass

    def come(self, stream: LaneStream, data: bytes) -> None:
        """The other side has sent this."""
        stream._muxed.inbox.put(memoryview(data))


def lane_stream(line: Line, lane: Lane, budgets: Budgets) -> LaneStream:
    """A stream over it."""
    number = 2 * len(line.stream_events) + 1
    line.stream_events[number] = trio.Event()
    muxed = QuickStream(number, line, True)
    return LaneStream(cast(INetStream, NetStream(muxed, None, None)), lane, budgets)


class Pipe(ReadWriteCloser):
    """One end of a wire that hands out at most `most_bytes` at a time."""

    def __init__(self, stream: trio.abc.Stream, most_bytes: int) -> None:
        self._stream = stream
        self._most = most_bytes
        self.gate = trio.Event()
        """While it is not set, nothing can be written."""
        self.gate.set()

    async def read(self, n: int | None = None) -> bytes:
        most = self._most if n is None else min(n, self._most)
        return bytes(await self._stream.receive_some(most))

    async def write(self, data: bytes) -> None:
        await self.gate.wait()
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("as the library's TCP says", transport="tcp") from error

    async def close(self) -> None:
        self.gate.set()
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


class Plain(NoiseTransportReadWriter):
    """Noise's messages with nothing encrypted, the tag's 16 bytes included."""

    def encrypt(self, data: bytes) -> bytes:
        return bytes(data) + bytes(16)

    def decrypt(self, data: bytes) -> bytes:
        return data[:-16]


def pipe_of(muxer: Yamux) -> Pipe:
    """The wire under a connection that `connected` made."""
    pipe = cast(Any, muxer.secured_conn).conn.read_writer.read_write_closer.stream
    assert isinstance(pipe, Pipe)
    return pipe


def session(pipe: Pipe, me: int) -> SecureSession:
    raw = cast(IRawConnection, RawConnection(pipe, me == 0))
    return SecureSession(
        local_peer=IDS[me],
        local_private_key=KEYS[me].private_key,
        remote_peer=IDS[1 - me],
        remote_permanent_pubkey=KEYS[1 - me].public_key,
        is_initiator=me == 0,
        conn=Plain(raw, cast(Any, None)),
    )


@asynccontextmanager
async def connected(
    near: type[Yamux], far: type[Yamux], most_bytes: int = 1 << 17
) -> AsyncIterator[tuple[Yamux, Yamux]]:
    """Two ends of one connection."""
    ends = memory_stream_pair()
    kinds = (near, far)
    muxers = [
        kinds[me](session(Pipe(ends[me], most_bytes), me), IDS[1 - me], is_initiator=me == 0)
        for me in (0, 1)
    ]
    async with trio.open_nursery() as nursery:
        for muxer in muxers:
            nursery.start_soon(muxer.start)
        for muxer in muxers:
            await muxer.event_started.wait()
        yield muxers[0], muxers[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def streams(
    near: type[Yamux], far: type[Yamux], most_bytes: int = 1 << 17
) -> AsyncIterator[tuple[YamuxStream, YamuxStream]]:
    """Two ends of one stream."""
    async with connected(near, far, most_bytes) as (one, other):
        mine = await one.open_stream()
        theirs = await other.accept_stream()
        yield mine, cast(YamuxStream, theirs)
