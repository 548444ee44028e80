"""How each peer is reached: directly, through a hole in two routers, or through a relay.

Connections come and go; this keeps the best of them in use.  One that came in through a relay
is upgraded by hole punching, at once and again while it stays relayed.  Trio side, but for
`Links.all`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import trio
from libp2p.abc import IHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

from node.addr_text import CIRCUIT, without_peer
from node.p2p import library
from node.p2p.dialling import Dialling, is_relayed, root
from node.p2p.punch import Punch
from node.p2p.relay import Refused, Relay
from node.p2p.streams import STREAM_ERRORS
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId

PUNCH_AGAIN_S = (5.0, 30.0, 120.0)
"""After a punch that failed: a busy moment may spoil one, but some routers allow none."""
MAX_RELAYS = 8
"""Remembered of those that take connections for us: two do, the others did."""
OBSERVED_LOOK_S = 0.5
"""How often it is looked at what others observe; the library has no event for it."""


class Kind(Enum):
    """Of a link."""

    DIRECT = "direct"
    PUNCHED = "punched"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Link:
    """How a peer is reached now."""

    peer: PeerId
    kind: Kind
    addr: str
    """The other end's address, or that of the circuit."""


class Links:
    """One per node."""

    def __init__(
        self,
        me: PeerId,
        host: IHost,
        network: Swarm,
        changed: Callable[[PeerId], None],
    ) -> None:
        """Args: changed: told of a peer that is reached in another way from now on."""
        self._me = me
        self._host = host
        self._changed = changed
        self.relay = Relay(host, self._came_relayed)
        self._punching: set[ID] = set()
        """Peers to whom a hole was dug: whatever direct connection there is, it is through that."""
        self._came: set[ID] = set()
        """Peers that have dialled us through a relay."""
        self._upgrading: set[ID] = set()
        self.dialling = Dialling(me, host, network, self.relay)
        self._punch = Punch(
            host, lambda: library.observed(host), self.dialling.source, self._punching.add
        )
        self._relays: dict[PeerId, None] = {}
        """That took a reservation of ours, the newest last."""
        self._nursery: trio.Nursery
        self.all: tuple[Link, ...] = ()
        """By peer.  May be read from any thread."""
        self.observed: tuple[str, ...] = ()
        """Where connected peers say that they see our listening port.  From any thread."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take relayed connections and punch holes meanwhile."""
        async with AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            await stack.enter_async_context(self.relay.running())
            await stack.enter_async_context(self._punch.running())
            self._nursery.start_soon(self._watch_observed)
            try:
                yield
            finally:
                self._nursery.cancel_scope.cancel()

    async def _watch_observed(self) -> None:
        while True:
            self.observed = tuple(str(addr) for addr in library.observed(self._host))
            await trio.sleep(OBSERVED_LOOK_S)

    def is_relayed(self, peer: PeerId) -> bool:
        """Whether there is none but relayed connections to `peer`."""
        connections = self.dialling.connections(ID.from_base58(peer))
        return bool(connections) and is_relayed(connections[0])

    @property
    def carried(self) -> tuple[int, int]:
        """Circuits open through this node, and bytes carried for others.  From any thread."""
        return self.relay.circuits, self.relay.bytes

    def is_relay(self, peer: PeerId) -> bool:
        """Whether it takes connections for us, or did lately."""
        return peer in self._relays

    async def reserve(self, relay: PeerId) -> tuple[float, Sequence[str]]:
        """Let `relay`, which is connected directly, take connections for us.

        Returns:
            For how many seconds, and our addresses through it.

        Raises:
            PeerUnavailable: it does not, and why.
        """
        id = ID.from_base58(relay)
        direct = [c for c in self.dialling.connections(id) if not is_relayed(c)]
        if not direct:
            raise PeerUnavailable(relay, "not connected directly")
        try:
            for_s = await self.relay.reserve(id)
        except (*STREAM_ERRORS, Refused, trio.TooSlowError) as error:
            raise PeerUnavailable(relay, root(error)) from error
        self._relays.pop(relay, None)
        self._relays[relay] = None
        if len(self._relays) > MAX_RELAYS:
            del self._relays[next(iter(self._relays))]
        addrs = {without_peer(str(addr)) for c in direct for addr in c.get_transport_addresses()}
        return for_s, [f"{addr}/p2p/{relay}/{CIRCUIT}/p2p/{self._me}" for addr in sorted(addrs)]

    def be_public(self, is_public: bool, relay_mbit: float) -> None:
        """Strangers reach this node, so that it can be a relay for others; or they do not."""
        self.dialling.is_public = is_public
        self.relay.serve(relay_mbit if is_public else 0.0)

    def look(self, peer: PeerId) -> None:
        """Connections to `peer` came or went; the other links are as they were."""
        before = next((link for link in self.all if link.peer == peer), None)
        link = self._link(peer)
        if link == before:
            return
        others = [other for other in self.all if other.peer != peer]
        self.all = tuple(sorted([*others, link] if link else others, key=lambda one: one.peer))
        if link is None:
            return
        self._changed(peer)
        if link.kind is Kind.RELAYED and before is not None and before.kind is not Kind.RELAYED:
            self._begin_upgrade(ID.from_base58(peer))  # a direct connection has ended

    def left(self, id: ID) -> None:
        """The last connection to a peer is gone."""
        self._punching.discard(id)
        self._came.discard(id)
        self.relay.forget(id)

    def _link(self, peer: PeerId) -> Link | None:
        id = ID.from_base58(peer)
        connections = self.dialling.connections(id)
        if not connections:
            return None
        best = connections[0]
        addr = next((str(addr) for addr in best.get_transport_addresses()), "")
        if is_relayed(best):
            return Link(peer, Kind.RELAYED, addr)
        return Link(peer, Kind.PUNCHED if id in self._punching else Kind.DIRECT, addr)

    def _came_relayed(self, id: ID) -> None:
        """A peer dialled us through a relay: get off it."""
        self._came.add(id)
        self._begin_upgrade(id)

    def _begin_upgrade(self, id: ID) -> None:
        if id in self._came and id not in self._upgrading:
            self._upgrading.add(id)
            self._nursery.start_soon(self._upgrade, id)

    async def _upgrade(self, id: ID) -> None:
        try:
            for again_s in (*PUNCH_AGAIN_S, 0.0):
                if not self.is_relayed(PeerId(id.to_base58())) or await self._punch.punch(id):
                    return
                await trio.sleep(again_s)
        finally:
            self._upgrading.discard(id)
