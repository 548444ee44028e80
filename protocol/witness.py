"""What members say of their slow weights, so that a joiner can judge those of one of them.

In a group all members have the same, so their hash is enough.  In noloco they differ, and a sketch
says how far they are apart, in 1 KiB: `trainers.sketch` makes it, here two are compared.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from protocol import check
from protocol.ids import Digest, Round, RunId
from protocol.limits import MAX_ROUND

BUCKETS = 256
"""The squared distance has a standard deviation of sqrt(2 / 256), 9 %."""
SKETCH_BYTES = 4 * BUCKETS
"""float32, little endian."""
MAX_DISTANCE = 1e12


@dataclass(frozen=True, slots=True)
class SketchCall:
    """ "How do your slow weights look under this nonce?" """

    run: RunId
    nonce: int
    """64 random bits, fresh."""

    def __post_init__(self) -> None:
        check.digest("run", self.run)
        check.integer("nonce", self.nonce, 0, (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Sketch:
    """Slow weights of one member, in short."""

    round: Round
    weights: Digest
    """Of them all."""
    distance: float | None
    """Root mean square distance to its last partners; None: it had none."""
    numbers: bytes

    def __post_init__(self) -> None:
        check.integer("sketch.round", self.round, 0, MAX_ROUND)
        check.digest("sketch.weights", self.weights)
        if self.distance is not None:
            check.number("sketch.distance", self.distance, 0.0, MAX_DISTANCE)
        check.raw("sketch.numbers", self.numbers, SKETCH_BYTES, SKETCH_BYTES)


@dataclass(frozen=True, slots=True)
class WeightsCall:
    """ "Which slow weights had you after this round?" """

    run: RunId
    round: Round

    def __post_init__(self) -> None:
        check.digest("run", self.run)
        check.integer("round", self.round, 0, MAX_ROUND)


@dataclass(frozen=True, slots=True)
class Weights:
    """The hash of slow weights; None: this member does not know that round (any more)."""

    digest: Digest | None

    def __post_init__(self) -> None:
        if self.digest is not None:
            check.digest("weights", self.digest)


def distance(one: bytes, other: bytes) -> float:
    """About how far apart the weights of two sketches under one nonce are; inf: not finite."""
    form = f"<{BUCKETS}f"
    pairs = zip(struct.unpack(form, one), struct.unpack(form, other), strict=True)
    apart = math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs))
    return apart if math.isfinite(apart) else math.inf
