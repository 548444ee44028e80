"""The DHT: who says to have or do what, and where each says it can be dialled.

Kademlia of py-libp2p in server mode.  Its provider records are not signed and may be old, so
what `find_providers` returns are candidates: a provider is who answers a call.  Values are
peers' signed records (protocol/peer_record.py) and nothing else: whoever would store or return
another value is refused, so this node keeps no stranger's bytes.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.common import BETA
from libp2p.kad_dht.kad_dht import DHTMode
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service

from node.p2p import library
from node.p2p.addrs import is_shoal_id, readable
from node.p2p.lookup import Ask, ask_closest
from node.p2p.providers import Providers
from node.p2p.query import closer_at, providers_at, value_at
from node.p2p.telling import put_at, tell_provider
from protocol.ids import PeerId
from protocol.limits import MAX_ADDRS
from protocol.peer_record import NAMESPACE, best, open_peer_record

ASKED_RECORDS = 64
"""Records, repeated ones too, after which a lookup asks nobody else: with twenty, the first ten
peers that know the same two would be enough."""
MAX_PROVIDERS = 32
IDENTIFY_S = 10.0
"""How long a new peer is waited for to identify itself; two round trips in fact."""
IDENTIFY_LOOKS = 100
LOOKUP_S = 10.0
"""Of a whole lookup: with 200 nodes 0.4 s, and two silent peers after each other 10 s at most."""
REFRESH_S = 600.0
"""Between two refreshes of the routing table, as go-libp2p; up to a quarter more or less, so that
nodes that were started together do not refresh together."""
RANDOM_KEYS = 2
"""Looked up in a refresh beside our own id, whatever the size of the swarm.  A guess: the lookups
of a run's members and of their records are as random, and more frequent."""
ENOUGH_RECORDS = 3
"""Valid copies of a peer's record after which a lookup asks nobody else: of three one is new,
unless that many of the twenty peers that were told slept through the last five minutes."""


class Dht:
    """One per node, on the trio side."""

    def __init__(self, host: IHost, unix_s: Callable[[], float] = time.time) -> None:
        """Args: unix_s: the wall clock, by which records expire."""
        self._me = host.get_id()
        self._unix_s = unix_s
        self._host = host
        self._dht = library.QuietKad(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: RecordValidator(unix_s)}),
            validator_changed=True,  # or else it would keep /pk and /ipns for strangers, too
            strict_validation=True,
        )
        self._rng = random.Random(secrets.randbits(64))
        self._providers = Providers(host, self._dht.peer_routing, self._rng, unix_s)
        self._dht.provider_store = self._providers

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer other peers and keep the routing table meanwhile."""
        async with background_trio_service(self._dht), trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_table)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _keep_table(self) -> None:
        while True:
            await trio.sleep(REFRESH_S * self._rng.uniform(0.75, 1.25))
            await self.refresh()
            self._dht.value_store.cleanup_expired()

    async def refresh(self) -> None:
        """Get to know who is closest to us, and some of those far away.

        A random key is looked up for the peers on the way to it, so its three closest will do,
        asked three at once as in Kademlia.
        """
        me = self._me.to_bytes()
        with trio.move_on_after(LOOKUP_S):
            await ask_closest(self._dht, me, self._closer(me))
        for _ in range(RANDOM_KEYS):
            key = self._rng.randbytes(32)
            with trio.move_on_after(LOOKUP_S):
                await ask_closest(self._dht, key, self._closer(key), heard=BETA, at_once=BETA)

    async def _near(self, key: bytes) -> list[ID]:
        """The twenty peers that are told something about `key`; the specification's end of a walk
        to them: once the three closest have answered."""
        return await ask_closest(self._dht, key, self._closer(key), heard=BETA)

    def _closer(self, key: bytes) -> Ask:
        return partial(closer_at, self._dht, key=key)

    async def add_peer(self, peer: ID) -> None:
        """Ask this connected peer too, once identify has told where it listens.

        The library adds a peer by itself only when that peer asks us something; it has no event
        for identify, so this looks now and then.
        """
        for _ in range(IDENTIFY_LOOKS):
            if await self._dht.add_peer(peer):
                return
            await trio.sleep(IDENTIFY_S / IDENTIFY_LOOKS)

    async def provide(self, key: bytes) -> bool:
        """Tell the peers closest to `key` that we provide it; whether any of them knows now."""
        self._providers.add_provider(key, PeerInfo(self._me, self._host.get_addrs()))
        with trio.move_on_after(LOOKUP_S):
            near = await self._near(key)
            return await tell_provider(self._dht, key, near) > 0
        return False

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Candidates with their addresses, each once, without us; perhaps none."""
        found = self._providers.get_providers(key)

        async def ask(peer: ID) -> list[ID]:
            providers, closer = await providers_at(self._dht, peer, key)
            found.extend(providers)
            return closer

        with trio.move_on_after(LOOKUP_S):
            await ask_closest(self._dht, key, ask, lambda: len(found) >= ASKED_RECORDS)
        return self._distinct(found)

    async def put_record(self, key: str, value: bytes) -> bool:
        """Store our signed record at the peers closest to its key; whether one of them took it."""
        with trio.move_on_after(LOOKUP_S):
            near = await self._near(key.encode())
            return await put_at(self._dht, key.encode(), value, near) > 0
        return False

    async def find_record(self, key: str) -> bytes | None:
        """The newest valid record under `key`, here or at others; None if there is none."""
        stored = self._dht.value_store.get(key.encode())
        mine = [] if stored is None else [stored.value]
        found: list[bytes] = []

        async def ask(peer: ID) -> list[ID]:
            value, closer = await value_at(self._dht, peer, key.encode())
            if value is not None and best(key, [value], self._unix_s()) is not None:
                found.append(value)
            return closer

        with trio.move_on_after(LOOKUP_S):
            await ask_closest(self._dht, key.encode(), ask, lambda: len(found) >= ENOUGH_RECORDS)
        chosen = best(key, mine + found, self._unix_s())
        return None if chosen is None else (mine + found)[chosen]

    def _distinct(self, found: list[PeerInfo]) -> list[tuple[PeerId, list[str]]]:
        addrs: dict[PeerId, list[str]] = {}
        for info in found:
            peer = PeerId(info.peer_id.to_base58())
            if info.peer_id == self._me or not is_shoal_id(peer):
                continue
            if peer not in addrs and len(addrs) == MAX_PROVIDERS:
                break
            mine = addrs.setdefault(peer, [])
            for addr in readable(info.addrs[:MAX_ADDRS]):
                if addr not in mine and len(mine) < MAX_ADDRS:
                    mine.append(addr)
        return list(addrs.items())


class RecordValidator(Validator):
    """What the library asks before it stores, returns or replaces a value."""

    def __init__(self, unix_s: Callable[[], float]) -> None:
        self._unix_s = unix_s

    def validate(self, key: str, value: bytes) -> None:
        """Raises Malformed: it is no record that counts under this key."""
        open_peer_record(key, value, self._unix_s())

    def select(self, key: str, values: list[bytes]) -> int:
        """Which one counts.  Raises ValueError: none of them."""
        chosen = best(key, values, self._unix_s())
        if chosen is None:
            raise ValueError(f"none of {len(values)} values is a record that counts")
        return chosen
