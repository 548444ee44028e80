"""The few largest numbers of every chunk: 12 bits an index, 2 bits a value.

As `trainers.quantize`, for one piece of a vector that ends at a chunk or is the last one, whose
last chunk is then shorter.  Of each chunk the k largest |x| travel, of equal ones those that
come first; half of them (the larger half, where k is odd) as +-high, the mean of |x| over the
larger ones, and the others as +-low, the mean over the smaller ones.  k is 64 of 4096, or a
64th, rounded up, of a shorter chunk.  All other numbers are 0: use it with error feedback.

Promised: |error|^2 <= (1 - 1/64) |x|^2 at least without the scales; with them |error|^2 <=
|x|^2.  The same bytes on every device, but for the last bit of the two means.

Source: SparseLoCo, https://arxiv.org/abs/2508.15706: chunks of 4096, k = 64, indices of 12 bits,
values of 2 bits.  Its code takes the four values from a grid of six sigmas around the mean, which
is where no value of a top-k set is; so here they are the means of both halves.

Suffixes: N numbers of a piece, C chunks, S numbers of a chunk, K kept numbers of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from protocol.errors import Malformed
from protocol.payload import CHUNK, num_kept
from trainers.quantize import FAINTEST, LARGEST, bf16_scales, check_rest, limited

INDEX_BITS = 12
VALUE_BITS = 2
"""The lower one is the sign, the upper one is set for the larger half."""


def to_topk(values_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales as the upper halves of float32, low and high of each chunk, int16; indices and
    values, packed, uint8.

    Raises:
        ValueError: a number is not finite or above LARGEST.
    """
    whole = values_N.numel() - values_N.numel() % CHUNK
    groups = []
    if whole:
        groups.append(_chosen(values_N[:whole].view(-1, CHUNK)))
    if whole < values_N.numel():
        groups.append(_chosen(values_N[whole:].view(1, -1)))
    scales, indices, codes = (torch.cat(columns) for columns in zip(*groups, strict=True))
    return scales, _packed_indices(indices), _packed_values(codes)


def from_topk(scales_2C: Tensor, indices: Tensor, codes: Tensor, out_N: Tensor) -> None:
    """Write the numbers into `out_N`.

    Raises:
        Malformed: scales that are out of range or out of order, indices that do not increase or
            are not in the chunk, another number of large values than half, a negative zero, or
            rest bits.
    """
    count = out_N.numel()
    kept = num_kept(count)
    check_rest(indices, INDEX_BITS * kept)
    check_rest(codes, VALUE_BITS * kept)
    index_K = _unpacked_indices(indices)[:kept]
    code_K = _unpacked_values(codes)[:kept]
    scale_C2 = bf16_scales(scales_2C, LARGEST).view(-1, 2)
    out_N.zero_()
    whole = count // CHUNK
    split = num_kept(whole * CHUNK)
    if whole:
        _put(out_N[: whole * CHUNK], CHUNK, scale_C2[:whole], index_K[:split], code_K[:split])
    if count % CHUNK:
        rest_N = out_N[whole * CHUNK :]
        _put(rest_N, count % CHUNK, scale_C2[whole:], index_K[split:], code_K[split:])


def largest(values_CS: Tensor, k: int) -> Tensor:
    """Where the k largest |x| of each chunk stand, increasing, int64 (C, k).

    What `torch.topk` takes of equal numbers differs between devices; only its k-th value is used.
    """
    size_CS = values_CS.abs()
    least_C1 = size_CS.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    chosen_CS = size_CS >= least_C1
    if chosen_CS.sum().item() > k * len(values_CS):
        equal_CS = size_CS == least_C1
        room_C1 = k - (size_CS > least_C1).sum(dim=1, keepdim=True)
        chosen_CS &= ~(equal_CS & (equal_CS.cumsum(dim=1) > room_C1))
    return chosen_CS.nonzero()[:, 1].view(len(values_CS), k)


def _chosen(values_CS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales int16, indices int64 and codes uint8 of some chunks of equal size, flat."""
    limited(values_CS)
    k = num_kept(values_CS.shape[1])
    index_CK = largest(values_CS, k)
    kept_CK = values_CS.gather(1, index_CK)
    size_CK = kept_CK.abs()
    order_CK = size_CK.argsort(dim=1, descending=True, stable=True)
    first_CK = order_CK[:, : _num_large(k)]
    large_CK = torch.zeros_like(size_CK, dtype=torch.bool).scatter_(1, first_CK, True)
    high_C = size_CK.mul(large_CK).sum(dim=1) / _num_large(k)
    low_C = size_CK.mul(~large_CK).sum(dim=1) / max(k - _num_large(k), 1)
    scale_C2 = torch.stack([low_C, high_C], dim=1).bfloat16()
    scale_C2.masked_fill_(scale_C2 < FAINTEST, 0)
    negative_CK = (kept_CK < 0) & (scale_C2.gather(1, large_CK.long()) > 0)
    codes_CK = negative_CK.to(torch.uint8) + 2 * large_CK.to(torch.uint8)
    return scale_C2.view(torch.int16).view(-1), index_CK.view(-1), codes_CK.view(-1)


def _put(out_N: Tensor, size: int, scale_C2: Tensor, index_K: Tensor, code_K: Tensor) -> None:
    """Check the chunks of `size` numbers and write what they keep into `out_N`, which is zero."""
    k = num_kept(size)
    index_CK, code_CK = index_K.view(-1, k), code_K.view(-1, k)
    large_CK, negative_CK = code_CK >> 1, (code_CK & 1).bool()
    if (index_CK[:, 1:] <= index_CK[:, :-1]).any() or index_CK[:, -1].max().item() >= size:
        raise Malformed(f"indices of a chunk that do not increase, or reach {size}")
    if (large_CK.sum(dim=1) != _num_large(k)).any():
        raise Malformed(f"a chunk without exactly {_num_large(k)} large values")
    if (scale_C2[:, 0] > scale_C2[:, 1]).any() or (k == 1 and scale_C2[:, 0].any()):
        raise Malformed("a chunk whose lower scale is above the higher one")
    value_CK = scale_C2.gather(1, large_CK.long())
    if (negative_CK & (value_CK == 0)).any():
        raise Malformed("a negative zero in a chunk")
    value_CK = torch.where(negative_CK, -value_CK, value_CK)
    out_N.view(-1, size).scatter_(1, index_CK.long(), value_CK)


def _num_large(k: int) -> int:
    return (k + 1) // 2


def _packed_indices(index_K: Tensor) -> Tensor:
    """Two indices in three bytes, uint8."""
    low, high = F.pad(index_K, (0, index_K.numel() % 2)).view(-1, 2).unbind(dim=1)
    pair = low | (high << INDEX_BITS)
    packed = torch.stack([pair & 255, (pair >> 8) & 255, pair >> 16], dim=1).to(torch.uint8)
    return packed.view(-1)[: -(-INDEX_BITS * index_K.numel() // 8)]


def _unpacked_indices(packed: Tensor) -> Tensor:
    """The indices, int32, and perhaps one more."""
    bytes_3 = F.pad(packed, (0, -packed.numel() % 3)).view(-1, 3).int()
    pair = bytes_3[:, 0] | (bytes_3[:, 1] << 8) | (bytes_3[:, 2] << 16)
    return torch.stack([pair & (CHUNK - 1), pair >> INDEX_BITS], dim=1).view(-1)


def _packed_values(code_K: Tensor) -> Tensor:
    """Four values in a byte, uint8."""
    quads = F.pad(code_K, (0, -code_K.numel() % 4)).view(-1, 4).int()
    shifts = torch.arange(0, 8, VALUE_BITS, device=code_K.device)
    return (quads << shifts).sum(dim=1).to(torch.uint8)


def _unpacked_values(packed: Tensor) -> Tensor:
    """The values, int32, and perhaps up to three more."""
    return ((packed.int()[:, None] >> torch.arange(0, 8, VALUE_BITS)) & 3).view(-1)
