"""One try of one pair: a lab of its own, a relay, a target, a dialer, and what came of it.

Everything is new each time, keys and port mappings included, so that tries do not help each other.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.local_swarm import LocalSwarm
from node.natlab.commands import LabFailed
from node.natlab.lab import ROOT, Lab
from node.natlab.plan import RELAY
from node.natlab.probe import Dialed, Reachable
from node.natlab.rules import MAPPED_PORT, Kind

UP_S = 60.0
"""For relay or target to say where it can be reached, 2 s; a target gives up after half of it."""
POLL_S = 0.05
"""A node's API has no event for its being up."""
DIALER_S = 180.0
"""A dialer that needs all its own deadlines takes 160 s."""
END_S = 2.0
"""From SIGTERM to SIGKILL."""
CUT_AFTER_BYTES = 1_000_000
"""Of a fetch of 8 MiB."""
TOLD_CHARS = 2000
"""Of what a failed process said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found, and what the relay had to do for it."""

    dialed: Dialed
    target: Reachable
    relay_bytes: int
    """Sent by the relay to everybody: its own calls too, some tens of kilobytes."""


async def try_pair(kinds: tuple[Kind, ...], *, delay_ms: float, rate_mbit: float) -> Outcome:
    """A dialer at h1 reaches a target at h2.

    Raises:
        LabFailed: the lab or one of the probes did not do its part.
        NodeFailed: the relay did not.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-natlab-")))
        lab = await stack.enter_async_context(Lab(kinds, delay_ms=delay_ms, rate_mbit=rate_mbit))

        async def said(machine: str, for_s: float, *arguments: str) -> dict[str, Any]:
            log = folder / f"{machine}.log"
            process = await stack.enter_async_context(_probe(lab, machine, log, *arguments))
            return await _said(process, log, for_s)

        relay = await _relay(lab, await stack.enter_async_context(LocalSwarm(folder)))
        target = _reachable(await said("h2", UP_S, "target", relay))
        before = await lab.traffic(RELAY)
        arguments = ("dialer", relay, target.peer, *target.addrs)
        found = _dialed(await said("h1", DIALER_S, *arguments))
        after = await lab.traffic(RELAY)
    return Outcome(dialed=found, target=target, relay_bytes=after.sent_bytes - before.sent_bytes)


async def cut_pair(kinds: tuple[Kind, ...], *, rate_mbit: float) -> tuple[Dialed, Dialed]:
    """The same, and the way between the two sites is cut in the middle of a fetch.

    Returns:
        How they were connected before, and what became of the fetch.

    Raises:
        LabFailed, NodeFailed: as for `try_pair`.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-natlab-")))
        lab = await stack.enter_async_context(Lab(kinds, rate_mbit=rate_mbit))
        relay = await _relay(lab, await stack.enter_async_context(LocalSwarm(folder)))
        log = folder / "h2.log"
        process = await stack.enter_async_context(_probe(lab, "h2", log, "target", relay))
        target = _reachable(await _said(process, log, UP_S))
        log = folder / "h1.log"
        arguments = ("survivor", relay, target.peer, *target.addrs)
        process = await stack.enter_async_context(_probe(lab, "h1", log, *arguments))
        before = _dialed(await _said(process, log, UP_S))
        begun = (await lab.traffic("h1")).received_bytes
        while (await lab.traffic("h1")).received_bytes < begun + CUT_AFTER_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        await lab.run("r1", "nft", "add table ip cut")
        hook = "{ type filter hook forward priority -10; }"
        await lab.run("r1", "nft", f"add chain ip cut way {hook}")
        for end in ("saddr", "daddr"):
            await lab.run("r1", "nft", f"add rule ip cut way ip {end} {lab.ip('r2')} drop")
        return before, _dialed(await _said(process, log, DIALER_S))


async def _relay(lab: Lab, swarm: LocalSwarm) -> str:
    """Start the relay, a real node as people run it; its address."""
    listen = f"/ip4/{lab.ip(RELAY)}/tcp/{MAPPED_PORT}"
    child = await swarm.start("relay", "bootstrap", listen=listen, prefix=lab.enter(RELAY))
    try:
        async with asyncio.timeout(UP_S):
            while child.status is None:
                await asyncio.sleep(POLL_S)
                await swarm.poll()
                swarm.check()
    except TimeoutError:
        raise LabFailed(f"natlab: the relay is not up within {UP_S:g} s") from None
    return child.status["addrs"][0]


@asynccontextmanager
async def _probe(
    lab: Lab, machine: str, log: Path, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A probe that runs on a machine as long as the block."""
    with log.open("wb") as complaints:
        process = await asyncio.create_subprocess_exec(
            *lab.enter(machine), sys.executable, "-m", "node.natlab.probe", *arguments,
            cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=complaints, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _said(process: asyncio.subprocess.Process, log: Path, for_s: float) -> dict[str, Any]:
    """The line of a probe."""
    assert process.stdout
    try:
        async with asyncio.timeout(for_s):
            line = await process.stdout.readline()
    except TimeoutError:
        raise LabFailed(f"natlab: nothing said within {for_s:g} s\n{_tail(log)}") from None
    if not line:
        raise LabFailed(f"natlab: the probe ended without a word\n{_tail(log)}")
    found: dict[str, Any] = json.loads(line)
    return found


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-TOLD_CHARS:]


def _reachable(said: dict[str, Any]) -> Reachable:
    return Reachable(**said | {"addrs": tuple(said["addrs"])})


def _dialed(said: dict[str, Any]) -> Dialed:
    return Dialed(**said | {"mb_per_s": tuple(said["mb_per_s"])})
