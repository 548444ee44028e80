"""The sans-io contract: what a trainer may be told, and what it may ask for.

A trainer is a machine.  It decides; it never does.  It is told what happened (`Event`) and
when (`now`), and answers with what is to be done next (`Effect`), in order.  A shell does
it: `node.driver` on a real machine, `node.sim` under virtual time, a plain `for` loop in a
unit test.  So a trainer

* reads no clock, draws from no random source but the one it was given, and imports neither
  asyncio, trio, libp2p nor torch;
* never raises on what a peer sent: it answers with `Blame`;
* never cancels a timer: a timer that no longer matters is ignored when it fires;
* iterates over nothing unordered, so equal inputs give equal outputs.

Every effect that has an answer has a failed answer, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protocol.ids import Digest, PeerId, Round
from protocol.messages import Decision, Exchange, Message

# --- events: the world tells the trainer ----------------------------------------------


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The peers that train in this run now, without this one; sorted."""

    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Received:
    """`message` arrived, authenticated as coming from `sender`."""

    sender: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class SendFailed:
    """`Send` gave up: `to` cannot be reached or does not take the message."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class DecisionsSeen:
    """The newest presence of `proposer` holds these decisions."""

    proposer: PeerId
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class InnerDone:
    """`RunInner` finished (or was closed early); the worker waits at the step boundary."""

    steps: int
    tokens: int


@dataclass(frozen=True, slots=True)
class InnerFailed:
    """The worker died while training; `Resumed` follows once it is back."""

    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotDone:
    """`Snapshot` finished: the payload is held as `digest` and can be served."""

    round: Round
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """The worker died before the payload was ready; `Resumed` follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """`Fetch` finished: the payload is held and its hash was checked."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """`Fetch` gave up."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class OuterDone:
    """`ApplyOuter` finished: slow weights and momentum of `round` are in place."""

    round: Round


@dataclass(frozen=True, slots=True)
class OuterRefused:
    """The partner's payload is not what it must be; nothing was changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class OuterFailed:
    """The worker died; `Resumed` follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The worker is (back) at the start of `round`, from its snapshot or a member's weights."""

    round: Round


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer set with `SetTimer` is due."""

    timer: Timer


# --- effects: the trainer asks the world ----------------------------------------------


@dataclass(frozen=True, slots=True)
class RunInner:
    """Train until `steps` inner steps are made since the last snapshot; answer `InnerDone`.

    `round` sets the learning rate.  The outer step of the round before may arrive meanwhile.
    """

    round: Round
    steps: int


@dataclass(frozen=True, slots=True)
class CloseInner:
    """Finish `RunInner` at the next step boundary."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Encode what the pair exchanges in `round` from the weights of now; `SnapshotDone`."""

    round: Round


@dataclass(frozen=True, slots=True)
class ApplyOuter:
    """Take the outer step that ends in `round`: `OuterDone`, `OuterRefused` or `OuterFailed`.

    The fast weights move by what the slow ones moved away from the snapshot, so that inner
    steps made since then stay (overlap).  `theirs` None: alone, n = 1.
    """

    round: Round
    mine: Digest
    theirs: Digest | None
    my_weight: float
    """Weight of our vector in the pair's mean; 1.0 alone."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the payload from `source`; answer `Fetched` or `FetchFailed`."""

    digest: Digest
    size_bytes: int
    source: PeerId


@dataclass(frozen=True, slots=True)
class Release:
    """The payload is no longer needed; a fetch of it that is under way is given up."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Send:
    """Sign `message` and queue it for `to`; it may be lost, late or doubled."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """Keep these decisions of ours in our presence."""

    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Answer `TimerFired(timer)` at `at` (seconds on the clock that `now` is read from)."""

    at: float
    timer: Timer


@dataclass(frozen=True, slots=True)
class Wait:
    """For the operator: from now on this peer waits for `what`, until `until` at most."""

    what: str
    peer: PeerId | None
    until: float


@dataclass(frozen=True, slots=True)
class Closed:
    """For counters, records and the ledger: `round` is over for this peer.

    `exchange` None: alone.  `half`: this peer went alone while its partner may have applied.
    """

    round: Round
    tokens: int
    exchange: Exchange | None
    half: bool
    reason: str
    """Why alone; empty with an exchange."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last round of the spec is closed; serve others, train no more."""

    round: Round


@dataclass(frozen=True, slots=True)
class Blame:
    """`peer` broke the protocol; the shell decides what that costs it."""

    peer: PeerId
    reason: str


# --- timers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProposalDeadline:
    """The open proposal of payload `proposed` to `to` was not answered."""

    proposed: Digest
    to: PeerId


@dataclass(frozen=True, slots=True)
class SearchDeadline:
    """No partner was found for the payload `proposed`."""

    proposed: Digest


@dataclass(frozen=True, slots=True)
class ExchangeDeadline:
    """The exchange of payload `proposed` is not closed."""

    proposed: Digest


@dataclass(frozen=True, slots=True)
class AskAgain:
    """No decision about `proposed` since our last receipt: send it once more."""

    proposed: Digest


@dataclass(frozen=True, slots=True)
class DoubtDeadline:
    """Nobody told what the proposer of `proposed` decided: go on alone."""

    proposed: Digest


Timer = ProposalDeadline | SearchDeadline | ExchangeDeadline | AskAgain | DoubtDeadline
Event = (
    MembersChanged
    | Received
    | SendFailed
    | DecisionsSeen
    | InnerDone
    | InnerFailed
    | SnapshotDone
    | SnapshotFailed
    | Fetched
    | FetchFailed
    | OuterDone
    | OuterRefused
    | OuterFailed
    | Resumed
    | TimerFired
)
Effect = (
    RunInner
    | CloseInner
    | Snapshot
    | ApplyOuter
    | Fetch
    | Release
    | Send
    | Publish
    | SetTimer
    | Wait
    | Closed
    | Finished
    | Blame
)


class Trainer(Protocol):
    """A training algorithm, as one peer runs it.  Started by the event `Resumed`."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about `event`; `now` never goes back."""
