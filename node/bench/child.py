"""A process that obeys: orders go in, what came of each comes out, a line of JSON each.

What benches share that measure more than one process.  The other end is a module that is run as
a program.  What it leaves in the directory of temporary files goes with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_S = 10.0
"""For processes to end, which are killed."""

Told = dict[str, float | str]
"""What came of an order."""


class Failed(Exception):
    """A process ended, or did not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to be started."""

    name: str
    """What a failure calls it."""
    module: str
    words: Sequence[str] = ()
    enter: Sequence[str] = ()
    """Put in front of the command, to run it elsewhere."""


class Child:
    """One such process, as who started it sees it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process
        self._turn = asyncio.Lock()

    async def order(self, what: str, within_s: float, **terms: object) -> Told:
        """What came of it; one order at a time.  Raises `Failed`."""
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write((json.dumps({"do": what, **terms}) + "\n").encode())
            return await self.answer(within_s, what)

    async def answer(self, within_s: float, what: str = "its start") -> Told:
        """The next line of it; the first one comes unasked from some.  Raises `Failed`."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Failed(f"{self._name}: no end of {what} within {within_s:g} s") from None
        if not line:
            raise Failed(f"{self._name} has ended during {what}; what it said is above")
        told: Told = json.loads(line)
        return told


@asynccontextmanager
async def children(commands: Sequence[Command]) -> AsyncIterator[list[Child]]:
    """A process for each; all are killed afterwards: nothing is measured of a goodbye."""
    processes: list[asyncio.subprocess.Process] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        try:
            for command in commands:
                process = await _started(command, scratch)
                processes.append(process)
            yield [Child(each.name, one) for each, one in zip(commands, processes, strict=True)]
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
            async with asyncio.timeout(END_S):
                for process in processes:
                    await process.wait()


async def _started(command: Command, scratch: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *("env", f"TMPDIR={scratch}", *command.enter),
        *(sys.executable, "-m", command.module, *command.words),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
