"""Perturbations of SPSA: signs from a counter-based generator, the same on every platform.

z in {-1, +1}^Q is Philox-4x32-10 with the author's key and the counter (block, sample, step);
a block is 128 signs, bit i of word j the sign of 32 j + i, and a set bit is -1.  Nothing is
stored: whoever knows a `Draw` makes its signs again, from any block on.

All arithmetic is on int64 tensors and stays below 2^49, so that nothing depends on how a
device wraps, rounds or draws random numbers.

Shape suffixes: K draws, B blocks, Q trainable parameters.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; its code's
known-answer vectors are in the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from protocol.scalar import Draw

BLOCK_SIGNS = 128
"""Four words of 32 bits."""
CHUNK_BLOCKS = 1 << 13
"""Blocks made at once: a million signs, in some 5 MB.  Measured at 3 to 4 ns a sign on one busy
core; with an eighth of it 14, with twice as many between 2.5 and 4.5."""

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
HALF = 0xFFFF


def signs(draws: Sequence[Draw], count: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `count` signs of each draw, int8 (K, Q).

    Takes K Q bytes, and memory for a chunk.  For the sum of very many, see `sign_chunks`.
    """
    signs_KQ = torch.empty((len(draws), count), dtype=torch.int8, device=device)
    for start, chunk_KQ in sign_chunks(draws, count, device):
        signs_KQ[:, start : start + chunk_KQ.shape[1]] = chunk_KQ
    return signs_KQ


def sign_chunks(
    draws: Sequence[Draw], count: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """The same in ranges of parameters: where each begins, and its signs, int8 (K, -)."""
    if not draws:
        return
    keys_2K1 = _column([(draw.key & WORD, draw.key >> 32) for draw in draws], device)
    sample_K1, low_K1, high_K1 = _column(
        [(draw.sample, draw.step & WORD, draw.step >> 32) for draw in draws], device
    )
    blocks = -(-count // BLOCK_SIGNS)
    at_once = max(CHUNK_BLOCKS // len(draws), 1)
    for first in range(0, blocks, at_once):
        block_B = torch.arange(first, min(first + at_once, blocks), device=device)
        shape = (len(draws), len(block_B))
        counter = [word.expand(shape) for word in (block_B, sample_K1, low_K1, high_K1)]
        words = philox(counter, keys_2K1)
        start = first * BLOCK_SIGNS
        yield start, _unpacked(words)[:, : count - start]


def philox(counter: Sequence[Tensor], keys: Tensor) -> Tensor:
    """Philox-4x32-10: four words of 32 bits each, int64 (K, B, 4).

    Args:
        counter: four tensors of words, (K, B) each.
        keys: words, (2, K, 1).
    """
    a, b, c, d = counter
    even, odd = torch.stack((a, c)), torch.stack((b, d))
    multipliers = torch.tensor(MULTIPLIERS, device=a.device)[:, None, None]
    lower, upper = multipliers & HALF, multipliers >> 16
    weyl = torch.tensor(WEYL, device=a.device)[:, None, None]
    for round in range(ROUNDS):
        # 32 x 32 bits in halves of the multiplier, so that no product overflows.
        low = even * lower
        high = (even * upper).add_(low >> 16)
        key = (keys + round * weyl) & WORD
        even = (high >> 16).flip(0).bitwise_xor_(odd).bitwise_xor_(key)
        odd = high.bitwise_and_(HALF).bitwise_left_shift_(16).bitwise_or_(low & HALF).flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]), dim=-1)


def _column(rows: list[tuple[int, ...]], device: torch.device | str) -> Tensor:
    """One row a draw, as columns that broadcast over blocks, int64 (-, K, 1)."""
    return torch.tensor(rows, dtype=torch.int64, device=device).T[..., None]


def _unpacked(words_KB4: Tensor) -> Tensor:
    """Each bit as a sign, int8 (K, 128 B): a look-up of 8 signs a byte."""
    device = words_KB4.device
    values, bits = torch.arange(256, device=device), torch.arange(8, device=device)
    signs_256x8 = (1 - 2 * ((values[:, None] >> bits) & 1)).to(torch.int8)
    bytes_KB4x4 = (words_KB4[..., None] >> torch.arange(0, 32, 8, device=device)) & 0xFF
    # Eight signs as one number: they are only moved, so the order of bytes does not matter.
    eights = signs_256x8.view(torch.int64)[:, 0].index_select(0, bytes_KB4x4.flatten())
    return eights.view(torch.int8).view(words_KB4.shape[0], -1)
