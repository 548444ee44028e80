"""The node's API: HTTP with JSON on a unix socket in the data directory, and its client.

    GET  /status    what the node does now, see `Status`
    GET  /peers     the members that it sees, see `PeerStatus`
    GET  /contributions    who trained how much, see `node.records.contributions`
    GET  /events    the status as JSON lines, one whenever it changed, twice a second at most
    POST /leave     say goodbye to the run and stop
    POST /order     for the creator: pause, resume, stop, set, see `node.control.Order`

Only who owns the data directory may ask: the socket has mode 0600.  The node must hold the
lock of its data directory, so a socket found there is a dead node's and is replaced.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import aiohttp
from aiohttp import web

from node.api_socket import close, listening
from protocol.errors import ConfigError, LocalProtocolError, NotRunning

CALL_DEADLINE_S = 5.0
"""A node answers in milliseconds; one whose loop hangs for seconds is to be named."""
MAX_STREAMS = 8
"""Watchers at one time; one more is refused."""
EVENT_INTERVAL_S = 0.5
SHUTDOWN_S = 0.2
"""For open answers when the node stops; see `node.node.LEAVE_S`."""
_HOST = "http://node"


class Exchanges(TypedDict):
    made: int
    missed: int
    half: int


class Validation(TypedDict):
    """Nats per byte; None: not measured yet."""

    start: float | None
    end: float | None


class Traffic(TypedDict):
    """Bytes by kind."""

    up: dict[str, int]
    down: dict[str, int]


class Reachable(TypedDict):
    """How others get at this node, and what it does for them."""

    verdict: str
    """public, private or unknown."""
    relays: list[str]
    """Peers through which it is reached."""
    circuits: int
    """Half connections of others that pass through it now: two a connection."""
    carried_bytes: int


class Status(TypedDict):
    """What a node does now."""

    peer: str
    run: str
    """Hex; empty: no run yet."""
    name: str
    state: str
    """serving, starting, training, paused, finished or leaving."""
    ticket: str
    addrs: list[str]
    reachable: Reachable
    pid: int
    worker_pid: int | None
    round: int
    rounds: int
    inner_step: int
    """In all rounds together."""
    step_in_round: int
    inner_steps: int
    loss: float
    """Training loss of the last inner steps, nats per token."""
    tokens_per_s: float
    partner: str | None
    waiting: dict[str, Any] | None
    """what, from (a peer id or words), until_unix_s."""
    trouble: str | None
    """What the operator should see to, such as a disk that takes no snapshot."""
    exchanges: Exchanges
    rounds_closed: int
    consensus: float | None
    changes: dict[str, str]
    """Settings that the creator has changed, with their values in this round."""
    val: Validation
    bytes: Traffic
    protection: dict[str, Any] | None
    """What of ours peers hold, and what this node holds for them; None: not in this run."""
    closed_form: dict[str, int]
    """Bytes that the formula says this node has sent, by kind; to compare with `bytes`."""
    parameters: int
    members: int
    records: str
    """Hash of all records, hex: equal at two nodes that know the same; empty: no run yet."""
    snapshot: str | None
    """Path of the newest snapshot file."""
    spec: str | None
    """Path of the file with the spec's canonical bytes."""
    blobs: dict[str, str]
    """Paths by name: tokenizer, validation."""


class LinkTraffic(TypedDict):
    """What crosses the link to a peer, or crossed it before."""

    rtt_ms: float | None
    """Of small calls, with what the peer takes to answer."""
    up_per_s: float
    """Bytes, of late."""
    down_per_s: float
    up: dict[str, int]
    """Bytes by kind."""
    down: dict[str, int]


class PeerStatus(TypedDict, total=False):
    """A member as this node sees it."""

    peer: str
    name: str
    state: str
    standing: str
    """Why it is or is not trained with."""
    round: int
    inner_step: int
    loss: float
    tokens_per_s: float
    addrs: list[str]
    link: str
    """How it is reached now: direct, punched or relayed; empty: not connected."""
    link_addr: str
    """The other end of that, or the circuit."""
    traffic: LinkTraffic
    tokens: int
    """Contributed in all, by its own record."""
    rounds: int


class Contributions(TypedDict):
    """The ledger; rows are as in `node.records.contributions.Contribution`."""

    records: str
    """One hash over all records: equal ledgers come from equal records."""
    authors: list[dict[str, str | int]]
    sum: dict[str, str | int]


class Facts(Protocol):
    """What the node tells and does for its API."""

    def status(self) -> Mapping[str, object]:
        """See `Status`."""

    def peers(self) -> Sequence[Mapping[str, object]]:
        """See `PeerStatus`."""

    def contributions(self) -> Mapping[str, object]:
        """See `Contributions`."""

    async def leave(self) -> None:
        """Begin to leave; returns before the node has stopped."""

    async def order(self, order: Mapping[str, object]) -> str:
        """Do what the creator asks for; a sentence about it.

        Raises:
            ConfigError: it cannot be done.
        """


@asynccontextmanager
async def serving(path: Path, facts: Facts) -> AsyncIterator[None]:
    """The API of `facts` at `path`, as long as the block runs.

    Raises:
        ConfigError: the path is too long for a unix socket.
    """
    closing = asyncio.Event()
    runner = web.AppRunner(
        _Handlers(facts, closing).app(), access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    listener = listening(path)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield
    finally:
        closing.set()
        await runner.cleanup()
        close(path, listener)


def _telling(tell: Callable[[], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(tell())

    return handler


class _Handlers:
    """One method a route."""

    def __init__(self, facts: Facts, closing: asyncio.Event) -> None:
        self._facts = facts
        self._closing = closing
        self._streams = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/status", _telling(self._facts.status)),
                web.get("/peers", _telling(self._facts.peers)),
                web.get("/contributions", _telling(self._facts.contributions)),
                web.get("/events", self._events),
                web.post("/leave", self._leave),
                web.post("/order", self._order),
            ]
        )
        return app

    async def _leave(self, _: web.Request) -> web.Response:
        await self._facts.leave()
        return web.json_response({"ok": True})

    async def _order(self, request: web.Request) -> web.Response:
        try:
            order = await request.json()
            if not isinstance(order, dict):
                raise ConfigError(f"found {order!r:.40}, expected an order as a JSON object")
            return web.json_response({"said": await self._facts.order(order)})
        except (ConfigError, json.JSONDecodeError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_STREAMS} watchers already")
        self._streams += 1
        try:
            return await self._stream(request)
        finally:
            self._streams -= 1

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """A slow reader skips states instead of queueing them; one that stands still is cut."""
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(request)
        last = ""
        while not self._closing.is_set():
            line = json.dumps(self._facts.status())
            if line != last:
                async with asyncio.timeout(CALL_DEADLINE_S):
                    await response.write(line.encode() + b"\n")
                last = line
            try:
                async with asyncio.timeout(EVENT_INTERVAL_S):
                    await self._closing.wait()
            except TimeoutError:
                continue
        return response


class ApiClient:
    """Asks the node at `path`.  Use as `async with ApiClient(path) as node`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(self._path)),
            timeout=aiohttp.ClientTimeout(total=CALL_DEADLINE_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def status(self) -> Status:
        return cast(Status, await self._call("GET", "/status"))

    async def peers(self) -> list[PeerStatus]:
        return cast(list[PeerStatus], await self._call("GET", "/peers"))

    async def contributions(self) -> Contributions:
        return cast(Contributions, await self._call("GET", "/contributions"))

    async def leave(self) -> None:
        await self._call("POST", "/leave")

    async def order(self, order: Mapping[str, object]) -> str:
        """What the creator asks its node for; a sentence about what became of it."""
        answer = cast(dict[str, str], await self._call("POST", "/order", order))
        return answer["said"]

    async def _call(
        self, method: str, route: str, body: Mapping[str, object] | None = None
    ) -> object:
        """The answer.

        Raises:
            ConfigError: no node runs there, or it does not answer, or refuses with a sentence.
        """
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.request(method, _HOST + route, json=body) as response:
                if response.status == web.HTTPBadRequest.status_code:
                    raise ConfigError(await response.text())
                if response.status != 200:
                    text = await response.text()
                    raise LocalProtocolError(f"{route}: {response.status} {text[:200]}")
                return await response.json()
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            raise NotRunning(
                f"no node runs on the data directory {self._path.parent}: nobody answers at "
                f"{self._path.name}; start one with `shoal up`, or give its --data-dir"
            ) from None
        except TimeoutError:
            raise ConfigError(
                f"the node on {self._path.parent} did not answer within {CALL_DEADLINE_S:g} s; "
                "see what it wrote to standard error"
            ) from None
