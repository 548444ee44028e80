"""Real node processes on loopback, or in network namespaces, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from node.api import Status
from node.local_swarm import Child, LocalSwarm
from protocol.errors import ConfigError

RUN = """
name = "small"
data = "text:corpus.txt"
rounds = {rounds}
seed = 7
min_members = {members}
start_deadline_s = 60

[model]
layers = 2
heads = 2
width = 64
context = 64
vocab = 300

[inner]
batch = 16

[trainer]
kind = "noloco"
inner_steps = 20
proposal_deadline_s = 2
exchange_deadline_s = 4
"""
POLL_S = 0.1
"""The processes under test live in real time; their state is asked, never assumed."""


@asynccontextmanager
async def swarm_of(root: Path, nodes: int, *, rounds: int) -> AsyncIterator[LocalSwarm]:
    """`nodes` nodes in one run, the first one its creator; all are gone afterwards."""
    (root / "corpus.txt").write_text("To be, or not to be, that is the question. " * 4000)
    run_file = root / "run.toml"
    run_file.write_text(RUN.format(rounds=rounds, members=nodes))
    async with LocalSwarm(root) as swarm:
        creator = await swarm.start("node1", "run", "create", str(run_file))
        ticket = await ticket_of(swarm, creator)
        for number in range(2, nodes + 1):
            await swarm.start(f"node{number}", "join", ticket)
        yield swarm


async def until(swarm: LocalSwarm, reached: Callable[[], bool]) -> None:
    """Poll every node until `reached`; the test's timeout is the deadline."""
    while True:
        await swarm.poll()
        swarm.check()
        if reached():
            return
        await asyncio.sleep(POLL_S)


async def ticket_of(swarm: LocalSwarm, creator: Child) -> str:
    await until(swarm, lambda: bool(creator.status and creator.status["ticket"]))
    return said(creator)["ticket"]


def said(child: Child) -> Status:
    assert child.status is not None, child.name
    return child.status


def have_finished(*children: Child) -> bool:
    return all(child.status and child.status["state"] == "finished" for child in children)


async def until_of(swarm: LocalSwarm, children: list[Child], reached: Callable[[], bool]) -> None:
    """As `until`, but asks only `children`: a stopped process answers nobody."""
    while not reached():
        for child in children:
            with contextlib.suppress(ConfigError):  # busy: it is asked again
                child.status = await child.client.status()
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True)
class Host:
    """A network namespace with one address on a wire of its own."""

    namespace: str
    ip: str

    @property
    def enter(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)


async def ip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("ip", *arguments)
    assert await process.wait() == 0, arguments


@asynccontextmanager
async def wired_hosts() -> AsyncIterator[tuple[Host, Host]]:
    """Two hosts on one wire; `ip link set wire down` in one of them cuts it."""
    hosts = (
        Host(f"shoal-{os.getpid()}-a", "198.18.0.1"),
        Host(f"shoal-{os.getpid()}-b", "198.18.0.2"),
    )
    try:
        for host in hosts:
            await ip("netns", "add", host.namespace)
            await ip("-n", host.namespace, "link", "set", "lo", "up")
        one, other = (host.namespace for host in hosts)
        await ip("-n", one, "link", "add", "wire", "type", "veth", "peer", "wire", "netns", other)
        for host in hosts:
            await ip("-n", host.namespace, "addr", "add", f"{host.ip}/24", "dev", "wire")
            await ip("-n", host.namespace, "link", "set", "wire", "up")
        yield hosts
    finally:
        for host in hosts:
            await ip("netns", "del", host.namespace)


WITHOUT_ROOT = os.geteuid() != 0 and not os.environ.get("CI")
"""Such tests are skipped on a person's machine; where CI is set they fail instead."""
