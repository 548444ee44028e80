"""The asyncio face of the network.

libp2p runs in trio, in one background thread; this is the only way across.  `call` runs a
function on the trio side and waits for its value, `post` runs one and does not wait; what the
other side has to tell comes as callbacks on the event loop, in order.  Values cross, never
objects of libp2p.  Cancelling a call cancels it on the trio side and returns when it has ended
there, so memory that was lent to it is free again.

    async with Bridge(signer, listen=["/ip4/0.0.0.0/tcp/4001"]) as bridge:
        peer = await bridge.connect(addr, deadline_s=10)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from node.p2p.addrs import peer_of
from node.p2p.answering import Incoming
from node.p2p.asking import Gone, Outcome
from node.p2p.budget import budgets
from node.p2p.counters import PeerTraffic, Traffic
from node.p2p.errand import Errand
from node.p2p.host import Events, Host
from node.p2p.links import Kind, Link
from node.p2p.thread import TrioThread
from node.uncancelled import uncancelled
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.rpc import Method

T = TypeVar("T")
P = ParamSpec("P")

STOP_S = 1.0
"""For the thread to end, measured 0.3 s; see `node.node.LEAVE_S`."""


class Server(Protocol):
    """Who serves the peers' requests, on the event loop."""

    def request(self, incoming: Incoming) -> None:
        """A request has come; answer or refuse it with `Bridge.answer` or `Bridge.refuse`."""

    def cancel(self, incoming: Incoming) -> None:
        """Nobody wants the answer any more."""


class Bridge:
    """One per node.  All methods are for the event loop that entered it."""

    def __init__(
        self,
        signer: Signer,
        *,
        listen: Sequence[str],
        on_peer: Callable[[PeerId, bool], None] | None = None,
        up_mbit: float = 0.0,
        down_mbit: float = 0.0,
    ) -> None:
        """
        Args:
            listen: multiaddrs; port 0 is any free one.
            up_mbit: megabits of calls a second to all peers; 0: as the line carries.
            down_mbit: the same from all peers.
            on_peer: called with a peer and whether it is connected, when that changes.
        """
        self._signer = signer
        self._listen = listen
        self._up_mbit = up_mbit
        self._down_mbit = down_mbit
        self._on_peer = on_peer
        self._on_blame: Callable[[PeerId, str], None] | None = None
        self._thread = TrioThread(self._running, STOP_S)
        self._to_loop = self._thread.to_loop
        self._desk = _Desk(self._to_loop)
        self._host: Host

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: a port is in use, or an address cannot be listened on.
        """
        await self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection and end the thread."""
        await self._thread.stop()

    async def wait_ended(self) -> None:
        """Wait until the network has ended; raises what ended it unless it was `__aexit__`."""
        await self._thread.wait_ended()

    # --- the network -----------------------------------------------------------------------

    def addrs(self) -> tuple[str, ...]:
        """Where this node listens: full multiaddrs, each with /p2p/ID."""
        return self._host.addrs

    def add_addrs(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Remember where `peer` may be dialled; what is no address of it is skipped."""
        self.post(self._host.links.dialling.add_addrs, peer, list(addrs))

    async def connect(self, target: str, deadline_s: float) -> PeerId:
        """Have a connection to `target`, a multiaddr with /p2p/ID or the id of a known peer.

        Raises:
            ValueError: neither of them.
            PeerUnavailable: it cannot be reached, and why.
        """
        if target.startswith("/"):
            peer = peer_of(target)
            self.add_addrs(peer, [target])
        else:
            peer = PeerId(target)
        await self.call(self._host.connect, peer, deadline_s)
        return peer

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a connection, sorted."""
        return self._host.connected

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`."""
        await self.call(self._host.disconnect, peer)

    def links(self) -> tuple[Link, ...]:
        """How each connected peer is reached."""
        return self._host.links.all

    def carried(self) -> tuple[int, int]:
        """Circuits that are open through this node for others, and bytes of them so far."""
        return self._host.links.carried

    def is_relayed(self, peer: PeerId) -> bool:
        """Whether a peer is reached through another, which is to be spared."""
        return any(link.peer == peer and link.kind is Kind.RELAYED for link in self.links())

    def observed(self) -> tuple[str, ...]:
        """Where connected peers say that they see our listening port."""
        return self._host.links.observed

    async def reserve(self, relay: PeerId) -> tuple[float, Sequence[str]]:
        """Let `relay`, which is connected directly, take connections for us.

        Returns:
            For how many seconds, and our addresses through it.

        Raises:
            PeerUnavailable: it does not, and why.
        """
        return await self.call(self._host.links.reserve, relay)

    async def dial_back(self, peer: PeerId, addr: str) -> None:
        """A fresh connection to an address that `peer`, which has none to us, says it has.

        Raises:
            PeerUnavailable: it is connected already, or cannot be dialled there.
        """
        await self.call(self._host.links.dialling.dial_back, peer, addr)

    async def hang_up(self, peer: PeerId) -> None:
        """End the connection of a dial back, unless more than that dial goes over it by now."""
        await self.call(self._host.links.dialling.hang_up, peer)

    def be_public(self, is_public: bool, relay_mbit: float) -> None:
        """Strangers reach this node, or do not.

        Args:
            relay_mbit: megabits a second that it then carries for others, each way; 0: none.
        """
        self.post(self._host.links.be_public, is_public, relay_mbit)

    async def provide(self, key: bytes) -> bool:
        """Say in the DHT that we provide `key`; whether any other peer knows now."""
        return await self.call(self._host.dht.provide, key)

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Candidates for `key` and their addresses, without us: unsigned, perhaps old."""
        return await self.call(self._host.dht.find_providers, key)

    async def put_record(self, key: str, value: bytes) -> bool:
        """Store our signed address record in the DHT; whether any other peer has it now."""
        return await self.call(self._host.dht.put_record, key, value)

    async def find_record(self, key: str) -> bytes | None:
        """The newest valid address record under `key` (protocol/peer_record.py)."""
        return await self.call(self._host.dht.find_record, key)

    def counters(self) -> Traffic:
        """Bytes so far."""
        return self._host.counters.snapshot()

    def traffic_of(self, peer: PeerId) -> PeerTraffic | None:
        """Bytes, rates and round trip of one peer; None: it is not counted, or no longer."""
        return self._host.counters.traffic_of(peer)

    # --- for node.rpc ----------------------------------------------------------------------

    def serve(
        self,
        methods: Mapping[str, Method[Any, Any]],
        server: Server,
        on_blame: Callable[[PeerId, str], None],
    ) -> None:
        """From now on `server` gets the requests for `methods`, which may still grow."""
        self._on_blame = on_blame
        self._desk.open(methods, server)

    async def ask(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome:
        """One call to a peer; it is dialled first if need be, and again if its link breaks."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        future: asyncio.Future[Outcome | None] = loop.create_future()
        errand = Errand(peer, method, body, deadline_s, into, future, self._to_loop)
        self.post(errand.begin, self._host)
        timer = loop.call_later(deadline_s, self._post_if_running, errand.late)
        try:
            outcome = await future
        except asyncio.CancelledError:
            if not errand.is_back:
                errand.future = loop.create_future()
                self._post_if_running(errand.cancel)
                await uncancelled({errand.future})
            raise
        finally:
            timer.cancel()
        if outcome is None:
            return await self.call(self._host.call, peer, method, body, deadline_s, into)
        if isinstance(outcome, Gone) and outcome.stream_broke:
            left_s = max(0.0, began + deadline_s - loop.time())
            return await self.call(self._host.call, peer, method, body, left_s, into)
        return outcome

    def answer(self, incoming: Incoming, body: bytes | memoryview) -> None:
        """Send the answer; the memory must not change until it is sent."""
        self.post(incoming.answer, body)

    def refuse(self, incoming: Incoming, code: str, sentence: str) -> None:
        """Send a refusal."""
        self.post(incoming.refuse, code, sentence)

    # --- crossing --------------------------------------------------------------------------

    async def call(self, run: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value of `run(*args)` on the trio side."""
        return await self._thread.call(run, *args, **kwargs)

    def post(self, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `run(*args)` on the trio side, after everything posted before."""
        self._thread.post(run, *args, **kwargs)

    def _post_if_running(self, run: Callable[[], object]) -> None:
        """`post` for what is over anyway once the network has ended."""
        with contextlib.suppress(LocalProtocolError):
            self.post(run)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """What runs on the trio side."""
        events = Events(
            connected=lambda peer: self._to_loop(self._tell_peer, peer, True),
            disconnected=lambda peer: self._to_loop(self._tell_peer, peer, False),
            blame=lambda peer, reason: self._to_loop(self._tell_blame, peer, reason),
        )
        allowed = budgets(self._up_mbit, self._down_mbit)
        self._host = Host(self._signer, self._listen, self._desk, events, allowed)
        async with self._host.running():
            yield

    def _tell_peer(self, peer: PeerId, is_connected: bool) -> None:
        if self._on_peer is not None:
            self._on_peer(peer, is_connected)

    def _tell_blame(self, peer: PeerId, reason: str) -> None:
        if self._on_blame is not None:
            self._on_blame(peer, reason)


class _Desk:
    """Where requests arrive on the trio side, to be passed to the server on the event loop."""

    def __init__(self, to_loop: Callable[..., None]) -> None:
        self.methods: Mapping[str, Method[Any, Any]] = {}
        self._server: Server
        self._to_loop = to_loop

    def open(self, methods: Mapping[str, Method[Any, Any]], server: Server) -> None:
        self._server = server
        self.methods = methods

    def request(self, incoming: Incoming) -> None:
        self._to_loop(self._server.request, incoming)

    def cancel(self, incoming: Incoming) -> None:
        self._to_loop(self._server.cancel, incoming)
