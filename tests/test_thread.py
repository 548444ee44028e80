"""The way to the trio thread and back, also while it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from node.p2p.thread import TrioThread
from protocol.errors import LocalProtocolError

STOP_S = 5.0


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def started() -> AsyncIterator[TrioThread]:
    thread = TrioThread(nothing, STOP_S)
    await thread.start()
    try:
        yield thread
    finally:
        await thread.stop()


async def test_posts_run_in_order_and_deliveries_come_back_in_order() -> None:
    async with started() as thread:
        there: list[int] = []
        back: list[int] = []
        done = asyncio.Event()

        def cross(number: int) -> None:
            there.append(number)
            thread.to_loop(back.append, number)

        for number in range(1000):
            thread.post(cross, number)
        thread.post(thread.to_loop, done.set)
        await done.wait()
        assert there == back == list(range(1000))


async def test_many_posts_cost_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as thread:
        woken = 0
        real = trio.lowlevel.TrioToken.run_sync_soon

        class Counting:
            def run_sync_soon(self, run: object) -> None:
                nonlocal woken
                woken += 1
                kept.append(run)

        kept: list[object] = []
        token = thread._token
        monkeypatch.setattr(thread, "_token", Counting())
        for _ in range(100):
            thread.post(lambda: None)
        assert woken == 1
        real(token, kept[0])  # type: ignore[arg-type]


async def test_a_call_that_comes_as_the_thread_ends_fails_and_does_not_wait() -> None:
    thread = TrioThread(nothing, STOP_S)
    await thread.start()
    late: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:

        async def call() -> None:
            with pytest.raises(LocalProtocolError, match="the network has ended"):
                await thread.call(trio.sleep_forever)

        late.extend(group.create_task(call()) for _ in range(3))
        await thread.stop()
        with pytest.raises(LocalProtocolError, match="the network has ended"):
            thread.post(lambda: None)
        async with asyncio.timeout(STOP_S):
            await asyncio.wait(late)


async def test_what_ends_the_trio_side_is_raised_by_who_stops_it() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    thread = TrioThread(broken, STOP_S)
    await thread.start()
    with pytest.raises(ZeroDivisionError):
        await thread.stop()
