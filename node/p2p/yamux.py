"""Yamux as the library has it, without what it costs: its frames, its windows, its ends.

The library takes five locks and as many turns of the scheduler for one small frame, answers every
read with a window update, and looks every 10 ms whether there is room to write.  Here one task
reads whatever the socket has and hands it out, a write is one system call for several frames,
and a reader gives back room by half windows.  Both reach below the documented surface of
py-libp2p 0.8.1, as `node.p2p.library` does; tests/test_yamux.py and tests/test_libp2p.py pin it.
Can go when the library is as fast.

Source: the Yamux specification (hashicorp/yamux/spec.md), and the library's own `Yamux`, whose
opening, half-closing and forgetting of streams is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import trio
from libp2p.abc import ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    HEADER_SIZE,
    MAX_WINDOW_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
)
from noise.exceptions import NoiseInvalidMessage

from node.p2p import library
from node.p2p.yamux_stream import HEADER, QuickStream

READ_BYTES = 1 << 17
"""One read of the socket, as `node.p2p.library` makes it."""
MAX_REPLIES = 512
"""Answers to pings and to new streams that wait to be written: twice the streams that a peer may
have open here.  A peer that asks for more without reading them is cut off."""

_ENDS = (BaseLibp2pError, OSError, EOFError, trio.ClosedResourceError, trio.BrokenResourceError)
"""How a connection ends by itself."""


class QuickYamux(library.BoundedYamux):
    """One connection."""

    def __init__(self, secured_conn: ISecureConn, *args: Any, **kwargs: Any) -> None:
        super().__init__(secured_conn, *args, **kwargs)
        assert isinstance(secured_conn, SecureSession)
        assert isinstance(secured_conn.conn, NoiseTransportReadWriter)
        self._session = secured_conn
        self._noise = secured_conn.conn
        self._raw = self._noise.read_writer.read_write_closer
        self.streams: dict[int, QuickStream] = {}  # type: ignore[assignment]
        self._to_reply, self._replies = trio.open_memory_channel[bytes](MAX_REPLIES)
        self._body: QuickStream | None = None
        self._body_left = 0
        """Of the frame of data that is being read: its stream, if it is known, and its rest."""
        self._body_flags = 0

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write these frames as they are, each at most one Noise message."""
        try:
            self._write_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._write_lock.acquire()
        try:
            # A nonce that was used must be sent: cancelled in between, nobody could read on.
            with trio.CancelScope(shield=True):
                await self._raw.write(b"".join(self._sealed(frames)))
        finally:
            self._write_lock.release()

    def _sealed(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        for frame in frames:
            sealed: bytes = self._noise.encrypt(frame)
            yield len(sealed).to_bytes(2, "big")
            yield sealed

    async def _write_frame(self, data: bytes) -> None:
        """What the library calls for a frame of its own."""
        await self.send([data])

    async def open_stream(self) -> QuickStream:
        """Open a stream, as the library does."""
        await self.stream_backlog_semaphore.acquire()
        if self.event_shutting_down.is_set():
            self.stream_backlog_semaphore.release()
            raise MuxedStreamError("the connection is closing")
        stream = self._new_stream(self.next_stream_id, is_initiator=True)
        self.next_stream_id += 2
        stream._owns_backlog_slot = True
        try:
            await self.send([HEADER.pack(0, TYPE_WINDOW_UPDATE, FLAG_SYN, stream.stream_id, 0)])
        except _ENDS as error:
            stream.closed = True
            await self._finalize_stream(stream, fully_closed=True)
            raise MuxedStreamError(f"the stream cannot be opened: {error}") from error
        return stream

    def _new_stream(self, stream_id: int, *, is_initiator: bool) -> QuickStream:
        stream = QuickStream(stream_id, self, is_initiator)
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = cast(bytearray, stream.inbox)  # it asks for its length
        self.stream_events[stream_id] = trio.Event()
        return stream

    # --- reading ---------------------------------------------------------------------------

    async def handle_incoming(self) -> None:
        """Read until the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_replies)
            await self._read()
            streams = list(self.streams.values())
            await self._cleanup_on_error()  # closes the socket, which ends writes under way
            for stream in streams:
                stream.room.set()
            nursery.cancel_scope.cancel()

    async def _send_replies(self) -> None:
        """What reading is to answer, sent by another task.

        Were it the same, two sides that write all they can would wait for each other to read.
        """
        with contextlib.suppress(*_ENDS):
            async for frame in self._replies:
                await self.send([frame])

    def _reply(self, kind: int, flags: int, stream_id: int, value: int = 0) -> None:
        try:
            self._to_reply.send_nowait(HEADER.pack(0, kind, flags, stream_id, value))
        except trio.WouldBlock:
            self._blame(f"left {MAX_REPLIES} answers to pings and new streams unread")
            raise trio.TooSlowError from None  # it asks and does not read

    async def _read(self) -> None:
        try:
            early = self._session._drain(None)  # what came together with the handshake
            rest = await self._take(early) if early else b""
            coded = b""
            while not self.event_shutting_down.is_set():
                data = await self._raw.read(READ_BYTES)
                if not data:
                    break
                coded = coded + data if coded else data
                at = 0
                while (end := _end_of_message(coded, at)) <= len(coded):
                    plain = self._noise.decrypt(coded[at + 2 : end])
                    rest = await self._take(rest + plain if rest else plain)
                    at = end
                coded = coded[at:]
        except (*_ENDS, NoiseInvalidMessage, trio.TooSlowError):
            pass  # whoever uses the connection sees that it has ended

    async def close(self, *args: Any) -> None:
        """Say goodbye and end, as the library does."""
        streams = list(self.streams.values())
        await super().close(*args)
        for stream in streams:
            stream.room.set()

    async def _take(self, plain: bytes) -> bytes:
        """Hand out what came; what is left is the beginning of a header."""
        view = memoryview(plain)
        at = 0
        while True:
            if self._body_left:
                piece = view[at : at + self._body_left]
                if not piece:
                    return b""
                self._take_data(piece)
                at += len(piece)
                continue
            if len(plain) - at < HEADER_SIZE:
                return plain[at:]
            _, kind, flags, stream_id, value = HEADER.unpack_from(plain, at)
            at += HEADER_SIZE
            await self._take_header(kind, flags, stream_id, value)

    def _take_data(self, piece: memoryview) -> None:
        self._body_left -= len(piece)
        stream = self._body
        if stream is not None and not stream.reset_received:
            unread = sum(len(stream.inbox) for stream in self.streams.values())
            if unread + len(piece) > library.MAX_UNREAD_BYTES:
                self._blame(f"sent over {library.MAX_UNREAD_BYTES} bytes that nobody had room for")
                raise trio.TooSlowError  # as `library.BoundedYamux`
            stream.recv_window = max(0, stream.recv_window - len(piece))
            stream.inbox.put(piece)
            self._wake(stream)
        if not self._body_left:
            self._end_of_frame(stream, self._body_flags)

    async def _take_header(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        if kind in (TYPE_DATA, TYPE_WINDOW_UPDATE):
            if kind == TYPE_DATA and value > MAX_WINDOW_SIZE:
                raise trio.TooSlowError  # no honest peer's frame
            if flags & FLAG_SYN:
                await self._take_new_stream(flags, stream_id)
            stream = self.streams.get(stream_id)
            if kind == TYPE_DATA:
                self._body, self._body_left, self._body_flags = stream, value, flags
            elif stream is not None:
                stream.send_window += value
                stream.room.set()
            if kind == TYPE_WINDOW_UPDATE or not value:
                self._end_of_frame(stream, flags)
        elif kind == TYPE_PING and flags & FLAG_SYN:
            self._reply(TYPE_PING, FLAG_ACK, 0, value)
        elif kind == TYPE_PING and flags & FLAG_ACK:
            rtt_s = trio.current_time() - self._ping_sent_time
            self._rtt = (self._rtt + rtt_s) / 2 if self._rtt else rtt_s
            self._ping_event.set()
        elif kind == TYPE_GO_AWAY:
            self.event_shutting_down.set()

    async def _take_new_stream(self, flags: int, stream_id: int) -> None:
        if stream_id in self.streams:
            self._reply(TYPE_WINDOW_UPDATE, FLAG_RST, stream_id)
            return
        stream = self._new_stream(stream_id, is_initiator=False)
        if not flags & FLAG_RST:
            self._reply(TYPE_WINDOW_UPDATE, FLAG_ACK, stream_id)
        await self.new_stream_send_channel.send(stream)

    def _end_of_frame(self, stream: QuickStream | None, flags: int) -> None:
        """What the flags say about the stream's end, after the frame's data."""
        if stream is None or not flags & (FLAG_FIN | FLAG_RST):
            return
        if flags & FLAG_FIN:
            stream.recv_closed = True
            stream.closed = stream.closed or stream.send_closed
        if flags & FLAG_RST:
            stream.closed = stream.reset_received = True
            stream.inbox.clear()
            stream.room.set()
        self._wake(stream)
        if stream.closed:
            self._finalize_stream_locked(stream, fully_closed=True)

    def _wake(self, stream: QuickStream) -> None:
        event = self.stream_events.get(stream.stream_id)
        if event is not None:
            event.set()


def _end_of_message(coded: bytes, at: int) -> int:
    """Where the Noise message at `at` ends; beyond the end if its length has not come."""
    if len(coded) < at + 2:
        return len(coded) + 1
    return at + 2 + int.from_bytes(coded[at : at + 2], "big")


# `muxer_opt` is not looked at for Yamux: this name is what the library builds.
muxer_multistream.Yamux = QuickYamux  # type: ignore[attr-defined]
