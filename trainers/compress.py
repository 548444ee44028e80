"""Vectors to payloads and back: float32, and bfloat16 with stochastic rounding.

Rounding to nearest would stall: weights that drift by less than half a bf16 step a round
never move (docs/noloco.md).  So 16 random bits are added below the ones that stay, and the
rest is cut: the expectation is exact, and a value that bf16 can hold stays as it is.

The decoder is total: it raises `Malformed` for any bytes that are not `count` finite numbers
in the run's codec.  The header and the length are in `protocol.payload`.  Values are little
endian as on every machine that torch runs on.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.payload import HEADER_BYTES, check_payload, header

LOW_BITS = 16
"""Bits of a float32 that bf16 has no room for."""

Buffer = bytes | bytearray | memoryview


def encode(vector_P: Tensor, codec: str, rng: Generator, out: bytearray | memoryview) -> None:
    """Write the payload of `vector_P` into `out`, which has exactly its length.

    Args:
        rng: draws the rounding of bf16, on the vector's device; fp32 draws nothing.

    Raises:
        ValueError: a value is not finite, or too large for bf16.
    """
    if not torch.isfinite(vector_P).all():
        raise ValueError("the weights are not finite: training diverged")
    values_P = stochastic_bf16(vector_P, rng) if codec == "bf16" else vector_P
    out[:HEADER_BYTES] = header(codec, vector_P.numel())
    out[HEADER_BYTES:] = values_P.cpu().numpy().data.cast("B")


def decode(data: Buffer, codec: str, count: int) -> Tensor:
    """The vector of a payload of `count` numbers, float32 (P,), on the CPU.

    Raises:
        Malformed: another length or header, or a value that is not finite.
    """
    check_payload(data, codec, count)
    kind = torch.int16 if codec == "bf16" else torch.float32
    values_P = torch.empty(count, dtype=kind)
    values_P.numpy().data.cast("B")[:] = memoryview(data)[HEADER_BYTES:]
    vector_P = from_bf16(values_P) if codec == "bf16" else values_P
    if not torch.isfinite(vector_P).all():
        raise Malformed("a payload with values that are not finite")
    return vector_P


def stochastic_bf16(vector_P: Tensor, rng: Generator) -> Tensor:
    """The upper halves of finite float32 numbers as int16 (P,), rounded up or down at random.

    A float is sign and magnitude, so adding to its bits moves it away from zero, whatever
    its sign: up with a probability equal to the part that is cut off.

    Raises:
        ValueError: a value has rounded to infinity.
    """
    noise_P = torch.randint(
        0, 1 << LOW_BITS, vector_P.shape, dtype=torch.int32, generator=rng, device=vector_P.device
    )
    upper_P = noise_P.add_(vector_P.view(torch.int32)).bitwise_right_shift_(LOW_BITS)
    values_P = upper_P.to(torch.int16)
    if not torch.isfinite(from_bf16(values_P)).all():
        raise ValueError("a weight is too large for bf16: training diverged")
    return values_P


def from_bf16(values_P: Tensor) -> Tensor:
    """The float32 numbers (P,) whose upper halves are these int16."""
    return values_P.view(torch.bfloat16).float()
