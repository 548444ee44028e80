"""Nodes that find out by each other whether they can be reached, on a network of dictionaries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from virtual_time import in_virtual_time
from wire import carried

from node.p2p.links import Kind, Link
from node.reach import CONNECTED, DIALS_A_MINUTE, NOT_YOURS, TOO_MANY, UNREACHED, Reach
from node.rpc import CallRefused
from protocol import rpc
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.frame import Refusal
from protocol.ids import PeerId
from protocol.reach import DialCall, ReachCall, SeenCall

ALICE, BOB, CAROL, DAVE, ERIN = (Signer(bytes([n]) * 32).peer for n in range(1, 6))
PORT = "/tcp/4001"
SOON_S = 5.0
"""Virtual seconds in which whoever has peers finds out."""


@dataclass
class Host:
    """One node of the network: its address, and who may dial it."""

    peer: PeerId
    ip: str
    open: bool
    """Strangers get through."""
    handlers: dict[str, Callable[[PeerId, Any], Awaitable[Any]]] = field(default_factory=dict)
    peers: set[PeerId] = field(default_factory=set)
    is_public: bool | None = None
    relays: bool = False


class Net:
    """All of them, and what each sees of the network: its bridge and its calls."""

    def __init__(self) -> None:
        self.hosts: dict[PeerId, Host] = {}

    def add(self, peer: PeerId, ip: str, *, open: bool, relays: bool = False) -> Face:
        self.hosts[peer] = Host(peer, ip, open, relays=relays)
        return Face(self, peer)

    def link(self, one: PeerId, other: PeerId) -> None:
        self.hosts[one].peers.add(other)
        self.hosts[other].peers.add(one)


class Face:
    """The network as one node sees it: `Bridge` and `Rpc` of `node.reach`."""

    def __init__(self, net: Net, me: PeerId) -> None:
        self.net = net
        self.me = net.hosts[me]

    def addrs(self) -> tuple[str, ...]:
        return (f"/ip4/192.168.1.2{PORT}/p2p/{self.me.peer}",)

    def observed(self) -> tuple[str, ...]:
        return (f"/ip4/{self.me.ip}{PORT}",) if self.me.peers else ()

    def links(self) -> tuple[Link, ...]:
        others = (self.net.hosts[peer] for peer in sorted(self.me.peers))
        return tuple(Link(o.peer, Kind.DIRECT, f"/ip4/{o.ip}{PORT}") for o in others)

    async def connect(self, target: str, deadline_s: float) -> PeerId:
        raise PeerUnavailable(PeerId(target), "not in these tests")

    async def reserve(self, relay: PeerId) -> tuple[float, Sequence[str]]:
        other = self.net.hosts[relay]
        if not other.relays:
            raise PeerUnavailable(relay, "is no relay")
        return 600.0, [f"/ip4/{other.ip}{PORT}/p2p/{relay}/p2p-circuit/p2p/{self.me.peer}"]

    async def dial_back(self, peer: PeerId, addr: str) -> None:
        other = self.net.hosts[peer]
        if peer in self.me.peers or not other.open or addr != f"/ip4/{other.ip}{PORT}":
            raise PeerUnavailable(peer, "no answer")
        self.net.link(self.me.peer, peer)

    async def hang_up(self, peer: PeerId) -> None:
        self.me.peers.discard(peer)
        self.net.hosts[peer].peers.discard(self.me.peer)

    def be_public(self, is_public: bool, relay_mbit: float) -> None:
        self.me.is_public = is_public

    def serve(self, method: Any, handler: Callable[[PeerId, Any], Awaitable[Any]]) -> None:
        self.me.handlers[method.name] = handler

    async def call(self, peer: PeerId, method: Any, request: Any, **terms: Any) -> Any:
        if peer not in self.me.peers:
            raise PeerUnavailable(peer, "not connected")
        handler = self.net.hosts[peer].handlers.get(method.name)
        if handler is None:
            raise CallRefused(peer, method.name, Refusal("unknown", "not served"))
        return await carried(self.me.peer, peer, method, request, handler, **terms)


@asynccontextmanager
async def running(*faces: Face, **options: Any) -> AsyncIterator[list[Reach]]:
    reaches = [
        Reach(me=face.me.peer, bridge=face, rpc=face, rng=random.Random(n), **options)
        for n, face in enumerate(faces)
    ]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(reach.run()) for reach in reaches]
        await asyncio.sleep(0)  # now they serve
        yield reaches
        for task in running:
            task.cancel()


@pytest.mark.parametrize(("is_open", "verdict"), [(True, "public"), (False, "private")])
def test_two_strangers_that_dial_make_the_verdict(is_open: bool, verdict: str) -> None:
    async def story() -> None:
        net = Net()
        alice = net.add(ALICE, "11.22.33.1", open=is_open)
        peers = enumerate((BOB, CAROL, DAVE), 2)
        others = [net.add(peer, f"11.22.33.{n}", open=True) for n, peer in peers]
        net.link(ALICE, BOB)
        net.link(BOB, CAROL)
        net.link(BOB, DAVE)
        async with running(alice, *others) as (reach, *_):
            await asyncio.sleep(SOON_S)
            assert (reach.verdict, alice.me.is_public) == (verdict, is_open)
            assert alice.me.peers == {BOB}  # who dialled has hung up again
            public = f"/ip4/11.22.33.1{PORT}/p2p/{ALICE}"
            assert (reach.addrs()[0] == public) is is_open

    in_virtual_time(story())


def test_who_cannot_be_reached_announces_its_relays_first() -> None:
    async def story() -> None:
        net = Net()
        alice = net.add(ALICE, "11.22.33.1", open=False)
        relay = net.add(BOB, "11.22.33.2", open=True, relays=True)
        net.link(ALICE, BOB)
        async with running(alice, relay) as (reach, _):
            await asyncio.sleep(SOON_S)
            assert reach.addrs() == (
                f"/ip4/11.22.33.2{PORT}/p2p/{BOB}/p2p-circuit/p2p/{ALICE}",
                f"/ip4/192.168.1.2{PORT}/p2p/{ALICE}",
            )

    in_virtual_time(story())


async def test_a_peer_may_have_only_its_own_address_dialled() -> None:
    net = Net()
    alice, bob = net.add(ALICE, "11.22.33.1", open=True), net.add(BOB, "11.22.33.2", open=True)
    net.link(ALICE, BOB)
    async with running(bob):
        for wrong in ("/ip4/11.22.33.9/tcp/25", "nonsense"):
            with pytest.raises(CallRefused) as refused:
                await alice.call(BOB, rpc.REACH, ReachCall(wrong, bytes(16)))
            assert refused.value.code == NOT_YOURS


async def test_so_many_dials_a_minute_and_no_more() -> None:
    net = Net()
    alice, bob = net.add(ALICE, "11.22.33.1", open=True), net.add(BOB, "11.22.33.2", open=True)
    net.link(ALICE, BOB)
    net.add(CAROL, "11.22.33.3", open=False)
    async with running(bob):
        dial = DialCall(CAROL, f"/ip4/11.22.33.3{PORT}", bytes(16))
        codes = []
        for _ in range(DIALS_A_MINUTE + 1):
            with pytest.raises(CallRefused) as refused:
                await alice.call(BOB, rpc.DIAL, dial)
            codes.append(refused.value.code)
        assert codes == [UNREACHED] * DIALS_A_MINUTE + [TOO_MANY]


async def test_who_is_connected_does_not_dial() -> None:
    net = Net()
    alice, bob = net.add(ALICE, "11.22.33.1", open=True), net.add(BOB, "11.22.33.2", open=True)
    net.link(ALICE, BOB)
    async with running(bob):
        for peer in (ALICE, BOB):
            call = DialCall(peer, f"/ip4/11.22.33.1{PORT}", bytes(16))
            with pytest.raises(CallRefused) as refused:
                await alice.call(BOB, rpc.DIAL, call)
            assert refused.value.code == CONNECTED


async def test_a_nonce_that_nobody_gave_out_is_no_vote() -> None:
    net = Net()
    alice = net.add(ALICE, "11.22.33.1", open=True)
    bob, erin = net.add(BOB, "11.22.33.2", open=True), net.add(ERIN, "11.22.33.5", open=True)
    net.link(ALICE, BOB)
    net.link(ALICE, ERIN)
    async with running(alice) as (reach,):
        for liar in (bob, erin):
            await liar.call(ALICE, rpc.SEEN, SeenCall(bytes(16)))
        assert reach.verdict == "unknown"


@pytest.mark.parametrize(("word", "verdict"), [("yes", "public"), ("no", "private")])
async def test_the_operators_word_is_taken(word: str, verdict: str) -> None:
    net = Net()
    alice = net.add(ALICE, "11.22.33.1", open=False)
    async with running(alice, reachable=word) as (reach,):
        await asyncio.sleep(0)
        assert (reach.verdict, alice.me.is_public) == (verdict, True if word == "yes" else None)
