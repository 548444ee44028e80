"""The DHT over real sockets on loopback: signed address records, and halves that meet again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from libp2p.kad_dht import value_store
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from node.bridge import Bridge
from node.p2p import library
from node.p2p.dht import RecordValidator
from node.p2p.providers import MAX_GIVEN, MAX_KEYS, MAX_PER_KEY, TTL_S, Providers
from protocol.envelope import Signer
from protocol.errors import Malformed
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
    await one.connect(other.addrs()[0], 5)


def record(seq: int = 1, left_s: int = 600) -> PeerRecord:
    return PeerRecord(
        peer=ALICE.peer,
        run=RUN,
        addrs=(f"/ip4/192.0.2.1/tcp/4001/p2p/{ALICE.peer}",),
        seq=seq,
        expires_unix_s=BEGIN + left_s,
    )


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
        sign_peer_record(record(9), ALICE)[:-1] + b"\0",
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
        store.providers.clear()  # in a large swarm Alice would not have told him
        assert [peer for peer, _ in await bob.find_providers(b"k" * 32)] == [ALICE.peer]
        assert store.providers == {}


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
