"""One call to a peer whose stream is open, from the event loop to the trio thread and back.

It takes no task on the trio side: the event loop's post begins it, the frame that ends it posts
the outcome back.  A peer that must be dialled first is `Host.call`'s business, which takes one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from node.p2p.asking import Asked, Asking, Gone, Outcome
from node.p2p.host import Host
from protocol.ids import PeerId
from protocol.rpc import Method


class Errand:
    """Made on the event loop; `begin`, `late` and `cancel` are for the trio side."""

    def __init__(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        body: bytes,
        deadline_s: float,
        into: memoryview | None,
        future: asyncio.Future[Outcome | None],
        to_loop: Callable[..., None],
    ) -> None:
        self.future = future
        """Gets the outcome, or None if no stream is open.  Event loop's side."""
        self.is_back = False
        """Whether nothing will be written into the caller's memory any more.  Event loop's."""
        self._peer = peer
        self._method = method
        self._body = body
        self._deadline_s = deadline_s
        self._into = into
        self._to_loop = to_loop
        self._asking: Asking
        self._asked: Asked | None = None

    def begin(self, host: Host) -> None:
        """Send the request."""
        asking = host.open_stream_to(self._peer, self._method.lane)
        if asking is None:
            self._to_loop(self._deliver, None)
            return
        self._asking = asking
        into, self._into = self._into, None  # held by nobody after the outcome
        self._asked = asking.begin(self._method, self._body, self._deadline_s, into, self._bring)

    def late(self) -> None:
        """The deadline has passed."""
        self._end(Gone(f"{self._method.name}: no answer within {self._deadline_s:g} s"))

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._end(Gone("cancelled"))

    def _end(self, outcome: Gone) -> None:
        if self._asked is not None:
            self._asking.end(self._asked, outcome)

    def _bring(self, outcome: Outcome) -> None:
        self._asked = None
        self._to_loop(self._deliver, outcome)

    def _deliver(self, outcome: Outcome | None) -> None:
        self.is_back = True
        if not self.future.done():
            self.future.set_result(outcome)
