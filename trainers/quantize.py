"""Numbers to few bits and back, block by block: bf16, int8, e3m0 and sign.

Every function works on one piece of a vector: `values_N`, N float32 numbers, to the sections of
its payload, and back.  A piece ends at a block, or is the last one: its last block is then
shorter, and is filled up with zeros, which neither travel nor count.  Reading is total: what no
writer of ours makes is refused, so a vector has one encoding, but for scales that describe the
same numbers in another way.

Promised: all numbers read are finite and at most 1.01 LARGEST.  A block keeps its zeros (except
in sign, which has no code for them), and a block that is all zeros has the scale 0.  bf16, and
int8 for weights, are right on average (stochastic rounding); of the others:

    int8   |error| <= scale / 2,  scale = the block's largest |x| / 127, rounded up to bf16
    e3m0   |error| <= |x| / 3 where |x| >= s / 64, and s / 128 below;  s = the block's largest
           |x|, rounded up to a power of two
    sign   |error|^2 <= |x|^2 over a block, whatever is in it

Sources: Streaming DiLoCo, https://arxiv.org/abs/2501.18512: 1 sign, 3 exponent, 0 mantissa bits;
scale, rounding and the code of zero are our own.  1-bit Adam, https://arxiv.org/abs/2102.02888;
its scale |x|_2 / sqrt(d) lets a sparse vector's error grow, the mean of |x| never does.

`spare` is float32 that is overwritten, as long as the piece with its last block filled up: new
memory for every step would cost more than the step.

Suffixes: N numbers of a piece, B blocks, K numbers of a block.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.payload import BLOCK

LARGEST = 2.0**48
"""No number sent is larger: the squares of MAX_PARAMETERS of them still add up to a float32."""

FAINTEST = 2.0**-120
"""No scale is smaller but 0: e3m0's lowest level, a 64th of it, is still a normal number, which
no device flushes to zero.  A block that would need a smaller scale is sent as zeros."""

LOW_BITS = 16
"""Bits of a float32 that bf16 has no room for."""
LOW_MASK = (1 << LOW_BITS) - 1

INT8_LEVELS = 127
"""-128 is not used: the codes are symmetric."""

E3M0_LEVELS = 7
"""Codes 1 to 7 are s 2^-6 to s; 0 is 0; bit 3 is the sign."""
E3M0_STEPS = 128
"""Halves of the lowest level in s."""

MANTISSA_BITS = 23
MANTISSA_MASK = (1 << MANTISSA_BITS) - 1

EIGHT_LOWEST_BITS = 0x0101010101010101
GATHER_BITS = 0x0102040810204080
"""Eight bytes that are 0 or 1, as one number times this: the highest byte has their bits, the
first one lowest.  Chess programs pack their boards so."""


def limited(values_N: Tensor) -> Tensor:
    """The same numbers.  Raises ValueError: one is not finite, or above LARGEST."""
    least, most = (bound.item() for bound in torch.aminmax(values_N))
    if not (least >= -LARGEST and most <= LARGEST):  # so that a NaN is refused
        raise ValueError(
            f"numbers from {least:g} to {most:g}, expected finite ones of at most {LARGEST:g}"
        )
    return values_N


def to_bf16(values_N: Tensor, rng: Generator) -> Tensor:
    """The upper halves of float32 numbers as int16 (N,), rounded up or down at random.

    A float is sign and magnitude, so adding to its bits moves it away from zero, whatever its
    sign: up with a probability equal to the part that is cut off.  A number that bf16 can hold
    stays as it is; LARGEST is one, so nothing is rounded beyond it.
    """
    noise_N = random_bits(limited(values_N), rng)
    bits_N = values_N.view(torch.int32).add(1 << (LOW_BITS - 1)).add_(noise_N)
    return bits_N.bitwise_right_shift_(LOW_BITS).to(torch.int16)


def from_bf16(upper_N: Tensor) -> Tensor:
    """The float32 numbers (N,) whose upper halves are these int16."""
    return upper_N.view(torch.bfloat16).float()


def random_bits(like: Tensor, rng: Generator) -> Tensor:
    """As many int16, all values equally likely; flat.

    Four are drawn at once, as 64 bits: three times as fast as one by one.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    draws.random_(torch.iinfo(torch.int64).min, None, generator=rng)
    return draws.view(torch.int16)[: like.numel()]


def to_int8(values_N: Tensor, rng: Generator | None, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Scales as the upper halves of float32, int16 (B,), and codes, int8 (N,).

    Args:
        rng: rounds up or down at random; None rounds to nearest.
    """
    values_BK = as_blocks(values_N)
    steps_BK = spare[: values_BK.numel()].view_as(values_BK)
    peak_B = limited(torch.abs(values_BK, out=steps_BK).amax(dim=1))
    # The division rounds as well, but never a peak above 127 s down to s: a test tries each s.
    bits_B = (peak_B / INT8_LEVELS).view(torch.int32)
    bits_B = bits_B.add_(LOW_MASK).bitwise_and_(~LOW_MASK)
    scale_B = bits_B.view(torch.float32)
    scale_B.masked_fill_(scale_B < FAINTEST, 0)
    torch.div(values_BK, scale_B.masked_fill(scale_B == 0, math.inf)[:, None], out=steps_BK)
    if rng is None:
        steps_BK.round_()
    else:
        # From 0 to 1 - 2^-16: a whole number stays, and 127 never becomes 128.
        noise_BK = random_bits(steps_BK, rng).view_as(steps_BK)
        steps_BK.add_(noise_BK, alpha=2.0**-LOW_BITS).add_(0.5).floor_()
    codes_BK = steps_BK.to(torch.int8)
    return (bits_B >> LOW_BITS).to(torch.int16), codes_BK.view(-1)[: values_N.numel()]


def from_int8(scales_B: Tensor, codes_N: Tensor, out_N: Tensor) -> None:
    """Write the numbers into `out_N`.

    Raises:
        Malformed: a scale that is not finite or out of range, or codes that do not use it.
    """
    scale_B = bf16_scales(scales_B, 1.01 * LARGEST / INT8_LEVELS)
    codes_BK = as_blocks(codes_N)
    least_B, most_B = codes_BK.amin(dim=1).int(), codes_BK.amax(dim=1).int()
    if least_B.min().item() < -INT8_LEVELS:
        raise Malformed("an int8 code of -128, expected -127 to 127")
    # Rounding the scale up, by less than 1 in 128, leaves at least 126.01 to the largest number.
    _check_use(scale_B, torch.maximum(-least_B, most_B), INT8_LEVELS - 1)
    _scale_into(out_N, codes_BK, scale_B)


def to_e3m0(values_N: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Scales as exponents of a float32, uint8 (B,), and codes, two to a byte, uint8."""
    values_BK = as_blocks(values_N)
    steps_BK = spare[: values_BK.numel()].view_as(values_BK)
    peak_B = limited(torch.abs(values_BK, out=steps_BK).amax(dim=1))
    exponent_B = (peak_B.view(torch.int32) + MANTISSA_MASK) >> MANTISSA_BITS
    scale_B = (exponent_B << MANTISSA_BITS).view(torch.float32)
    exponent_B.masked_fill_(scale_B < FAINTEST, 0)
    per_step_B = torch.where(exponent_B == 0, 0.0, E3M0_STEPS / scale_B)
    torch.mul(values_BK, per_step_B[:, None], out=steps_BK)
    # Cut off towards zero; 128 has no int8, and 127 has the same code.
    steps_BK = steps_BK.clamp_(max=E3M0_STEPS - 1).to(torch.int8)
    pairs = steps_BK.view(torch.int16).view(-1)[: -(-values_N.numel() // 2)].int()
    table = _e3m0_codes().to(values_N.device)
    return exponent_B.to(torch.uint8), torch.index_select(table, 0, pairs.add_(1 << 15))


def from_e3m0(exponents_B: Tensor, packed: Tensor, out_N: Tensor) -> None:
    """Write the numbers into `out_N`.

    Raises:
        Malformed: a scale out of range, codes that do not use it, a negative zero, or rest bits.
    """
    scale_B = (exponents_B.int() << MANTISSA_BITS).view(torch.float32)
    _check_scales(scale_B, LARGEST)
    check_rest(packed, 4 * out_N.numel())
    parts_BK = _looked_up(_e3m0_parts(), as_blocks(packed, BLOCK // 2), out_N)
    # A negative zero is NaN in the table, and makes the peak NaN.
    _check_use(scale_B, torch.maximum(parts_BK.amax(dim=1), -parts_BK.amin(dim=1)), 0.5)
    _scale_into(out_N, parts_BK, scale_B)


def to_sign(values_N: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Scales as the upper halves of float32, int16 (B,), and signs, eight to a byte, uint8.

    The scale is the mean of |x|, in bf16: a rounding of 1 in 512 costs the error less than one
    in 200,000, and it takes 1/16 of a bit a number instead of 1/8.
    """
    count = limited(values_N).numel()
    values_BK = as_blocks(values_N)
    num_blocks = len(values_BK)
    sizes_B = torch.full((num_blocks,), float(BLOCK), device=values_N.device)
    sizes_B[-1] = count - BLOCK * (num_blocks - 1)
    size_BK = spare[: values_BK.numel()].view_as(values_BK)
    mean_B = (torch.abs(values_BK, out=size_BK).sum(dim=1) / sizes_B).bfloat16()
    mean_B.masked_fill_(mean_B < FAINTEST, 0)
    # The highest byte of each number has its sign in the highest bit.
    high_BK = torch.bitwise_right_shift(
        values_BK.view(torch.int32), 24, out=size_BK.view(torch.int32)
    ).to(torch.int8)
    eights = (high_BK.view(torch.int64) >> 7) & EIGHT_LOWEST_BITS
    signs_BK = ((eights * GATHER_BITS) >> 56).to(torch.uint8)
    signs_BK.masked_fill_((mean_B == 0)[:, None], 0)
    return mean_B.view(torch.int16), signs_BK.view(-1)[: -(-count // 8)]


def from_sign(scales_B: Tensor, signs: Tensor, out_N: Tensor) -> None:
    """Write the numbers into `out_N`.

    Raises:
        Malformed: a scale that is not finite or out of range, signs of a zero, or rest bits.
    """
    scale_B = bf16_scales(scales_B, LARGEST)
    check_rest(signs, out_N.numel())
    signs_BK = as_blocks(signs, BLOCK // 8)
    if ((scale_B == 0) & (signs_BK.amax(dim=1) != 0)).any():
        raise Malformed("a block with the scale 0 has signs")
    _scale_into(out_N, _looked_up(_sign_parts(), signs_BK, out_N), scale_B)


def as_blocks(values_N: Tensor, size: int = BLOCK) -> Tensor:
    """The same numbers in rows of `size`, the last one filled up with zeros."""
    rest = -values_N.numel() % size
    return (F.pad(values_N, (0, rest)) if rest else values_N).view(-1, size)


def bf16_scales(upper_B: Tensor, most: float) -> Tensor:
    scale_B = from_bf16(upper_B)
    if upper_B.amin().item() < 0:
        raise Malformed("a scale with a minus sign")
    _check_scales(scale_B, most)
    return scale_B


def _check_scales(scale_B: Tensor, most: float) -> None:
    good_B = (scale_B == 0) | ((scale_B >= FAINTEST) & (scale_B <= most))
    if not good_B.all():
        bad = scale_B[~good_B][0].item()
        raise Malformed(f"a scale of {bad:g}, expected 0 or from {FAINTEST:g} to {most:g}")


def _check_use(scale_B: Tensor, peak_B: Tensor, least: float) -> None:
    """That the largest code of a block makes use of its scale; a NaN does not."""
    if not torch.where(scale_B == 0, peak_B == 0, peak_B >= least).all():
        raise Malformed("a block whose codes do not fit its scale")


def check_rest(packed: Tensor, bits: int) -> None:
    """That the bits which are left over in the last byte are zero."""
    if bits % 8 and int(packed[-1]) >> bits % 8:
        raise Malformed("bits after the last number that are not zero")


def _looked_up(table: Tensor, packed_BK: Tensor, out_N: Tensor) -> Tensor:
    """A row of the table for each byte, (B, K): in place of `out_N` if that is whole blocks."""
    rows = packed_BK.view(-1).int()
    if out_N.numel() % BLOCK:
        found = torch.index_select(table, 0, rows)
    else:
        found = out_N.view(table.dtype).view(-1, *table.shape[1:])
        torch.index_select(table, 0, rows, out=found)
    return found.view(torch.float32).view(-1, BLOCK)


def _scale_into(out_N: Tensor, parts_BK: Tensor, scale_B: Tensor) -> None:
    """Write parts times scale into `out_N`, which may be the memory of the parts."""
    if out_N.numel() % BLOCK:
        out_N.copy_((parts_BK * scale_B[:, None]).view(-1)[: out_N.numel()])
    else:
        torch.mul(parts_BK, scale_B[:, None], out=out_N.view(-1, BLOCK))


@functools.cache
def _e3m0_codes() -> Tensor:
    """Two codes as one byte for each pair of whole steps from -128 to 127.

    The place is 32768 more than the pair as an int16.  Halves of the lowest level are the steps,
    so every border is a whole number of them: half the lowest level, then 1.5 times each.
    """
    step = torch.arange(-E3M0_STEPS, E3M0_STEPS)
    borders = torch.tensor([1, 3, 6, 12, 24, 48, 96])
    code = torch.bucketize(step.abs(), borders, right=True) + (E3M0_LEVELS + 1) * (step < 0)
    low = code.roll(E3M0_STEPS)  # the lower byte of an int16 counts 0 to 127, then from -128
    return (low[None, :] | (code[:, None] << 4)).to(torch.uint8).view(-1)


@functools.cache
def _e3m0_parts() -> Tensor:
    """Two numbers for each byte as the eight bytes of an int64: one load instead of two."""
    levels = [2.0 ** (code - E3M0_LEVELS) for code in range(1, E3M0_LEVELS + 1)]
    half = torch.tensor([0.0, *levels, math.nan, *(-level for level in levels)])
    byte = torch.arange(256)
    return torch.stack([half[byte & 15], half[byte >> 4]], dim=1).view(torch.int64).view(-1)


@functools.cache
def _sign_parts() -> Tensor:
    """Eight numbers, 1 or -1, for each byte."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return 1.0 - 2.0 * bits.float()
