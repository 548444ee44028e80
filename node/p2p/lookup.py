"""A lookup in the DHT: the peers closest to a key are asked what they keep under it, nobody else.

The library asks on until it has as many answers as it was told to find.  Of what few provide,
and of what nobody does, there are never so many, so it asks every peer that it hears of: among
200 nodes each first lookup of a run dialled them all.  Here a lookup ends with the twenty
closest, which are those that a provider tells.  One of them that does not answer makes room for
the next.

Can go when the library does as much; tests/test_dht.py pins what is relied on.
Source: Kademlia, section 2.3, and the provider records of
https://github.com/libp2p/specs/blob/master/kad-dht/README.md
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.kad_dht.common import ALPHA, BUCKET_SIZE, QUERY_TIMEOUT
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

Ask = Callable[[ID], Awaitable[Sequence[ID]]]
"""Asks one peer, keeps what it says, and returns who is closer as that peer knows; nobody: it did
not answer."""


async def ask_closest(dht: KadDHT, key: bytes, ask: Ask, has_enough: Callable[[], bool]) -> None:
    """Ask those closest to `key`, ten at a time, until there is enough or all were asked."""
    asked = {dht.local_peer_id}
    silent = {dht.local_peer_id}
    known = dict.fromkeys(await dht.peer_routing.find_closest_peers_network(key))

    async def ask_one(peer: ID, others: trio.CancelScope) -> None:
        closer: Sequence[ID] = ()
        with trio.move_on_after(QUERY_TIMEOUT):
            closer = await ask(peer)
        known.update(dict.fromkeys(closer))
        if not closer:
            silent.add(peer)
        if has_enough():
            others.cancel()

    while not has_enough():
        closest = sort_peer_ids_by_distance(key, [peer for peer in known if peer not in silent])
        batch = [peer for peer in closest[:BUCKET_SIZE] if peer not in asked][:ALPHA]
        if not batch:
            return
        asked.update(batch)
        async with trio.open_nursery() as nursery:
            for peer in batch:
                nursery.start_soon(ask_one, peer, nursery.cancel_scope)
