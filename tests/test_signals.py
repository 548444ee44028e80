from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from node import (
    api,
    bridge,
    local_swarm,
    member,
    node,
    peer_cache,
    presence,
)
from node.records import files as record_files
from node.signals import on_stop, run_until_stop
from node.worker import life as worker_life

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Those of the test process are back afterwards."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
async def test_each_signal_to_stop_is_heard(number: signal.Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    heard = asyncio.Event()
    on_stop(heard.set)
    os.kill(os.getpid(), number)
    await heard.wait()


async def test_what_nohup_started_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    on_stop(lambda: None)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_first_signal_ends_work_in_good_order_and_a_second_does_not_cut_that_short() -> None:
    tidied: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            tidied.append("all of it")

    with pytest.raises(asyncio.CancelledError):
        run_until_stop(work())
    assert tidied == ["all of it"]


def test_the_deadlines_of_an_end_add_up_to_less_than_three_seconds() -> None:
    assert node.LEAVE_S + worker_life.TERM_S + api.SHUTDOWN_S + bridge.STOP_S < 3.0
    assert max(member.GOODBYE_S, presence.LEAVE_S) < node.LEAVE_S
    assert max(peer_cache.CLOSE_S, record_files.CLOSE_S) < worker_life.TERM_S  # at the same time
    assert local_swarm.END_DEADLINE_S + local_swarm.FAREWELL_S < 3.0
