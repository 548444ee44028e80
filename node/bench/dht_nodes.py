"""One of the processes of `scripts/bench dht`: some nodes without workers, orders in, figures out.

It obeys one order a line, as JSON on its standard input, and prints what came of each as a line.
What each costs is measured here, so that the way to who gave the order is not in it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from node.bridge import Bridge
from node.discovery import provider_key
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import RunId, digest_of
from protocol.peer_record import TTL_S, PeerRecord, record_key, sign_peer_record

RUN = RunId(digest_of(b"scripts/bench dht"))
JOIN_S = 60.0
"""Of one connection: all processors may be busy with handshakes."""


Cost = dict[str, float]
"""Seconds of one thing that a node does, what it found, the bytes that it sent and received, and
the seconds of the processor that it took it, without those of who answers."""


def signer_of(number: int) -> Signer:
    """The identity of a node; all processes know it."""
    return Signer(digest_of(number.to_bytes(4, "big")))


class Nodes:
    """The nodes of this process, by number."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._before = private_bytes()
        self._bridges: dict[int, Bridge] = {}

    async def start(self, numbers: Sequence[int]) -> dict[str, str]:
        """Listen with these; by number, where each can be dialled."""
        for number in numbers:
            bridge = Bridge(signer_of(number), listen=["/ip4/127.0.0.1/tcp/0"])
            self._bridges[number] = await self._stack.enter_async_context(bridge)
        return {str(number): self._bridges[number].addrs()[0] for number in numbers}

    async def join(self, number: int, doors: Sequence[str]) -> Cost:
        """Connect one to these; found is to how many it is connected."""

        async def connected(bridge: Bridge) -> float:
            found = 0
            for door in doors:
                try:
                    await bridge.connect(door, JOIN_S)
                    found += 1
                except PeerUnavailable as error:
                    sys.stderr.write(f"node {number} not connected to a door: {error.reason}\n")
            return found

        return await self._cost(number, connected)

    async def announce(self, number: int) -> Cost:
        """Say in the DHT that it is a member, and where; found is whether others know."""
        signer, now = signer_of(number), int(time.time())

        async def told(bridge: Bridge) -> float:
            record = PeerRecord(
                peer=signer.peer, run=RUN, addrs=bridge.addrs(), seq=now, expires_unix_s=now + TTL_S
            )
            told = await bridge.provide(provider_key(RUN))
            key, value = record_key(signer.peer, RUN), sign_peer_record(record, signer)
            return await bridge.put_record(key, value) and told

        return await self._cost(number, told)

    async def look_up(self, number: int) -> Cost:
        """Look for the members; found is how many, itself not among them."""

        async def found(bridge: Bridge) -> float:
            return len(await bridge.find_providers(provider_key(RUN)))

        return await self._cost(number, found)

    async def look_up_record(self, number: int, member: int) -> Cost:
        """Look for a member's record; found is whether there is one."""
        key = record_key(signer_of(member).peer, RUN)

        async def found(bridge: Bridge) -> float:
            return await bridge.find_record(key) is not None

        return await self._cost(number, found)

    async def _cost(self, number: int, work: Callable[[Bridge], Awaitable[float]]) -> Cost:
        """What it takes the node itself, which all bytes of what it asks go through."""
        bridge = self._bridges[number]
        before, cpu, began = bridge.counters(), await bridge.call(thread_s), time.monotonic()
        found = await work(bridge)
        seconds, after = time.monotonic() - began, bridge.counters()
        cpu = await bridge.call(thread_s) - cpu
        moved = after.raw_up - before.raw_up + after.raw_down - before.raw_down
        return {"seconds": seconds, "found": found, "moved_bytes": moved, "cpu_s": cpu}

    def figures(self) -> dict[str, float]:
        """What the nodes of this process have sent so far, and what they are now."""
        bridges = list(self._bridges.values())
        return {
            "sent_bytes": sum(bridge.counters().raw_up for bridge in bridges),
            "connections": sum(len(bridge.connected()) for bridge in bridges),
            "memory_bytes": private_bytes() - self._before,
            "cpu_s": time.process_time(),
        }


async def obey() -> None:
    """Carry out orders until there are none."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        nodes = Nodes(stack)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            told: Mapping[str, float | str]
            match json.loads(line):
                case {"do": "start", "numbers": list(numbers)}:
                    told = await nodes.start(numbers)
                case {"do": "join", "number": int(number), "doors": list(doors)}:
                    told = await nodes.join(number, doors)
                case {"do": "announce", "number": int(number)}:
                    told = await nodes.announce(number)
                case {"do": "look_up", "number": int(number)}:
                    told = await nodes.look_up(number)
                case {"do": "look_up_record", "number": int(number), "of": int(member)}:
                    told = await nodes.look_up_record(number, member)
                case {"do": "figures"}:
                    told = nodes.figures()
                case order:
                    raise ValueError(f"no order: {order}")
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


async def thread_s() -> float:
    """Of the processor, used so far by the thread of one node's network."""
    return time.thread_time()


def private_bytes() -> int:
    """Memory of this process that it shares with no other (USS); elsewhere than on Linux 0.

    Not PSS: that counts a library's pages by how many processes have them, so a node would seem
    smaller among more processes.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    kib = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kib) * 1024


if __name__ == "__main__":
    asyncio.run(obey())
