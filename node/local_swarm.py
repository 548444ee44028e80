"""Nodes as child processes of this one: started through the command line, asked through their
API, ended for sure.

Each child leads a process group of its own, with its worker in it, so that Ctrl-C on the
terminal reaches only us, and SIGKILL of ours reaches node and worker.  Only groups that were
started here are ever signalled; when the leader is gone its group is swept, once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.api import ApiClient, Status
from node.uncancelled import is_done_within
from protocol.errors import ConfigError, ShoalError

END_DEADLINE_S = 1.5
"""From SIGTERM to SIGKILL; everything is to end within three seconds, on a busy machine, too."""
LOG_TAIL_LINES = 20
ENDED = ("finished", "leaving")
"""States of a node after its last round."""
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
FAREWELL_S = 0.5
"""To be reaped after SIGKILL; a process in an uninterruptible wait may take longer."""
GONE_POLL_S = 0.01
"""The kernel tells the end of a child, not that of a child's child."""
ROOT = Path(__file__).parents[1]
"""Where `python -m node.cli` finds the packages, installed or not."""


class NodeFailed(ShoalError):
    """A node of the demo ended although it should not have."""

    def __init__(self, name: str, reason: str, log_tail: Sequence[str]) -> None:
        lines = "\n".join(f"    {line}" for line in log_tail)
        super().__init__(f"{name} {reason}; the end of its log:\n{lines}")
        self.name = name


@dataclass(slots=True, kw_only=True)
class Child:
    """One node: its process and what it said last."""

    name: str
    directory: Path
    log: Path
    process: asyncio.subprocess.Process
    client: ApiClient
    status: Status | None = None
    killed: bool = False
    """By us, on purpose."""
    swept: bool = False

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    @property
    def has_finished(self) -> bool:
        """It closed the last round of its run."""
        return self.status is not None and self.status["state"] in ENDED


class LocalSwarm:
    """The nodes under one directory.  `async with` ends all of them in the end."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.children: list[Child] = []
        self._helpers: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> LocalSwarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self.children:
            await child.client.__aexit__()
        await self.end()

    async def start(
        self, name: str, *command: str, listen: str = LOOPBACK, prefix: Sequence[str] = ()
    ) -> Child:
        """Start the node `name` with `shoal COMMAND` in a directory of its own.

        Args:
            prefix: a command that runs it, such as one that enters another network namespace.
        """
        directory, log = self._root / name, self._root / f"{name}.log"
        options = ("--data-dir", str(directory), "--listen", listen, "--name", name)
        process = await _spawn(("-m", "node.cli", *command, *options), log, prefix=prefix)
        client = await ApiClient(directory / "api.sock").__aenter__()
        child = Child(name=name, directory=directory, log=log, process=process, client=client)
        self.children.append(child)
        return child

    async def poll(self) -> None:
        """Ask every running node for its status; one that does not answer keeps its last."""
        for child in self.children:
            if not child.is_running:
                _sweep(child)
                continue
            try:
                child.status = await child.client.status()
            except ConfigError:
                continue  # not up yet, or going down: `check` sees to that

    def check(self) -> None:
        """No node has ended but those that were killed on purpose or have finished.

        Raises:
            NodeFailed: one has.
        """
        for child in self.children:
            code = child.process.returncode
            if code is None or child.killed or (code == 0 and child.has_finished):
                continue
            raise NodeFailed(child.name, f"ended with status {code}", _tail(child.log))

    def stalled(self, what: str) -> NodeFailed:
        """The failure of the child that is furthest from `what`."""
        alive = [child for child in self.children if not child.killed]
        child = min(alive, key=lambda child: child.status["inner_step"] if child.status else -1)
        return NodeFailed(child.name, f"gets no further towards {what}", _tail(child.log))

    def kill(self, child: Child) -> None:
        """kill -9 the node and its worker."""
        child.killed = True
        if child.status:
            child.status["state"] = "killed"
        _signal(child.process, signal.SIGKILL)

    async def output_of(self, name: str, *arguments: str) -> bytes:
        """What another program of ours prints: `python ARGUMENTS`, run to its end.

        Raises:
            NodeFailed: it ended with another status than 0.
        """
        log = self._root / f"{name}.log"
        process = await _spawn(arguments, log, stdout=asyncio.subprocess.PIPE)
        self._helpers.append(process)
        printed, _ = await process.communicate()
        if process.returncode:
            raise NodeFailed(name, f"ended with status {process.returncode}", _tail(log))
        return printed

    async def end(self) -> None:
        """End every node and helper: SIGTERM, then SIGKILL for what is left."""
        processes = [child.process for child in self.children if not child.swept]
        processes += [process for process in self._helpers if process.returncode is None]
        for process in processes:
            _terminate(process)
        await is_done_within(_reaped(processes), END_DEADLINE_S)
        for process in processes:
            _signal(process, signal.SIGKILL)  # the worker too, if it outlived its node
        await is_done_within(_gone(processes), FAREWELL_S)
        for child in self.children:
            child.swept = True


async def _spawn(
    arguments: Sequence[str],
    log: Path,
    *,
    stdout: int | None = None,
    prefix: Sequence[str] = (),
) -> asyncio.subprocess.Process:
    """Start Python in a group of its own; what it prints goes into `log`."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            start_new_session=True,
        )


async def _reaped(processes: Sequence[asyncio.subprocess.Process]) -> None:
    for process in processes:
        await process.wait()


async def _gone(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """Wait until nobody is left in any of the groups, workers included."""
    for process in processes:
        await process.wait()
        while _signal(process, 0):  # noqa: ASYNC110  only the kernel knows
            await asyncio.sleep(GONE_POLL_S)


def _tail(log: Path) -> list[str]:
    with log.open(errors="replace") as file:
        return [line.rstrip() for line in deque(file, LOG_TAIL_LINES)]


def _sweep(child: Child) -> None:
    """The node is gone: so goes what is left of its group."""
    if not child.swept:
        child.swept = True
        _signal(child.process, signal.SIGKILL)


def _terminate(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to a node, not to its worker, for the node ends that one itself."""
    if process.returncode is None:
        try:
            process.terminate()
        except ProcessLookupError:
            return


def _signal(process: asyncio.subprocess.Process, number: int) -> bool:
    """Send a signal to the whole group; whether anybody is left in it."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
