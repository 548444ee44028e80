"""Vectors to payloads and back, in any codec, with error feedback where it is asked for.

A vector goes through the codec piece by piece, each small enough to stay in the cache.  Pieces
end where every section has whole bytes.  The decoder is total: it raises `Malformed` for any bytes
that are not the payload of `count` finite numbers in the layout and with the header that the
label says.

Rounding of weights to nearest would stall: weights that drift by less than half a step a round
never move (docs/algorithms.md).  So bf16 rounds at random, always, and int8 does for weights; an
outer gradient is new every round, and int8 rounds it to nearest, which is the smaller error.

Values are little endian as on every machine that torch runs on.

Source of error feedback: 1-bit Adam, https://arxiv.org/abs/2102.02888, section 4; its decay:
SparseLoCo, https://arxiv.org/abs/2508.15706.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.payload import BLOCK, CHUNK, HEADER_BYTES, Buffer, Label, check_payload, section_bytes
from trainers import quantize, topk

CACHED_NUMBERS = 128 * CHUNK
"""Numbers in a piece on the CPU: 2 MiB of float32, which stay in the cache that cores share.
Measured: half of it costs a quarter of int8's speed, for every step takes microseconds to start."""

DEVICE_NUMBERS = 4096 * CHUNK
"""Numbers in a piece on another device, where every step costs a launch: 64 MiB of float32."""


def encode(vector_P: Tensor, label: Label, rng: Generator, out: bytearray | memoryview) -> None:
    """Write the payload of `vector_P`, float32 (P,), into `out`, which has exactly its length.

    Args:
        rng: draws the rounding of bf16 and int8, on the vector's device; the others draw nothing.

    Raises:
        ValueError: a value is not finite, or above `quantize.LARGEST`.
    """
    assert vector_P.shape == (label.count,)
    assert vector_P.dtype == torch.float32
    view = memoryview(out).cast("B")
    assert len(view) == label.payload_bytes
    view[:HEADER_BYTES] = label.header()
    on_cpu = vector_P.device.type == "cpu"
    most = CACHED_NUMBERS if on_cpu else DEVICE_NUMBERS
    spare = torch.empty(min(most, label.count + BLOCK), device=vector_P.device)
    for numbers, sections in _pieces(label, most):
        try:
            written = _encoded(vector_P[numbers], label, rng, spare)
        except ValueError as error:
            raise ValueError(f"the vector to send has {error}: training diverged") from None
        for section, values in zip(sections, written, strict=True):
            view[section] = values.cpu().numpy().data.cast("B")


def decode(data: Buffer, label: Label) -> Tensor:
    """The vector of a payload, float32 (P,), on the CPU.

    Raises:
        Malformed: not a payload with this label's header and length, or in it a number, scale,
            index or code that no encoder writes.
    """
    check_payload(data, label)
    view = memoryview(data).cast("B")
    vector_P = torch.empty(label.count)
    for numbers, sections in _pieces(label, CACHED_NUMBERS):
        # A copy of its own: what was checked cannot change any more.
        read = [
            torch.frombuffer(bytearray(view[section]), dtype=torch.uint8) for section in sections
        ]
        _decode_into(vector_P[numbers], read, label)
    return vector_P


def encode_with_feedback(
    vector_P: Tensor,
    residual_P: Tensor,
    label: Label,
    rng: Generator,
    out: bytearray | memoryview,
    *,
    decay: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Write s = vector + decay * residual; return what a peer decodes, and what it then misses.

    The sum of all that is sent is then, but for the last residual, the sum of all vectors.

    Args:
        residual_P: what the last call returned, at first zeros; it is left alone.
        decay: 1 keeps all; SparseLoCo has 0.95 for top-k, whose residual is most of the vector.

    Raises:
        ValueError: as `encode`.
    """
    sum_P = torch.add(vector_P, residual_P, alpha=decay)
    encode(sum_P, label, rng, out)
    decoded_P = decode(out, label).to(sum_P.device)
    return decoded_P, sum_P.sub_(decoded_P)


def _pieces(label: Label, most: int) -> Iterator[tuple[slice, list[slice]]]:
    """Which numbers, and where in the payload their sections stand, piece by piece."""
    starts, start = [], HEADER_BYTES
    for length in section_bytes(label.codec, label.count):
        starts.append(start)
        start += length
    whole = label.count - label.count % CHUNK
    bounds = [*range(0, whole, most), *([whole] if whole < label.count else []), label.count]
    for first, last in itertools.pairwise(bounds):
        lengths = section_bytes(label.codec, last - first)
        yield (
            slice(first, last),
            [slice(at, at + length) for at, length in zip(starts, lengths, strict=True)],
        )
        starts = [at + length for at, length in zip(starts, lengths, strict=True)]


def _encoded(values_N: Tensor, label: Label, rng: Generator, spare: Tensor) -> tuple[Tensor, ...]:
    """The sections of a piece."""
    match label.codec:
        case "fp32":
            return (quantize.limited(values_N),)
        case "bf16":
            return (quantize.to_bf16(values_N, rng),)
        case "int8":
            return quantize.to_int8(values_N, None if label.content == "gradient" else rng, spare)
        case "e3m0":
            return quantize.to_e3m0(values_N, spare)
        case "sign":
            return quantize.to_sign(values_N, spare)
        case "topk":
            return topk.to_topk(values_N)
        case _:
            raise AssertionError(label.codec)


def _decode_into(out_N: Tensor, sections: list[Tensor], label: Label) -> None:
    """Write the numbers of a piece into `out_N`.  Raises Malformed."""
    first, *others = sections
    match label.codec:
        case "fp32":
            out_N.copy_(_within_limits(first.view(torch.float32)))
        case "bf16":
            out_N.copy_(_within_limits(first.view(torch.bfloat16)))
        case "int8":
            quantize.from_int8(first.view(torch.int16), others[0].view(torch.int8), out_N)
        case "e3m0":
            quantize.from_e3m0(first, others[0], out_N)
        case "sign":
            quantize.from_sign(first.view(torch.int16), others[0], out_N)
        case "topk":
            topk.from_topk(first.view(torch.int16), others[0], others[1], out_N)
        case _:
            raise AssertionError(label.codec)


def _within_limits(values_N: Tensor) -> Tensor:
    try:
        return quantize.limited(values_N)
    except ValueError as error:
        raise Malformed(f"a payload with {error}") from None
