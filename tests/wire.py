"""What is between two peers of a test: `node.rpc` at both ends, and no socket between them.

So requests and answers go through the codec and the limits of their method, and what the
handler raises comes out at the caller as it does between nodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from node.bridge import Server
from node.p2p.answering import Incoming
from node.p2p.asking import Answer, Asked, Outcome
from node.rpc import Rpc
from protocol.frame import Refusal
from protocol.ids import PeerId
from protocol.rpc import A, Method, Q

Blame = Callable[[PeerId, str], None]


async def carried(
    caller: PeerId,
    peer: PeerId,
    method: Method[Q, A],
    request: Q,
    handler: Callable[[PeerId, Q], Awaitable[Any]],
    *,
    deadline_s: float | None = None,
    into: memoryview | None = None,
    blame: Blame = lambda peer, reason: None,
    blamed_there: Blame = lambda peer, reason: None,
) -> A:
    """As `node.rpc.Rpc.call` of `caller`; `peer` serves the method with `handler`.

    Args:
        blame: told whom `caller` blames; what `peer` answered is none.
        blamed_there: told whom `peer` blames; what `caller` asked is none.
    """
    server = Rpc(_Between(), on_blame=blamed_there)
    server.serve(method, handler)
    rpc = Rpc(_Between(caller, server), on_blame=blame)
    return await rpc.call(peer, method, request, deadline_s=deadline_s, into=into)


class _Between:
    """`node.rpc.Calls` for one call."""

    def __init__(self, caller: PeerId | None = None, server: Rpc | None = None) -> None:
        self._caller = caller
        self._server = server
        self.outcome: Answer | Refusal | None = None

    def serve(
        self, methods: Mapping[str, Method[Any, Any]], server: Server, on_blame: Blame
    ) -> None:
        raise AssertionError("calls are handed over one by one")

    async def ask(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
    ) -> Outcome:
        assert self._caller is not None
        assert self._server is not None
        nowhere = cast(Any, None)
        await self._server._handle(
            Incoming(self._caller, method, deadline_s, bytearray(body), len(body), 0, nowhere, 0.0)
        )
        outcome = cast(_Between, self._server._bridge).outcome
        assert outcome is not None
        if isinstance(outcome, Refusal):
            return outcome
        found: list[Outcome] = []
        most = method.max_answer_bytes if into is None else len(into)
        asked = Asked(0, method.kind, most, into, found.append, None)
        asked.take(outcome.body)
        if not asked.abandoned:
            asked.close()
        return found[0]

    def answer(self, incoming: Incoming, body: bytes | memoryview) -> None:
        self.outcome = Answer(bytes(body))

    def refuse(self, incoming: Incoming, code: str, sentence: str) -> None:
        self.outcome = Refusal(code, sentence)
