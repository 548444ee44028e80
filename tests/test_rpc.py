"""Typed calls over a network of one dictionary: what a handler and a caller get to see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from node.arena import ArenaFull
from node.bridge import Server
from node.p2p.answering import Incoming
from node.p2p.asking import Answer, Broke, Gone, Outcome
from node.rpc import CallRefused, Refused, Rpc
from protocol import codec
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError, Malformed, PeerUnavailable, RemoteProtocolError
from protocol.frame import Refusal
from protocol.ids import Digest, PeerId, RunId
from protocol.rpc import FETCH, HELLO, RECORDS, FetchCall, Hello, Method, RecordCall, Welcome

ALICE, BOB = (Signer(bytes([n]) * 32).peer for n in (1, 2))
RUN = RunId(b"r" * 32)
HELLO_CALL = Hello(RUN, b"n" * 16, b"")
WELCOME = Welcome(b"spec", b"s" * 64, b"p" * 64)
FETCH_CALL = FetchCall(RUN, Digest(b"d" * 32), 0, 7)


@dataclass
class Wire:
    """Alice's bridge: what she asks goes to her own server, as Bob's request."""

    outcome: Outcome | None = None
    """If set, what every call comes to, whatever the server says."""
    body: bytes | None = None
    """If set, what arrives instead of the body."""
    asked: list[tuple[str, float]] = field(default_factory=list)

    def serve(
        self,
        methods: Mapping[str, Method[Any, Any]],
        server: Server,
        on_blame: Callable[[PeerId, str], None],
    ) -> None:
        self.server = server

    async def ask(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome:
        self.asked.append((method.name, deadline_s))
        if self.outcome is not None:
            return self.outcome
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        sent = body if self.body is None else self.body
        nowhere = cast(Any, None)
        incoming = Incoming(
            BOB, method, deadline_s, bytearray(sent), len(sent), 0, nowhere, expires_at=0.0
        )
        self.server.request(incoming)
        try:
            return await self.done
        except asyncio.CancelledError:
            self.server.cancel(incoming)
            raise

    def answer(self, incoming: Incoming, body: bytes | memoryview) -> None:
        self.done.set_result(Answer(bytes(body)))

    def refuse(self, incoming: Incoming, code: str, sentence: str) -> None:
        self.done.set_result(Refusal(code, sentence))


async def welcome(peer: PeerId, request: Hello) -> Welcome:
    assert (peer, request) == (BOB, HELLO_CALL)
    return WELCOME


async def test_a_call_brings_the_answer_of_the_handler() -> None:
    wire = Wire()
    async with Rpc(wire) as rpc:
        rpc.serve(HELLO, welcome)
        assert await rpc.call(ALICE, HELLO, HELLO_CALL) == WELCOME
        assert await rpc.call(ALICE, HELLO, HELLO_CALL, deadline_s=3) == WELCOME
    assert wire.asked == [("hello/1", HELLO.deadline_s), ("hello/1", 3)]


async def test_raw_answers_may_be_memory() -> None:
    async def fetch(peer: PeerId, request: FetchCall) -> bytes:
        return cast(bytes, memoryview(b"payload"))

    async with Rpc(Wire()) as rpc:
        rpc.serve(FETCH, fetch)
        assert await rpc.call(ALICE, FETCH, FETCH_CALL) == b"payload"


async def test_a_refusal_arrives_with_its_code() -> None:
    async def refuse(peer: PeerId, request: Hello) -> Welcome:
        raise Refused("stranger", "not in this run")

    async with Rpc(Wire()) as rpc:
        rpc.serve(HELLO, refuse)
        with pytest.raises(CallRefused, match="refused hello/1 as stranger: not in this") as found:
            await rpc.call(ALICE, HELLO, HELLO_CALL)
    assert (found.value.peer, found.value.code) == (ALICE, "stranger")


async def test_a_request_that_is_none_is_refused_and_blamed() -> None:
    blamed: list[PeerId] = []
    async with Rpc(Wire(body=b"junk"), on_blame=lambda peer, _: blamed.append(peer)) as rpc:
        rpc.serve(HELLO, welcome)
        with pytest.raises(CallRefused, match="as malformed"):
            await rpc.call(ALICE, HELLO, HELLO_CALL)
    assert blamed == [BOB]


async def test_what_the_handler_finds_malformed_is_blamed_too() -> None:
    async def open_it(peer: PeerId, request: Hello) -> Welcome:
        raise Malformed("not signed")

    blamed: list[tuple[PeerId, str]] = []
    async with Rpc(Wire(), on_blame=lambda *args: blamed.append(args)) as rpc:
        rpc.serve(HELLO, open_it)
        with pytest.raises(CallRefused, match="as malformed: not signed"):
            await rpc.call(ALICE, HELLO, HELLO_CALL)
    assert blamed == [(BOB, "asked hello/1 with not signed")]


@pytest.mark.parametrize(
    "outcome", [Answer(b"junk"), Answer(codec.encode(FETCH_CALL)), Broke("an answer of over 3 GB")]
)
async def test_an_answer_that_is_none_is_blamed(outcome: Outcome) -> None:
    blamed: list[PeerId] = []
    async with Rpc(Wire(outcome), on_blame=lambda peer, _: blamed.append(peer)) as rpc:
        with pytest.raises(RemoteProtocolError):
            await rpc.call(ALICE, HELLO, HELLO_CALL)
    assert blamed == [ALICE]


async def test_a_peer_that_is_gone_is_nobodys_fault() -> None:
    blamed: list[PeerId] = []
    async with Rpc(Wire(Gone("no answer")), on_blame=lambda p, _: blamed.append(p)) as rpc:
        with pytest.raises(PeerUnavailable, match="no answer"):
            await rpc.call(ALICE, HELLO, HELLO_CALL)
    assert blamed == []


async def test_a_handler_ends_when_its_caller_has_waited_long_enough() -> None:
    ended: list[str] = []

    async def forever(peer: PeerId, request: Hello) -> Welcome:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return WELCOME

    async with Rpc(Wire()) as rpc:
        rpc.serve(HELLO, forever)
        with pytest.raises(CallRefused, match=r"as late: no answer within 0\.01 s"):
            await rpc.call(ALICE, HELLO, HELLO_CALL, deadline_s=0.01)
    assert ended == ["cancelled"]


async def test_leaving_ends_the_handlers() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def forever(peer: PeerId, request: Hello) -> Welcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return WELCOME

    async with Rpc(Wire()) as rpc:
        rpc.serve(HELLO, forever)
        call = asyncio.ensure_future(rpc.call(ALICE, HELLO, HELLO_CALL))
        await begun.wait()
    assert ended.is_set()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_request_over_its_limit_is_our_own_fault() -> None:
    async with Rpc(Wire()) as rpc:
        with pytest.raises(LocalProtocolError, match="at most 262144"):
            await rpc.call(ALICE, RECORDS, RecordCall(RUN, bytes(300_000)))


@pytest.mark.parametrize("error", [ArenaFull("no room for 7 bytes"), OSError(24, "Too many files")])
async def test_a_handler_that_lacks_something_fails_its_call_and_no_other(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def lacking(peer: PeerId, request: FetchCall) -> bytes:
        raise error

    async with Rpc(Wire()) as rpc:
        rpc.serve(FETCH, lacking)
        rpc.serve(HELLO, welcome)
        with pytest.raises(CallRefused, match=f"as failed: {type(error).__name__}$"):
            await rpc.call(ALICE, FETCH, FETCH_CALL)
        assert await rpc.call(ALICE, HELLO, HELLO_CALL) == WELCOME
    (told,) = caplog.records
    assert told.getMessage().startswith("call failed here: method=fetch/1 peer=")
    assert told.exc_info
    assert told.exc_info[1] is error


async def test_a_bug_in_a_handler_is_not_hidden() -> None:
    async def broken(peer: PeerId, request: Hello) -> Welcome:
        raise ZeroDivisionError

    async def serve_it() -> None:
        async with Rpc(Wire()) as rpc:
            rpc.serve(HELLO, broken)
            await rpc.call(ALICE, HELLO, HELLO_CALL)

    with pytest.raises(ExceptionGroup) as found:
        await serve_it()
    assert found.group_contains(ZeroDivisionError)
