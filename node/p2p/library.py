"""Where shoal reaches below the documented surface of py-libp2p.

Each piece says why and when it can go; tests/test_libp2p.py pins each, so that another
version of the library fails there and not in a swarm.  Two larger ones have their own files:
`node.p2p.yamux` and the closing of streams in `node.p2p.idle`.  Written against libp2p 0.8.1.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

import trio
from libp2p.abc import IHost, IMuxedStream, INetConn, IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.kad_dht import value_store
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from node.p2p.counters import Counters

log = logging.getLogger(__name__)

MAX_UNREAD_BYTES = 20 << 20
"""What one connection may leave unread in all its streams: the largest Yamux window (16 MiB),
and some for everything else."""
MAX_STREAMS = 256
"""Streams open on one connection, both sides' and the library's own: a node needs four, and the
DHT a dozen for a moment."""
MAX_STRANGERS = 64
"""Accepted connections that have not proved who they are: each may take ten seconds for it."""
MAX_STRANGERS_AN_IP = 16
"""Of one address: a household, or a swarm in containers that starts at once."""
DEAD_AFTER_S = 12
"""A connection that acknowledges nothing for so long is closed by the kernel.  A guess: longer
than a node is stopped by a full disk or a suspended container, shorter than an exchange."""
MAX_VALUES = 4096
"""Values of other peers that the DHT keeps here, the oldest is dropped: 13 MB with what
`Dht` accepts, and far more than the twenty peers closest to a key need of each other."""
READ_BYTES = 1 << 17
"""One read of the socket: two Noise messages of the largest size."""


class CountedStream(ReadWriteCloser):
    """A TCP connection that counts its bytes, and whose writes cannot be cut by cancellation.

    Anything above may be cancelled while it writes.  Half a Noise message, or a nonce used for
    a message that was never sent, breaks the whole connection, so the write at the bottom is
    shielded: it ends with the socket.  Can go when the library shields its own writes.
    """

    def __init__(self, inner: ReadWriteCloser, transport: CountedTcp) -> None:
        self._inner = inner
        self.transport = transport
        self.closed: Callable[[], None] = lambda: None
        """Called when it is closed."""
        self._ahead = b""
        self._remote = _remote(inner)
        transport.open.add(self)

    async def write(self, data: bytes) -> None:
        """Send all of it, then count it."""
        with trio.CancelScope(shield=True):
            await self._inner.write(data)
        self.transport.counters.socket_up(len(data))

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, out of larger pieces: Noise asks for two bytes at a time."""
        if not self._ahead:
            self._ahead = await self._inner.read(READ_BYTES)
            self.transport.counters.socket_down(len(self._ahead))
        taken = self._ahead if n is None else self._ahead[:n]
        self._ahead = self._ahead[len(taken) :]
        return taken

    async def close(self) -> None:
        """Close the socket; who reads or writes it sees the end."""
        self.transport.open.discard(self)
        try:
            await self._inner.close()
        finally:
            self.closed()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The other end's address and port; the library knows none of IPv6."""
        return self._remote


class Strangers:
    """Accepted connections whose other end has not said who it is yet."""

    def __init__(self) -> None:
        self._waiting: dict[CountedStream, str] = {}

    def enter(self, stream: CountedStream) -> bool:
        """Whether there is room for one more."""
        remote = stream.get_remote_address()
        ip = remote[0] if remote else ""
        mine = sum(other == ip for other in self._waiting.values())
        if len(self._waiting) >= MAX_STRANGERS or mine >= MAX_STRANGERS_AN_IP:
            log.info("connection not taken: from=%s reason=%d without a name", ip, mine)
            return False
        self._waiting[stream] = ip
        return True

    def named(self, remote: tuple[str, int] | None) -> None:
        """The connection from there has proved who it is."""
        for stream in [s for s in self._waiting if s.get_remote_address() == remote]:
            del self._waiting[stream]

    def leave(self, stream: CountedStream) -> None:
        """It has ended."""
        ip = self._waiting.pop(stream, None)
        if ip is not None:
            log.info("connection ended: from=%s reason=it did not say who it is", ip)


class CountedTcp(TCP):
    """The TCP transport: every connection, dialled or accepted, is a `CountedStream`.

    Can go when the library counts bytes and closes dead sockets by itself.
    """

    def __init__(self, counters: Counters) -> None:
        super().__init__()
        self.counters = counters
        self.open: set[CountedStream] = set()
        self.strangers = Strangers()
        self.blame: Callable[[ID, str], None] = lambda peer, reason: None
        """Told of a peer that broke a bound on its connection."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """As the library, counted."""
        return self._counted(await super().dial(maddr))

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> IRawConnection:
        """As the library, counted."""
        return self._counted(await super().dial_with_source(maddr, source))

    def create_listener(self, handler_function: THandler) -> TCPListener:
        """As the library, counted, and bounded in who has not said who it is yet.

        The library's handler of a connection returns when the node stops, and keeps its place
        among `MAX_CONNECTIONS` until then: after so many in its life a node would take no more.
        So the handler is cancelled when its socket is closed.  Can go when the library does that.
        """

        async def handler(stream: ReadWriteCloser) -> None:
            counted = CountedStream(stream, self)
            if not self.strangers.enter(counted):
                await counted.close()
                return
            try:
                _watch(stream)
                with trio.CancelScope() as scope:
                    counted.closed = scope.cancel
                    await handler_function(counted)
            finally:
                self.strangers.leave(counted)
                self.open.discard(counted)

        return super().create_listener(handler)

    async def close_all(self) -> None:
        """Close every socket at once, whatever is under way on it."""
        for stream in list(self.open):
            await stream.close()

    async def close_sockets_of(self, connections: Sequence[INetConn]) -> None:
        """Close the sockets under these connections at once."""
        remotes = [cast(Yamux, c.muxed_conn).get_remote_address() for c in connections]
        for stream in list(self.open):
            if stream.get_remote_address() in remotes:
                await stream.close()

    def _counted(self, connection: IRawConnection) -> IRawConnection:
        assert isinstance(connection, RawConnection)
        _watch(connection.stream)
        connection.stream = CountedStream(connection.stream, self)
        return connection


class BoundedYamux(Yamux):
    """Yamux that holds a peer to bounds, and blames it when it breaks one.

    The library only warns when a peer sends more than its window, and keeps the bytes: a
    hostile one fills the memory through any stream that nobody reads.  `node.p2p.yamux` closes
    the connection at `MAX_UNREAD_BYTES`.  Can go when the library enforces windows.
    """

    async def accept_stream(self) -> IMuxedStream:
        """The next stream that the peer opens; one too many closes the connection.

        The library counts the streams of all peers together, so one peer could take them all.
        """
        stream: IMuxedStream = await super().accept_stream()
        if len(self.streams) > MAX_STREAMS:
            self._blame(f"opened over {MAX_STREAMS} streams")
            raise MuxedConnUnavailable(f"over {MAX_STREAMS} streams")
        return stream

    def _blame(self, reason: str) -> None:
        raw = self.secured_conn.conn.read_writer.read_write_closer  # type: ignore[attr-defined]
        stream = getattr(raw, "stream", None)
        if isinstance(stream, CountedStream):  # else a relay's; the end of it is enough
            stream.transport.blame(self.peer_id, reason)


class QuietKad(KadDHT):
    """The DHT without the library's maintenance, which grows with the swarm.

    Every ten minutes it looks up a random key for each part of its routing table, and it splits
    every part that is full: a part for about every fourteen peers known, not for each doubling of
    the distance.  It also puts again what we provide, which expires sooner.  `node.p2p.dht`
    refreshes instead.  Can go when the library splits the part that it is in, only.
    """

    async def _run_main_loop(self) -> None:
        """Nothing."""


# The library keeps 50,000 values of up to 1 MiB.
value_store.MAX_VALUE_STORE_SIZE = MAX_VALUES  # type: ignore[attr-defined]


def listening_port(network: Swarm) -> int:
    """The first TCP port that the network listens on with IPv4; 0: none."""
    for listener in network.listeners.values():
        for addr in listener.get_addrs():
            if str(addr).startswith("/ip4/"):
                return int(str(addr.value_for_protocol("tcp")))
    return 0


def observed(host: IHost) -> list[Multiaddr]:
    """Where connected peers say that they see this node's listening port.

    The library asks for four observers, which a node behind a router seldom has.
    """
    manager = getattr(host, "_observed_addr_manager", None)
    return [] if manager is None else list(manager.addrs(min_observers=1))


def is_port_in_use(error: BaseException) -> bool:
    """Whether a dial from the listening port failed because of that port alone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            return True
        cause = cause.__cause__
    return False


def quiet_loggers() -> None:
    """The library logs ordinary events (a closed stream, a refused dial) as errors."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("libp2p."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def is_possible(addr: Multiaddr) -> bool:
    """Whether this machine can listen there; asked of all addresses of IPv6 only."""
    if not str(addr).startswith("/ip6/::/"):
        return True
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def port_is_taken(host: str, port: int) -> bool:
    """Whether another socket listens there.

    The library listens with SO_REUSEPORT, so a second node on the same port would not fail but
    get half of the connections.  Can go when the library can listen without it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def _remote(stream: ReadWriteCloser) -> tuple[str, int] | None:
    try:
        ip, port = stream.stream.socket.getpeername()[:2]  # type: ignore[attr-defined]
    except OSError:  # it has ended already
        return None
    return ip.removeprefix("::ffff:"), port  # an IPv4 peer at a socket for both


def _watch(stream: ReadWriteCloser) -> None:
    """Let the kernel find out that the other end is gone."""
    sock = stream.stream.socket  # type: ignore[attr-defined]  # of a TrioTCPStream
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_AFTER_S // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_AFTER_S // 6)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
