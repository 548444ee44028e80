"""A node's place in libp2p: listen, dial, and calls over long-lived streams.

TCP, Noise and Yamux; the identity is the node's Ed25519 key.  Everything here runs in the trio
thread; `node.bridge` is the way in.  To each peer there is at most one stream per lane that we
opened, opened when the first call needs it and kept; when it breaks, its calls fail and the
next call opens another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.network.config import RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from node.p2p import library
from node.p2p.addrs import cannot_listen, check_port, is_shoal_id, listen_addr
from node.p2p.answering import Answering, Handler, Places
from node.p2p.asking import Asking, Gone, Outcome
from node.p2p.budget import Budgets
from node.p2p.counters import Counters
from node.p2p.dht import Dht
from node.p2p.dialling import is_relayed, root
from node.p2p.idle import hang_up_on_idle
from node.p2p.links import Links
from node.p2p.stack import new_host
from node.p2p.streams import STREAM_ERRORS, Blamed
from node.p2p.yamux_stream import LaneStream
from protocol.envelope import Signer
from protocol.errors import ConfigError, PeerUnavailable
from protocol.ids import PeerId
from protocol.rpc import Lane, Method

K = TypeVar("K")

MAX_INBOUND = 4
"""Streams that a peer may have open to one lane.  It needs one; another may be opened before the
end of the first has been noticed here."""
MAX_WANTED = 256
"""Peers kept connected although nothing passes: more than the addresses of tickets, relays and
members of a view together."""
TRIES = 3
"""Of a call whose stream breaks: a punched link, the relay it came through, another relay."""
RETIRE_LOOK_S = 0.5
"""How often a stream that is to end is looked at."""
CLOSE_S = 0.5
"""What saying goodbye to a peer may take."""


@dataclass(frozen=True, slots=True)
class Events:
    """What the host tells, on the trio side; none of these may wait."""

    connected: Callable[[PeerId], None]
    disconnected: Callable[[PeerId], None]
    blame: Callable[[PeerId, str], None]
    """The peer broke the protocol, with what."""


class Host:
    """One per node, on the trio side."""

    def __init__(
        self,
        signer: Signer,
        listen: Sequence[str],
        handler: Handler,
        events: Events,
        budgets: Budgets,
    ) -> None:
        self.counters = Counters()
        self._budgets = budgets
        self._listen = [a for a in map(listen_addr, listen) if library.is_possible(a)]
        self._handler = handler
        self._events = events
        self._tcp = library.CountedTcp(self.counters)
        self._tcp.blame = lambda id, reason: events.blame(PeerId(id.to_base58()), reason)
        self._host = new_host(signer, self._tcp)
        network = self._host.get_network()
        assert isinstance(network, Swarm)
        self._network = network
        network.retry_config = RetryConfig(max_retries=0)  # whoever calls knows when to retry
        self.dht = Dht(self._host)
        self._places = Places()
        self.links = Links(signer.peer, self._host, network, self._moved)
        self._streams: dict[tuple[PeerId, Lane], Asking] = {}
        self._scopes: dict[Asking, trio.CancelScope] = {}
        self._opening: dict[tuple[PeerId, Lane], trio.Lock] = {}
        self._inbound: Counter[tuple[PeerId, Lane]] = Counter()
        self._connecting: dict[PeerId, trio.Lock] = {}
        self._wanted: dict[PeerId, None] = {}
        """Peers that we were told to be connected to, the newest last."""
        self.addrs: tuple[str, ...] = ()
        """Where we listen, each with /p2p/ID at its end.  May be read from any thread."""
        self.connected: tuple[PeerId, ...] = ()
        """Peers with a connection, sorted.  May be read from any thread."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and serve meanwhile.

        Raises:
            ConfigError: a port is in use, or an address cannot be listened on.
        """
        for addr in self._listen:
            check_port(addr)
        for lane in Lane:
            self._host.set_stream_handler(TProtocol(lane.value), self._answer(lane))
        async with trio.open_nursery() as nursery, self._host.run(listen_addrs=self._listen):
            if len(self._network.listeners) < len({str(addr) for addr in self._listen}):
                raise ConfigError(cannot_listen(self._listen))
            self._nursery = nursery
            self.addrs = tuple(str(addr) for addr in self._host.get_addrs())
            self._network.register_notifee(_Notifee(self))
            async with self.dht.running(), self.links.running():
                nursery.start_soon(hang_up_on_idle, self._network, self._is_wanted)
                try:
                    yield
                finally:
                    with trio.CancelScope(shield=True):
                        await self._close()
            nursery.cancel_scope.cancel()

    # --- connections -----------------------------------------------------------------------

    async def connect(self, peer: PeerId, deadline_s: float) -> None:
        """Have a connection to `peer`.

        Raises:
            PeerUnavailable: no address of it answers as that peer, and why.
        """
        self._wanted.pop(peer, None)
        self._wanted[peer] = None
        while len(self._wanted) > MAX_WANTED:
            del self._wanted[next(iter(self._wanted))]
        with trio.move_on_after(deadline_s):
            async with _alone(self._connecting, peer):
                await self.links.dialling.dial(peer)
            return
        raise PeerUnavailable(peer, f"no connection within {deadline_s:g} s")

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`."""
        connections = self._network.get_connections(ID.from_base58(peer))
        with trio.move_on_after(CLOSE_S):
            await self._network.close_peer(ID.from_base58(peer))
            return
        await self._tcp.close_sockets_of([c for c in connections if not is_relayed(c)])

    def _is_wanted(self, id: ID) -> bool:
        """Whether we have something to do with a peer, or were told to."""
        peer = PeerId(id.to_base58())
        lanes = ((peer, lane) for lane in Lane)
        is_used = any(key in self._streams or self._inbound[key] for key in lanes)
        return is_used or peer in self._wanted or self.links.is_relay(peer)

    # --- calls -----------------------------------------------------------------------------

    async def call(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome:
        """Ask `peer`, dialling it first if need be.

        When the stream breaks the call is made again over what link there is then: every method
        may be asked twice, and a relay or a hole in a router may go at any time.
        """
        begin = trio.current_time()
        doing = "connection"
        with trio.move_on_after(deadline_s):
            for _ in range(TRIES):
                doing = "connection"
                try:
                    asking = await self._asking(peer, method.lane, deadline_s)
                except PeerUnavailable as error:
                    return Gone(error.reason)
                doing = "answer"
                left_s = max(0.001, begin + deadline_s - trio.current_time())
                outcome = await asking.call(method, body, left_s, into)
                if not (isinstance(outcome, Gone) and outcome.stream_broke):
                    break
            return outcome
        return Gone(f"{method.name}: no {doing} within {deadline_s:g} s")

    def open_stream_to(self, peer: PeerId, lane: Lane) -> Asking | None:
        """The stream to this peer, if it is open."""
        asking = self._streams.get((peer, lane))
        return asking if asking is not None and asking.broken is None else None

    async def _asking(self, peer: PeerId, lane: Lane, deadline_s: float) -> Asking:
        """The stream to this peer, opened now unless it is there."""
        key = (peer, lane)
        asking = self._streams.get(key)
        if asking is not None and asking.broken is None:
            return asking
        async with _alone(self._opening, key):
            asking = self._streams.get(key)
            if asking is None or asking.broken is not None:
                await self.connect(peer, deadline_s)
                asking = await self._open(peer, lane)
                self._streams[key] = asking
            return asking

    async def _open(self, peer: PeerId, lane: Lane) -> Asking:
        try:
            stream = await self._host.new_stream(ID.from_base58(peer), [TProtocol(lane.value)])
            quick = LaneStream(stream, lane, self._budgets)
            if lane is Lane.BULK:
                await quick.widen()
        except STREAM_ERRORS as error:
            raise PeerUnavailable(peer, f"no stream for {lane.value}: {root(error)}") from error
        asking = Asking(quick, self.counters.of(peer))
        self._nursery.start_soon(self._ask, peer, lane, asking)
        return asking

    async def _ask(self, peer: PeerId, lane: Lane, asking: Asking) -> None:
        try:
            with self._scopes.setdefault(asking, trio.CancelScope()):
                await asking.run()
        except Blamed as error:
            self._events.blame(peer, str(error))
        finally:
            self._scopes.pop(asking, None)
            if self._streams.get((peer, lane)) is asking:
                del self._streams[peer, lane]

    def _answer(self, lane: Lane) -> Callable[[INetStream], Any]:
        async def handle(stream: INetStream) -> None:
            peer = PeerId(stream.muxed_conn.peer_id.to_base58())
            if self._inbound[peer, lane] == MAX_INBOUND:
                await stream.reset()
                return
            quick = LaneStream(stream, lane, self._budgets)
            counters = self.counters.of(peer)
            answering = Answering(peer, lane, quick, counters, self._places, self._handler)
            self._inbound[peer, lane] += 1
            try:
                await answering.run()
            except Blamed as error:
                self._events.blame(peer, str(error))
            finally:
                self._inbound[peer, lane] -= 1
                self._inbound += Counter()  # drops what is zero

        return handle

    # --- coming and going ------------------------------------------------------------------

    def named(self, connection: INetConn) -> None:
        """A connection has proved whose it is."""
        if not is_relayed(connection):
            remote = cast(Yamux, connection.muxed_conn).get_remote_address()
            self._tcp.strangers.named(remote)

    async def peer_came(self, id: ID) -> None:
        """A connection was made, by either side."""
        peer = PeerId(id.to_base58())
        if not is_shoal_id(peer):
            self._nursery.start_soon(self._network.close_peer, id)
            return
        is_new = peer not in self.connected
        if is_new:
            self.connected = tuple(sorted((*self.connected, peer)))
        self.links.look(peer)
        if is_new:
            self._events.connected(peer)
            self._nursery.start_soon(self.dht.add_peer, id)

    def peer_left(self, id: ID) -> None:
        """A connection was closed; it may not have been the last."""
        peer = PeerId(id.to_base58())
        if self.links.dialling.connections(id):
            self.links.look(peer)
        elif peer in self.connected:
            self.links.left(id)
            self.connected = tuple(other for other in self.connected if other != peer)
            self.links.look(peer)
            self._events.disconnected(peer)

    def _moved(self, peer: PeerId) -> None:
        """A peer is reached in another way: calls from now on take a stream of that."""
        for lane in Lane:
            asking = self._streams.pop((peer, lane), None)
            if asking is not None:
                self._nursery.start_soon(self._retire, asking)

    async def _retire(self, asking: Asking) -> None:
        """End the stream once its calls have ended: they may be nearly done."""
        while asking.under_way and asking.broken is None:  # noqa: ASYNC110  # has no event
            await trio.sleep(RETIRE_LOOK_S)
        if asking in self._scopes:
            self._scopes[asking].cancel()

    async def _close(self) -> None:
        """Say goodbye to everybody at once, for the library takes 0.2 s for each."""
        with trio.move_on_after(CLOSE_S):
            async with trio.open_nursery() as nursery:
                for connection in self._network.get_connections():
                    nursery.start_soon(connection.close)
        await self._tcp.close_all()


class _Notifee(INotifee):
    """What the library calls when connections come and go."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._host.named(conn)
        await self._host.peer_came(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._host.peer_left(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


@asynccontextmanager
async def _alone(locks: dict[K, trio.Lock], key: K) -> AsyncIterator[None]:
    """One task at a time for each key; keys that nobody uses are forgotten."""
    lock = locks.setdefault(key, trio.Lock())
    try:
        async with lock:
            yield
    finally:
        if not lock.locked():
            locks.pop(key, None)
