"""Waiting at the end of things: not cut short by a cancellation, and yet not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def uncancelled(
    futures: set[asyncio.Future[None]] | set[asyncio.Future[Any]], timeout_s: float | None = None
) -> bool:
    """Wait for one of them although we may be cancelled; whether we were."""
    waiting = asyncio.ensure_future(
        asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    )
    is_cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            is_cancelled = True
    return is_cancelled


async def is_done_within(work: Coroutine[Any, Any, Any], deadline_s: float) -> bool:
    """Do it; False, and it is given up, if that takes longer.

    For a task that has been cancelled and tidies up: there `asyncio.timeout` of Python 3.11.2
    (Debian 12) raises CancelledError instead of TimeoutError, so that the rest is left out.
    It may go with Python 3.12.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=deadline_s)
        if task.done():
            task.result()
        return task.done()
    finally:
        task.cancel()
