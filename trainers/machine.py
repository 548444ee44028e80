"""The sans-io contract: what a trainer may be told, and what it may ask for.

A trainer is a machine.  It decides; it never does.  It is told what happened (`Event`) and
when (`now`), and answers with what is to be done next (`Effect`), in order.  A shell does
it: `node.driver` on a real machine, `node.sim.world` under virtual time, a plain `for` loop in a
unit test.  So a trainer

* reads no clock, draws from no random source but the one it was given, and imports neither
  asyncio, trio, libp2p nor torch;
* never raises on what a peer sent: it answers with `Blame`;
* never cancels a timer: a timer that no longer matters is ignored when it fires;
* iterates over nothing unordered, so equal inputs give equal outputs.

Every effect that has an answer has a failed answer, too.
"""

from __future__ import annotations

from typing import Protocol

from trainers.effects import Effect
from trainers.events import Event


class Trainer(Protocol):
    """A training algorithm, as one peer runs it.  Started by the event `Resumed`."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about `event`; `now` never goes back."""
