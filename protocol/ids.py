"""Identifiers.  Equal-looking values that must never be mixed up get their own type.

Hashes are raw bytes in memory and on the wire, hex only where a person reads them.
Source: libp2p peer ids, https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import functools
import hashlib
from typing import NewType

import base58

PeerId = NewType("PeerId", str)
"""base58 of the identity multihash of a peer's Ed25519 public key, as libp2p prints it."""

RunId = NewType("RunId", bytes)
"""blake2b-256 of the run's canonical `RunSpec`: peers with another spec are in another run."""

Digest = NewType("Digest", bytes)
"""blake2b-256 of a blob: the name by which it is asked for."""

Round = NewType("Round", int)
"""Index of an outer round, from 0.  A Lamport clock: an exchange takes both to max + 1."""

DIGEST_BYTES = 32
SHORT_CHARS = 8
"""Ids in logs: the last characters of a peer id (all begin alike), the first of a hash."""

KNOWN_KEYS = 8192
"""Public keys kept of the ids checked last, some 300 bytes each: base58 is slow, and the same
peers are named in every message."""

_KEY_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes: a protobuf of key type Ed25519 and 32 bytes of key."""


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The name of these bytes: blake2b-256, the one hash that shoal uses."""
    return Digest(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest())


def seed_of(*parts: bytes | str | int) -> int:
    """A 63-bit seed that depends on every part and on nothing else.

    Seeds are derived, never sequential, so that a new draw somewhere changes nothing
    elsewhere.  Parts are length-prefixed: ("ab", "c") and ("a", "bc") differ.
    """
    hash = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        hash.update(len(data).to_bytes(4, "big") + data)
    return int.from_bytes(hash.digest(), "big") >> 1


def peer_id(public_key: bytes) -> PeerId:
    """The id of the peer with this raw Ed25519 public key of 32 bytes."""
    return PeerId(base58.b58encode(_KEY_PREFIX + public_key).decode("ascii"))


def public_key(peer: PeerId) -> bytes:
    """The raw Ed25519 public key inside a peer id.

    Raises:
        ValueError: no peer id of an Ed25519 key, or not in its one canonical spelling.
    """
    if type(peer) is not str or not 40 <= len(peer) <= 64:  # 52 in fact; bounds the base58 work
        raise ValueError(f"not a peer id: {peer!r:.80}")
    return _public_key(peer)


@functools.lru_cache(KNOWN_KEYS)
def _public_key(peer: PeerId) -> bytes:
    raw = base58.b58decode(peer)
    if len(raw) != len(_KEY_PREFIX) + 32 or not raw.startswith(_KEY_PREFIX):
        raise ValueError(f"not the id of an Ed25519 key: {peer}")
    key = raw[len(_KEY_PREFIX) :]
    if peer_id(key) != peer:
        raise ValueError(f"not in canonical form: {peer}")
    return key


def short(id: str | bytes) -> str:
    """An id as a person reads it in a log."""
    return id.hex()[:SHORT_CHARS] if isinstance(id, bytes) else id[-SHORT_CHARS:]
