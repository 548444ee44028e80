"""Hours of waiting in no time: a loop whose clock jumps to whatever is due next."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from typing import Any

import async_solipsism  # type: ignore[import-untyped]


def in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    """Run it on such a loop; what would sleep for ever is an error."""
    with (
        warnings.catch_warnings(),
        asyncio.Runner(loop_factory=async_solipsism.EventLoop) as runner,
    ):
        warnings.simplefilter("ignore", async_solipsism.ResolutionWarning)  # sums of floats
        runner.run(work)
