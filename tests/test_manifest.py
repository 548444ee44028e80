"""Manifests: a name for every chunk, and bounds before anything is believed."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.errors import Malformed
from protocol.ids import digest_of
from protocol.manifest import (
    CHUNK_BYTES,
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    bitfield_of,
    chunks_in,
    manifest_of,
    open_manifest,
)
from protocol.rpc import BLOB_INFO, BlobInfo

DATA = random.Random(7).randbytes(2 * CHUNK_BYTES + 5)


def test_a_manifest_has_the_length_and_the_digest_of_each_chunk() -> None:
    manifest = manifest_of(DATA)
    parts = [DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES : 2 * CHUNK_BYTES], DATA[-5:]]
    assert manifest == Manifest(len(DATA), b"".join(digest_of(part) for part in parts))
    assert [manifest.length(n) for n in range(3)] == [CHUNK_BYTES, CHUNK_BYTES, 5]
    assert [manifest.digest(n) for n in range(3)] == [digest_of(part) for part in parts]


def test_the_name_is_the_hash_of_the_manifest_and_says_the_length_too() -> None:
    manifest = manifest_of(DATA)
    body = codec.encode(manifest)
    assert manifest.name == digest_of(body)
    assert open_manifest(manifest.name, body) == manifest
    assert manifest_of(bytes(5)).name != manifest_of(bytes(6)).name


def test_the_longest_blob_has_a_manifest_that_fits_its_bounds() -> None:
    longest = Manifest(MAX_BLOB_BYTES, bytes(MAX_BLOB_BYTES // CHUNK_BYTES * 32))
    body = codec.encode(longest)
    assert len(body) <= MAX_MANIFEST_BYTES
    assert open_manifest(longest.name, body) == longest
    held = bitfield_of(range(longest.num_chunks), longest.num_chunks)
    assert len(codec.encode(BlobInfo(body, held))) <= BLOB_INFO.max_answer_bytes


@pytest.mark.parametrize(
    ("size_bytes", "digests", "reason"),
    [
        (1 << 40, b"", "size_bytes is 1099511627776, expected a whole number from 1 to 4294967296"),
        (1 << 40, bytes(32 * 100), "size_bytes is 1099511627776"),
        (0, b"", "size_bytes is 0"),
        (-1, b"", "size_bytes is -1"),
        (True, bytes(32), "bool, not int"),
        (CHUNK_BYTES + 1, bytes(32), "digests has 32 bytes, expected 64 to 64"),
        (CHUNK_BYTES, bytes(64), "digests has 64 bytes, expected 32 to 32"),
        (5, bytes(31), "digests has 31 bytes"),
        (5, None, "NoneType"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_in_one_sentence(
    size_bytes: int, digests: bytes, reason: str
) -> None:
    body: bytes = msgpack.packb([size_bytes, digests])
    with pytest.raises(Malformed, match=reason):
        open_manifest(digest_of(body), body)


def test_a_manifest_of_another_name_or_too_many_bytes_is_refused() -> None:
    body = codec.encode(manifest_of(DATA))
    with pytest.raises(Malformed, match="another blob"):
        open_manifest(digest_of(b"other"), body)
    with pytest.raises(Malformed, match="at most"):
        open_manifest(digest_of(b"other"), bytes(MAX_MANIFEST_BYTES + 1))


def test_nothing_is_no_blob() -> None:
    with pytest.raises(ValueError, match="size_bytes is 0"):
        manifest_of(b"")


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_bitfield_names_the_chunks_it_was_made_of(case: tuple[int, set[int]]) -> None:
    count, chunks = case
    field = bitfield_of(chunks, count)
    assert set(chunks_in(field, count)) == chunks
    assert len(field) == (count + 7) // 8
    assert set(chunks_in(b"\xff" * 100, count)) == set(range(count))
