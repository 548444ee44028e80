"""Getting a connection to a peer: which of its addresses, in which order, from which port.

Direct addresses come first, one a quarter of a second after the other and the first that
answers wins ("happy eyeballs", RFC 8305); an address through a relay follows soon after, so a
dead address costs no time.  While nobody is known to reach us, addresses of the open internet
are dialled *from our listening port*: what the other side then observes is that port's mapping
in our router, which hole punching needs.  Trio side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import trio
from libp2p.abc import IHost, INetConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from node.addr_text import is_global, peer_in
from node.p2p import library
from node.p2p.addrs import circuit, dial_addr, readable
from node.p2p.relay import Refused, Relay
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId
from protocol.limits import MAX_ADDRS

MAX_KNOWN_PEERS = 4096
"""Peers whose addresses are kept; the one added longest ago is forgotten first."""
DIAL_ADDR_S = 5.0
"""What one address may take.  A guess: several round trips of Noise and Yamux over the slowest
of links, less than a person waits."""
CIRCUIT_S = 10.0
"""The same through a relay that may have to be dialled first."""
HANG_UP_S = 0.5
"""What saying goodbye after a dial back may take."""
STAGGER_S = 0.25
"""Between the beginnings of two dials; RFC 8305 recommends it."""
RELAY_AFTER_S = 0.5
"""When relays are tried beside direct addresses: what answers directly has by then."""
LAN_S = 0.1
"""The same where all direct addresses are of a LAN: ours answers sooner, another's never."""

_FAILURES = (BaseLibp2pError, OSError, EOFError, Refused, PeerUnavailable)


class Dialling:
    """One per node."""

    def __init__(self, me: PeerId, host: IHost, network: Swarm, relay: Relay) -> None:
        self._me = me
        self._host = host
        self._network = network
        self._relay = relay
        self._addrs: dict[PeerId, list[Multiaddr]] = {}
        self._dialled_back: dict[PeerId, INetConn] = {}
        self.is_public = False
        """Strangers reach us: dials need not leave from the listening port."""

    def add_addrs(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Remember where `peer` may be dialled; what is no address is skipped."""
        known = self._addrs.pop(peer, [])
        for text in reversed(addrs):
            addr = dial_addr(text, peer)
            if addr is not None:
                known = [addr, *(other for other in known if other != addr)]
        self._addrs[peer] = known[:MAX_ADDRS]
        while len(self._addrs) > MAX_KNOWN_PEERS:
            del self._addrs[next(iter(self._addrs))]

    def connections(self, id: ID) -> list[INetConn]:
        """Open ones, direct ones first."""
        found = [c for c in self._network.get_connections(id) if not c.is_closed]
        return sorted(found, key=is_relayed)

    async def dial(self, peer: PeerId) -> None:
        """Have a connection to `peer`, of any kind.

        Raises:
            PeerUnavailable: no address of it answers as that peer, and why.
        """
        if peer == self._me:
            raise PeerUnavailable(peer, "is this node itself")
        id = ID.from_base58(peer)
        if self.connections(id):
            return
        addrs = self._addrs_of(peer, id)
        if not addrs:
            raise PeerUnavailable(peer, "not connected, and no address of it is known")
        dials = list(self._dials(id, addrs))
        reasons: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for begin_s, addr, dial in dials:
                nursery.start_soon(self._attempt, begin_s, addr, dial, reasons, nursery)
        if not self.connections(id):
            said = "; ".join(f"{addr}: {reason}" for addr, reason in reasons.items())
            raise PeerUnavailable(peer, f"cannot be dialled: {said}")

    async def dial_back(self, peer: PeerId, addr: str) -> None:
        """A fresh connection to an address that `peer` says is its own.

        Raises:
            PeerUnavailable: we have one already, or it cannot be made.
        """
        id, target = ID.from_base58(peer), dial_addr(addr, peer)
        if target is None or circuit(target) is not None:
            raise PeerUnavailable(peer, f"{addr!r:.160} is no direct address of it")
        if self._network.get_connections(id):
            raise PeerUnavailable(peer, "is connected, so a dial would prove nothing")
        try:
            with trio.fail_after(DIAL_ADDR_S):
                self._dialled_back[peer] = await self._network.dial_addr(target, id)
        except (*_FAILURES, trio.TooSlowError) as error:
            raise PeerUnavailable(peer, root(error)) from error

    async def hang_up(self, peer: PeerId) -> None:
        """End the connection of a dial back, unless more than that dial goes over it by now."""
        connection = self._dialled_back.pop(peer, None)
        if connection is not None and len(connection.get_streams()) <= 1:
            with trio.move_on_after(HANG_UP_S):
                await connection.close()

    def source(self) -> tuple[str, int]:
        """Our listening port on whichever address the kernel chooses; 0: there is none."""
        return "0.0.0.0", library.listening_port(self._network)

    def _addrs_of(self, peer: PeerId, id: ID) -> list[Multiaddr]:
        """What we were told, then what the peer itself said when it was connected."""
        addrs = list(self._addrs.get(peer, []))
        with contextlib.suppress(PeerStoreError):
            known = self._host.get_peerstore().addrs(id)
            said = (dial_addr(addr, peer) for addr in readable(known))
            addrs += [addr for addr in said if addr is not None and addr not in addrs]
        return addrs[:MAX_ADDRS]

    def _dials(
        self, id: ID, addrs: list[Multiaddr]
    ) -> Iterable[tuple[float, Multiaddr, Callable[[], Awaitable[object]]]]:
        """When to begin what."""
        direct = [addr for addr in addrs if circuit(addr) is None]
        through = [addr for addr in addrs if circuit(addr) is not None]
        for n, addr in enumerate(direct):
            yield n * STAGGER_S, addr, partial(self._direct, addr, id)
        is_far = any(is_global(str(addr)) for addr in direct)
        first_s = RELAY_AFTER_S if is_far else LAN_S * bool(direct)
        for n, addr in enumerate(through):
            yield first_s + n * STAGGER_S, addr, partial(self._through, addr, id)

    async def _attempt(
        self,
        begin_s: float,
        addr: Multiaddr,
        dial: Callable[[], Awaitable[object]],
        reasons: dict[str, str],
        nursery: trio.Nursery,
    ) -> None:
        await trio.sleep(begin_s)
        deadline_s = DIAL_ADDR_S if circuit(addr) is None else CIRCUIT_S
        try:
            with trio.fail_after(deadline_s):
                await dial()
        except _FAILURES as error:
            reasons[str(addr)] = root(error)
        except trio.TooSlowError:
            reasons[str(addr)] = f"no answer within {deadline_s:g} s"
        else:
            nursery.cancel_scope.cancel()

    async def _direct(self, addr: Multiaddr, id: ID) -> None:
        port = library.listening_port(self._network)
        if port and not self.is_public and is_global(str(addr)) and str(addr).startswith("/ip4/"):
            try:
                await self._network.dial_addr(addr, id, source=self.source())
                return
            except _FAILURES as error:  # as after a connection that this port had there just now
                if not library.is_port_in_use(error):
                    raise
        await self._network.dial_addr(addr, id)

    async def _through(self, addr: Multiaddr, id: ID) -> None:
        relay_addr = circuit(addr)
        assert relay_addr is not None
        relay = peer_in(str(relay_addr))
        if relay == self._me:
            raise PeerUnavailable(relay, "the relay is this node itself")
        relay_id = ID.from_base58(relay)
        if not any(not is_relayed(c) for c in self.connections(relay_id)):
            await self._direct(relay_addr, relay_id)
        await self._relay.dial(relay_id, id)


def is_relayed(connection: INetConn) -> bool:
    """Whether it goes through a relay."""
    return bool(connection.get_connection_type() == ConnectionType.RELAYED)


def root(error: BaseException) -> str:
    """The sentence of the first cause: the library wraps several times."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    return str(error) or type(error).__name__
