"""Both ends of a stream of calls, over memory instead of a network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from node.p2p.answering import Answering, Incoming, Places
from node.p2p.asking import Answer, Asking, Gone, Outcome
from node.p2p.counters import Counters
from node.p2p.outbox import Outbox, Sending
from node.p2p.streams import MAX_CALLS, Blamed
from protocol import frame
from protocol.envelope import Signer
from protocol.frame import FrameReader, Refusal
from protocol.rpc import FETCH, HELLO, METHODS, RECORDS, Lane, Method

ALICE = Signer(b"a" * 32).peer


class Pipe:
    """One end of a stream in memory; its writes wait while `gate` is shut."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.gate = trio.Event()
        self.gate.set()
        self.written = b""

    async def read(self, most_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(most_bytes))

    async def write(self, frames: Sequence[bytes]) -> None:
        await self.gate.wait()
        data = b"".join(frames)
        self.written += data
        await self._stream.send_all(data)

    async def reset(self) -> None:
        await self._stream.aclose()


class Desk:
    """Serves every method; keeps what it was asked and answers what `reply` says."""

    def __init__(self, reply: Callable[[Incoming], None]) -> None:
        self.methods = {method.name: method for method in METHODS}
        self.asked: list[Incoming] = []
        self.cancelled: list[Incoming] = []
        self._reply = reply

    def request(self, incoming: Incoming) -> None:
        self.asked.append(incoming)
        self._reply(incoming)

    def cancel(self, incoming: Incoming) -> None:
        self.cancelled.append(incoming)


def echo(incoming: Incoming) -> None:
    incoming.answer(bytes(incoming.body))


def silence(incoming: Incoming) -> None:
    pass


class Pair:
    """Alice asks, on a stream that a desk answers."""

    def __init__(self, desk: Desk, lane: Lane = Lane.CONTROL) -> None:
        near, far = memory_stream_pair()
        self.desk = desk
        self.near, self.far = Pipe(near), Pipe(far)
        self.counters = Counters().of(ALICE)
        self.asking = Asking(self.near, self.counters)
        self.answering = Answering(ALICE, lane, self.far, Counters().of(ALICE), Places(), desk)

    async def call(
        self, method: Method[Any, Any], body: bytes, into: memoryview | None = None
    ) -> Outcome:
        return await self.asking.call(method, body, 10.0, into)


def run(pair: Callable[[], Pair], act: Callable[[Pair, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        one = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.asking.run)
            nursery.start_soon(one.answering.run)
            await act(one, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main)


def frames_of(data: bytes) -> list[frame.Frame]:
    reader = FrameReader()
    reader.feed(data)
    found = []
    while (item := reader.next()) is not None:
        found.append(item)
    return found


def test_a_call_that_is_cancelled_while_the_end_of_its_answer_leaves_ends_once() -> None:
    async def act(pair: Pair, _: trio.Nursery) -> None:
        pair.far.gate = trio.Event()
        asked = pair.asking.begin(HELLO, b"hi", 10.0, None, lambda _outcome: None)
        assert asked is not None
        await wait_all_tasks_blocked()
        pair.asking.end(asked, Gone("not wanted any more"))
        await wait_all_tasks_blocked()
        pair.far.gate.set()
        await wait_all_tasks_blocked()
        assert [item.kind for item in frames_of(pair.far.written)] == [frame.FrameKind.ANSWER]
        assert await pair.call(HELLO, b"again") == Answer(b"again")

    run(lambda: Pair(Desk(echo)), act)


def test_a_call_that_ends_before_it_was_sent_is_never_heard_of() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        pair.near.gate = trio.Event()
        nursery.start_soon(pair.call, HELLO, b"first")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await pair.call(HELLO, b"second")
        pair.near.gate.set()
        assert await pair.call(HELLO, b"third") == Answer(b"third")
        assert [item.call for item in frames_of(pair.near.written)] == [0, 2]

    run(lambda: Pair(Desk(echo)), act)


def test_a_cancelled_call_frees_its_place_and_tells_the_handler() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        for _ in range(HELLO.per_peer * 2):
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_blocked, scope)
                await pair.call(HELLO, b"")
        await wait_all_tasks_blocked()
        assert pair.desk.cancelled == pair.desk.asked
        assert len(pair.desk.asked) == HELLO.per_peer * 2

    run(lambda: Pair(Desk(silence)), act)


def test_a_request_cancelled_between_its_parts_leaves_the_stream_whole() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        pair.near.gate = trio.Event()
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await pair.call(RECORDS, bytes(250_000))
        pair.near.gate.set()
        assert await pair.call(RECORDS, b"next") == Answer(b"next")
        assert [item.kind.name for item in frames_of(pair.near.written)] == [
            "REQUEST",
            "PART",
            "CANCEL",
            "REQUEST",
        ]

    run(lambda: Pair(Desk(echo)), act)


def test_bodies_take_turns_frame_by_frame() -> None:
    async def main() -> None:
        written: list[bytes] = []

        async def write(frames: Sequence[bytes]) -> None:
            written.extend(frames)
            await trio.lowlevel.checkpoint()

        outbox = Outbox(write, Counters().of(ALICE))
        for call, parts in ((0, 3), (1, 1), (2, 2)):
            body = bytes(parts * frame.PART_BYTES)
            outbox.add(Sending(call, frame.answer_frames(call, body), FETCH.kind))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        calls = [item.call for data in written for item in frames_of(data)]
        assert calls == [0, 1, 2, 0, 2, 0]

    trio.run(main)


def test_small_frames_are_written_together() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        pair.near.gate = trio.Event()
        for _ in range(4):
            nursery.start_soon(pair.call, HELLO, b"x")
        await wait_all_tasks_blocked()
        pair.near.gate.set()
        await wait_all_tasks_blocked()
        assert len(frames_of(pair.near.written)) == 4

    run(lambda: Pair(Desk(echo)), act)


def test_one_call_too_many_is_refused_as_busy_and_in_all_too() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        for _ in range(FETCH.per_peer):
            nursery.start_soon(pair.call, FETCH, b"")
        await wait_all_tasks_blocked()
        outcome = await pair.call(FETCH, b"")
        assert isinstance(outcome, Refusal)
        assert outcome.code == "busy"

    run(lambda: Pair(Desk(silence), Lane.BULK), act)
    places = Places()
    peers = [Signer(n.to_bytes(32, "big")).peer for n in range(FETCH.in_all + 1)]
    assert [places.take(peer, FETCH) for peer in peers] == [True] * FETCH.in_all + [False]
    places.leave(peers[0], FETCH)
    assert places.take(peers[-1], FETCH)


def test_a_method_of_the_other_lane_is_unknown_here() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        outcome = await pair.call(FETCH, b"")
        assert isinstance(outcome, Refusal)
        assert outcome.code == "unknown"

    run(lambda: Pair(Desk(echo)), act)


def test_calls_fail_when_the_stream_ends() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        outcomes: list[Outcome] = []

        async def call() -> None:
            outcomes.append(await pair.call(HELLO, b""))

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        await pair.far.reset()
        await wait_all_tasks_blocked()
        assert [type(outcome) for outcome in outcomes] == [Gone]
        assert isinstance(await pair.call(HELLO, b""), Gone)

    run(lambda: Pair(Desk(silence)), act)


def test_calls_under_way_are_bounded() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        pair.near.gate = trio.Event()
        for _ in range(MAX_CALLS):
            nursery.start_soon(pair.call, HELLO, b"")
        await wait_all_tasks_blocked()
        assert await pair.call(HELLO, b"") == Gone("256 calls to it are under way")

    run(lambda: Pair(Desk(silence)), act)


@pytest.mark.parametrize("rest", [100, 0])
def test_refusals_that_nobody_reads_end_the_stream(rest: int) -> None:
    """Neither refusals nor the bodies of refused calls may pile up."""

    async def main() -> None:
        near, far = memory_stream_pair()
        pipe = Pipe(far)
        pipe.gate = trio.Event()
        answering = Answering(ALICE, Lane.CONTROL, pipe, Counters().of(ALICE), Places(), Desk(echo))
        payload = b"\x01?" + (1).to_bytes(4, "big") + rest.to_bytes(4, "big")
        for call in range(1000):
            await near.send_all(
                (5 + len(payload)).to_bytes(4, "big") + b"\x01" + call.to_bytes(4, "big") + payload
            )
        with pytest.raises(Blamed, match="refusals unread"):
            await answering.run()

    trio.run(main)


def test_the_round_trip_is_that_of_small_calls_and_not_of_bulk() -> None:
    async def act(pair: Pair, nursery: trio.Nursery) -> None:
        assert await pair.call(RECORDS, bytes(10_000)) == Answer(bytes(10_000))
        assert pair.counters.snapshot().rtt_s is None
        assert await pair.call(RECORDS, b"small") == Answer(b"small")
        assert pair.counters.snapshot().rtt_s is not None

    run(lambda: Pair(Desk(echo)), act)


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()
