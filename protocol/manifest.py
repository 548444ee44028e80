"""The manifest of a blob: its length, and the digest of each of its chunks.

A blob is named by the hash of its manifest, so whoever knows the name can check the manifest, and
with it every chunk by itself, whoever sent it.  A blob is at most 4 GiB, so a manifest is at most
128 KiB: what claims more is refused before anything is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocol import check, codec
from protocol.errors import Malformed
from protocol.ids import DIGEST_BYTES, Digest, digest_of, short

CHUNK_BYTES = 1024 * 1024
"""Each chunk but the last has so many bytes.  Hashed in a millisecond."""
MAX_BLOB_BYTES = 4 * 1024 * CHUNK_BYTES
"""A checkpoint of 500 M parameters: slow weights and momentum in float32."""
MAX_MANIFEST_BYTES = MAX_BLOB_BYTES // CHUNK_BYTES * DIGEST_BYTES + 16
"""The digests of the longest blob, and what the encoding adds."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a blob consists of."""

    size_bytes: int
    digests: bytes
    """Of the chunks, in order, 32 bytes each, one after the other."""

    def __post_init__(self) -> None:
        check.integer("size_bytes", self.size_bytes, 1, MAX_BLOB_BYTES)
        expected = self.num_chunks * DIGEST_BYTES
        check.raw("digests", self.digests, expected, expected)

    @property
    def num_chunks(self) -> int:
        """Chunks, the short one at the end too."""
        return -(-self.size_bytes // CHUNK_BYTES)

    @property
    def name(self) -> Digest:
        """The name of the blob."""
        return digest_of(codec.encode(self))

    def digest(self, chunk: int) -> Digest:
        """Of this chunk, counted from 0."""
        return Digest(self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES])

    def length(self, chunk: int) -> int:
        """Bytes of this chunk."""
        return min(CHUNK_BYTES, self.size_bytes - chunk * CHUNK_BYTES)


def manifest_of(data: bytes | bytearray | memoryview) -> Manifest:
    """The manifest of a blob in memory.  ValueError: it is empty, or too long."""
    view = memoryview(data).cast("B")
    return manifest_of_chunks(
        view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES)
    )


def manifest_of_chunks(chunks: Iterable[bytes | memoryview]) -> Manifest:
    """The manifest of a blob that is read chunk by chunk, each of `CHUNK_BYTES` but the last.

    Raises:
        ValueError: there is none, or they are too many.
    """
    size_bytes, digests = 0, bytearray()
    for chunk in chunks:
        size_bytes += len(chunk)
        digests += digest_of(chunk)
        if size_bytes > MAX_BLOB_BYTES:
            break
    return Manifest(size_bytes, bytes(digests))


def open_manifest(name: Digest, body: bytes) -> Manifest:
    """The manifest of the blob of this name.

    Raises:
        Malformed: another blob's, or none.
    """
    manifest = codec.decode(Manifest, body, max_bytes=MAX_MANIFEST_BYTES)
    if digest_of(body) != name:
        raise Malformed(f"the manifest of another blob than {short(name)}")
    return manifest


def bitfield_of(chunks: Iterable[int], num_chunks: int) -> bytes:
    """These chunks as bits, the first one the lowest of the first byte."""
    field = bytearray(-(-num_chunks // 8))
    for chunk in chunks:
        field[chunk // 8] |= 1 << chunk % 8
    return bytes(field)


def chunks_in(field: bytes, num_chunks: int) -> Iterator[int]:
    """The chunks whose bits are set; bits beyond the last one count for nothing."""
    return (chunk for chunk in range(min(num_chunks, 8 * len(field))) if _is_set(field, chunk))


def _is_set(field: bytes, chunk: int) -> bool:
    return bool(field[chunk // 8] >> chunk % 8 & 1)
