"""Connections through relays on loopback: real sockets, no routers (those are in the NAT lab)."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as WirePeerId
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from node.bridge import Bridge
from node.p2p import idle, relay
from node.p2p.links import Kind
from node.rpc import Rpc
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import Digest, PeerId, RunId
from protocol.rpc import FETCH, FetchCall

pytestmark = pytest.mark.libp2p

ALICE, BOB, CAROL, DAVE = (Signer(bytes([n]) * 32) for n in range(1, 5))
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
PIECE = random.Random(3).randbytes(300_000)
CALL = FetchCall(RunId(bytes(32)), Digest(bytes(32)), 0, len(PIECE))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Node:
    """A bridge and its calls."""

    peer: PeerId
    bridge: Bridge
    rpc: Rpc

    async def fetch(self, peer: PeerId, deadline_s: float = 10.0) -> bytes:
        return await self.rpc.call(peer, FETCH, CALL, deadline_s=deadline_s)

    def kinds(self) -> dict[PeerId, Kind]:
        return {link.peer: link.kind for link in self.bridge.links()}


@asynccontextmanager
async def node(signer: Signer) -> AsyncIterator[Node]:
    async def piece(peer: PeerId, call: FetchCall) -> bytes:
        return PIECE

    async with Bridge(signer, listen=LOOPBACK) as bridge, Rpc(bridge) as rpc:
        rpc.serve(FETCH, piece)
        yield Node(signer.peer, bridge, rpc)


@asynccontextmanager
async def through(*relays: Signer) -> AsyncIterator[tuple[Node, Node, AsyncExitStack, list[Node]]]:
    """Alice, who knows Bob's addresses through these relays and no others, and Bob."""
    async with node(ALICE) as alice, node(BOB) as bob, AsyncExitStack() as stack:
        found = [await stack.enter_async_context(node(signer)) for signer in relays]
        addrs: list[str] = []
        for other in found:
            other.bridge.be_public(True, 1000.0)
            await bob.bridge.connect(other.bridge.addrs()[0], 5)
            await alice.bridge.connect(other.bridge.addrs()[0], 5)
            addrs += (await bob.bridge.reserve(other.peer))[1]
        alice.bridge.add_addrs(bob.peer, addrs)
        yield alice, bob, stack, found


async def test_two_that_only_a_relay_can_reach_exchange_payloads_both_ways() -> None:
    async with through(CAROL) as (alice, bob, _, (carol,)):
        assert await alice.fetch(bob.peer) == PIECE
        assert await bob.fetch(alice.peer) == PIECE
        assert alice.kinds() == {bob.peer: Kind.RELAYED, carol.peer: Kind.DIRECT}
        assert bob.kinds() == {alice.peer: Kind.RELAYED, carol.peer: Kind.DIRECT}


async def test_who_has_not_reserved_is_not_reached_and_the_reason_is_said() -> None:
    async with node(ALICE) as alice, node(CAROL) as carol:
        carol.bridge.be_public(True, 1000.0)
        (addr,) = carol.bridge.addrs()
        alice.bridge.add_addrs(BOB.peer, [f"{addr}/p2p-circuit/p2p/{BOB.peer}"])
        with pytest.raises(PeerUnavailable, match="the relay refused: no reservation"):
            await alice.bridge.connect(BOB.peer, 5)


@pytest.mark.parametrize(
    ("ahead_s", "expected_s"), [(1e6, relay.LEAST_S), (-1e6, float(relay.RESERVATION_S))]
)
async def test_a_wrong_clock_makes_a_reservation_neither_endless_nor_over_at_once(
    ahead_s: float, expected_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is that far ahead of the relay's."""
    now_s = time.time
    monkeypatch.setattr(relay, "time", SimpleNamespace(time=lambda: now_s() + ahead_s))
    async with node(BOB) as bob, node(CAROL) as carol:
        carol.bridge.be_public(True, 1000.0)
        await bob.bridge.connect(carol.bridge.addrs()[0], 5)
        assert (await bob.bridge.reserve(carol.peer))[0] == expected_s


async def test_who_is_no_relay_takes_no_reservation() -> None:
    async with node(BOB) as bob, node(CAROL) as carol:
        await bob.bridge.connect(carol.bridge.addrs()[0], 5)
        with pytest.raises(PeerUnavailable):
            await bob.bridge.reserve(carol.peer)


async def test_a_call_goes_on_over_another_relay_when_the_first_one_dies() -> None:
    async with through(CAROL, DAVE) as (alice, bob, stack, relays):
        began, go_on = asyncio.Event(), asyncio.Event()

        async def slow(peer: PeerId, call: FetchCall) -> bytes:
            began.set()
            await go_on.wait()
            return PIECE

        bob.rpc.serve(FETCH, slow)
        fetching = asyncio.create_task(alice.fetch(bob.peer))
        await began.wait()
        via = next(link.addr for link in alice.bridge.links() if link.peer == bob.peer)
        used = next(relay for relay in relays if str(relay.peer) in via)
        await used.bridge.__aexit__(None, None, None)
        go_on.set()
        assert await fetching == PIECE
        await stack.pop_all().aclose()


async def test_a_circuit_that_has_carried_its_bytes_ends_and_the_next_call_opens_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "CIRCUIT_BYTES", 1_000_000)
    async with through(CAROL) as (alice, bob, _, _relays):
        for _ in range(8):
            assert await alice.fetch(bob.peer) == PIECE


async def test_a_reservation_ends_with_its_connection() -> None:
    async with through(CAROL) as (alice, bob, _, (carol,)):
        gone = asyncio.Event()
        carol.bridge._on_peer = lambda peer, is_here: None if is_here else gone.set()
        await bob.bridge.disconnect(carol.peer)
        await gone.wait()
        with pytest.raises(PeerUnavailable, match="no reservation"):
            await alice.bridge.connect(bob.peer, 5)
        assert carol.bridge._host.links.relay.resource_manager._reservations == {}  # a free place


async def test_a_relay_that_goes_silent_costs_a_call_its_deadline_and_no_more() -> None:
    async with through(CAROL) as (alice, bob, _, (carol,)):
        assert await alice.fetch(bob.peer) == PIECE

        async def silence(size_bytes: int) -> None:
            await trio.sleep_forever()

        for budget in carol.bridge._host.links.relay._budgets:
            budget.spend = silence  # type: ignore[method-assign]
        with pytest.raises(PeerUnavailable, match=r"no answer within 0\.5 s"):
            await alice.fetch(bob.peer, deadline_s=0.5)


async def test_a_dial_back_is_a_fresh_connection_or_none() -> None:
    async with node(ALICE) as alice, node(BOB) as bob:
        (addr,) = bob.bridge.addrs()
        await alice.bridge.dial_back(bob.peer, addr)
        with pytest.raises(PeerUnavailable, match="a dial would prove nothing"):
            await alice.bridge.dial_back(bob.peer, addr)


async def test_a_dial_back_goes_through_no_relay_and_to_nobody_else() -> None:
    async with through(CAROL) as (alice, bob, _, (carol,)):
        (addr,) = carol.bridge.addrs()
        for wrong in (f"{addr}/p2p-circuit/p2p/{bob.peer}", addr):
            with pytest.raises(PeerUnavailable, match="no direct address of it"):
                await alice.bridge.dial_back(bob.peer, wrong)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_peers_of_ipv6_are_seen_at_their_addresses() -> None:
    here = asyncio.Event()
    async with (
        Bridge(ALICE, listen=["/ip6/::1/tcp/0"], on_peer=lambda *_: here.set()) as alice,
        node(BOB) as bob,
    ):
        (addr,) = alice.addrs()
        assert await bob.bridge.connect(addr, 5) == ALICE.peer
        await here.wait()
        assert f"{bob.bridge.links()[0].addr}/p2p/{ALICE.peer}" == addr
        assert [link.addr.split("/")[1:3] for link in alice.links()] == [["ip6", "::1"]]


async def test_nobody_reserves_in_the_name_of_others() -> None:
    async def reserve_for_dave(bridge: Bridge) -> None:
        stream = await bridge._host._host.new_stream(ID.from_base58(CAROL.peer), [HOP])
        dave = WirePeerId(id=ID.from_base58(DAVE.peer).to_bytes())
        await write_delimited_msg(stream, HopMessage(type=HopMessage.RESERVE, peer=dave))
        await read_delimited_msg(stream, HopMessage)

    async with node(BOB) as bob, node(CAROL) as carol:
        carol.bridge.be_public(True, 1000.0)
        await bob.bridge.connect(carol.bridge.addrs()[0], 5)
        await bob.bridge.call(reserve_for_dave, bob.bridge)
        held = carol.bridge._host.links.relay.resource_manager._reservations
        assert list(held) == [ID.from_base58(BOB.peer)]


async def lookup_dials(bridge: Bridge, other: Node) -> None:
    """Dial as the library does when a lookup names a peer.  On the trio side."""
    (addr,) = other.bridge.addrs()
    await bridge._host._network.dial_addr(Multiaddr(addr), ID.from_base58(other.peer))


async def test_who_was_dialled_by_a_lookup_alone_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle, "LOOK_S", 0.05)
    async with node(ALICE) as alice, node(BOB) as bob, node(CAROL) as carol, node(DAVE) as dave:
        gone = asyncio.Event()
        alice.bridge._on_peer = lambda peer, is_here: None if is_here else gone.set()
        await alice.bridge.connect(bob.bridge.addrs()[0], 5)  # as we were told to
        await dave.bridge.connect(alice.bridge.addrs()[0], 5)  # who dialled us
        await alice.bridge.call(lookup_dials, alice.bridge, carol)
        await gone.wait()
        assert set(alice.bridge.connected()) == {bob.peer, dave.peer}


async def test_a_relay_that_holds_our_reservation_is_not_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else binds us to it: a lookup dialled it, and no stream to it is open."""
    monkeypatch.setattr(idle, "LOOK_S", 0.5)  # two looks have to be longer than it takes to reserve
    async with node(BOB) as bob, node(CAROL) as carol, node(DAVE) as dave:
        gone: asyncio.Queue[PeerId] = asyncio.Queue()
        bob.bridge._on_peer = lambda peer, is_here: None if is_here else gone.put_nowait(peer)
        carol.bridge.be_public(True, 1000.0)
        await bob.bridge.call(lookup_dials, bob.bridge, carol)
        await bob.bridge.reserve(carol.peer)
        for _ in range(2):  # Dave is dialled after Carol, so she would be hung up on first
            await bob.bridge.call(lookup_dials, bob.bridge, dave)
            assert await gone.get() == dave.peer
        held = carol.bridge._host.links.relay.resource_manager._reservations
        assert list(held) == [ID.from_base58(BOB.peer)]
