"""A peer's own word on where it can be reached: signed, numbered, expiring.

The DHT keeps it under a key made of the peer and the run, and whoever stores or reads it can
check it alone: the key names the signer, the signature covers everything, and of two records
the higher sequence number counts.  So nobody can put addresses into another's mouth, and an old
record cannot be kept alive by passing it on.

Source: signed routing records, https://github.com/libp2p/specs/blob/master/RFC/0003-routing-records.md
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from protocol import check, codec
from protocol.envelope import SIGNATURE_BYTES, Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import PeerId, RunId, digest_of, public_key
from protocol.limits import MAX_UNIX_S

MAX_RECORD_BYTES = 3072
"""Eight of the longest addresses, ids and signature: 2,350 bytes, and some to spare."""
MAX_SEQ = 1 << 48
TTL_S = 3600
"""How long a peer's record counts.  A guess: a home's address changes daily, and a peer puts its
record again every few minutes, so an hour survives every pause but not a peer that left."""
MAX_TTL_S = 24 * 3600
"""A record that claims more is refused: the library keeps values for a day."""
CLOCK_S = 600
"""By how much an honest peer's clock may be ahead of ours.  One behind only shortens its TTL_S."""
NO_RUN = RunId(bytes(32))
"""Stands for the run in the signed bytes of a peer that is in none: a bootstrap node."""
NAMESPACE = "shoal"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """ "I, `peer`, am in `run` and can be dialled at `addrs`." """

    peer: PeerId
    run: RunId | None
    addrs: tuple[str, ...]
    """Multiaddrs, each ending in /p2p/PEER; through a relay .../p2p/RELAY/p2p-circuit/p2p/PEER."""
    seq: int
    """Of two records the higher one counts.  Milliseconds of the wall clock, so that a peer that
    lost its disk goes on above its old ones; nothing else reads it as a time."""
    expires_unix_s: int

    def __post_init__(self) -> None:
        check.peer("peer", self.peer)
        if self.run is not None:
            check.digest("run", self.run)
            if self.run == NO_RUN:
                raise ValueError("run is 32 zero bytes, expected none at all")
        check.addrs("addrs", self.addrs)
        for addr in self.addrs:
            if not addr.startswith("/") or not addr.endswith(f"/p2p/{self.peer}"):
                raise ValueError(f"addr is {addr!r:.160}, expected /.../p2p/{self.peer}")
        check.integer("seq", self.seq, 0, MAX_SEQ)
        check.integer("expires_unix_s", self.expires_unix_s, 0, MAX_UNIX_S)


@dataclass(frozen=True, slots=True)
class SignedPeerRecord:
    """As it travels."""

    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_RECORD_BYTES)
        check.raw("signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)


def record_key(peer: PeerId, run: RunId | None) -> str:
    """Under which the record of `peer` in `run` lies in the DHT: 50 characters.

    A hash, for the library refuses keys of over 50 bytes in its walk to the closest peers; it
    stands for the signer all the same, for it is compared with what the record says.
    """
    name = digest_of(b"shoal-peer" + public_key(peer) + (run or NO_RUN))
    return f"/{NAMESPACE}/" + base64.urlsafe_b64encode(name).decode("ascii").rstrip("=")


def sign_peer_record(record: PeerRecord, signer: Signer) -> bytes:
    """The record as the DHT keeps it."""
    body = codec.encode(record)
    signature = signer.sign(Domain.PEER, record.run or NO_RUN, body)
    return codec.encode(SignedPeerRecord(body, signature))


def open_peer_record(key: str, value: bytes, now_unix_s: float) -> PeerRecord:
    """The record that lies under `key`.

    Raises:
        Malformed: it is none, another peer's or run's, not signed by its peer, or has expired.
    """
    signed = codec.decode(SignedPeerRecord, value, max_bytes=MAX_RECORD_BYTES)
    record = codec.decode(PeerRecord, signed.body, max_bytes=MAX_RECORD_BYTES)
    if record_key(record.peer, record.run) != key:
        raise Malformed(f"a record of {record.peer} under the key {key!r:.80} of another")
    left_s = record.expires_unix_s - now_unix_s
    if not 0 < left_s <= MAX_TTL_S + CLOCK_S:
        raise Malformed(f"a record with {left_s:.0f} s left, expected 0 to {MAX_TTL_S}")
    verify(record.peer, Domain.PEER, record.run or NO_RUN, signed.body, signed.signature)
    return record


def best(key: str, values: Sequence[bytes], now_unix_s: float) -> int | None:
    """Which of `values` counts: of those that are valid the one with the highest number.

    The first of equals, so that a copy never replaces what is there.
    """
    found: tuple[int, int] | None = None
    for index, value in enumerate(values):
        try:
            seq = open_peer_record(key, value, now_unix_s).seq
        except Malformed:
            continue
        if found is None or seq > found[0]:
            found = (seq, index)
    return None if found is None else found[1]
