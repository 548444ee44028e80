"""Our Yamux beside the library's own: the same on the wire, and nobody waits for ever."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    TYPE_PING,
    Yamux,
    YamuxStream,
)
from trio.testing import MockClock, wait_all_tasks_blocked
from yamux_pair import connected, pipe_of, streams

from node.p2p import library
from node.p2p.yamux import MAX_REPLIES, QuickYamux
from node.p2p.yamux_stream import HEADER, WINDOW_S, QuickStream

DATA = random.Random(3).randbytes(3 * DEFAULT_WINDOW_SIZE + 12_345)
PAIRS = [(QuickYamux, QuickYamux), (QuickYamux, Yamux), (Yamux, QuickYamux)]
EACH_PAIR = pytest.mark.parametrize(
    ("near", "far"), PAIRS, ids=["ours-ours", "ours-theirs", "theirs-ours"]
)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Under virtual time, so that a wait for ever ends the test."""

    async def bounded() -> None:
        with trio.fail_after(600):
            await main()

    trio.run(bounded, clock=MockClock(autojump_threshold=0.1))


async def read_all(stream: YamuxStream, most_bytes: int = 1 << 16) -> bytes:
    data = b""
    try:
        while piece := await stream.read(most_bytes):
            data += piece
    except MuxedStreamEOF:
        pass
    return data


async def write_and_close(stream: YamuxStream, data: bytes) -> None:
    await stream.write(data)
    await stream.close()


@EACH_PAIR
def test_more_than_a_window_arrives_whole_both_ways_and_ends(
    near: type[Yamux], far: type[Yamux]
) -> None:
    async def main() -> None:
        async with streams(near, far) as (mine, theirs), trio.open_nursery() as nursery:
            nursery.start_soon(write_and_close, mine, DATA)
            nursery.start_soon(write_and_close, theirs, DATA[::-1])
            assert await read_all(theirs) == DATA
            assert await read_all(mine) == DATA[::-1]

    run(main)


@pytest.mark.parametrize("most_bytes", [1, 7, 65_537])
def test_however_the_wire_cuts_it(most_bytes: int) -> None:
    async def main() -> None:
        data = DATA[:9_000] if most_bytes < 100 else DATA
        async with (
            streams(QuickYamux, QuickYamux, most_bytes) as (mine, theirs),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(write_and_close, mine, data)
            assert await read_all(theirs, 1000) == data

    run(main)


@EACH_PAIR
def test_who_does_not_read_stops_the_writer_at_the_window(
    near: type[Yamux], far: type[Yamux]
) -> None:
    async def main() -> None:
        async with streams(near, far) as (mine, theirs), trio.open_nursery() as nursery:
            nursery.start_soon(write_and_close, mine, DATA)
            with trio.move_on_after(1):
                await wait_all_tasks_blocked(0.05)
            assert mine.send_window == 0
            assert theirs.recv_window == 0
            assert await read_all(theirs) == DATA

    run(main)


def test_a_window_that_is_used_up_within_a_round_trip_grows() -> None:
    async def main() -> None:
        async with streams(QuickYamux, QuickYamux) as (mine, theirs):
            theirs.conn._rtt = 10.0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_and_close, mine, 4 * DATA)
                assert await read_all(theirs) == 4 * DATA
            assert theirs.target_recv_window > DEFAULT_WINDOW_SIZE

    run(main)


@EACH_PAIR
def test_a_wider_window_is_filled_before_anything_is_read(
    near: type[Yamux], far: type[Yamux]
) -> None:
    async def main() -> None:
        async with streams(near, far) as (mine, theirs), trio.open_nursery() as nursery:
            reader, writer = (theirs, mine) if isinstance(theirs, QuickStream) else (mine, theirs)
            assert isinstance(reader, QuickStream)
            await reader.widen(len(DATA))
            nursery.start_soon(write_and_close, writer, DATA)
            with trio.move_on_after(1):
                await wait_all_tasks_blocked(0.05)
            assert len(reader.inbox) == len(DATA)

    run(main)


@EACH_PAIR
def test_a_reset_reaches_the_reader_and_the_writer_that_waits(
    near: type[Yamux], far: type[Yamux]
) -> None:
    async def main() -> None:
        async with streams(near, far) as (mine, theirs), trio.open_nursery() as nursery:

            async def write() -> None:
                with pytest.raises(MuxedStreamError):
                    await mine.write(DATA)

            nursery.start_soon(write)
            with trio.move_on_after(1):
                await wait_all_tasks_blocked(0.05)
            await theirs.reset()
            with pytest.raises((MuxedStreamReset, MuxedStreamEOF)):
                await mine.read(10)

    run(main)


def test_the_end_of_the_connection_wakes_who_reads_and_who_writes() -> None:
    async def main() -> None:
        ended: list[str] = []
        async with streams(QuickYamux, QuickYamux) as (mine, theirs):
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    with pytest.raises((MuxedStreamEOF, MuxedStreamReset)):
                        await mine.read(10)
                    ended.append("read")

                async def write() -> None:
                    with pytest.raises(MuxedStreamError):
                        await mine.write(DATA)
                    ended.append("write")

                nursery.start_soon(read)
                nursery.start_soon(write)
                with trio.move_on_after(1):
                    await wait_all_tasks_blocked(0.05)
                await theirs.conn.secured_conn.close()
            assert sorted(ended) == ["read", "write"]
            assert trio.current_time() - began < WINDOW_S / 2

    run(main)


def test_a_peer_that_gives_no_room_is_given_up() -> None:
    async def main() -> None:
        async with streams(QuickYamux, QuickYamux) as (mine, _):
            with pytest.raises(MuxedStreamError, match="read nothing for 60 s"):
                await mine.write(DATA)

    run(main)


def test_a_cancelled_write_leaves_whole_frames_behind() -> None:
    async def main() -> None:
        async with connected(QuickYamux, QuickYamux, 100) as (near, far):
            cut = await near.open_stream()
            await far.accept_stream()
            with trio.move_on_after(0) as scope:
                scope.cancel()
                await cut.write(DATA)
            other = await near.open_stream()
            theirs = await far.accept_stream()
            await other.write(b"still whole")
            assert await theirs.read(100) == b"still whole"

    run(main)


async def push(stream: YamuxStream) -> None:
    """Write until it fails, at most 100 MB."""
    for _ in range(1000):
        await stream.write(bytes(100_000))
        await trio.lowlevel.checkpoint()


def test_a_peer_that_sends_beyond_its_windows_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with streams(QuickYamux, QuickYamux) as (mine, theirs):
            mine.send_window = 1 << 30
            with pytest.raises(BaseLibp2pError):
                await push(mine)
            await wait_all_tasks_blocked()
            assert theirs.conn.is_closed

    monkeypatch.setattr(library, "MAX_UNREAD_BYTES", 200_000)
    run(main)


def test_a_ping_is_answered_and_tells_the_round_trip() -> None:
    async def main() -> None:
        async with connected(QuickYamux, Yamux) as (near, far):
            await trio.sleep(2)
            assert near.rtt() >= 0
            assert near._ping_event.is_set()
            assert far._ping_event.is_set()

    run(main)


def test_who_cannot_write_goes_on_reading() -> None:
    """Else two sides that both write all they can would wait for each other for ever."""

    async def main() -> None:
        async with streams(QuickYamux, QuickYamux) as (mine, theirs):
            near, far = mine.conn, theirs.conn
            pipe_of(near).gate = trio.Event()
            ping = HEADER.pack(0, TYPE_PING, FLAG_SYN, 0, 7)
            await far._write_frame(ping)
            await far._write_frame(ping)
            await theirs.write(b"is read")
            assert await mine.read(10) == b"is read"
            pipe_of(near).gate.set()

    run(main)


def test_a_peer_that_asks_and_does_not_read_the_answers_is_cut_off() -> None:
    async def main() -> None:
        async with connected(QuickYamux, QuickYamux) as (near, far):
            pipe_of(near).gate = trio.Event()
            ping = HEADER.pack(0, TYPE_PING, FLAG_SYN, 0, 7)
            assert isinstance(far, QuickYamux)
            await far.send(10 * MAX_REPLIES * [ping])
            await far.event_shutting_down.wait()

    run(main)
