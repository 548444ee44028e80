"""What a payload looks like: the header, the codecs, and exactly how long it is.

    "SHP1" (4) | codec (1) | zero (3) | count (8, little endian) | values, little endian

A payload holds `count` numbers of one vector and nothing else, so its length follows from
the run's spec: who is offered another length can refuse it unseen.  The tensor side
(`trainers.compress`) fills in the values; this file needs no torch.
"""

from __future__ import annotations

import struct

from protocol.errors import Malformed
from protocol.spec import MAX_PARAMETERS, GptConfig

MAGIC = b"SHP1"
HEADER = struct.Struct("<4sB3xQ")
HEADER_BYTES = HEADER.size

CODECS = {"fp32": (1, 4), "bf16": (2, 2)}
"""Name: (id on the wire, bytes a value)."""


def num_parameters(model: GptConfig) -> int:
    """P, the numbers in the model: the closed form of `trainers.model.Gpt`.

    Tied embedding and head, learned positions; per layer attention 4 w^2 + 4 w, perceptron
    8 w^2 + 5 w and two norms of 2 w; one norm at the end.
    """
    width = model.width
    layer = 12 * width * width + 13 * width
    return (model.vocab + model.context) * width + model.layers * layer + 2 * width


def payload_bytes(codec: str, count: int) -> int:
    """Length of the payload of `count` numbers, exact."""
    return HEADER_BYTES + CODECS[codec][1] * count


def header(codec: str, count: int) -> bytes:
    """The first bytes of a payload of `count` numbers."""
    return HEADER.pack(MAGIC, CODECS[codec][0], count)


def check_payload(data: bytes | bytearray | memoryview, codec: str, count: int) -> None:
    """That `data` has the length and the header of a payload of `count` numbers.

    Raises:
        Malformed: it has not.
    """
    expected = payload_bytes(codec, count)
    if not 1 <= count <= MAX_PARAMETERS:
        raise Malformed(f"a payload of {count} numbers, at most {MAX_PARAMETERS}")
    if len(data) != expected:
        raise Malformed(f"a payload of {len(data)} bytes, expected {expected}")
    if bytes(data[:HEADER_BYTES]) != header(codec, count):
        raise Malformed(f"not the header of a payload of {count} numbers in {codec}")
