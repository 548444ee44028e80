"""The swarm of `scripts/bench dht`, as who started its processes sees it: nodes by number.

Nodes share processes, some in each: all in one would share one interpreter lock, and each in
one of its own would have an interpreter's memory to itself.  Every order has a deadline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from node.bench.dht_nodes import JOIN_S

ROOT = Path(__file__).parents[2]
NODES_A_PROCESS = 25
"""Sizes of 50 and 200 are equal processes then, so their memory compares."""
START_S = 120.0
"""All nodes of one process listen; a few seconds in fact."""
ORDER_S = 3 * JOIN_S
"""Any other order, which is about one node; it waits for one before it, too."""
END_S = 10.0
"""For all processes to end, which are killed."""

Told = dict[str, float | str]
T = TypeVar("T")


class Failed(Exception):
    """A process of the swarm ended, or did not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one thing that a node was asked to do, to that node."""

    seconds: float
    found: float
    moved_bytes: float
    """Sent and received: all that its question makes cross the network."""
    cpu_s: float


class Process:
    """Some nodes of the swarm."""

    def __init__(self, numbers: Sequence[int], process: asyncio.subprocess.Process) -> None:
        self.numbers = numbers
        self._process = process
        self._turn = asyncio.Lock()

    async def order(self, what: str, within_s: float, **terms: object) -> Told:
        """What came of it; one order at a time."""
        name = f"the process of nodes {self.numbers[0]} to {self.numbers[-1]}"
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        async with self._turn:
            stdin.write((json.dumps({"do": what, **terms}) + "\n").encode())
            try:
                async with asyncio.timeout(within_s):
                    line = await stdout.readline()
            except TimeoutError:
                raise Failed(f"{name}: no end of {what} within {within_s:g} s") from None
        if not line:
            raise Failed(f"{name} ended during {what}; what it said is above")
        told: Told = json.loads(line)
        return told

    def kill(self) -> None:
        """End it at once: nothing is measured of a goodbye."""
        if self._process.returncode is None:
            self._process.kill()

    async def ended(self) -> None:
        """Wait until it has ended."""
        await self._process.wait()


class Swarm:
    """All nodes, each of which can be told to do something."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = processes
        self._of = {number: process for process in processes for number in process.numbers}

    async def listen(self) -> dict[int, str]:
        """Start all nodes; where each can be dialled."""
        addrs: dict[int, str] = {}
        for process in self.processes:
            told = await process.order("start", START_S, numbers=list(process.numbers))
            addrs |= {int(number): str(addr) for number, addr in told.items()}
        return addrs

    async def ask(self, number: int, what: str, **terms: object) -> Cost:
        """Let one node do this, after what its process does already."""
        told = await self._of[number].order(what, ORDER_S, number=number, **terms)
        return Cost(**{name: float(figure) for name, figure in told.items()})

    async def figures(self) -> dict[str, float]:
        """Of all nodes together, at one moment: bytes sent, connections, memory, processor."""
        told = [await process.order("figures", ORDER_S) for process in self.processes]
        return {name: sum(float(one[name]) for one in told) for name in told[0]}


@asynccontextmanager
async def swarm(nodes: int) -> AsyncIterator[Swarm]:
    """Processes for so many nodes, which do nothing yet; they end afterwards."""
    processes: list[Process] = []
    try:
        for first in range(0, nodes, NODES_A_PROCESS):
            numbers = range(first, min(nodes, first + NODES_A_PROCESS))
            pipe = asyncio.subprocess.PIPE
            command = (sys.executable, "-m", "node.bench.dht_nodes")
            started = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdin=pipe, stdout=pipe
            )
            processes.append(Process(numbers, started))
        yield Swarm(processes)
    finally:
        for process in processes:
            process.kill()
        async with asyncio.timeout(END_S):
            for process in processes:
                await process.ended()


async def at_once(works: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """What each gives; raises what the first to fail raises."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
