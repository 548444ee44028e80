"""Calls between nodes, typed by the table in `protocol.rpc`.

    rpc.serve(HELLO, answer_hello)
    welcome = await rpc.call(peer, HELLO, Hello(run, nonce, proof))

What comes from outside is checked here once: a handler gets a valid request, a caller a valid
answer, and whoever sent something else is blamed.  Every call has a deadline and every method
its limits; a handler that takes longer than its caller waits is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

from node.bridge import Server
from node.p2p.answering import BUSY, LATE, MALFORMED, Incoming
from node.p2p.asking import Answer, Broke, Gone, Outcome
from protocol import codec
from protocol.errors import (
    LocalProtocolError,
    Malformed,
    PeerUnavailable,
    RemoteProtocolError,
    ShoalError,
)
from protocol.frame import MAX_DEADLINE_MS, Refusal
from protocol.ids import PeerId, short
from protocol.rpc import Method

Q = TypeVar("Q")
A = TypeVar("A")

MAX_DEADLINE_S = MAX_DEADLINE_MS / 1000
FAILED = "failed"
"""The code of a call whose handler could not do its work: no memory, no disk, no worker."""

log = logging.getLogger(__name__)


class Refused(Exception):
    """Raised by a handler: the caller gets the code and the sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class CallRefused(PeerUnavailable):
    """The peer refused the call: as `busy`, `unknown`, `late`, `failed` or one of its handler's."""

    def __init__(self, peer: PeerId, method: str, refusal: Refusal) -> None:
        super().__init__(peer, f"refused {method} as {refusal.code}: {refusal.sentence}")
        self.code = refusal.code


class Calls(Protocol):
    """What is needed of the bridge."""

    def serve(
        self,
        methods: Mapping[str, Method[Any, Any]],
        server: Server,
        on_blame: Callable[[PeerId, str], None],
    ) -> None: ...

    async def ask(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome: ...

    def answer(self, incoming: Incoming, body: bytes | memoryview) -> None: ...

    def refuse(self, incoming: Incoming, code: str, sentence: str) -> None: ...


class Rpc:
    """One per node, inside the context of its bridge."""

    def __init__(
        self, bridge: Calls, *, on_blame: Callable[[PeerId, str], None] | None = None
    ) -> None:
        """Args: on_blame: told of every peer that broke the protocol, and how; None: logged."""
        self._bridge = bridge
        self._on_blame = on_blame
        self._methods: dict[str, Method[Any, Any]] = {}
        self._handlers: dict[str, Callable[[PeerId, Any], Awaitable[Any]]] = {}
        self._tasks: dict[Incoming, asyncio.Task[None]] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        """Begin to serve."""
        await self._group.__aenter__()
        self._bridge.serve(self._methods, self, self._blame)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End: calls being served are cancelled.

        An error of the body is no error of a handler: it goes on as it is, out of no group.
        """
        self._methods.clear()
        for task in self._tasks.values():
            task.cancel()
        if isinstance(error, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, traceback)
        else:
            await self._group.__aexit__(None, None, None)

    def serve(self, method: Method[Q, A], handler: Callable[[PeerId, Q], Awaitable[A]]) -> None:
        """Answer `method` with `handler`.

        It may raise `Refused`, or `Malformed` when what the request carries is none.  A
        `ShoalError` or `OSError` fails this one call; any other exception is a bug and ends the
        `Rpc`.  Where the answer is `bytes` it may return a memoryview: that memory must not
        change until the call has ended, and is copied only part by part.
        """
        self._handlers[method.name] = handler
        self._methods[method.name] = method

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, A],
        request: Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> A:
        """The peer's answer.

        Args:
            deadline_s: the method's own unless given; dialling is included.
            into: where the answer is bytes, memory of exactly its length that gets them; the
                answer is then b"".  It is left alone once this returns or raises.

        Raises:
            PeerUnavailable: it is gone, slow or refuses (`CallRefused`).
            RemoteProtocolError: it answered what no honest peer answers.
        """
        body = codec.encode(request)
        if len(body) > method.max_request_bytes:
            raise LocalProtocolError(
                f"a {method.name} of {len(body)} bytes, at most {method.max_request_bytes}"
            )
        if into is not None and (into.readonly or into.format != "B"):
            raise LocalProtocolError(f"an answer to {method.name} cannot be written into that")
        limit_s = min(method.deadline_s if deadline_s is None else deadline_s, MAX_DEADLINE_S)
        match await self._bridge.ask(peer, method, body, limit_s, into):
            case Answer(data):
                return self._decoded(peer, method, data)
            case Refusal() as refusal:
                raise CallRefused(peer, method.name, refusal)
            case Gone(reason):
                raise PeerUnavailable(peer, reason)
            case Broke(reason):
                self._blame(peer, reason)
                raise RemoteProtocolError(peer, reason)

    def _decoded(self, peer: PeerId, method: Method[Q, A], data: bytes) -> A:
        if method.answer is bytes:
            return cast(A, data)
        try:
            return codec.decode(method.answer, data, max_bytes=method.max_answer_bytes)
        except Malformed as error:
            reason = f"answered {method.name} with {error}"
            self._blame(peer, reason)
            raise RemoteProtocolError(peer, reason) from error

    # --- what the bridge calls -------------------------------------------------------------

    def request(self, incoming: Incoming) -> None:
        """A request has come."""
        if incoming.method.name not in self._methods:
            self._bridge.refuse(incoming, BUSY, "the node stops")
            return
        task = self._group.create_task(self._handle(incoming), name=incoming.method.name)
        self._tasks[incoming] = task
        task.add_done_callback(lambda _: self._tasks.pop(incoming, None))

    def cancel(self, incoming: Incoming) -> None:
        """Nobody wants the answer any more."""
        if incoming in self._tasks:
            self._tasks[incoming].cancel()

    async def _handle(self, incoming: Incoming) -> None:
        method = incoming.method
        try:
            request = codec.decode(
                method.request, bytes(incoming.body), max_bytes=method.max_request_bytes
            )
            async with asyncio.timeout(incoming.deadline_s):
                answer = await self._handlers[method.name](incoming.peer, request)
        except Malformed as error:
            self._blame(incoming.peer, f"asked {method.name} with {error}")
            self._bridge.refuse(incoming, MALFORMED, str(error))
        except Refused as refused:
            self._bridge.refuse(incoming, refused.code, refused.sentence)
        except TimeoutError:
            self._bridge.refuse(incoming, LATE, f"no answer within {incoming.deadline_s:g} s")
        except (ShoalError, OSError) as error:
            log.exception("call failed here: method=%s peer=%s", method.name, short(incoming.peer))
            self._bridge.refuse(incoming, FAILED, type(error).__name__)  # the rest is ours to know
        else:
            self._bridge.answer(incoming, self._encoded(method, answer))

    def _encoded(self, method: Method[Any, Any], answer: object) -> bytes | memoryview:
        if method.answer is not bytes:
            answer = codec.encode(answer)
        assert isinstance(answer, bytes | memoryview)
        if len(answer) > method.max_answer_bytes:
            raise LocalProtocolError(
                f"an answer to {method.name} of {len(answer)} bytes, "
                f"at most {method.max_answer_bytes}"
            )
        return answer

    def _blame(self, peer: PeerId, reason: str) -> None:
        if self._on_blame is None:
            log.warning("peer blamed: peer=%s reason=%s", short(peer), reason)
        else:
            self._on_blame(peer, reason)
