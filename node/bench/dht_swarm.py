"""The swarm of `scripts/bench dht`, as who started its processes sees it: nodes by number.

Nodes share processes, some in each: all in one would share one interpreter lock, and each in
one of its own would have an interpreter's memory to itself.  Every order has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from node.bench.child import Child, Command, children
from node.bench.dht_nodes import JOIN_S

NODES_A_PROCESS = 25
"""Sizes of 50 and 200 are equal processes then, so their memory compares."""
START_S = 120.0
"""All nodes of one process listen; a few seconds in fact."""
ORDER_S = 3 * JOIN_S
"""Any other order, which is about one node; it waits for one before it, too."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one thing that a node was asked to do, to that node."""

    seconds: float
    found: float
    moved_bytes: float
    """Sent and received: all that its question makes cross the network."""
    cpu_s: float


class Swarm:
    """All nodes, each of which can be told to do something."""

    def __init__(self, processes: Sequence[tuple[range, Child]]) -> None:
        """Args: processes: which nodes each has."""
        self._processes = processes
        self._of = {number: child for numbers, child in processes for number in numbers}

    async def listen(self) -> dict[int, str]:
        """Start all nodes; where each can be dialled."""
        addrs: dict[int, str] = {}
        for numbers, child in self._processes:
            told = await child.order("start", START_S, numbers=list(numbers))
            addrs |= {int(number): str(addr) for number, addr in told.items()}
        return addrs

    async def ask(self, number: int, what: str, **terms: object) -> Cost:
        """Let one node do this, after what its process does already."""
        told = await self._of[number].order(what, ORDER_S, number=number, **terms)
        return Cost(**{name: float(figure) for name, figure in told.items()})

    async def figures(self) -> dict[str, float]:
        """Of all nodes together, at one moment: bytes sent, connections, memory, processor."""
        told = [await child.order("figures", ORDER_S) for _, child in self._processes]
        return {name: sum(float(one[name]) for one in told) for name in told[0]}


@asynccontextmanager
async def swarm(nodes: int) -> AsyncIterator[Swarm]:
    """Processes for so many nodes, which do nothing yet; they end afterwards."""
    parts = [
        range(first, min(nodes, first + NODES_A_PROCESS))
        for first in range(0, nodes, NODES_A_PROCESS)
    ]
    commands = [
        Command(
            name=f"the process of nodes {numbers[0]} to {numbers[-1]}",
            module="node.bench.dht_nodes",
        )
        for numbers in parts
    ]
    async with children(commands) as made:
        yield Swarm(list(zip(parts, made, strict=True)))


async def at_once(works: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """What each gives; raises what the first to fail raises."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
