"""What a trainer may be told: the world tells the machine, in the past tense."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.changes import Change
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Decision, Message
from trainers.timers import Timer


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The peers that train in this run now, without this one; sorted."""

    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """The others are too far ahead to exchange with; `source` is one of them (`reanchor`)."""

    source: PeerId


@dataclass(frozen=True, slots=True)
class ControlChanged:
    """The creator wants this of the run; may come before `Resumed`, and again and again."""

    is_paused: bool = False
    is_stopped: bool = False
    """For good."""
    changes: tuple[Change, ...] = ()
    """The newest of each setting, all of them valid (`protocol.changes.checked`)."""


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
    fragment: int
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
class Sampled:
    """`Sample` finished, or was closed early: the scalars of the steps from `step` on."""

    step: int
    scalars: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Added:
    """`AddScalars` finished."""


@dataclass(frozen=True, slots=True)
class SumNamed:
    """`NameSum` finished."""

    sum: Digest


@dataclass(frozen=True, slots=True)
class OuterDone:
    """`ApplyOuter` finished: slow weights and momentum of `round` are in place."""

    round: Round
    weights: Digest
    """Of the slow weights."""


@dataclass(frozen=True, slots=True)
class OuterRefused:
    """The payload `culprit` is not what it must be; nothing was changed."""

    culprit: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class OuterFailed:
    """The worker died; `Resumed` follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The worker is (back) at the start of `round`, from its snapshot or a member's weights."""

    round: Round
    weights: Digest
    """Of the slow weights; spsa: of the sum."""
    horizon: bytes = b""
    """spsa: of the sum, see `protocol.spsa.packed`."""


@dataclass(frozen=True, slots=True)
class CatchUpFailed:
    """`CatchUp` came to nothing; the worker is where it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer set with `SetTimer` is due."""

    timer: Timer


Event = (
    MembersChanged
    | LeftBehind
    | ControlChanged
    | Received
    | SendFailed
    | DecisionsSeen
    | InnerDone
    | InnerFailed
    | Sampled
    | Added
    | SumNamed
    | SnapshotDone
    | SnapshotFailed
    | Fetched
    | FetchFailed
    | OuterDone
    | OuterRefused
    | OuterFailed
    | Resumed
    | CatchUpFailed
    | TimerFired
)
