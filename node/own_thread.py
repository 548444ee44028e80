"""Work in a thread of its own, which is left behind when nobody waits for it any more.

`asyncio.to_thread` would keep the process from ending until the work is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from node.disk_thread import DiskThread

T = TypeVar("T")


async def in_thread(work: Callable[[], T], *, name: str, deadline_s: float | None = None) -> T:
    """The value of `work()`, or what it raises; None: it may take as long as it likes.

    Raises:
        TimeoutError: the deadline passed, and the thread is left behind.
    """
    thread = DiskThread(name)
    done = asyncio.wrap_future(thread.submit(work))
    thread.shutdown()  # after this one
    try:
        # Not asyncio.timeout: in a cancelled task, as at the end, that of Python 3.11.2 (Debian 12)
        # raises CancelledError instead of TimeoutError.
        await asyncio.wait((done,), timeout=deadline_s)
        if not done.done():
            raise TimeoutError(f"no answer within {deadline_s:g} s")
        return done.result()
    finally:
        done.cancel()
