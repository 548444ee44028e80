"""The DHT over real sockets on loopback: signed address records, and halves that meet again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.kad_dht import value_store
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock

from node.addr_text import peer_in
from node.bridge import Bridge
from node.p2p import library
from node.p2p.dht import RecordValidator
from node.p2p.lookup import CONNECTED_S, DIALLED_S, ask_closest, never
from node.p2p.providers import MAX_GIVEN, MAX_KEYS, MAX_PER_KEY, TTL_S, Providers
from node.p2p.query import Silent
from node.p2p.streams import STREAM_ERRORS
from protocol.envelope import Signer
from protocol.errors import Malformed, PeerUnavailable
from protocol.ids import PeerId, RunId
from protocol.peer_record import PeerRecord, open_peer_record, record_key, sign_peer_record

pytestmark = pytest.mark.libp2p

RUN = RunId(b"r" * 32)
SIGNERS = [Signer(bytes([n]) * 32) for n in range(20, 26)]
ALICE = SIGNERS[0]
KEY = record_key(ALICE.peer, RUN)
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
BEGIN = int(time.time())
DEADLINE_S = 15.0
"""Of what takes a second on an idle machine."""


@asynccontextmanager
async def hosts(number: int) -> AsyncIterator[list[Bridge]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Bridge(signer, listen=LOOPBACK))
            for signer in SIGNERS[:number]
        ]


async def link(one: Bridge, other: Bridge) -> None:
    """Connect them, and have each in the other's routing table: once they have identified."""
    await one.connect(other.addrs()[0], 5)
    async with asyncio.timeout(DEADLINE_S):
        for knower, known in ((one, other), (other, one)):
            while not await is_in_table_of(knower, known):
                pass


async def is_in_table_of(knower: Bridge, known: Bridge) -> bool:
    return await knower.call(is_in_table, knower, peer_in(known.addrs()[0]))


async def is_in_table(bridge: Bridge, peer: PeerId) -> bool:
    """On the trio side."""
    return bool(bridge._host.dht._dht.routing_table.peer_in_table(ID.from_base58(peer)))


def record(seq: int = 1, left_s: int = 3600) -> PeerRecord:
    return PeerRecord(
        peer=ALICE.peer,
        run=RUN,
        addrs=(f"/ip4/192.0.2.1/tcp/4001/p2p/{ALICE.peer}",),
        seq=seq,
        expires_unix_s=BEGIN + left_s,
    )


def forged(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


async def test_a_signed_record_is_found_by_a_peer_that_never_met_its_author() -> None:
    async with hosts(4) as (alice, gate, bob, carol):
        for other in (alice, bob, carol):
            await link(other, gate)
        assert await bob.find_record(KEY) is None
        value = sign_peer_record(record(), ALICE)
        assert await alice.put_record(KEY, value)
        found = await bob.find_record(KEY)
        assert found == value
        assert open_peer_record(KEY, found, time.time()) == record()


async def test_a_newer_record_replaces_the_one_that_a_peer_looked_up_before() -> None:
    async with hosts(3) as (alice, gate, bob):
        await link(alice, gate)
        await link(bob, gate)
        assert await alice.put_record(KEY, sign_peer_record(record(1), ALICE))
        assert await bob.find_record(KEY) == sign_peer_record(record(1), ALICE)
        newer = sign_peer_record(replace(record(2), addrs=()), ALICE)
        assert await alice.put_record(KEY, newer)
        # In a large swarm nobody would have told Bob; here Alice did, so make him forget it.
        stale = sign_peer_record(record(1), ALICE)
        bob.post(bob._host.dht._dht.value_store.put, KEY.encode(), stale)
        assert await bob.find_record(KEY) == newer
        assert await bob.find_record(KEY) == newer


@pytest.mark.parametrize(
    "value",
    [
        sign_peer_record(record(9, left_s=-1), ALICE),
        sign_peer_record(replace(record(9), expires_unix_s=1 << 39), ALICE),
        forged(sign_peer_record(record(9), ALICE)),
        b"any bytes at all",
    ],
)
async def test_what_is_expired_or_forged_is_taken_and_given_by_nobody(value: bytes) -> None:
    async with hosts(3) as (mallory, gate, bob):
        await link(mallory, gate)
        await link(bob, gate)
        assert not await mallory.put_record(KEY, value)
        for other in (gate, bob):
            assert other._host.dht._dht.value_store.store == {}
        # A peer that keeps it all the same convinces nobody.
        gate.post(gate._host.dht._dht.value_store.put, KEY.encode(), value)
        assert await bob.find_record(KEY) is None
        assert await mallory.find_record(KEY) is None


async def test_nothing_but_address_records_is_kept_for_strangers() -> None:
    async with hosts(2) as (mallory, bob):
        await link(mallory, bob)
        for key in ("/pk/x", "/ipns/x", "/other/x", "plain"):
            assert not await mallory.put_record(key, b"x" * 1000)
        assert bob._host.dht._dht.value_store.store == {}
        assert vars(value_store)["MAX_VALUE_STORE_SIZE"] == library.MAX_VALUES


async def test_alone_nothing_is_told_and_the_own_record_is_found() -> None:
    async with hosts(1) as (alice,):
        value = sign_peer_record(record(), ALICE)
        assert not await alice.put_record(KEY, value)
        assert await alice.find_record(KEY) == value


async def test_halves_that_were_apart_find_each_others_providers_over_one_link() -> None:
    key = b"k" * 32
    async with hosts(4) as nodes:
        peers = [PeerId(signer.peer) for signer in SIGNERS[:4]]
        await link(nodes[0], nodes[1])
        await link(nodes[2], nodes[3])
        async with asyncio.timeout(DEADLINE_S):
            for node in nodes:
                while not await node.provide(key):
                    pass
        for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
            found = await nodes[one].find_providers(key)
            assert [peer for peer, _ in found] == [peers[other]]
        await link(nodes[1], nodes[2])
        async with asyncio.timeout(DEADLINE_S):
            for number, node in enumerate(nodes):
                others = set(peers) - {peers[number]}
                while {peer for peer, _ in await node.find_providers(key)} != others:
                    pass


# --- provider records ------------------------------------------------------------------------


def provider(number: int) -> PeerInfo:
    peer = Signer(number.to_bytes(32, "big")).peer
    return PeerInfo(ID.from_base58(peer), [Multiaddr("/ip4/192.0.2.1/tcp/1")])


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def with_store(check: Callable[[Providers, Clock], None]) -> None:
    """Run `check` on a node's provider store, on the trio side."""
    async with hosts(1) as (alice,):

        async def on_trio() -> None:
            store, clock = alice._host.dht._providers, Clock()
            store._unix_s, store._rng = clock, random.Random(1)
            check(store, clock)

        await alice.call(on_trio)


async def test_a_full_key_takes_a_later_provider_all_the_same() -> None:
    def check(store: Providers, clock: Clock) -> None:
        for number in range(MAX_PER_KEY + 1):
            store.add_provider(b"k", provider(number))
        assert len(store.providers[b"k"]) == MAX_PER_KEY
        assert str(provider(MAX_PER_KEY).peer_id) in store.providers[b"k"]
        first = {str(info.peer_id) for info in store.get_providers(b"k")}
        again = {str(info.peer_id) for info in store.get_providers(b"k")}
        assert len(first) == len(again) == MAX_GIVEN
        assert first != again

    await with_store(check)


async def test_a_provider_that_is_silent_for_an_hour_is_named_no_more() -> None:
    def check(store: Providers, clock: Clock) -> None:
        store.add_provider(b"k", provider(1))
        clock.now += TTL_S / 2
        store.add_provider(b"k", provider(2))
        clock.now += TTL_S / 2 + 1
        assert [info.peer_id for info in store.get_providers(b"k")] == [provider(2).peer_id]
        clock.now += TTL_S
        assert store.get_providers(b"k") == []
        assert store.providers == {}

    await with_store(check)


async def test_a_flood_of_keys_costs_those_that_nobody_provides_any_more() -> None:
    def check(store: Providers, clock: Clock) -> None:
        store.add_provider(b"dead", provider(1))
        store.add_provider(b"run", provider(1))
        for number in range(MAX_KEYS):
            store.add_provider(number.to_bytes(4, "big"), provider(2))
            if number % 1000 == 0:
                store.add_provider(b"run", provider(1))
        assert len(store.providers) == MAX_KEYS
        assert (b"dead" in store.providers, b"run" in store.providers) == (False, True)

    await with_store(check)


async def test_what_a_lookup_brings_is_not_passed_on_as_if_it_were_new() -> None:
    async with hosts(3) as (alice, gate, bob):
        await link(alice, gate)
        await link(bob, gate)
        assert await alice.provide(b"k" * 32)
        store = bob._host.dht._providers

        async def is_told() -> bool:
            return bool(store.providers)

        async with asyncio.timeout(DEADLINE_S):
            while not await bob.call(is_told):
                pass
        store.providers.clear()  # in a large swarm Alice would not have told him
        assert [peer for peer, _ in await bob.find_providers(b"k" * 32)] == [ALICE.peer]
        assert store.providers == {}


# --- lookups -----------------------------------------------------------------------------------


class Swarm:
    """Sixty peers, each of whom knows all; stands in for the library's `KadDHT`, too."""

    peers = tuple(provider(number).peer_id for number in range(1, 61))
    nearest = tuple(sort_peer_ids_by_distance(b"k", list(peers)))
    local_peer_id = provider(99).peer_id

    def __init__(
        self, silent: tuple[ID, ...] = (), hung: tuple[ID, ...] = (), connected: Sequence[ID] = ()
    ) -> None:
        self.routing_table = self
        self.host = self
        self.asked: list[ID] = []
        self.in_table = list(self.nearest[5:15])  # the closest are heard of from these
        self.connected = list(connected)
        self.most_at_once = 0
        self._at_once = 0
        self._silent = silent
        self._hung = hung

    def find_local_closest_peers(self, key: bytes, count: int) -> list[ID]:
        return sort_peer_ids_by_distance(key, self.in_table)[:count]

    async def add_peer(self, peer: ID) -> bool:
        self.in_table = [*(other for other in self.in_table if other != peer), peer]
        return True

    def remove_peer(self, peer: ID) -> bool:
        self.in_table = [other for other in self.in_table if other != peer]
        return True

    def get_connected_peers(self) -> list[ID]:
        return self.connected

    async def ask(self, peer: ID) -> Sequence[ID]:
        self.asked.append(peer)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if peer in self._hung:
                await trio.sleep_forever()
            await trio.sleep(0.1)
            if peer in self._silent:
                raise Silent("no")
        finally:
            self._at_once -= 1
        return (*self.peers, self.local_peer_id)


def look_up(
    swarm: Swarm, has_enough: Callable[[], bool] = never, **bounds: int
) -> tuple[list[ID], float]:
    """Whom a lookup found, and after how many virtual seconds."""

    async def timed() -> tuple[list[ID], float]:
        found = await ask_closest(swarm, b"k", swarm.ask, has_enough, **bounds)  # type: ignore[arg-type]
        return found, round(trio.current_time() - began, 3)

    clock = MockClock(autojump_threshold=0)
    began = clock.current_time()
    return trio.run(timed, clock=clock)


def test_what_nobody_provides_is_asked_of_the_twenty_closest_and_of_nobody_else() -> None:
    swarm = Swarm()
    assert look_up(swarm) == (list(swarm.nearest[:20]), 0.2)  # ten at once
    assert set(swarm.asked) == set(swarm.nearest[:20])
    assert len(swarm.asked) == 20
    assert swarm.most_at_once == 10


def test_a_peer_that_does_not_answer_makes_room_for_the_next() -> None:
    swarm = Swarm(silent=Swarm.nearest[:3])
    assert look_up(swarm)[0] == list(swarm.nearest[3:23])
    assert set(swarm.asked) == set(swarm.nearest[:23])


def test_a_lookup_ends_when_it_has_enough() -> None:
    swarm = Swarm()
    look_up(swarm, lambda: len(swarm.asked) > 0)
    assert set(swarm.asked) == set(swarm.nearest[5:15])  # they are asked at once


@pytest.mark.parametrize(("connected", "within_s"), [(True, CONNECTED_S), (False, DIALLED_S)])
def test_peers_that_hang_cost_a_lookup_one_short_deadline_together_and_leave_the_table(
    connected: bool, within_s: float
) -> None:
    """Nine of the ten places are taken by them; the others are asked through the tenth."""
    hung = Swarm.nearest[5:14]
    swarm = Swarm(hung=hung, connected=hung if connected else ())
    expected = [*Swarm.nearest[:5], *Swarm.nearest[14:29]]
    assert look_up(swarm) == (expected, within_s + 0.1)
    assert not set(hung) & set(swarm.in_table)


def test_who_hangs_and_is_not_among_the_closest_is_not_waited_for() -> None:
    swarm = Swarm(hung=(Swarm.nearest[30],))
    swarm.in_table = [Swarm.nearest[30], Swarm.nearest[40]]
    assert look_up(swarm) == (list(Swarm.nearest[:20]), 0.4)


def test_who_only_wants_to_know_the_closest_ends_when_three_of_them_have_answered() -> None:
    """Another of them hangs, and is told all the same: it may wake up."""
    swarm = Swarm(hung=(Swarm.nearest[3],))
    assert look_up(swarm, heard=3) == (list(swarm.nearest[:20]), 0.2)
    assert len(swarm.asked) < 25


def test_with_nobody_in_the_routing_table_who_is_connected_is_asked() -> None:
    swarm = Swarm(connected=(Swarm.nearest[50],))
    swarm.in_table = []
    assert look_up(swarm)[0] == list(Swarm.nearest[:20])


async def test_a_refresh_asks_as_many_in_a_swarm_of_two_hundred_as_in_one_of_forty() -> None:
    """The library would look up a key for about every fourteen peers that it knows."""
    asked = {number: await asked_in_a_refresh(number) for number in (40, 200)}
    assert asked[200] <= asked[40] <= 20 + 2 * 12, asked


async def asked_in_a_refresh(number: int) -> int:
    """How many questions a node asks that knows `number` others, each of whom knows them all."""
    everybody = [provider(n).peer_id for n in range(1, number + 1)]
    asked: list[ID] = []
    async with hosts(1) as (alice,):
        dht = alice._host.dht

        async def answer(kad: object, peer: ID, key: bytes) -> list[ID]:
            asked.append(peer)
            return sort_peer_ids_by_distance(key, everybody)[:20]

        async def on_trio() -> None:
            for peer in everybody:
                await dht._dht.routing_table.add_peer(PeerInfo(peer, []))
            await dht.refresh()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("node.p2p.dht.closer_at", answer)
            await alice.call(on_trio)
    return len(asked)


async def test_the_librarys_own_maintenance_asks_nobody() -> None:
    """It grows with the swarm, and puts again what expires sooner; `Dht` refreshes instead."""
    async with hosts(2) as (alice, bob):
        await link(alice, bob)
        assert await alice.provide(b"k" * 32)
        before = alice.counters().raw_up

        async def maintain() -> None:
            with trio.fail_after(DEADLINE_S):
                await alice._host.dht._dht._run_main_loop()

        await alice.call(maintain)
        assert alice._host.dht._dht.provider_store.providing_keys == set()
        assert alice.counters().raw_up == before


async def test_a_record_is_stored_at_peers_that_only_others_know() -> None:
    async with hosts(4) as (alice, gate, bob, carol):
        for other in (alice, bob, carol):
            await link(other, gate)
        assert await alice.put_record(KEY, sign_peer_record(record(), ALICE))
        kept = [
            KEY.encode() in other._host.dht._dht.value_store.store for other in (gate, bob, carol)
        ]
        assert kept == [True, True, True]


@pytest.mark.parametrize(
    "said", [b"", b"\x03abc", b"\x02\x08\x00", b"\xff" * 10, b"\x80\x80\x40" + bytes(1 << 20)]
)
async def test_a_peer_that_answers_with_nonsense_is_silent_and_the_others_are_asked(
    said: bytes,
) -> None:
    async with hosts(3) as (alice, mallory, bob):
        await link(alice, bob)
        assert await bob.provide(b"k" * 32)
        await link(alice, mallory)

        async def nonsense(stream: INetStream) -> None:
            with contextlib.suppress(*STREAM_ERRORS):
                await stream.write(said)
                await stream.close()

        mallory.post(mallory._host._host.set_stream_handler, PROTOCOL_ID, nonsense)
        found = await alice.find_providers(b"k" * 32)
        assert [peer for peer, _ in found] == [SIGNERS[2].peer]
        assert not await is_in_table_of(alice, mallory)


async def test_an_address_that_cannot_be_read_is_left_out_wherever_a_peer_put_it() -> None:
    """The library takes any bytes for an address, and fails when it is printed."""
    broken, good = Multiaddr(b"\xff\xff"), Multiaddr("/ip4/127.0.0.1/tcp/9")
    mallory = provider(1)
    async with hosts(2) as (alice, bob):
        await link(alice, bob)

        async def be_told() -> None:
            info = PeerInfo(mallory.peer_id, [broken, good])
            bob._host.dht._providers.add_provider(b"k" * 32, info)
            alice._host._network.peerstore.add_addrs(mallory.peer_id, [broken, good], 60)

        for bridge in (alice, bob):
            await bridge.call(be_told)
            found = await bridge.find_providers(b"k" * 32)
            assert found == [(mallory.peer_id.to_base58(), ["/ip4/127.0.0.1/tcp/9"])]
        with pytest.raises(PeerUnavailable, match=r"cannot be dialled: /ip4/127\.0\.0\.1/tcp/9"):
            await alice.connect(PeerId(mallory.peer_id.to_base58()), 5)


async def test_who_was_ever_heard_of_is_not_dialled_unasked() -> None:
    async with hosts(3) as (alice, gate, bob):
        await link(alice, gate)
        await link(bob, gate)
        network = alice._host._network

        async def hears_of_bob() -> None:
            (addr,) = bob._host.addrs
            network.peerstore.add_addrs(ID.from_base58(SIGNERS[2].peer), [Multiaddr(addr)], 60)
            await network.auto_connector.maybe_connect()

        await alice.call(hears_of_bob)
        assert alice.connected() == (SIGNERS[1].peer,)


async def test_a_stream_is_closed_also_when_its_opener_is_cancelled() -> None:
    async with hosts(2) as (alice, bob):
        await link(alice, bob)
        me = alice._host

        async def cancelled() -> int:
            stream = await me._host.new_stream(ID.from_base58(SIGNERS[1].peer), [PROTOCOL_ID])
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    await stream.close()
            return sum(stream in c.get_streams() for c in me._network.get_connections())

        assert await alice.call(cancelled) == 0


def test_the_validator_chooses_by_number_and_refuses_what_does_not_count() -> None:
    validator = RecordValidator(time.time)
    old, new = sign_peer_record(record(1), ALICE), sign_peer_record(record(2), ALICE)
    expired = sign_peer_record(record(3, left_s=-1), ALICE)
    validator.validate(KEY, new)
    assert validator.select(KEY, [old, new, expired]) == 1
    assert validator.select(KEY, [new, new]) == 0
    with pytest.raises(ValueError, match="none of 1 values"):
        validator.select(KEY, [expired])
    with pytest.raises(Malformed):
        validator.validate(KEY, expired)
