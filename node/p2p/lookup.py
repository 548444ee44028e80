"""A lookup in the DHT: the peers closest to a key are asked what they keep under it, nobody else.

The library asks on until it has as many answers as it was told to find.  Of what few provide,
and of what nobody does, there are never so many, so it asks every peer that it hears of: among
200 nodes each first lookup of a run dialled them all.  Here a lookup ends with the twenty
closest, which are those that a provider tells.  One of them that does not answer makes room for
the next, and takes one place of ten meanwhile: the others are asked on.

The routing table is who has answered, or asked us, lately: who is silent leaves it, so that the
next lookup does not wait for the same dead peer.

Can go when the library does as much; tests/test_dht.py pins what is relied on.
Source: Kademlia, sections 2.2 and 2.3, and the provider records of
https://github.com/libp2p/specs/blob/master/kad-dht/README.md
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.kad_dht.common import ALPHA, BUCKET_SIZE
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

from node.p2p.query import Silent

Ask = Callable[[ID], Awaitable[Sequence[ID]]]
"""Asks one peer, keeps what it says, and returns whom that peer knows close to the key.  Raises
`Silent`."""

CONNECTED_S = 3.0
"""For a connected peer to answer: three round trips, and its processor may be busy.  A silent one
may be among the closest of every lookup, so this is what it costs each."""
DIALLED_S = 5.0
"""The same for one that must be dialled first, in three handshakes; as dialling.DIAL_ADDR_S."""
FEW = 5
"""With fewer in the routing table, whoever is connected is asked, too; as the library."""


def never() -> bool:
    """There is never enough: all closest are asked."""
    return False


def deadline_s(dht: KadDHT, peer: ID) -> float:
    """What one question to `peer` may take."""
    return CONNECTED_S if peer in dht.host.get_connected_peers() else DIALLED_S


async def ask_closest(
    dht: KadDHT,
    key: bytes,
    ask: Ask,
    has_enough: Callable[[], bool] = never,
    *,
    heard: int = BUCKET_SIZE,
    at_once: int = ALPHA,
) -> list[ID]:
    """Ask those closest to `key`, so many `at_once`, until there is enough or all have answered.

    Args:
        heard: so many of the closest must have answered, or all that are known.

    Returns:
        The twenty closest, the closest first, without those that did not answer when asked.
    """
    if has_enough():
        return []
    lookup = _Lookup(dht, key, ask, has_enough)
    async with trio.open_nursery() as nursery:
        while (next_ones := lookup.next_ones(heard, at_once)) is not None:
            lookup.changed = trio.Event()
            for peer in next_ones:
                lookup.waits_for.add(peer)
                nursery.start_soon(lookup.ask_one, peer)
            await lookup.changed.wait()
        nursery.cancel_scope.cancel()  # those still asked are not among the closest, or not needed
    return lookup.closest()


class _Lookup:
    """What is known so far in one lookup."""

    def __init__(self, dht: KadDHT, key: bytes, ask: Ask, has_enough: Callable[[], bool]) -> None:
        self.waits_for: set[ID] = set()
        self.changed = trio.Event()
        self._dht = dht
        self._key = key
        self._ask = ask
        self._has_enough = has_enough
        self._answered: set[ID] = set()
        self._silent = {dht.local_peer_id}
        self._known = dict.fromkeys(dht.routing_table.find_local_closest_peers(key, BUCKET_SIZE))
        if len(self._known) < FEW:
            self._known.update(dict.fromkeys(dht.host.get_connected_peers()))

    def closest(self) -> list[ID]:
        """The twenty closest to the key that are not known to be silent, the closest first."""
        able = [peer for peer in self._known if peer not in self._silent]
        return sort_peer_ids_by_distance(self._key, able)[:BUCKET_SIZE]

    def next_ones(self, heard: int, at_once: int) -> list[ID] | None:
        """Whom to ask now, perhaps nobody yet; None: nobody any more."""
        closest = self.closest()
        if self._has_enough() or self._answered.issuperset(closest[:heard]):
            return None
        room = at_once - len(self.waits_for)
        unasked = [p for p in closest if p not in self._answered and p not in self.waits_for]
        return unasked[: max(0, room)]

    async def ask_one(self, peer: ID) -> None:
        """Ask `peer` within its deadline; who does not answer leaves the routing table."""
        try:
            with trio.fail_after(deadline_s(self._dht, peer)):
                closer = await self._ask(peer)
                await self._dht.routing_table.add_peer(peer)
        except (Silent, trio.TooSlowError):
            self._silent.add(peer)
            self._dht.routing_table.remove_peer(peer)
        else:
            self._answered.add(peer)
            self._known.update(dict.fromkeys(closer))
        self.waits_for.discard(peer)
        self.changed.set()
