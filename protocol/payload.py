"""What a payload looks like: the header, the codecs, and exactly how long it is.

    "SHP1" (4) | codec (1) | content (1) | fragment (2) | round (4) | count (8) | sections

All little endian.  A payload holds `count` numbers of one vector and nothing else.  The header
names everything that could be mistaken, so that a payload of another layout, round or fragment
is refused; the length follows from the run's spec, so that another length can be refused
unseen.  The sections of a codec stand one after the other, without gaps:

    fp32   4 bytes a number
    bf16   2 bytes a number
    int8   a bf16 scale per block of 256 | 1 byte a number
    e3m0   a power of two as 1 byte per block of 256 | 4 bits a number
    sign   a bf16 scale per block of 256 | 1 bit a number
    topk   two bf16 scales per chunk of 4096 | 12 bits an index | 2 bits a value

Bits are filled from the lowest; those left over in the last byte of a section are zero.
Several payloads may stand one after the other (slow weights, then an outer gradient).  The
tensor side (`trainers.compress`) fills in the values; this file needs no torch.

Sources: Streaming DiLoCo, https://arxiv.org/abs/2501.18512, for e3m0; SparseLoCo,
https://arxiv.org/abs/2508.15706, for topk; the layouts are our own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocol import check
from protocol.errors import Malformed
from protocol.limits import MAX_FRAGMENT, MAX_PARAMETERS, MAX_ROUND

MAGIC = b"SHP1"
HEADER = struct.Struct("<4sBBHIQ")
HEADER_BYTES = HEADER.size

CODECS = ("fp32", "bf16", "int8", "e3m0", "sign", "topk")
"""The id on the wire is the place in this list, counted from 1."""

CONTENTS = ("vector", "slow", "gradient")
"""noloco's one vector v; slow weights; an outer gradient, or a gradient.  Ids as for codecs."""

BLOCK = 256
"""Numbers that share a scale.  Streaming DiLoCo does not say; the byte tables use 256."""

CHUNK = 4096
"""Numbers among which top-k chooses: an index has 12 bits.  SparseLoCo."""

DENSITY = 64
"""Of so many numbers top-k keeps one: 64 of a chunk, 1.56 %.  SparseLoCo."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a payload is: all that its header says, and from which its length follows."""

    codec: str
    content: str
    fragment: int
    """Which fragment of the model; 0 where the model travels whole."""
    round: int
    count: int
    """Numbers in the vector."""

    def __post_init__(self) -> None:
        check.one_of("codec", self.codec, CODECS)
        check.one_of("content", self.content, CONTENTS)
        check.integer("fragment", self.fragment, 0, MAX_FRAGMENT)
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("count", self.count, 1, MAX_PARAMETERS)

    @property
    def payload_bytes(self) -> int:
        """Length of the payload, exact."""
        return payload_bytes(self.codec, self.count)

    def header(self) -> bytes:
        """The first bytes of the payload."""
        codec, content = CODECS.index(self.codec) + 1, CONTENTS.index(self.content) + 1
        return HEADER.pack(MAGIC, codec, content, self.fragment, self.round, self.count)


def payload_bytes(codec: str, count: int) -> int:
    """Length of the payload of `count` numbers, exact."""
    return HEADER_BYTES + sum(section_bytes(codec, count))


def section_bytes(codec: str, count: int) -> tuple[int, ...]:
    """Length of each section of the payload of `count` numbers, in their order.

    Those of a multiple of CHUNK numbers and those of what follows add up to those of the whole,
    so a payload can be written and read piece by piece.
    """
    blocks, chunks, kept = -(-count // BLOCK), -(-count // CHUNK), num_kept(count)
    match codec:
        case "fp32":
            return (4 * count,)
        case "bf16":
            return (2 * count,)
        case "int8":
            return 2 * blocks, count
        case "e3m0":
            return blocks, -(-count // 2)
        case "sign":
            return 2 * blocks, -(-count // 8)
        case "topk":
            return 4 * chunks, -(-12 * kept // 8), -(-2 * kept // 8)
        case _:
            raise ValueError(f"codec is {codec!r:.40}, expected one of {', '.join(CODECS)}")


def num_kept(count: int) -> int:
    """Numbers that top-k keeps of `count`: of every chunk one in DENSITY, rounded up."""
    return CHUNK // DENSITY * (count // CHUNK) + -(-(count % CHUNK) // DENSITY)


def check_payload(data: Buffer, label: Label) -> None:
    """That `data` has the length and the header of what `label` says.

    Raises:
        Malformed: it has not.
    """
    found = bytes(data[:HEADER_BYTES])
    if len(found) == HEADER_BYTES and found != label.header():
        raise Malformed(f"a payload of {_told(found)}, expected {_told(label.header())}")
    if len(data) != label.payload_bytes:
        raise Malformed(f"a payload of {len(data)} bytes, expected {label.payload_bytes}")


def parts(data: Buffer, labels: tuple[Label, ...]) -> list[memoryview]:
    """The payloads that stand in `data` one after the other, as views into it.

    Raises:
        Malformed: another length, or a part is not what its label says.
    """
    total = sum(label.payload_bytes for label in labels)
    if len(data) != total:
        raise Malformed(f"{len(data)} bytes, expected {total} for a payload of {len(labels)} parts")
    views, start = [], 0
    for label in labels:
        view = memoryview(data)[start : start + label.payload_bytes]
        check_payload(view, label)
        views.append(view)
        start += label.payload_bytes
    return views


def codec_of(data: Buffer) -> str | None:
    """The codec that the header of a payload names; None: there is no header, or none of ours."""
    if len(data) < HEADER_BYTES:
        return None
    magic, codec, *_ = HEADER.unpack(data[:HEADER_BYTES])
    return CODECS[codec - 1] if magic == MAGIC and 1 <= codec <= len(CODECS) else None


def _told(header: bytes) -> str:
    """A header in words, whatever it holds."""
    magic, codec, content, fragment, round, count = HEADER.unpack(header)
    if magic != MAGIC:
        return f"layout {magic.hex()}"
    return (
        f"{_named(CODECS, codec, 'codec')} {_named(CONTENTS, content, 'content')}, fragment "
        f"{fragment}, round {round}, {count} numbers"
    )


def _named(names: tuple[str, ...], id: int, kind: str) -> str:
    return names[id - 1] if 1 <= id <= len(names) else f"unknown {kind} {id}"
