"""One end of a measured pair: a process inside a host of the lab, with shoal's own network in it.

    python -m node.natlab.probe target RELAY
    python -m node.natlab.probe dialer RELAY PEER ADDR...
    python -m node.natlab.probe survivor RELAY PEER ADDR...

The target comes up, finds out where it can be reached, prints that as one line of JSON, and answers
until it is stopped.  The dialer connects to it by those addresses, waits a while for a direct
connection, fetches some megabytes twice, and prints what it found as one line of JSON.  The
survivor prints that as soon as it is connected, fetches, and prints it again: its line may be cut.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace

from node.addr_text import peer_in
from node.bridge import Bridge
from node.natlab.rules import MAPPED_PORT
from node.p2p.links import Kind as LinkKind
from node.reach import Reach
from node.rpc import Rpc
from node.signals import on_stop
from protocol import check
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId
from protocol.limits import MIB
from protocol.rpc import Kind, Lane, Method

CONNECT_S = 20.0
"""To have any connection at all; a dead address costs the library up to ten seconds."""
FETCH_S = 60.0
"""For 8 MiB: what a line of 1 Mbit/s takes; a relay lets 4 MiB a second pass."""
ANNOUNCED_S = 30.0
"""Until a target knows where it can be reached."""
UPGRADE_S = 15.0
"""How long a relayed connection may take to become direct: two tries to punch, 5 s apart."""
LOOK_S = 0.01
"""Between two looks at what the network knows by now."""
BULK_BYTES = 8 * MIB
"""Enough for a TCP window to open at 100 ms of round trip (NAT traversal measurements, 2025)."""
FETCHES = 2
"""The first finds a cold connection."""
MAX_BULK_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class BulkCall:
    """ "Send me so many bytes." """

    num_bytes: int

    def __post_init__(self) -> None:
        check.integer("num_bytes", self.num_bytes, 1, MAX_BULK_BYTES)


BULK = Method(
    name="natlab-bulk/1",
    lane=Lane.BULK,
    kind=Kind.BLOB,
    request=BulkCall,
    answer=bytes,
    deadline_s=FETCH_S,
    max_request_bytes=64,
    max_answer_bytes=MAX_BULK_BYTES,
    per_peer=4,
    in_all=16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """What the target says when it can be reached."""

    peer: PeerId
    addrs: tuple[str, ...]
    after_s: float
    """From its start on, until it knew these addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialed:
    """What the dialer found."""

    how: str
    """direct, punched or relayed; none: not at all, or it did not last."""
    why: str = ""
    """It is none."""
    contact_s: float | None = None
    """From the dial to the first connection of any kind."""
    direct_s: float | None = None
    """From there to a connection that is not relayed."""
    mb_per_s: tuple[float, ...] = ()
    """Of each fetch, 10^6 bytes."""


@asynccontextmanager
async def network(relay: str) -> AsyncIterator[tuple[Bridge, Rpc, Reach]]:
    """What of a node it takes to be reached and to reach, connected to the relay."""
    signer = Signer(os.urandom(32))
    listen = [f"/ip4/0.0.0.0/tcp/{MAPPED_PORT}"]
    async with Bridge(signer, listen=listen) as bridge, Rpc(bridge) as rpc:
        reach = Reach(me=signer.peer, bridge=bridge, rpc=rpc)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(reach.run())
            await bridge.connect(relay, CONNECT_S)
            yield bridge, rpc, reach
            running.cancel()


async def announced(reach: Reach) -> tuple[str, ...]:
    """Our addresses for others, once there is one that strangers can use."""
    while not reach.relays and reach.verdict != "public":  # noqa: ASYNC110  it has no event
        await asyncio.sleep(LOOK_S)
    return reach.addrs()


async def be_target(relay: str) -> None:
    """Be there until a signal comes."""
    began_s = time.monotonic()
    stopped = asyncio.Event()
    on_stop(stopped.set)
    async with network(relay) as (_, rpc, reach):
        rpc.serve(BULK, _send)
        async with asyncio.timeout(ANNOUNCED_S):
            addrs = await announced(reach)
        say(Reachable(peer=peer_in(addrs[0]), addrs=addrs, after_s=time.monotonic() - began_s))
        await stopped.wait()


async def _send(_: PeerId, call: BulkCall) -> bytes:
    return bytes(call.num_bytes)


async def be_dialer(relay: str, target: PeerId, addrs: Sequence[str]) -> None:
    """Reach the target, measure, say what was found."""
    async with network(relay) as (bridge, rpc, _):
        bridge.add_addrs(target, addrs)
        found = Dialed(how="none")
        began_s = time.monotonic()
        try:
            await bridge.connect(target, CONNECT_S)
            found = replace(found, contact_s=time.monotonic() - began_s)
            found = replace(found, direct_s=await _until_direct(bridge, target))
            for _ in range(FETCHES):
                speed = await _fetch(rpc, target)
                found = replace(found, mb_per_s=(*found.mb_per_s, speed))
            kind = _kind(bridge, target)
            found = replace(found, how=kind.value) if kind else replace(found, why="link lost")
        except PeerUnavailable as error:
            found = replace(found, why=str(error))
        say(found)


async def be_survivor(relay: str, target: PeerId, addrs: Sequence[str]) -> None:
    """Fetch once, whatever happens to the line."""
    async with network(relay) as (bridge, rpc, _):
        bridge.add_addrs(target, addrs)
        await bridge.connect(target, CONNECT_S)
        direct_s = await _until_direct(bridge, target)
        say(Dialed(how=_how(bridge, target), direct_s=direct_s))
        try:
            speed = await _fetch(rpc, target)
        except PeerUnavailable as error:
            say(Dialed(how="none", why=str(error)))
        else:
            say(Dialed(how=_how(bridge, target), mb_per_s=(speed,)))


async def _until_direct(bridge: Bridge, peer: PeerId) -> float | None:
    """How long it takes until the connection is not relayed; None: too long."""
    began_s = time.monotonic()
    while (after_s := time.monotonic() - began_s) < UPGRADE_S:
        if _kind(bridge, peer) in (LinkKind.DIRECT, LinkKind.PUNCHED):
            return after_s
        await asyncio.sleep(LOOK_S)
    return None


def _kind(bridge: Bridge, peer: PeerId) -> LinkKind | None:
    return next((link.kind for link in bridge.links() if link.peer == peer), None)


def _how(bridge: Bridge, peer: PeerId) -> str:
    kind = _kind(bridge, peer)
    return kind.value if kind else "none"


async def _fetch(rpc: Rpc, peer: PeerId) -> float:
    """One transfer, in MB/s."""
    began_s = time.monotonic()
    got = await rpc.call(peer, BULK, BulkCall(BULK_BYTES))
    if len(got) != BULK_BYTES:
        raise PeerUnavailable(peer, f"sent {len(got)} bytes, expected {BULK_BYTES}")
    return BULK_BYTES / 1e6 / (time.monotonic() - began_s)


def say(what: Reachable | Dialed) -> None:
    """One line of JSON for the process that started this one."""
    sys.stdout.write(json.dumps(asdict(what)) + "\n")
    sys.stdout.flush()


def main(role: str, *given: str) -> None:
    """Be one end."""
    match role, given:
        case "target", (relay,):
            asyncio.run(be_target(relay))
        case "dialer", (relay, peer, *addrs):
            asyncio.run(be_dialer(relay, PeerId(peer), addrs))
        case "survivor", (relay, peer, *addrs):
            asyncio.run(be_survivor(relay, PeerId(peer), addrs))
        case _:
            sys.exit(f"{__doc__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
