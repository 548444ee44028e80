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
import functools
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

import trio

from node.p2p.addrs import peer_of
from node.p2p.answering import Incoming
from node.p2p.asking import Outcome
from node.p2p.counters import Traffic
from node.p2p.host import Events, Host
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.rpc import Method

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)

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
    ) -> None:
        """
        Args:
            listen: multiaddrs; port 0 is any free one.
            on_peer: called with a peer and whether it is connected, when that changes.
        """
        self._signer = signer
        self._listen = listen
        self._on_peer = on_peer
        self._on_blame: Callable[[PeerId, str], None] | None = None
        self._desk = _Desk(self._to_loop)
        self._deliveries: deque[Callable[[], object]] = deque()
        self._delivering = False
        self._host: Host

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: a port is in use, or an address cannot be listened on.
        """
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="libp2p", daemon=True)
        self._thread.start()
        is_cancelled = await _uncancelled({self._ready, self._ended})
        if is_cancelled or self._ended.done():
            await self._stop()
        if is_cancelled:
            raise asyncio.CancelledError
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection and end the thread."""
        await self._stop()

    async def wait_ended(self) -> None:
        """Wait until the network has ended; raises what ended it unless it was `__aexit__`."""
        await asyncio.shield(self._ended)

    # --- the network -----------------------------------------------------------------------

    def addrs(self) -> tuple[str, ...]:
        """Where this node listens: full multiaddrs, each with /p2p/ID."""
        return self._host.addrs

    def add_addrs(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Remember where `peer` may be dialled; what is no address of it is skipped."""
        self.post(self._host.add_addrs, peer, list(addrs))

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

    async def provide(self, key: bytes) -> bool:
        """Say in the DHT that we provide `key`; whether any other peer knows now."""
        return await self.call(self._host.dht.provide, key)

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Candidates for `key` and their addresses, without us: unsigned, perhaps old."""
        return await self.call(self._host.dht.find_providers, key)

    def counters(self) -> Traffic:
        """Bytes so far."""
        return self._host.counters.snapshot()

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
        """One call to a peer."""
        return await self.call(self._host.call, peer, method, body, deadline_s, into)

    def answer(self, incoming: Incoming, body: bytes | memoryview) -> None:
        """Send the answer; the memory must not change until it is sent."""
        self.post(incoming.answer, body)

    def refuse(self, incoming: Incoming, code: str, sentence: str) -> None:
        """Send a refusal."""
        self.post(incoming.refuse, code, sentence)

    # --- crossing --------------------------------------------------------------------------

    async def call(self, run: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value of `run(*args)` on the trio side."""
        crossing: _Crossing[T] = _Crossing(
            functools.partial(run, *args, **kwargs), self._loop.create_future()
        )
        self.post(self._begin, crossing)
        try:
            await asyncio.wait({crossing.future})
        except asyncio.CancelledError:
            self.post(crossing.scope.cancel)
            await _uncancelled({crossing.future})
            crossing.future.exception()  # nobody wants it
            raise
        return crossing.future.result()

    def post(self, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `run(*args)` on the trio side, after everything posted before."""
        try:
            self._token.run_sync_soon(functools.partial(run, *args, **kwargs))
        except trio.RunFinishedError:
            raise LocalProtocolError("the network has ended") from None

    def _begin(self, crossing: _Crossing[T]) -> None:
        """Trio side of `call`."""
        if self._stopping.is_set():
            self._to_loop(crossing.fail, LocalProtocolError("the network has ended"))
        else:
            self._nursery.start_soon(self._carry_out, crossing)

    async def _carry_out(self, crossing: _Crossing[T]) -> None:
        failure: Exception = LocalProtocolError("the network has ended")
        try:
            with crossing.scope:
                value = await crossing.run()
                self._to_loop(crossing.future.set_result, value)
                return
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets it
            failure = error
        finally:
            self._to_loop(crossing.fail, failure)

    def _to_loop(self, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `run(*args)` on the event loop; many of them cost one wake-up."""
        self._deliveries.append(functools.partial(run, *args, **kwargs))
        if not self._delivering:
            self._delivering = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        while self._deliveries:
            self._deliveries.popleft()()

    # --- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as end:  # noqa: BLE001  # raised where the bridge is used
            error = end
        self._loop.call_soon_threadsafe(self._set_ended, error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stopping = trio.Event()
        events = Events(
            connected=lambda peer: self._to_loop(self._tell_peer, peer, True),
            disconnected=lambda peer: self._to_loop(self._tell_peer, peer, False),
            blame=lambda peer, reason: self._to_loop(self._tell_blame, peer, reason),
        )
        self._host = Host(self._signer, self._listen, self._desk, events)
        async with self._host.running(), trio.open_nursery() as nursery:
            self._nursery = nursery
            self._to_loop(self._ready.set_result, None)
            try:
                await self._stopping.wait()
            finally:
                self._stopping.set()  # no more calls, whatever ended us
                nursery.cancel_scope.cancel()

    async def _stop(self) -> None:
        if not self._ended.done():
            self._token.run_sync_soon(self._stopping.set)
        is_cancelled = await _uncancelled({self._ended}, STOP_S)
        if self._ended.done():
            self._thread.join()
            self._ended.result()
        else:  # it ends with the process
            log.warning("network left behind: it did not end within %g s", STOP_S)
        if is_cancelled:
            raise asyncio.CancelledError

    def _set_ended(self, error: BaseException | None) -> None:
        self._deliver()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(_single(error))

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


class _Crossing(Generic[T]):
    """One `Bridge.call` under way."""

    def __init__(self, run: Callable[[], Awaitable[T]], future: asyncio.Future[T]) -> None:
        self.run = run
        self.future = future
        self.scope = trio.CancelScope()

    def fail(self, error: Exception) -> None:
        """End it with `error` unless it has a value already."""
        if not self.future.done():
            self.future.set_exception(error)


async def _uncancelled(
    futures: set[asyncio.Future[None]] | set[asyncio.Future[Any]], timeout_s: float | None = None
) -> bool:
    """Wait for one of them although we may be cancelled; whether we were."""
    waiting = asyncio.ensure_future(
        asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    )
    is_cancelled = False
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            is_cancelled = True
    return is_cancelled


def _single(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
