"""What the machine of a transfer is told, and what it asks for; see `protocol.transfer`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocol.ids import PeerId

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DonorFound:
    """`peer` holds these chunks (None: all).  Also the answer to `Poll`."""

    peer: PeerId
    held: frozenset[int] | None
    is_relayed: bool
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class DonorLost:
    """`peer` holds nothing any more, or does not say."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """`peer` is reached through a relay now, or no longer."""

    peer: PeerId
    is_relayed: bool


@dataclass(frozen=True, slots=True)
class PieceCame:
    """The bytes of a request are here."""

    request: int


class Why(Enum):
    """What became of a request that brought nothing."""

    GONE = "gone"
    """The link broke, or the deadline passed."""
    BUSY = "busy"
    """The donor has no place for it now."""
    REFUSED = "refused"
    """The donor does not have it."""
    WRONG = "wrong"
    """The donor broke the protocol, and was blamed for it."""


@dataclass(frozen=True, slots=True)
class PieceFailed:
    """A request brought nothing; `reason` names the donor."""

    request: int
    why: Why
    reason: str


@dataclass(frozen=True, slots=True)
class ChunkChecked:
    """The chunk is on disk, or its bytes are wrong."""

    chunk: int
    is_right: bool


@dataclass(frozen=True, slots=True)
class SearchOver:
    """Everybody who was known at first has been asked what he holds."""


@dataclass(frozen=True, slots=True)
class Woke:
    """The time of a `WakeAt` has come; one too early or too late does no harm."""


Event = (
    DonorFound
    | DonorLost
    | LinkChanged
    | PieceCame
    | PieceFailed
    | ChunkChecked
    | SearchOver
    | Woke
)

# --- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `donor` for these bytes, all of them in one chunk: `PieceCame` or `PieceFailed`."""

    request: int
    donor: PeerId
    chunk: int
    offset: int
    """Of the blob."""
    length: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """The bytes of this request are not wanted any more; no answer."""

    request: int


@dataclass(frozen=True, slots=True)
class Keep:
    """What this request brought is part of its chunk now."""

    request: int


@dataclass(frozen=True, slots=True)
class Check:
    """All of the chunk is here: check its hash, and if it is right put it on disk."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask a donor what it holds by now: `DonorFound` or `DonorLost`."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Say `Woke` then."""

    at: float


@dataclass(frozen=True, slots=True)
class Blame:
    """`peer` sent wrong bytes."""

    peer: PeerId
    reason: str


Effect = Ask | Cancel | Keep | Check | Poll | WakeAt | Blame
