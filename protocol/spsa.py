"""What members of an spsa run say to each other: frames of scalars, horizons, bases.

    Frames     signed frames: pushed by their author, or what was asked for
    Want       "these are the scalars that I have; send me what I lack"
    Behind     "what you lack I have no longer, and you have less: take over my sum"
    SignedBase the sum at a horizon, by name: what frames build on, and where logs are cut

A log is one author's scalars since one start of its node, gap-free from 0 on, so that a set of
scalars is described by its horizon, {log: count}.  A frame is valid by its own bytes and
signature alone, whatever else a peer has seen, so all that have it add the same.  A restarted
node begins a new log: it can never sign two frames of one place.

Tags go on from those in `protocol.rosters`.  Source: docs/algorithms.md, spsa.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NewType

from protocol import check, codec
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, RunId, digest_of
from protocol.limits import MAX_STEP
from protocol.scalar import MAX_AUTHORS, check_scalars

LogId = NewType("LogId", bytes)
"""8 bytes that stand for an author and one start of its node."""
LOG_BYTES = 8
BOOT_BYTES = 8
MAX_LOGS = 2048
"""Logs in a horizon: 24 KiB of it in one message."""
MAX_COUNT = (1 << 32) - 1
MAX_FRAME_BYTES = 256
"""A frame of 64 scalars has 178 bytes."""
MAX_FRAMES = 96
"""In one message: 27 KiB of full ones."""
FRAMES_KEPT = 8192
"""Decoded: a frame comes several times, by pushes and answers, and decoding it takes half a
millisecond.  Some 8 MB."""
MAX_BASES = 1 << 32
_ENTRY = struct.Struct(f">{LOG_BYTES}sI")

HORIZON_ENTRY_BYTES = _ENTRY.size
MAX_HORIZON_BYTES = MAX_LOGS * HORIZON_ENTRY_BYTES

Horizon = Mapping[LogId, int]
"""How many scalars of each log; logs without any are left out."""


@functools.lru_cache(2 * MAX_LOGS)
def log_id(run: RunId, author: PeerId, boot: bytes) -> LogId:
    """The log of an author since a start of its node."""
    named = b"log|" + run + author.encode() + boot
    return LogId(hashlib.blake2b(named, digest_size=LOG_BYTES).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A run of scalars of one author."""

    author: PeerId
    boot: bytes
    """8 random bytes of this start of its node; perturbations depend on them, too."""
    first: int
    """Scalars of this log before it."""
    step: int
    """The author's step of its first scalar: the schedule's time."""
    base: Digest
    """Name of the base that it builds on; zeros before the first."""
    authors: int
    """n: authors active in the interval before that base."""
    scalars: bytes
    """One byte each, `samples` of them a step."""

    def __post_init__(self) -> None:
        check.peer("author", self.author)
        check.raw("boot", self.boot, BOOT_BYTES, BOOT_BYTES)
        check.integer("first", self.first, 0, MAX_COUNT)
        check.integer("step", self.step, 0, MAX_STEP)
        check.digest("base", self.base)
        check.integer("authors", self.authors, 1, MAX_AUTHORS)
        check_scalars("scalars", self.scalars)
        check.integer("first + scalars", self.first + len(self.scalars), 1, MAX_COUNT)


@dataclass(frozen=True, slots=True)
class SignedFrame:
    """A frame as it travels, from its author or from whoever has it."""

    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_FRAME_BYTES)
        check.raw("signature", self.signature, 64, 64)


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of any authors; those of one log in order."""

    TAG: ClassVar[int] = 10
    frames: tuple[SignedFrame, ...]
    more: bool
    """There is more of what was asked for."""

    def __post_init__(self) -> None:
        check.items("frames", self.frames, MAX_FRAMES)


@dataclass(frozen=True, slots=True)
class Want:
    """ "I have these scalars, and this base: send me what I lack." """

    TAG: ClassVar[int] = 11
    horizon: bytes
    """See `packed`."""
    base: int
    """Index of its newest base."""

    def __post_init__(self) -> None:
        check.raw("horizon", self.horizon, 0, MAX_HORIZON_BYTES)
        check.integer("base", self.base, 0, MAX_BASES)
        unpacked(self.horizon)


@dataclass(frozen=True, slots=True)
class Behind:
    """ "My logs begin after what you have, and my sum has more: take it over." """

    TAG: ClassVar[int] = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The sum at a horizon."""

    index: int
    """From 1 on; 0 is the beginning, where the sum is zero."""
    leader: PeerId
    horizon: bytes
    """See `packed`."""
    authors: int
    """Logs that have grown since the base before."""
    sum: Digest
    """Of the sum: whoever has these scalars can check it."""

    def __post_init__(self) -> None:
        check.integer("index", self.index, 1, MAX_BASES)
        check.peer("leader", self.leader)
        check.raw("horizon", self.horizon, HORIZON_ENTRY_BYTES, MAX_HORIZON_BYTES)
        check.integer("authors", self.authors, 1, len(self.horizon) // HORIZON_ENTRY_BYTES)
        check.digest("sum", self.sum)
        unpacked(self.horizon)


MAX_BASE_BYTES = MAX_HORIZON_BYTES + 256


@dataclass(frozen=True, slots=True)
class SignedBase:
    """A base as it travels."""

    TAG: ClassVar[int] = 13
    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_BASE_BYTES)
        check.raw("signature", self.signature, 64, 64)

    @property
    def digest(self) -> Digest:
        """Its name in frames."""
        return digest_of(self.body)


FRAME_BYTES = 176
"""Of a frame in a message, besides its scalars: numbers of a few hundred steps in, author,
base and signature.  Later ones are a few bytes longer."""


def check_frame(frame: Frame, *, steps: int, samples: int) -> None:
    """Judge a frame by its own bytes alone, so that all peers of the run agree on it.

    Args:
        steps: of one peer in the whole run.
        samples: scalars a step.

    Raises:
        Malformed: no honest peer makes it.
    """
    made, rest = divmod(len(frame.scalars), samples)
    if rest or frame.step + made > steps:
        raise Malformed(
            f"a frame of {len(frame.scalars)} scalars from step {frame.step} on, in a run "
            f"of {steps} steps with {samples} a step"
        )
    if frame.first > frame.step * samples:
        raise Malformed(f"a frame of step {frame.step} after {frame.first} scalars")


@functools.lru_cache(FRAMES_KEPT)
def frame_in(body: bytes) -> Frame:
    """The frame that was signed.

    Raises:
        Malformed: it is none.
    """
    return codec.decode(Frame, body, max_bytes=MAX_FRAME_BYTES)


def num_scalars(signed: SignedFrame) -> int:
    """Scalars in a frame that we have checked before."""
    return len(frame_in(signed.body).scalars)


def packed(horizon: Horizon) -> bytes:
    """A horizon as bytes: (log, count as u32 big endian), sorted by log."""
    return b"".join(_ENTRY.pack(log, count) for log, count in sorted(horizon.items()) if count)


def unpacked(data: bytes) -> dict[LogId, int]:
    """The horizon in these bytes.

    Raises:
        ValueError: not sorted, a log twice, a count of zero, a part of an entry, or too long.
    """
    if len(data) > MAX_HORIZON_BYTES:
        raise ValueError(f"a horizon of {len(data)} bytes, at most {MAX_HORIZON_BYTES}")
    if len(data) % HORIZON_ENTRY_BYTES:
        raise ValueError(
            f"a horizon of {len(data)} bytes, expected a multiple of {HORIZON_ENTRY_BYTES}"
        )
    entries = list(_ENTRY.iter_unpack(data))
    horizon = {LogId(log): count for log, count in entries}
    if list(horizon) != sorted(horizon) or len(horizon) != len(entries) or 0 in horizon.values():
        raise ValueError("a horizon that is not sorted, names a log twice, or counts nothing")
    return horizon
