"""What a trainer wants to be woken for: each names what was open, so that a late one is ignored."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import Digest, PeerId, Round


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


@dataclass(frozen=True, slots=True)
class TermEnds:
    """No roster of this round came from the leader of this term, or its payloads did not."""

    round: Round
    term: int


@dataclass(frozen=True, slots=True)
class RepeatDue:
    """Say again what may have been lost, and look who is elsewhere."""

    start: int
    """Of the worker, counted from 1: an older start's is ignored."""


@dataclass(frozen=True, slots=True)
class FrameEnds:
    """The frame that began at this step has been open for as long as it may be."""

    step: int


@dataclass(frozen=True, slots=True)
class PullAgain:
    """Ask somebody for scalars that we lack."""

    count: int


@dataclass(frozen=True, slots=True)
class BaseIsDue:
    """Nobody has made the base of this index in this term."""

    index: int
    term: int


Timer = (
    ProposalDeadline
    | SearchDeadline
    | ExchangeDeadline
    | AskAgain
    | DoubtDeadline
    | TermEnds
    | RepeatDue
    | FrameEnds
    | PullAgain
    | BaseIsDue
)
