"""What the node and its worker say to each other in an spsa run; see `node.worker.wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol.ids import Digest
from protocol.spsa import Frame

FRAMES_A_PACKET = 256
"""48 KiB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """spsa: measure so many steps from `step` on into the log of `boot`; `Sampled`."""

    TAG: ClassVar[int] = 12
    boot: bytes
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class AddScalars:
    """spsa: add these frames to the sum; answer `Added`."""

    TAG: ClassVar[int] = 13
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class NameSum:
    """spsa: the name of the sum less these frames; answer `SumNamed`.

    With `more` the frames go on in the next `NameSum`, the sum stays the one of now whatever is
    added meanwhile, and the name in the answer is none.
    """

    TAG: ClassVar[int] = 14
    less: tuple[Frame, ...]
    more: bool


def naming(less: tuple[Frame, ...]) -> list[NameSum]:
    """The commands that name the sum less these frames, as many as they need packets."""
    starts = range(0, max(len(less), 1), FRAMES_A_PACKET)
    return [NameSum(less[start : start + FRAMES_A_PACKET], start != starts[-1]) for start in starts]


@dataclass(frozen=True, slots=True)
class Sampled:
    """spsa: the scalars of the steps from `step` on."""

    TAG: ClassVar[int] = 12
    step: int
    scalars: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Added:
    """spsa: the frames are in the sum."""

    TAG: ClassVar[int] = 13


@dataclass(frozen=True, slots=True)
class SumNamed:
    """spsa: the name that was asked for."""

    TAG: ClassVar[int] = 14
    sum: Digest
