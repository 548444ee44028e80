"""Members that find each other over real sockets: without a bootstrap, and out of two halves."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from samples import CREATOR, PRESENCE, spec

from node import discovery
from node.bridge import Bridge
from node.discovery import Discovery
from node.peer_cache import PeerCache
from node.rpc import Rpc
from node.telemetry import Waits
from protocol import hello, rpc
from protocol.envelope import Signer
from protocol.ids import PeerId
from protocol.messages import Presence
from protocol.spec import sign_spec

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(60)]

SPEC = spec()
SIGNERS = [Signer(bytes([n]) * 32) for n in range(30, 35)]
PEERS = [signer.peer for signer in SIGNERS]
DEADLINE_S = 15.0
"""Of what takes three seconds on an idle machine."""


class Member:
    """A node that only looks for others and proves itself to them."""

    def __init__(
        self, signer: Signer, bridge: Bridge, where: dict[PeerId, tuple[str, ...]]
    ) -> None:
        self.signer = signer
        self.bridge = bridge
        self.found: set[PeerId] = set()
        self._where = where
        self._more = asyncio.Event()

    async def welcome(self, caller: PeerId, asked: rpc.Hello) -> rpc.Welcome:
        return hello.welcome(sign_spec(SPEC, CREATOR), asked, b"", caller, self.signer)

    async def find(self, peer: PeerId) -> None:
        self.found.add(peer)
        self._more.set()

    def live(self) -> tuple[Presence, ...]:
        """Whom it found, and who is still there."""
        here = [peer for peer in sorted(self.found) if peer in self.bridge.connected()]
        return tuple(replace(PRESENCE, peer=peer, addrs=self._where[peer]) for peer in here)

    async def until_found(self, *peers: PeerId) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.found.issuperset(peers):
                self._more.clear()
                await self._more.wait()


class Swarm:
    """The members on this machine, and where each of them can be dialled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: dict[PeerId, tuple[str, ...]] = {}

    @asynccontextmanager
    async def member(self, number: int, *ticket: str) -> AsyncIterator[Member]:
        """Member `number`, up and searching, that joined with these addresses."""
        signer = SIGNERS[number]
        async with (
            Bridge(signer, listen=["/ip4/127.0.0.1/tcp/0"]) as bridge,
            Rpc(bridge, on_blame=lambda peer, reason: None) as calls,
        ):
            self._where[signer.peer] = bridge.addrs()
            made = Member(signer, bridge, self._where)
            calls.serve(rpc.HELLO, made.welcome)
            search = Discovery(
                run=SPEC.run,
                signer=signer,
                secret=b"",
                addrs=ticket,
                announced=bridge.addrs,
                lan=False,
                cache=PeerCache(self._folder / f"peers-{number}"),
                bridge=bridge,
                rpc=calls,
                live=made.live,
                found=made.find,
                blame=lambda peer, reason: pytest.fail(f"{peer} blamed: {reason}"),
                waits=Waits(time.time),
                clock=asyncio.get_running_loop().time,
                unix_s=time.time,
                rng=random.Random(number),
            )
            search.announce()
            searching = asyncio.ensure_future(search.run())
            try:
                yield made
            finally:
                searching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await searching

    @asynccontextmanager
    async def gate(self) -> AsyncIterator[str]:
        """A bootstrap node that is no member; its address."""
        async with Bridge(SIGNERS[4], listen=["/ip4/127.0.0.1/tcp/0"]) as bridge:
            yield bridge.addrs()[0]


async def test_a_restarted_node_finds_the_others_although_its_only_bootstrap_is_gone(
    tmp_path: Path,
) -> None:
    swarm = Swarm(tmp_path)
    async with AsyncExitStack() as others:
        async with swarm.gate() as gate, AsyncExitStack() as first:
            second = await others.enter_async_context(swarm.member(1, gate))
            third = await others.enter_async_context(swarm.member(2, gate))
            one = await first.enter_async_context(swarm.member(0, gate))
            await one.until_found(PEERS[1], PEERS[2])
            await second.until_found(PEERS[0])
            await third.until_found(PEERS[0])
            assert {presence.peer for presence in one.live()} == {PEERS[1], PEERS[2]}
        again = await others.enter_async_context(swarm.member(0, gate))
        await again.until_found(PEERS[1], PEERS[2])
        assert SIGNERS[4].peer not in again.bridge.connected()


@pytest.mark.parametrize("by", ["a link", "a ticket"])
async def test_two_halves_find_each_other_through_one(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "EAGER_S", 1.0)
    swarm = Swarm(tmp_path)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(swarm.member(0))
        second = await stack.enter_async_context(swarm.member(1, first.bridge.addrs()[0]))
        third = await stack.enter_async_context(swarm.member(2))
        fourth = await stack.enter_async_context(swarm.member(3, third.bridge.addrs()[0]))
        await first.until_found(PEERS[1])
        await fourth.until_found(PEERS[2])
        everyone, known = [first, second, third, fourth], set(PEERS[:4])
        if by == "a link":
            await second.bridge.connect(third.bridge.addrs()[0], 5)
        else:
            (swarm_ticket,) = fourth.bridge.addrs()
            known.add(PEERS[4])
            everyone.append(await stack.enter_async_context(swarm.member(4, swarm_ticket)))
            await everyone[4].bridge.connect(first.bridge.addrs()[0], 5)
        for member in everyone:
            await member.until_found(*known - {member.signer.peer})
