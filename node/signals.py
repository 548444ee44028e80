"""Which signals end a node, or another program of ours, in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended, as shells have it."""


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` at Ctrl-C, SIGTERM, and when the terminal is closed, each time.

    Not at SIGHUP where it was ignored from the start: that is what `nohup` does.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, stop)


def run_until_stop(work: Coroutine[object, object, T]) -> T:
    """Run `work` to its end, cancelled by the first signal to stop; further ones do nothing.

    Raises:
        asyncio.CancelledError: a signal came.
    """

    async def until_signal() -> T:
        task = asyncio.current_task()
        assert task is not None
        received: list[bool] = []

        def cancel() -> None:
            if not received:
                task.cancel()
            received.append(True)

        on_stop(cancel)
        return await work

    return asyncio.run(until_signal())
