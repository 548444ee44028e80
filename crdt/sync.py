"""Anti-entropy: how two replicas of a run become equal, call by call.

    initiator                                      answerer
       | -- Compare(root) ---------------------------> |
       | <-------------- Same | Buckets(256 hashes) -- |
       | -- Heads(of the buckets that differ) -------> |
       | <------ Missing(what you lack, what I want) - |
       | -- Push(what you want) ---------------------> |
       | <---------------------------- Merged(count) - |
       and again from Compare while it brings anything, for a message holds only so much.

`Push` also carries new entries as they happen; who receives it forwards what was new to it
and nothing else, so that a push dies out.  What a push misses the next comparison finds.
Who holds no record but its own begins with `Heads`: it lacks everything.
`Newest` asks for one author's record: an author that lost its disk asks for its own.

Every call is one request and one answer, each at most `MAX_BODY_BYTES`.  The answerer keeps
nothing between two calls.

Source: the shape is Dynamo's anti-entropy over Merkle trees of depth two,
https://www.allthingsdistributed.com/files/amazon-dynamo-sosp2007.pdf, section 4.7
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from crdt.record import MAX_ENTRY_BYTES, MAX_PROOF_BYTES, Entry, Head, Proof, Record
from crdt.replica import BUCKETS, MAX_AUTHORS, Replica
from protocol import check, codec
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId
from protocol.limits import KIB

MAX_BODY_BYTES = 255 * KIB
"""Below the 256 KiB of the method, which also has to hold the run."""
PARCEL_BYTES = 120 * KIB
"""Of entries in one message; with 1,024 heads of 105 bytes beside them still a body."""
MAX_PARCEL = 256
"""Entries or proofs in one message: 0.16 ms of checking each, on the owner's loop."""
MAX_CALLS = 64
"""Of one synchronisation: 64 x 120 KiB in each direction.  What is left waits for the next."""
_OVERHEAD_BYTES = 192
"""Of an entry beside its update; measured: 171 at most."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Entries and proofs on their way, verbatim."""

    entries: tuple[Entry, ...] = ()
    proofs: tuple[Proof, ...] = ()

    def __post_init__(self) -> None:
        check.items("entries", self.entries, MAX_PARCEL)
        check.items("proofs", self.proofs, MAX_PARCEL)

    def __bool__(self) -> bool:
        return bool(self.entries or self.proofs)


@dataclass(frozen=True, slots=True)
class Compare:
    """ "This is my root; what is yours?" """

    TAG: ClassVar[int] = 1
    root: Digest

    def __post_init__(self) -> None:
        check.digest("root", self.root)


@dataclass(frozen=True, slots=True)
class Same:
    """ "The same." """

    TAG: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Buckets:
    """ "Another one; these are the hashes of my buckets." """

    TAG: ClassVar[int] = 3
    hashes: tuple[Digest, ...]

    def __post_init__(self) -> None:
        check.items("hashes", self.hashes, BUCKETS)
        check.integer("hashes", len(self.hashes), BUCKETS, BUCKETS)
        for hash in self.hashes:
            check.digest("hash", hash)


@dataclass(frozen=True, slots=True)
class Heads:
    """ "In these buckets I hold this much." """

    TAG: ClassVar[int] = 4
    buckets: tuple[int, ...]
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        check.items("buckets", self.buckets, BUCKETS)
        for bucket in self.buckets:
            check.integer("bucket", bucket, 0, BUCKETS - 1)
        check.items("heads", self.heads, MAX_AUTHORS + 2)


@dataclass(frozen=True, slots=True)
class Missing:
    """ "You lack this; of these authors I hold only so much, send the rest." """

    TAG: ClassVar[int] = 5
    parcel: Parcel
    wanted: tuple[Head, ...]

    def __post_init__(self) -> None:
        check.items("wanted", self.wanted, MAX_AUTHORS + 2)


@dataclass(frozen=True, slots=True)
class Push:
    """ "This is new, or what you wanted." """

    TAG: ClassVar[int] = 6
    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Merged:
    """ "So many of them were new to me." """

    TAG: ClassVar[int] = 7
    news: int

    def __post_init__(self) -> None:
        check.integer("news", self.news, 0, 2 * MAX_PARCEL)


@dataclass(frozen=True, slots=True)
class Newest:
    """ "What do you hold of this author?"  The answer is `Missing`, wanting nothing."""

    TAG: ClassVar[int] = 8
    author: PeerId

    def __post_init__(self) -> None:
        check.peer("author", self.author)


Request = Compare | Heads | Push | Newest
Answer = Same | Buckets | Missing | Merged


def answer(replica: Replica, body: bytes) -> tuple[bytes, Parcel]:
    """The answer to a request, and what of it was news and is to be forwarded.

    Raises:
        Malformed: the request breaks the protocol; what was good before that is merged.
    """
    request: Request = codec.decode(Request, body, max_bytes=MAX_BODY_BYTES)  # type: ignore[arg-type]
    news = Parcel()
    reply: Answer
    match request:
        case Compare(root):
            reply = Same() if root == replica.root() else Buckets(replica.buckets())
        case Heads():
            reply = _compared(replica, request)
        case Push(parcel):
            news = merge_parcel(replica, parcel)
            reply = Merged(len(news.entries) + len(news.proofs))
        case Newest(author):
            reply = Missing(pack(replica, [Record(author).head]), ())
    return codec.encode(reply), news


class Sync:
    """The initiator's side of one synchronisation with one peer.

    `body` is the next request, None when there is none; `answered` takes the answer to it.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._request: Request | None = self._first()
        self._calls_left = MAX_CALLS
        self._news = 0
        """Entries that this pass brought, to either side."""

    def _first(self) -> Request:
        """A joiner, who has nothing but its own record, spares itself the 256 hashes."""
        if len(self._replica.authors()) > 1:
            return Compare(self._replica.root())
        every = tuple(range(BUCKETS))
        return Heads(every, tuple(head for bucket in every for head in self._replica.heads(bucket)))

    @property
    def body(self) -> bytes | None:
        return codec.encode(self._request) if self._request else None

    def answered(self, body: bytes) -> bool:
        """Merge what the answer brings and decide on the next request; whether there is one.

        Raises:
            Malformed: the answer breaks the protocol.
        """
        reply: Answer = codec.decode(Answer, body, max_bytes=MAX_BODY_BYTES)  # type: ignore[arg-type]
        self._calls_left -= 1
        match self._request, reply:
            case Compare(), Same():
                self._request = None
            case Compare(), Buckets(hashes):
                self._news = 0
                self._request = self._heads(hashes)
            case Heads(), Missing(parcel, wanted):
                brought = merge_parcel(self._replica, parcel)
                self._news += len(brought.entries) + len(brought.proofs)
                due = pack(self._replica, wanted)
                self._request = Push(due) if due else self._again()
            case Push(), Merged(news):
                self._news += news
                self._request = self._again()
            case _:
                raise Malformed(f"{type(reply).__name__} is no answer to what was asked")
        if self._calls_left <= 0:
            self._request = None
        return self._request is not None

    def _heads(self, theirs: tuple[Digest, ...]) -> Heads:
        mine = self._replica.buckets()
        differ = tuple(bucket for bucket in range(BUCKETS) if mine[bucket] != theirs[bucket])
        heads = (head for bucket in differ for head in self._replica.heads(bucket))
        return Heads(differ, tuple(heads))

    def _again(self) -> Compare | None:
        return Compare(self._replica.root()) if self._news else None


def newest_request(author: PeerId) -> bytes:
    """Asks a peer what it holds of `author`."""
    return codec.encode(Newest(author))


def merge_newest(replica: Replica, author: PeerId, body: bytes) -> bool:
    """Take in the answer to `newest_request`; whether the peer holds anything of `author`.

    Raises:
        Malformed: it is none.
    """
    parcel = codec.decode(Missing, body, max_bytes=MAX_BODY_BYTES).parcel
    merge_parcel(replica, parcel)
    held = {entry.author for entry in parcel.entries} | {proof.author for proof in parcel.proofs}
    return author in held


def push_request(parcel: Parcel) -> bytes:
    """Hands new entries to a peer."""
    return codec.encode(Push(parcel))


def merge_parcel(replica: Replica, parcel: Parcel) -> Parcel:
    """Take in all of it; what was news.

    Raises:
        Malformed: one is not signed by its author; those before it are merged.
    """
    merged = [entry for entry in parcel.entries if replica.merge(entry)]
    convicted = {proof.author for proof in parcel.proofs if replica.convict(proof)}
    convicted |= {entry.author for entry in merged if replica.record(entry.author).proof}
    proofs = (replica.record(author).proof for author in sorted(convicted))
    return Parcel(
        tuple(entry for entry in merged if entry.author not in convicted),
        tuple(proof for proof in proofs if proof),
    )


def pack(replica: Replica, heads: Iterable[Head]) -> Parcel:
    """What peers with these heads lack, as much of it as one message may hold."""
    entries: list[Entry] = []
    proofs: list[Proof] = []
    for head in heads:
        record = replica.record(head.author)
        if not record.proof:
            entries += record.since(head)
        elif _has_less(head, record.head):
            proofs.append(record.proof)
    return fitting(entries, proofs)


def fitting(entries: Iterable[Entry], proofs: Iterable[Proof]) -> Parcel:
    """The first of them that one message may hold; proofs before entries."""
    left = PARCEL_BYTES
    some_proofs: list[Proof] = []
    some: list[Entry] = []
    for proof in proofs:
        left -= MAX_PROOF_BYTES
        if left < 0:
            break
        some_proofs.append(proof)
    for entry in entries:
        left -= len(entry.update) + _OVERHEAD_BYTES
        if left < 0 or len(some) == MAX_PARCEL:
            break
        some.append(entry)
    return Parcel(tuple(some), tuple(some_proofs))


def _compared(replica: Replica, request: Heads) -> Missing:
    theirs = {head.author: head for head in request.heads}
    mine = {head.author: head for bucket in request.buckets for head in replica.heads(bucket)}
    lacking = [theirs.get(author) or Record(author).head for author in sorted(mine)]
    wanted = [
        replica.head(author)
        for author in sorted(theirs)
        if _has_less(replica.head(author), theirs[author]) and replica.has_room_for(author)
    ]
    return Missing(pack(replica, lacking), tuple(wanted))


def _has_less(one: Head, other: Head) -> bool:
    """Whether who has `one` gains from who has `other`; of two proofs the smaller is kept."""
    if one.is_frozen and other.is_frozen:
        return other.digest < one.digest
    return (one.epoch, one.seq) < (other.epoch, other.seq)


assert max(MAX_PROOF_BYTES, MAX_ENTRY_BYTES) <= PARCEL_BYTES
