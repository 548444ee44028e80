"""Signatures: who said it, in which run, and as what.

The signed bytes are `b"shoal/1 <domain>\0" + run id (32) + body`, so that nothing signed as
one kind of statement, or in one run, passes for another.  Ed25519 (RFC 8032) through
`cryptography`; the key is the peer's libp2p identity, so the id itself holds the public key.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import Malformed
from protocol.ids import PeerId, RunId, peer_id, public_key

SIGNATURE_BYTES = 64


class Domain(Enum):
    """What kind of statement is signed."""

    SPEC = b"spec"
    RECORD = b"record"
    PRESENCE = b"presence"
    ROUND = b"round"
    HELLO = b"hello"
    CHECKPOINT = b"checkpoint"
    ROSTER = b"roster"
    FRAME = b"frame"
    BASE = b"base"
    PEER = b"peer"
    SNAPSHOT = b"snapshot"


class Seal(Protocol):
    """Signing and checking.  `Signer` is Ed25519; a simulation of thousands has a cheaper one."""

    def sign(self, domain: Domain, run: RunId, body: bytes) -> bytes:
        """Our signature of `body`, 64 bytes."""

    def verify(
        self, peer: PeerId, domain: Domain, run: RunId, body: bytes, signature: bytes
    ) -> None:
        """Raises Malformed: `peer` did not sign it."""


class Signer:
    """A peer's private key, and all that others' public ones are good for."""

    def __init__(self, seed: bytes) -> None:
        """Args: seed: 32 secret bytes, the RFC 8032 private key."""
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.peer: PeerId = peer_id(self._key.public_key().public_bytes_raw())

    def sign(self, domain: Domain, run: RunId, body: bytes) -> bytes:
        """The signature of `body`, 64 bytes; equal input gives equal bytes."""
        return self._key.sign(_signed_bytes(domain, run, body))

    def verify(
        self, peer: PeerId, domain: Domain, run: RunId, body: bytes, signature: bytes
    ) -> None:
        """Check that `peer` signed `body`.  Raises Malformed: it did not."""
        verify(peer, domain, run, body, signature)


def verify(peer: PeerId, domain: Domain, run: RunId, body: bytes, signature: bytes) -> None:
    """Check that `peer` signed `body` as `domain` in `run`.

    Raises:
        Malformed: it did not.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key(peer))
        key.verify(signature, _signed_bytes(domain, run, body))
    except (InvalidSignature, ValueError) as error:
        raise Malformed(f"not signed by {peer} as {domain.value.decode()}") from error


def _signed_bytes(domain: Domain, run: RunId, body: bytes) -> bytes:
    return b"shoal/1 " + domain.value + b"\0" + run + body
