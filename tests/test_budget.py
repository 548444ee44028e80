"""What may be sent and received in a second, under virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock
from yamux_pair import Line, lane_stream

from node.p2p.budget import BYTES_PER_MBIT, SLACK_S, Budget, Budgets, budgets
from node.p2p.yamux_stream import BULK_WINDOW_BYTES
from protocol.rpc import Lane

MBIT = int(BYTES_PER_MBIT)


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_what_is_spent_takes_as_long_as_the_budget_says() -> None:
    async def main() -> None:
        budget = Budget(2.0)
        began = trio.current_time()
        for _ in range(10):
            await budget.spend(MBIT)
        assert trio.current_time() - began == pytest.approx(9 * 0.5, abs=SLACK_S)

    run(main)


def test_what_was_not_spent_while_nobody_sent_is_gone() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        await trio.sleep(100)
        began = trio.current_time()
        for _ in range(3):
            await budget.spend(MBIT)
        assert trio.current_time() - began == pytest.approx(2.0, abs=SLACK_S)

    run(main)


def test_who_waits_is_served_in_turn_and_a_cancelled_one_costs_nothing() -> None:
    async def main() -> None:
        budget = Budget(1.0)
        served: list[int] = []

        async def spend(number: int) -> None:
            await budget.spend(MBIT)
            served.append(number)

        async with trio.open_nursery() as nursery:
            await budget.spend(MBIT)
            for number in range(3):
                nursery.start_soon(spend, number)
                await trio.sleep(0.001)
            with trio.move_on_after(0.5):
                await budget.spend(1000 * MBIT)
        assert served == [0, 1, 2]
        assert trio.current_time() < 5

    run(main)


def test_bulk_waits_for_the_upload_budget_and_small_calls_only_charge_it() -> None:
    async def main() -> None:
        line, allowed = Line(), Budgets(up=Budget(8.0))
        bulk = lane_stream(line, Lane.BULK, allowed)
        control = lane_stream(line, Lane.CONTROL, allowed)
        began = trio.current_time()
        await bulk.write([bytes(MBIT // 10)])
        await control.write([bytes(MBIT // 10)])
        assert trio.current_time() == began
        await bulk.write([b"x"])
        assert trio.current_time() - began == pytest.approx(2 / 80, abs=SLACK_S)
        assert trio.current_time() > began

    run(main)


def test_bulk_that_comes_too_fast_is_read_late_so_that_the_window_stays_shut() -> None:
    async def main() -> None:
        line = Line()
        bulk = lane_stream(line, Lane.BULK, Budgets(down=Budget(1.0)))
        began = trio.current_time()
        for _ in range(4):
            line.come(bulk, bytes(MBIT // 4))
        for _ in range(4):
            await bulk.read(MBIT)
        # What was read is paid for before the next is; nothing is given back for the last.
        assert trio.current_time() - began == pytest.approx(0.75, abs=SLACK_S)

    run(main)


@pytest.mark.parametrize(("down_mbit", "window"), [(0.0, BULK_WINDOW_BYTES), (8.0, 500_000)])
def test_a_small_download_budget_makes_a_small_window(down_mbit: float, window: int) -> None:
    async def main() -> None:
        line = Line()
        bulk = lane_stream(line, Lane.BULK, budgets(0.0, down_mbit))
        await bulk.widen()
        assert bulk._muxed.target_recv_window == window

    run(main)


def test_no_limit_is_no_budget() -> None:
    assert budgets(0.0, 0.0) == Budgets()
    assert budgets(1.0, 0.0).down is None
