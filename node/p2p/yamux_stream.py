"""One stream of `node.p2p.yamux`: reads from its inbox, writes straight to the connection.

A reader gives back room by half windows, a writer without room waits for it to be given; the
library does the former at every read and looks for the latter every 10 ms.  Written against
libp2p 0.8.1; tests/test_yamux.py pins it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from typing import Protocol

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    HEADER_SIZE,
    MAX_WINDOW_SIZE,
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    YamuxStream,
)

from node.p2p.budget import Budget, Budgets
from node.p2p.inbox import Inbox
from protocol.rpc import Lane

MESSAGE_BYTES = 65_535 - 16
"""The plain bytes of a Noise message: 65,535 with its tag."""
DATA_BYTES = MESSAGE_BYTES - HEADER_SIZE
"""A frame of data that is one Noise message."""
TOGETHER_BYTES = 128 * 1024
"""Written by one system call.  What is behind it on the connection waits for it: 10 ms at
100 Mbit/s."""
BULK_WINDOW_BYTES = 4 << 20
"""What a stream of bulk starts with: two fetches' pieces under way, and three times what
100 Mbit/s hold in 100 ms.  From 256 KiB it takes a second to grow there."""
LIMITED_WINDOW_S = 0.5
"""Of the download budget, what a stream of bulk starts with instead, for it comes unasked."""
WINDOW_S = 60.0
"""A peer that gives no room for so long is taken for gone.  Longer than one that reads as slowly
as its operator allows takes for half a window."""
GROW_WITHIN = 4
"""A window that is used up within so many round trips is doubled: go-yamux's rule."""
LEAST_RTT_S = 0.001
"""Taken where none is measured yet: the library's own default."""

HEADER = struct.Struct(YAMUX_HEADER_FORMAT)


class Connection(Protocol):
    """What a stream needs of its connection."""

    stream_events: dict[int, trio.Event]

    async def send(self, frames: Sequence[bytes]) -> None: ...

    def rtt(self) -> float: ...

    async def _finalize_stream(self, stream: YamuxStream, *, fully_closed: bool) -> None: ...


class QuickStream(YamuxStream):
    """One stream: reads from its inbox, writes straight to the connection."""

    conn: Connection  # type: ignore[assignment]

    def __init__(self, stream_id: int, conn: Connection, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)  # type: ignore[arg-type]
        self.inbox = Inbox()
        self.room = trio.Event()
        """Set when there may be room to write again, or never will be."""
        self._unreported = 0

    async def read(self, n: int | None = -1) -> bytes:
        """What has come, at most `n` bytes of it; waits for some."""
        if n is None or n < 0:
            await self._wait_for_bytes()
            data = self.inbox.take_all()
            await self._give_back(len(data))
            return data
        return bytes(await self.read_piece(n))

    async def read_piece(self, most_bytes: int) -> bytes | bytearray | memoryview:
        """What has come, not copied: a part of it at a time."""
        await self._wait_for_bytes()
        piece = self.inbox.take(most_bytes)
        await self._give_back(len(piece))
        return piece

    async def write(self, data: bytes) -> None:
        """Send it, as fast as the other side reads."""
        await self.write_pieces([data])

    async def write_pieces(self, pieces: Sequence[bytes]) -> None:
        """Send them in order, each in frames of its own, many with one system call."""
        frames: list[bytes] = []
        size = 0
        for piece in pieces:
            at = 0
            while at < len(piece):
                room = min(await self._wait_for_room(frames), DATA_BYTES, len(piece) - at)
                self.send_window -= room
                header = HEADER.pack(0, TYPE_DATA, 0, self.stream_id, room)
                data = piece if room == len(piece) else piece[at : at + room]
                frames.append(header + data)
                at += room
                size += room
                if size >= TOGETHER_BYTES:
                    await self.conn.send(frames)
                    frames, size = [], 0
        if frames:
            await self.conn.send(frames)

    async def widen(self, window_bytes: int) -> None:
        """Let the other side send so much before it is read, from now on."""
        more = window_bytes - self.target_recv_window
        if more > 0:
            self.target_recv_window = window_bytes
            self.recv_window += more
            await self.send_window_update(more)

    async def send_window_update(self, increment: int, skip_lock: bool = False) -> None:
        """Tell the other side that there is so much more room."""
        # What was read before the connection ended is as good as ever; the next read sees the end.
        with contextlib.suppress(BaseLibp2pError, OSError, trio.ClosedResourceError):
            await self.conn.send([HEADER.pack(0, TYPE_WINDOW_UPDATE, 0, self.stream_id, increment)])

    async def reset(self) -> None:
        """End it both ways."""
        await super().reset()
        self.inbox.clear()
        self.room.set()

    async def _wait_for_bytes(self) -> None:
        while not self.inbox:
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset")
            if self.recv_closed or self.closed:
                raise MuxedStreamEOF("the stream has ended")
            event = self.conn.stream_events.get(self.stream_id)
            if event is None:
                raise MuxedStreamEOF("the connection has ended")
            await event.wait()
            if self.stream_id in self.conn.stream_events:
                self.conn.stream_events[self.stream_id] = trio.Event()
            elif not self.inbox and not self.recv_closed and not self.closed:
                raise MuxedStreamEOF("the connection has ended")

    async def _wait_for_room(self, frames: list[bytes]) -> int:
        """Bytes that the other side takes now; what is waiting is sent before we wait."""
        while True:
            if self.send_closed or self.closed:
                raise MuxedStreamError("the stream is closed for writing")
            if self.send_window > 0:
                return self.send_window
            if frames:
                await self.conn.send(frames)
                frames.clear()
                continue
            self.room = trio.Event()
            with trio.move_on_after(WINDOW_S):
                await self.room.wait()
                continue
            raise MuxedStreamError(f"the other side read nothing for {WINDOW_S:g} s")

    async def _give_back(self, read_bytes: int) -> None:
        """Tell the other side what room there is again, by half windows."""
        self._unreported += read_bytes
        if self.recv_closed or self._unreported * 2 < self.target_recv_window:
            if self.closed:
                await self.conn._finalize_stream(self, fully_closed=True)
            return
        now = trio.current_time()
        rtt_s = max(self.conn.rtt(), LEAST_RTT_S)
        more = self._unreported
        if now - self.epoch_start < GROW_WITHIN * rtt_s:
            grown = min(2 * self.target_recv_window, MAX_WINDOW_SIZE)
            more += grown - self.target_recv_window
            self.target_recv_window = grown
        self.epoch_start = now
        self.recv_window += more
        self._unreported = 0
        await self.send_window_update(more)


class LaneStream:
    """A stream of the library as `node.p2p.streams` wants it: pieces, not copied, within budget.

    Bulk waits for the budgets: what it does not read fills the window, so that the other side
    stops sending.  Small calls are charged and never wait.
    """

    def __init__(self, stream: INetStream, lane: Lane, budgets: Budgets) -> None:
        self._stream = stream
        assert isinstance(stream, NetStream)
        assert isinstance(stream.muxed_stream, QuickStream)
        self._muxed = stream.muxed_stream
        self._is_bulk = lane is Lane.BULK
        self._budgets = budgets

    async def read(self, most_bytes: int) -> bytes | bytearray | memoryview:
        """What has come, a part at a time."""
        piece = await self._muxed.read_piece(most_bytes)
        await self._pay(self._budgets.down, len(piece))
        return piece

    async def write(self, frames: Sequence[bytes]) -> None:
        """Send them."""
        await self._pay(self._budgets.up, sum(len(frame) for frame in frames))
        await self._muxed.write_pieces(frames)

    async def _pay(self, budget: Budget | None, size_bytes: int) -> None:
        if budget is None:
            return
        if self._is_bulk:
            await budget.spend(size_bytes)
        else:
            budget.charge(size_bytes)

    async def widen(self) -> None:
        """Let the other side send what a fetch has under way before it is read."""
        down = self._budgets.down
        room = BULK_WINDOW_BYTES if down is None else down.bytes_in(LIMITED_WINDOW_S)
        await self._muxed.widen(min(BULK_WINDOW_BYTES, room))

    async def reset(self) -> None:
        """End it."""
        await self._stream.reset()
