"""Shards: a member's private state, cut so that any k of n parts in peers' memory give it back.

The owner cuts a snapshot into n = data + parity shards and signs one stamp that names all of
them, so shards of two snapshots cannot be mixed up, and a false one is known by its hash.  Pull
only: the owner says which shard it asks a member to hold, and the member fetches it.
Source: REFT, arXiv 2310.12670.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import check, codec
from protocol.envelope import SIGNATURE_BYTES, Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, RunId
from protocol.limits import MAX_PAYLOAD_BYTES, MAX_PIECE_BYTES, MAX_ROUND, MAX_STEP

MAX_SHARDS = 32
"""Of one snapshot, each with another member.  ISA-L has 8 bits: 255 at most."""
MAX_STAMP_BYTES = 1536
"""A stamp that names 32 shards has 1,300."""
MAX_OFFERS = 2
"""Of one owner: the newest snapshot that is whole, and the one that is coming in."""
MAX_SERIAL = 1 << 48
BOOT_BYTES = 8
STATES = ("coming", "held")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionConfig:
    """The table [protection] of a run file: any `parity` members may be lost with their disks."""

    data: int = 2
    """k: so many shards give the snapshot back."""
    parity: int = 1
    """m: shards beyond those; so many holders may be lost."""
    every_rounds: int = 10
    """Between two snapshots.  A snapshot of noloco is 20 bytes a parameter, and n / k times that
    are sent; a round's payload is 2."""

    def __post_init__(self) -> None:
        check.integer("protection.data", self.data, 1, MAX_SHARDS - 1)
        check.integer("protection.parity", self.parity, 1, MAX_SHARDS - self.data)
        check.integer("protection.every_rounds", self.every_rounds, 1, MAX_ROUND)

    @property
    def shards(self) -> int:
        """n."""
        return self.data + self.parity


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """One snapshot of one owner, and all of its shards by name."""

    owner: PeerId
    boot: bytes
    """Of the owner's process."""
    serial: int
    """Higher than of every snapshot before; milliseconds of the owner's wall clock."""
    round: Round
    inner_step: int
    data: int
    parity: int
    size_bytes: int
    """Of what was cut."""
    digest: Digest
    """Of what was cut."""
    shard_bytes: int
    """Of each shard."""
    shards: tuple[Digest, ...]
    """Of shard 0 to n - 1; the first `data` of them are the snapshot itself."""

    def __post_init__(self) -> None:
        check.peer("owner", self.owner)
        check.raw("boot", self.boot, BOOT_BYTES, BOOT_BYTES)
        check.integer("serial", self.serial, 0, MAX_SERIAL)
        check.integer("round", self.round, 0, MAX_ROUND)
        check.integer("inner_step", self.inner_step, 0, MAX_STEP)
        check.integer("data", self.data, 1, MAX_SHARDS - 1)
        check.integer("parity", self.parity, 1, MAX_SHARDS - self.data)
        check.integer("size_bytes", self.size_bytes, 1, MAX_PAYLOAD_BYTES)
        check.digest("digest", self.digest)
        check.integer("shard_bytes", self.shard_bytes, 1, MAX_PAYLOAD_BYTES)
        check.items("shards", self.shards, MAX_SHARDS)
        check.integer("number of shards", len(self.shards), self.data + self.parity,
                      self.data + self.parity)  # fmt: skip
        for digest in self.shards:
            check.digest("shard", digest)


@dataclass(frozen=True, slots=True)
class SignedStamp:
    """A stamp as it travels and is kept: only its owner can make one."""

    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check.raw("body", self.body, 1, MAX_STAMP_BYTES)
        check.raw("signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)

    def open(self, run: RunId, owner: PeerId) -> Stamp:
        """The stamp.

        Raises:
            Malformed: it is none, or not `owner`'s.
        """
        stamp = codec.decode(Stamp, self.body, max_bytes=MAX_STAMP_BYTES)
        if stamp.owner != owner:
            raise Malformed(f"a stamp of {stamp.owner}, expected {owner}")
        verify(owner, Domain.SNAPSHOT, run, self.body, self.signature)
        return stamp


def sign_stamp(stamp: Stamp, run: RunId, signer: Signer) -> SignedStamp:
    """The stamp as its owner passes it on."""
    body = codec.encode(stamp)
    return SignedStamp(body, signer.sign(Domain.SNAPSHOT, run, body))


# --- calls ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtectCall:
    """ "Please hold this shard of mine."  Asked again and again until it is held, and later to
    see that it still is."""

    run: RunId
    stamp: SignedStamp
    index: int
    whole: bool
    """Every shard of this snapshot is held: what you hold of an older one may go."""

    def __post_init__(self) -> None:
        check.integer("index", self.index, 0, MAX_SHARDS - 1)


@dataclass(frozen=True, slots=True)
class Holding:
    """What has become of it: held, or still being fetched."""

    state: str

    def __post_init__(self) -> None:
        check.one_of("state", self.state, STATES)


@dataclass(frozen=True, slots=True)
class ShardsCall:
    """ "Which shards of mine do you hold?" """

    run: RunId


@dataclass(frozen=True, slots=True)
class Offer:
    """One that is held, whole and verified."""

    stamp: SignedStamp
    index: int

    def __post_init__(self) -> None:
        check.integer("index", self.index, 0, MAX_SHARDS - 1)


@dataclass(frozen=True, slots=True)
class Offers:
    """All of the caller's."""

    offers: tuple[Offer, ...]

    def __post_init__(self) -> None:
        check.items("offers", self.offers, MAX_OFFERS)


@dataclass(frozen=True, slots=True)
class ShardCall:
    """Bytes [offset, offset + length) of the shard `digest`: for its owner and its holder."""

    run: RunId
    digest: Digest
    offset: int
    length: int

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)
        check.integer("offset", self.offset, 0, MAX_PAYLOAD_BYTES)
        check.integer("length", self.length, 1, MAX_PIECE_BYTES)
