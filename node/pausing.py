"""A pause that an event may end."""

from __future__ import annotations

import asyncio
import contextlib


async def pause(pause_s: float, wake: asyncio.Event) -> None:
    """Until `wake` is set, and so long at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await wake.wait()
