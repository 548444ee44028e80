"""The calls peers may make: name, types and limits of each, in one table.

A `Method` is data: `node.rpc` serves and calls it, and a reader sees the whole surface of a
node here.  The name is what goes on the wire; it ends in a version, and an incompatible
change is a new method next to the old one.  Pull only: nothing here carries bytes that the
receiver did not ask for, beyond its small limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from protocol import check, manifest
from protocol.ids import Digest, RunId
from protocol.limits import KIB, MAX_PAYLOAD_BYTES, MAX_PIECE_BYTES, NONCE_BYTES
from protocol.manifest import MAX_BLOB_BYTES, MAX_MANIFEST_BYTES
from protocol.messages import PresenceEntry, SignedMessage
from protocol.reach import DialCall, ReachCall, Reached, SeenCall
from protocol.shards import Holding, Offers, ProtectCall, ShardCall, ShardsCall
from protocol.spec import MAX_SPEC_BYTES
from protocol.witness import Sketch, SketchCall, Weights, WeightsCall

Q = TypeVar("Q")
A = TypeVar("A")

MAX_PUSHED_ENTRIES = 64
SMALL_BYTES = 256
"""A run, a name and a few numbers."""


class Lane(Enum):
    """The two classes of streams: small calls never wait behind large ones."""

    CONTROL = "/shoal/control/1"
    BULK = "/shoal/bulk/1"


class Kind(Enum):
    """What bytes are counted as."""

    ROUND = "round"
    PAYLOAD = "payload"
    BLOB = "blob"
    PRESENCE = "presence"
    RECORD = "record"
    HELLO = "hello"
    REACH = "reach"
    PROTECTION = "protection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Q, A]):
    """One request, one answer."""

    name: str
    lane: Lane = Lane.CONTROL
    kind: Kind
    request: type[Q]
    answer: type[A]
    """`bytes`: the raw bytes, not msgpack, in frames of at most 64 KiB."""
    deadline_s: float
    """The caller gives up after this, dialling included; bulk callers may pass a longer one."""
    max_request_bytes: int = SMALL_BYTES
    max_answer_bytes: int = SMALL_BYTES
    per_peer: int
    """Calls a node serves at once for one peer; one more is refused as busy."""
    in_all: int
    """Calls a node serves at once for all peers."""


@dataclass(frozen=True, slots=True)
class Hello:
    """ "Are you in this run?" The nonce makes the signed answer fresh."""

    run: RunId
    nonce: bytes
    proof: bytes
    """Of a private run: blake2b-256 keyed by the secret over run, caller, callee, nonce."""

    def __post_init__(self) -> None:
        check.digest("run", self.run)
        check.raw("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)
        check.raw("proof", self.proof, 0, 32)


@dataclass(frozen=True, slots=True)
class Welcome:
    """ "Yes, and this is its spec."  `proof` signs the nonce, domain HELLO."""

    spec_body: bytes
    spec_signature: bytes
    proof: bytes

    def __post_init__(self) -> None:
        check.raw("spec_body", self.spec_body, 1, MAX_SPEC_BYTES)


@dataclass(frozen=True, slots=True)
class RoundCall:
    """A signed round message of one run."""

    run: RunId
    message: SignedMessage


@dataclass(frozen=True, slots=True)
class PresenceCall:
    """Signed presence entries, both ways."""

    run: RunId
    entries: tuple[PresenceEntry, ...]

    def __post_init__(self) -> None:
        check.items("entries", self.entries, MAX_PUSHED_ENTRIES)


@dataclass(frozen=True, slots=True)
class RecordCall:
    """One message of the record synchronisation (`crdt.sync` knows the body), both ways."""

    run: RunId
    body: bytes


@dataclass(frozen=True, slots=True)
class CheckpointCall:
    """ "What may I start from?" """

    run: RunId
    at_base: bool = False
    """spsa: the sum at the newest base, which is the same everywhere; otherwise as it is now."""


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A `Checkpoint` signed by who offers it, domain CHECKPOINT."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class FetchCall:
    """Bytes [offset, offset + length) of the payload in flight `digest`."""

    run: RunId
    digest: Digest
    offset: int
    length: int

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)
        check.integer("offset", self.offset, 0, MAX_PAYLOAD_BYTES)
        check.integer("length", self.length, 1, MAX_PIECE_BYTES)


@dataclass(frozen=True, slots=True)
class BlobInfoCall:
    """ "What do you hold of this blob?" """

    run: RunId
    digest: Digest
    is_manifest_wanted: bool

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a peer holds of a blob."""

    manifest: bytes
    """Canonical bytes of a `Manifest`, whose hash is the blob's name; empty: not asked for."""
    held: bytes
    """A bit for each chunk, the first one the lowest of the first byte; empty: all of them."""

    def __post_init__(self) -> None:
        check.raw("manifest", self.manifest, 0, MAX_MANIFEST_BYTES)
        check.raw("held", self.held, 0, MAX_BLOB_BYTES // manifest.CHUNK_BYTES // 8)


@dataclass(frozen=True, slots=True)
class BlobCall:
    """Bytes [offset, offset + length) of a blob, all of them in one chunk."""

    run: RunId
    digest: Digest
    offset: int
    length: int

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)
        check.integer("offset", self.offset, 0, MAX_BLOB_BYTES)
        check.integer("length", self.length, 1, manifest.CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Done:
    """Received; no more to say."""


HELLO = Method(
    name="hello/1", kind=Kind.HELLO, request=Hello, answer=Welcome,
    deadline_s=10, max_answer_bytes=20 * KIB, per_peer=4, in_all=64,
)  # fmt: skip
ROUND = Method(
    name="round/1", kind=Kind.ROUND, request=RoundCall, answer=Done,
    deadline_s=10, max_request_bytes=33 * KIB, per_peer=16, in_all=256,
)  # fmt: skip
SCALARS = Method(
    name="scalars/1", kind=Kind.PAYLOAD, request=RoundCall, answer=Done,
    deadline_s=10, max_request_bytes=33 * KIB, per_peer=16, in_all=256,
)  # fmt: skip
"""`round/1` for the messages of spsa that carry scalars, which are counted as payload."""
PRESENCE = Method(
    name="presence/1", kind=Kind.PRESENCE, request=PresenceCall, answer=PresenceCall,
    deadline_s=5, max_request_bytes=96 * KIB, max_answer_bytes=96 * KIB, per_peer=2, in_all=64,
)  # fmt: skip
RECORDS = Method(
    name="records/1", kind=Kind.RECORD, request=RecordCall, answer=RecordCall,
    deadline_s=10, max_request_bytes=256 * KIB, max_answer_bytes=256 * KIB, per_peer=4, in_all=64,
)  # fmt: skip
CHECKPOINT = Method(
    name="checkpoint/1", kind=Kind.HELLO, request=CheckpointCall, answer=SignedCheckpoint,
    deadline_s=30, max_answer_bytes=512, per_peer=1, in_all=16,
)  # fmt: skip
FETCH = Method(
    name="fetch/1", lane=Lane.BULK, kind=Kind.PAYLOAD, request=FetchCall, answer=bytes,
    deadline_s=60, max_answer_bytes=MAX_PIECE_BYTES, per_peer=8, in_all=64,
)  # fmt: skip
BLOB_INFO = Method(
    name="blob-info/1", lane=Lane.BULK, kind=Kind.BLOB, request=BlobInfoCall, answer=BlobInfo,
    deadline_s=20, max_answer_bytes=132 * KIB, per_peer=2, in_all=32,
)  # fmt: skip
BLOB = Method(
    name="blob/1", lane=Lane.BULK, kind=Kind.BLOB, request=BlobCall, answer=bytes,
    deadline_s=60, max_answer_bytes=manifest.CHUNK_BYTES, per_peer=8, in_all=32,
)  # fmt: skip
"""More joiners at once than have a place are refused as busy, and go to other donors."""
SKETCH = Method(
    name="sketch/1", kind=Kind.HELLO, request=SketchCall, answer=Sketch,
    deadline_s=30, max_answer_bytes=2 * KIB, per_peer=1, in_all=4,
)  # fmt: skip
"""A pass over the weights each."""
WEIGHTS = Method(
    name="weights/1", kind=Kind.HELLO, request=WeightsCall, answer=Weights,
    deadline_s=10, per_peer=4, in_all=64,
)  # fmt: skip
REACH = Method(
    name="reach/1", kind=Kind.REACH, request=ReachCall, answer=Reached,
    deadline_s=15, max_request_bytes=512, per_peer=1, in_all=8,
)  # fmt: skip
DIAL = Method(
    name="dial/1", kind=Kind.REACH, request=DialCall, answer=Done,
    deadline_s=12, max_request_bytes=512, per_peer=2, in_all=8,
)  # fmt: skip
SEEN = Method(
    name="seen/1", kind=Kind.REACH, request=SeenCall, answer=Done,
    deadline_s=5, per_peer=1, in_all=8,
)  # fmt: skip
PROTECT = Method(
    name="protect/1", kind=Kind.PROTECTION, request=ProtectCall, answer=Holding,
    deadline_s=10, max_request_bytes=2 * KIB, max_answer_bytes=64, per_peer=4, in_all=64,
)  # fmt: skip
SHARDS = Method(
    name="shards/1", kind=Kind.PROTECTION, request=ShardsCall, answer=Offers,
    deadline_s=10, max_request_bytes=64, max_answer_bytes=4 * KIB, per_peer=1, in_all=64,
)  # fmt: skip
SHARD = Method(
    name="shard/1", lane=Lane.BULK, kind=Kind.PROTECTION, request=ShardCall, answer=bytes,
    deadline_s=60, max_answer_bytes=MAX_PIECE_BYTES, per_peer=8, in_all=64,
)  # fmt: skip
"""`fetch/1` for shards: only for their owner and their holder, and counted apart."""

METHODS = (
    HELLO, ROUND, SCALARS, PRESENCE, RECORDS, CHECKPOINT, SKETCH, WEIGHTS, FETCH, BLOB_INFO, BLOB,
    REACH, DIAL, SEEN, PROTECT, SHARDS, SHARD,
)  # fmt: skip
