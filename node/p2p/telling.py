"""Telling peers of the DHT what they keep for us: that we provide a key, or our signed record.

Pinned by tests/test_dht.py, as it reaches below the documented surface of the library.  Trio side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID

TELL_S = 5.0
"""For one peer to take what it is told, dialled first if it has hung up; as a question of a
lookup."""


async def put_at(dht: KadDHT, key: bytes, value: bytes, peers: Sequence[ID]) -> int:
    """Keep the value here and store it at these peers; how many of them took it.

    `KadDHT.put_value` does the same, does not tell, and does it again every 22 hours for ever.
    Can go when it does as it is told.
    """
    dht.value_store.put(key, value)
    return await _told(peers, lambda peer: dht.value_store._store_at_peer(peer, key, value))


async def tell_provider(dht: KadDHT, key: bytes, peers: Sequence[ID]) -> int:
    """Tell these peers that we provide `key`; how many of them were told.

    `KadDHT.provide` looks for the peers by itself, waits ten seconds for a silent one, and does
    it again every 22 hours for ever.  Can go when it does as it is told.
    """
    return await _told(peers, lambda peer: dht.provider_store._send_add_provider(peer, key))


async def _told(peers: Sequence[ID], tell: Callable[[ID], Awaitable[bool]]) -> int:
    """How many were told, all at once."""
    told = 0

    async def tell_one(peer: ID) -> None:
        nonlocal told
        with trio.move_on_after(TELL_S):
            told += await tell(peer)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(tell_one, peer)
    return told
