"""Waiting that a cancellation does not cut short: for what must have ended before we go on."""

from __future__ import annotations

import asyncio
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
