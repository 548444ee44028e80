from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from node.signals import on_stop

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
