"""The scalar of SPSA: its byte, the perturbation it belongs to, and its weight in the sum.

    c = (L(theta + eps z) - L(theta - eps z)) / (2 eps)              what a peer measures, a float
    byte: bit 7 the sign; code 0 zero, 1..127 exp((code - 64) / 8)   what travels
    S = sum over all scalars of W * TABLE[byte] * z                  an int64 vector, exact
    theta = theta_0 - float32(S) * 2^-k

Whatever peers must agree on to the bit is integer or rational arithmetic.  No function of the C
library is called, for the last bit of exp and cos differs between platforms: the table is a
literal, a number finds its byte by exact comparison, and the schedule is lines and no cosine.

Sources: Just One Byte, https://arxiv.org/abs/2306.10015 (the code of ezelikman/justonebyte has
nine bits a scalar and sends text); MeZO, https://arxiv.org/abs/2305.17333.  The sum is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction

from protocol import check
from protocol.limits import MAX_STEP

TABLE_BITS = 24
"""TABLE is in units of 2^-24: the smallest magnitude, 3.8e-4, is 6378 of them."""
WEIGHT_BITS = 16
"""W is in units of 2^-16 of the power of two just at or above lr.

Relative to lr, because units of a fixed size would round a small lr to one of them.  Sixteen
bits, because 1,000 peers with frames of 64 scalars and M = 32 divide by 2,000 and the schedule
by ten more.  S overflows where a weight has moved by 2^23 such powers: 32,768 at lr = 3e-3."""
NEGATIVE_ZERO = 128
"""The byte that is none: zero is 0, so that a value has one encoding."""
MAX_FRAME_SCALARS = 64
"""A frame closes at 64 scalars or earlier: bounds what one frame moves, and its bytes."""
MAX_SAMPLE = 1 << 32
MAX_AUTHORS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One perturbation z: everything that its signs depend on."""

    key: int
    """Of the log that it belongs to, a number derived from the run and the author."""
    step: int
    sample: int

    def __post_init__(self) -> None:
        check.integer("key", self.key, 0, (1 << 64) - 1)
        check.integer("step", self.step, 0, MAX_STEP)
        check.integer("sample", self.sample, 0, MAX_SAMPLE - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSchedule:
    """The learning rate by step: a line up, then a line down, then constant."""

    lr: float
    min_lr_ratio: float
    """The line ends at lr times this."""
    warmup_steps: int
    steps: int
    """Where the line down ends."""

    def __post_init__(self) -> None:
        check.number("lr", self.lr, 1e-8, 1.0)
        check.number("min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        check.integer("steps", self.steps, 1, MAX_STEP)
        check.integer("warmup_steps", self.warmup_steps, 0, self.steps)

    def part(self, step: int) -> Fraction:
        """lr(step) / lr, exact.  The first step of the warm-up is not zero: it would be lost."""
        if step < self.warmup_steps:
            return Fraction(step + 1, self.warmup_steps)
        if step >= self.steps:
            return Fraction(self.min_lr_ratio)
        done = Fraction(step - self.warmup_steps, self.steps - self.warmup_steps)
        return 1 - done * (1 - Fraction(self.min_lr_ratio))


def to_byte(c: float) -> int:
    """The byte nearest to `c` in the log domain.

    Above the largest magnitude it is the largest.  Between the smallest and zero, which is
    infinitely far in the log domain, the nearer of the two as numbers.

    Raises:
        ValueError: not a finite number: training diverged.
    """
    if not math.isfinite(c):
        raise ValueError(f"a scalar is {c}: training diverged")
    magnitude = Fraction(c).__abs__() * (1 << TABLE_BITS)
    code = bisect_left(TABLE, magnitude, 1, 128)  # the first at or above it
    if code == 1:
        code = int(2 * magnitude > TABLE[1])
    elif code == 128:
        code = 127
    elif magnitude * magnitude < TABLE[code - 1] * TABLE[code]:  # below the geometric mean
        code -= 1
    return code | 128 if c < 0 and code else code


def scalar_of(byte: int) -> float:
    """The number that a byte stands for; sums are made with `TABLE`, in whole numbers."""
    return TABLE[byte] / (1 << TABLE_BITS)


def check_scalars(name: str, value: object) -> None:
    """`value` is the bytes of the scalars of a frame: for the frame's constructor."""
    check.raw(name, value, 1, MAX_FRAME_SCALARS)
    if NEGATIVE_ZERO in value:  # type: ignore[operator]
        raise ValueError(f"{name} has a byte of {NEGATIVE_ZERO}, expected 0 for zero")


def weight(
    schedule: LinearSchedule, *, step: int, authors: int, frame_scalars: int, in_flight: float
) -> int:
    """W of a scalar: an integer that all peers compute alike, whatever they have seen.

    Scalars measured at much the same weights add up, so `in_flight` = M of them count in
    full, and more share what M have.

    Args:
        authors: n, active in the interval before the base that the frame builds on.
        frame_scalars: how many the frame holds, steps times samples.
    """
    check.integer("authors", authors, 1, MAX_AUTHORS)
    check.integer("frame_scalars", frame_scalars, 1, MAX_FRAME_SCALARS)
    share = min(Fraction(1), Fraction(in_flight) / (authors * frame_scalars))
    unit = Fraction(2) ** (_unit_exponent(schedule.lr) - WEIGHT_BITS)
    return round(Fraction(schedule.lr) / unit * schedule.part(step) * share)


def shift(lr: float) -> int:
    """k: one unit of the sum moves a weight by 2^-k."""
    return TABLE_BITS + WEIGHT_BITS - _unit_exponent(lr)


def _unit_exponent(lr: float) -> int:
    """e of the smallest power of two 2^e that is no less than `lr`."""
    mantissa, exponent = math.frexp(lr)  # exact: lr = mantissa 2^exponent, mantissa in [1/2, 1)
    return exponent - 1 if mantissa == 0.5 else exponent


# fmt: off
TABLE = (
    0, 6378, 7227, 8189, 9279, 10515, 11915, 13501, 15299, 17336, 19644, 22260, 25224, 28582,
    32388, 36700, 41587, 47124, 53398, 60508, 68565, 77694, 88039, 99761, 113044, 128096, 145151,
    164478, 186378, 211194, 239314, 271178, 307285, 348200, 394562, 447098, 506628, 574085,
    650523, 737139, 835288, 946506, 1072532, 1215337, 1377158, 1560524, 1768306, 2003753,
    2270549, 2572869, 2915443, 3303630, 3743503, 4241945, 4806753, 5446765, 6171993, 6993784,
    7924996, 8980197, 10175896, 11530801, 13066109, 14805841, 16777216, 19011076, 21542372,
    24410705, 27660953, 31343966, 35517367, 40246449, 45605201, 51677463, 58558238, 66355176,
    75190266, 85201733, 96546212, 109401191, 123967790, 140473910, 159177793, 180372070,
    204388333, 231602323, 262439814, 297383269, 336979391, 381847676, 432690104, 490302121,
    555585090, 629560386, 713385377, 808371537, 916004956, 1037969599, 1176173646, 1332779347,
    1510236856, 1711322557, 1939182508, 2197381659, 2489959628, 2821493900, 3197171448,
    3622869881, 4105249401, 4651857008, 5271244573, 5973102633, 6768412009, 7669615598,
    8690813050, 9847981364, 11159224848, 12645058374, 14328728336, 16236576348, 18398451372,
    20848176711, 23624079189, 26769588788, 30333918124, 34372832398, 38949521860, 44135590443, 0,
    -6378, -7227, -8189, -9279, -10515, -11915, -13501, -15299, -17336, -19644, -22260, -25224,
    -28582, -32388, -36700, -41587, -47124, -53398, -60508, -68565, -77694, -88039, -99761,
    -113044, -128096, -145151, -164478, -186378, -211194, -239314, -271178, -307285, -348200,
    -394562, -447098, -506628, -574085, -650523, -737139, -835288, -946506, -1072532, -1215337,
    -1377158, -1560524, -1768306, -2003753, -2270549, -2572869, -2915443, -3303630, -3743503,
    -4241945, -4806753, -5446765, -6171993, -6993784, -7924996, -8980197, -10175896, -11530801,
    -13066109, -14805841, -16777216, -19011076, -21542372, -24410705, -27660953, -31343966,
    -35517367, -40246449, -45605201, -51677463, -58558238, -66355176, -75190266, -85201733,
    -96546212, -109401191, -123967790, -140473910, -159177793, -180372070, -204388333,
    -231602323, -262439814, -297383269, -336979391, -381847676, -432690104, -490302121,
    -555585090, -629560386, -713385377, -808371537, -916004956, -1037969599, -1176173646,
    -1332779347, -1510236856, -1711322557, -1939182508, -2197381659, -2489959628, -2821493900,
    -3197171448, -3622869881, -4105249401, -4651857008, -5271244573, -5973102633, -6768412009,
    -7669615598, -8690813050, -9847981364, -11159224848, -12645058374, -14328728336,
    -16236576348, -18398451372, -20848176711, -23624079189, -26769588788, -30333918124,
    -34372832398, -38949521860, -44135590443,
)
# fmt: on
"""What each byte stands for, in units of 2^-24: round(2^24 exp((code - 64) / 8)), negative from
129 on.  A test computes it anew with decimal arithmetic."""
