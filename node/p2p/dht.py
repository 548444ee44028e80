"""The DHT: who says to have or do what.

Kademlia of py-libp2p in server mode.  Its provider records are not signed and may be old, so
what `find_providers` returns are candidates: a provider is who answers a call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service

from node.p2p import library
from node.p2p.addrs import is_shoal_id
from protocol.ids import PeerId

ASKED_RECORDS = 200
"""Records after which a lookup stops.  The library counts repeated ones, and one provider came
back 20 times from 40 hosts, so its default of 20 could hide every other provider."""
MAX_PROVIDERS = 32
MAX_ADDRS = 8
"""Of one provider."""
IDENTIFY_S = 10.0
"""How long a new peer is waited for to identify itself; two round trips in fact."""
IDENTIFY_LOOKS = 100
LOOKUP_S = 10.0
"""Measured with 40 hosts: 0-0.4 s, once 1.2 s; a dead peer costs the library up to 10 s."""


class Dht:
    """One per node, on the trio side."""

    def __init__(self, host: IHost) -> None:
        self._me = host.get_id()
        self._dht = KadDHT(host, DHTMode.SERVER)

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
            told: bool = await self._dht.provider_store.provide(key)
            return told
        return False

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Candidates with their addresses, each once, without us; perhaps none."""
        known = library.forget_providers(self._dht, key)
        found = [record.provider_info for record in known.values() if not record.is_expired()]
        try:
            with trio.move_on_after(LOOKUP_S):
                found += await self._dht.provider_store.find_providers(key, ASKED_RECORDS)
        finally:
            library.restore_providers(self._dht, key, known)
        return self._distinct(found)

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
