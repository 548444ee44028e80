"""What a trainer may ask for: the machine asks the world, in the imperative."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.changes import InForce
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Decision, Exchange, Message
from protocol.rosters import Roster
from protocol.spsa import Frame
from trainers.timers import Timer


@dataclass(frozen=True, slots=True)
class Agreed:
    """A roster that was applied, and its name."""

    roster: Roster
    digest: Digest

    @property
    def round(self) -> Round:
        """That it closes."""
        return self.roster.round


@dataclass(frozen=True, slots=True)
class Gathered:
    """spsa: what came from others during a round."""

    round: Round
    scalars: int
    peers: int
    horizon: Digest
    """Of the horizon at its end."""


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
    """Encode what is exchanged of a fragment in `round`, from the weights of now.

    Answer `SnapshotDone`, or `SnapshotFailed`.
    """

    round: Round
    fragment: int


@dataclass(frozen=True, slots=True)
class Share:
    """One payload of a mean."""

    digest: Digest
    round: Round
    """In which it was made: its header says the same."""
    weight: float
    """Of all shares together 1."""


@dataclass(frozen=True, slots=True)
class ApplyOuter:
    """Take the outer step that ends in `round`: `OuterDone`, `OuterRefused` or `OuterFailed`.

    `mine`: the snapshot that it belongs to; inner steps made since then stay.  None: this peer
    made none (diloco), and all its inner steps stay.  `shares`: what is averaged, in this order;
    none: alone, with our own exact weights.
    """

    round: Round
    fragment: int
    mine: Digest | None
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """spsa: measure the scalars of so many steps from `step` on; `Sampled` or `InnerFailed`.

    `CloseInner` ends it at the next step boundary.
    """

    boot: bytes
    """Of the log that they are for: perturbations depend on it."""
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class AddScalars:
    """spsa: add these frames to the sum; answer `Added` or `OuterFailed`."""

    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class NameSum:
    """spsa: the name of the sum less these frames, after all that was added; `SumNamed`."""

    less: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Take over slow weights and outer momentum of this member: `Resumed` or `CatchUpFailed`."""

    source: PeerId


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

    `half`: this peer went alone while its partner may have applied.
    """

    round: Round
    tokens: int
    receipt: Exchange | Agreed | Gathered | None
    """What was averaged, as others have signed it; None: alone."""
    half: bool
    reason: str
    """Why alone; empty with a receipt."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last round of the spec is closed; serve others, train no more."""

    round: Round


@dataclass(frozen=True, slots=True)
class Paused:
    """`round` does not begin before the creator says so; serve others meanwhile."""

    round: Round


@dataclass(frozen=True, slots=True)
class Unpaused:
    """`round` begins after all."""

    round: Round


@dataclass(frozen=True, slots=True)
class ChangeSettings:
    """Settings that the creator has changed, all of them, each from its round on.

    For the worker and the operator.  Comes before what belongs to such a round, and again after
    each `Resumed`.
    """

    changes: tuple[InForce, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """`peer` broke the protocol; the shell decides what that costs it."""

    peer: PeerId
    reason: str


Effect = (
    RunInner
    | CloseInner
    | Snapshot
    | ApplyOuter
    | Sample
    | AddScalars
    | NameSum
    | CatchUp
    | Fetch
    | Release
    | Send
    | Publish
    | SetTimer
    | Wait
    | Closed
    | Finished
    | Paused
    | Unpaused
    | ChangeSettings
    | Blame
)
