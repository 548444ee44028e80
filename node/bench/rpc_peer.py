"""One of the two processes of a contestant in `scripts/bench rpc`: orders in, seconds out.

A process prints the address at which it can be reached, then obeys one order a line, as JSON on
its standard input, and prints what came of each as a line.  Both processes of a contestant are
alike, so either can be told to ask the other.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Protocol

import numpy as np

CALL_BYTES = 128
"""The body of a small call and of its answer."""


class Contestant(Protocol):
    """A way of asking another process."""

    addr: str
    """What the other process is told to connect to; empty: it does not listen."""

    async def connect(self, addr: str) -> None: ...

    async def call(self, body: bytes) -> bytes:
        """The other's echo of `body`."""

    async def fetch(self, size_bytes: int, into: bytearray) -> None:
        """Get bytes of the other's."""


async def obey(me: Contestant) -> None:
    """Carry out orders until there are none."""
    loop = asyncio.get_running_loop()
    tell({"addr": me.addr})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match json.loads(line):
            case {"do": "connect", "addr": str(addr)}:
                await me.connect(addr)
                tell({"addr": me.addr})
            case {"do": "calls", "in_flight": int(in_flight), "count": int(count)}:
                tell(await calls(me, in_flight, count))
            case {"do": "fetch", "size_bytes": int(size)}:
                tell({"seconds": await fetch(me, size)})
            case {"do": "mixed", "size_bytes": int(size)}:
                tell(await mixed(me, size))
            case order:
                raise ValueError(f"no order: {order}")


async def calls(me: Contestant, in_flight: int, count: int) -> dict[str, float]:
    """Make `count` calls, so many at once."""
    taken: list[float] = []
    todo = iter(range(count))

    async def caller() -> None:
        taken.extend([await one_call(me) for _ in todo])

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    return {"seconds": time.perf_counter() - began, **quantiles(taken)}


async def fetch(me: Contestant, size_bytes: int) -> float:
    """The seconds that one fetch takes."""
    into = bytearray(size_bytes)
    began = time.perf_counter()
    await me.fetch(size_bytes, into)
    return time.perf_counter() - began


async def mixed(me: Contestant, size_bytes: int) -> dict[str, float]:
    """Small calls, one after the other, while one fetch runs."""
    taken: list[float] = []
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(fetch(me, size_bytes))
        while not fetching.done():
            taken.append(await one_call(me))
    return {"seconds": fetching.result(), **quantiles(taken)}


async def one_call(me: Contestant) -> float:
    """The seconds that one small call takes."""
    body = bytes(CALL_BYTES)
    began = time.perf_counter()
    if await me.call(body) != body:
        raise ValueError("another answer than the echo")
    return time.perf_counter() - began


def quantiles(taken: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    p50, p99 = np.percentile(np.array(taken) * 1e3, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "count": len(taken)}


def tell(said: dict[str, float] | dict[str, str]) -> None:
    """One line to who started this process."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
