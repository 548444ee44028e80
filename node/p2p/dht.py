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

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service

from node.p2p import library
from node.p2p.addrs import is_shoal_id
from node.p2p.lookup import ask_closest
from node.p2p.providers import Providers
from protocol.ids import PeerId
from protocol.peer_record import NAMESPACE, best, open_peer_record

ASKED_RECORDS = 64
"""Records, repeated ones too, after which a lookup asks nobody else: with twenty, the first ten
peers that know the same two would be enough."""
MAX_PROVIDERS = 32
MAX_ADDRS = 8
"""Of one provider."""
IDENTIFY_S = 10.0
"""How long a new peer is waited for to identify itself; two round trips in fact."""
IDENTIFY_LOOKS = 100
LOOKUP_S = 10.0
"""Measured with 40 hosts: 0-0.4 s, once 1.2 s; a dead peer costs the library up to 10 s."""
ENOUGH_RECORDS = 3
"""Valid copies of a peer's record after which a lookup asks nobody else: of three one is new,
unless that many of the twenty peers that were told slept through the last five minutes."""


class Dht:
    """One per node, on the trio side."""

    def __init__(self, host: IHost, unix_s: Callable[[], float] = time.time) -> None:
        """Args: unix_s: the wall clock, by which records expire."""
        self._me = host.get_id()
        self._unix_s = unix_s
        self._dht = KadDHT(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: RecordValidator(unix_s)}),
            validator_changed=True,  # or else it would keep /pk and /ipns for strangers, too
            strict_validation=True,
        )
        rng = random.Random(secrets.randbits(64))
        self._providers = Providers(host, self._dht.peer_routing, rng, unix_s)
        self._dht.provider_store = self._providers

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer other peers and keep the routing table meanwhile."""
        async with background_trio_service(self._dht):
            yield

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
        with trio.move_on_after(LOOKUP_S):
            told: bool = await self._providers.provide(key)
            return told
        return False

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Candidates with their addresses, each once, without us; perhaps none."""
        found = self._providers.get_providers(key)

        async def ask(peer: ID) -> list[ID]:
            providers, closer = await library.providers_at(self._dht, peer, key)
            found.extend(providers)
            return closer

        with trio.move_on_after(LOOKUP_S):
            await ask_closest(self._dht, key, ask, lambda: len(found) >= ASKED_RECORDS)
        return self._distinct(found)

    async def put_record(self, key: str, value: bytes) -> bool:
        """Store our signed record at the peers closest to its key; whether one of them took it."""
        with trio.move_on_after(LOOKUP_S):
            near = await self._dht.peer_routing.find_closest_peers_network(key.encode())
            others = [peer for peer in near if peer != self._me]
            return await library.put_at(self._dht, key.encode(), value, others) > 0
        return False

    async def find_record(self, key: str) -> bytes | None:
        """The newest valid record under `key`, here or at others; None if there is none."""
        stored = self._dht.value_store.get(key.encode())
        mine = [] if stored is None else [stored.value]
        found: list[bytes] = []

        async def ask(peer: ID) -> list[ID]:
            value, closer = await library.value_at(self._dht, peer, key.encode())
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
            for addr in info.addrs[:MAX_ADDRS]:
                if str(addr) not in mine and len(mine) < MAX_ADDRS:
                    mine.append(str(addr))
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
