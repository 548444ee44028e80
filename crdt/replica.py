"""All records of one run, as one peer holds them.

What it holds is the union of what was signed: merging is commutative, associative and
idempotent, so replicas that have seen the same entries are equal, in any order.  The digests
over it are compared to find what differs (`crdt.sync`): one root over 256 buckets by hash of
the author, each over the sorted heads of its records.  Views are rebuilt when they are asked
for and kept until their record changes.

Limits: `MAX_AUTHORS` records of at most `record.MAX_RECORD_BYTES` and as much again of
entries that wait for one before them: 64 MiB in all, if every author is hostile.
"""

from __future__ import annotations

from collections.abc import Collection

from crdt.record import Entry, Head, Proof, Record
from crdt.schema import NoView, View
from crdt.values import view
from protocol import codec
from protocol.ids import Digest, PeerId, RunId, digest_of

MAX_AUTHORS = 1024
"""Authors of one run.  One more is refused: nobody can push out who is there."""
BUCKETS = 256
"""By the first byte of the author's hash.  With 1,024 authors a bucket has four."""


class Replica:
    """One peer's copy of the state of `run`.  Not thread-safe: one task owns it.

    Args:
        reserved: authors who are taken in even when there are too many: this peer itself,
            and the creator of the run.
    """

    def __init__(self, run: RunId, *, reserved: Collection[PeerId] = ()) -> None:
        self.run = run
        self._reserved = frozenset(reserved)
        self._records: dict[PeerId, Record] = {}
        self._heads: dict[PeerId, Head] = {}
        self._views: dict[PeerId, View] = {}
        self._buckets: list[dict[PeerId, Head]] = [{} for _ in range(BUCKETS)]
        self._hashes: list[Digest | None] = [None] * BUCKETS
        self._changed: set[PeerId] = set()

    def record(self, author: PeerId) -> Record:
        """What is held of `author`; an empty record if nothing is."""
        return self._records.get(author) or Record(author)

    def head(self, author: PeerId) -> Head:
        """How far our record of `author` goes."""
        return self._heads.get(author) or Record(author).head

    def authors(self) -> tuple[PeerId, ...]:
        """Everyone of whom there is something to read or to prove, sorted."""
        return tuple(sorted(self._heads))

    def has_room_for(self, author: PeerId) -> bool:
        known = author in self._records or author in self._reserved
        return known or len(self._records) < MAX_AUTHORS

    def merge(self, entry: Entry) -> bool:
        """Take in an entry, in any order and any number of times; True if it was news.

        Raises:
            Malformed: it is not signed by its author; nothing was taken in.
        """
        if not self.has_room_for(entry.author):
            return False
        record = self.record(entry.author)
        merged = record.merged(entry)
        if merged is record:
            return False
        entry.verify(self.run)  # last, for it is the dear part and most entries are old
        self._put(merged)
        return True

    def convict(self, proof: Proof) -> bool:
        """Take in a proof of equivocation; True if it was news.

        Raises:
            Malformed: its entries are not signed by their author.
        """
        if not self.has_room_for(proof.author):
            return False
        record = self.record(proof.author)
        merged = record.convicted(proof)
        if merged is record:
            return False
        proof.verify(self.run)
        self._put(merged)
        return True

    def view(self, author: PeerId) -> View:
        """What `author` says, or why there is nothing to read."""
        if author not in self._views:
            record = self.record(author)
            if not record.proof:
                self._views[author] = view(record.updates)
            else:
                one, other = record.proof.first, record.proof.second
                self._views[author] = NoView(
                    f"equivocated in epoch {one.epoch}: two chains with the entries "
                    f"{one.seq} and {other.seq}",
                    is_frozen=True,
                )
        return self._views[author]

    def views(self) -> dict[PeerId, View]:
        """The views of all authors, sorted by author."""
        return {author: self.view(author) for author in self.authors()}

    def root(self) -> Digest:
        """Equal on two replicas exactly when they hold the same."""
        return digest_of(b"".join(self.buckets()))

    def buckets(self) -> tuple[Digest, ...]:
        """The hash of each bucket."""
        return tuple(self._hash(bucket) for bucket in range(BUCKETS))

    def heads(self, bucket: int) -> tuple[Head, ...]:
        """The heads of the records in a bucket, sorted by author."""
        held = self._buckets[bucket]
        return tuple(held[author] for author in sorted(held))

    def take_changed(self) -> tuple[PeerId, ...]:
        """The authors whose records changed since the last time this was asked, sorted."""
        changed = tuple(sorted(self._changed))
        self._changed.clear()
        return changed

    def _put(self, record: Record) -> None:
        author, head = record.author, record.head
        self._records[author] = record
        self._changed.add(author)
        if head.epoch == 0 or head == self._heads.get(author):
            return  # nothing but entries that wait
        bucket = digest_of(author.encode())[0]
        self._heads[author] = head
        self._buckets[bucket][author] = head
        self._hashes[bucket] = None
        self._views.pop(author, None)

    def _hash(self, bucket: int) -> Digest:
        known = self._hashes[bucket]
        if known is None:
            known = digest_of(codec.encode(self.heads(bucket)))
            self._hashes[bucket] = known
        return known
