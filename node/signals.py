"""Which signals end a node, or a demo, in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

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
