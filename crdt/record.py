"""One author's record: a signed chain of entries, or proof that there are two.

An author writes entries.  The first of an epoch is a snapshot (seq 0), those after it are
the tail (seq 1, 2, ...); each is signed over the run, the author, its place, the hash of the
entry before it and its bytes.  Peers keep and forward entries verbatim, so what they hold is
a pure function of what was signed, whatever they make of the bytes (`crdt.document`).

`Record.merged` takes entries in any order and any number of times:

* a newer epoch replaces an older one as soon as its snapshot is here;
* entries with a gap before them wait in `ahead`, of one epoch only;
* two entries that cannot stand in one chain prove that their author equivocates.  Then the
  record is frozen: the proof takes its place for good, because it is all that those who saw
  one half and those who saw the other can agree on.

Limits: an epoch has one snapshot of 16 KiB at most and a tail of 32 updates and 8 KiB at
most; the sum is signed into each entry, so that it needs no other entry to be checked.

Source: the idea of signed append-only logs, https://ssbc.github.io/scuttlebutt-protocol-guide/
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from protocol import check, codec
from protocol.envelope import SIGNATURE_BYTES, Domain, Signer, verify
from protocol.ids import DIGEST_BYTES, Digest, PeerId, RunId, digest_of
from protocol.limits import KIB

MAX_SNAPSHOT_BYTES = 16 * KIB
"""Three times the largest content that `crdt.schema` writes: 5.0 kB."""
MAX_TAIL = 32
"""Updates in a tail.  Also the work of rebuilding a view: 33 updates."""
MAX_TAIL_BYTES = 8 * KIB
MAX_EPOCH = 1 << 48
NO_PREVIOUS = Digest(bytes(DIGEST_BYTES))
"""What a snapshot names as the entry before it: an author that lost its disk knows none."""
MAX_ENTRY_BYTES = MAX_SNAPSHOT_BYTES + 256
"""Its largest update, and 180 bytes of place, author and signature."""
MAX_PROOF_BYTES = 2 * MAX_ENTRY_BYTES + 8
MAX_RECORD_BYTES = MAX_SNAPSHOT_BYTES + MAX_TAIL_BYTES + (MAX_TAIL + 1) * 256
"""A whole chain as it travels and lies on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One signed statement of an author about its own record."""

    author: PeerId
    epoch: int
    """From 1.  A new epoch is a fresh document; an older one is ignored."""
    seq: int
    previous: Digest
    """Hash of the entry with `seq` - 1; `NO_PREVIOUS` in a snapshot."""
    tail_bytes: int
    """Bytes of all updates of the tail up to and with this one; 0 in a snapshot."""
    update: bytes
    """A pycrdt update.  Hostile until `crdt.document` has read it."""
    signature: bytes

    def __post_init__(self) -> None:
        check.peer("author", self.author)
        check.integer("epoch", self.epoch, 1, MAX_EPOCH)
        check.integer("seq", self.seq, 0, MAX_TAIL)
        check.digest("previous", self.previous)
        if self.seq == 0:
            check.raw("update", self.update, 1, MAX_SNAPSHOT_BYTES)
            check.integer("tail_bytes", self.tail_bytes, 0, 0)
            if self.previous != NO_PREVIOUS:
                raise ValueError("a snapshot names an entry before it")
        else:
            check.raw("update", self.update, 1, MAX_TAIL_BYTES)
            check.integer("tail_bytes", self.tail_bytes, len(self.update), MAX_TAIL_BYTES)
        check.raw("signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)

    @property
    def digest(self) -> Digest:
        """The entry's name: the hash of all its bytes, signature included."""
        return digest_of(codec.encode(self))

    @property
    def size_bytes(self) -> int:
        """As it travels and lies on disk."""
        return len(codec.encode(self))

    def verify(self, run: RunId) -> None:
        """Check that its author signed it in `run`.

        Raises:
            Malformed: it did not.
        """
        verify(self.author, Domain.RECORD, run, _signed_bytes(self), self.signature)


@dataclass(frozen=True, slots=True)
class Proof:
    """Two entries that no honest author signs both; sorted by hash."""

    first: Entry
    second: Entry

    def __post_init__(self) -> None:
        if not clash(self.first, self.second) or self.first.digest > self.second.digest:
            raise ValueError("these entries prove nothing, or are not in order")

    @property
    def author(self) -> PeerId:
        return self.first.author

    @property
    def digest(self) -> Digest:
        return digest_of(codec.encode(self))

    def verify(self, run: RunId) -> None:
        """As `Entry.verify`, of both."""
        self.first.verify(run)
        self.second.verify(run)


@dataclass(frozen=True, slots=True)
class Head:
    """How far a record goes.  The greater (epoch, seq) has more; a proof has most."""

    author: PeerId
    epoch: int
    """0: nothing is held; MAX_EPOCH + 1: a proof."""
    seq: int
    digest: Digest
    """Of the last entry of the chain, or of the proof."""

    def __post_init__(self) -> None:
        check.peer("author", self.author)
        check.integer("epoch", self.epoch, 0, MAX_EPOCH + 1)
        check.integer("seq", self.seq, 0, MAX_TAIL)
        check.digest("digest", self.digest)

    @property
    def is_frozen(self) -> bool:
        return self.epoch > MAX_EPOCH


@dataclass(frozen=True, slots=True)
class Record:
    """What is held of one author.  A value: merging makes a new one."""

    author: PeerId
    chain: tuple[Entry, ...] = ()
    """The snapshot and its tail, linked, without a gap.  This is what travels."""
    ahead: tuple[Entry, ...] = ()
    """Of the newest epoch seen: entries that wait for one before them."""
    proof: Proof | None = None
    """If there is one there is nothing else."""

    @property
    def epoch(self) -> int:
        """Of the chain; 0 without one."""
        return self.chain[0].epoch if self.chain else 0

    @property
    def newest_epoch(self) -> int:
        """The newest epoch seen of the author, whether its snapshot is here or not."""
        return max((entry.epoch for entry in self.ahead), default=self.epoch)

    @property
    def head(self) -> Head:
        if self.proof:
            return Head(self.author, MAX_EPOCH + 1, 0, self.proof.digest)
        if not self.chain:
            return Head(self.author, 0, 0, NO_PREVIOUS)
        return Head(self.author, self.epoch, self.chain[-1].seq, self.chain[-1].digest)

    @property
    def size_bytes(self) -> int:
        """Of the chain or the proof, as it travels and lies on disk."""
        proof = len(codec.encode(self.proof)) if self.proof else 0
        return proof + sum(entry.size_bytes for entry in self.chain)

    @property
    def updates(self) -> tuple[bytes, ...]:
        """What the document is rebuilt from."""
        return tuple(entry.update for entry in self.chain)

    def merged(self, entry: Entry) -> Record:
        """This record with one more verified entry of its author; itself if it adds nothing."""
        if self.proof or entry.epoch < self.epoch:
            return self
        known = self.chain + self.ahead
        if entry in known:
            return self
        for other in known:
            if clash(other, entry):
                return self.convicted(proof_of(other, entry))
        settled = _settled(self.author, (*known, entry))
        return self if settled == self else settled

    def convicted(self, proof: Proof) -> Record:
        """This record with a verified proof.  Of two proofs all peers keep the same one."""
        if self.proof and self.proof.digest <= proof.digest:
            return self
        return Record(self.author, proof=proof)

    def since(self, head: Head) -> tuple[Entry, ...]:
        """The entries that a peer with `head` lacks; where hashes differ, those that prove it."""
        if head.epoch != self.epoch:
            return self.chain if head.epoch < self.epoch else ()
        if head.seq < len(self.chain) and self.chain[head.seq].digest != head.digest:
            return self.chain[head.seq :]
        return self.chain[head.seq + 1 :]


def clash(one: Entry, other: Entry) -> bool:
    """Whether no honest author signs both: they fit into no one chain."""
    if one.author != other.author or one.epoch != other.epoch or one == other:
        return False
    if one.seq == other.seq:
        return True
    early, late = sorted((one, other), key=lambda entry: entry.seq)
    before = late.tail_bytes - len(late.update)
    if late.seq == early.seq + 1:
        return before != early.tail_bytes or late.previous != early.digest
    return before < early.tail_bytes


def proof_of(one: Entry, other: Entry) -> Proof:
    """The proof that two clashing entries are."""
    first, second = sorted((one, other), key=lambda entry: entry.digest)
    return Proof(first, second)


def first_entry(signer: Signer, run: RunId, epoch: int, snapshot: bytes) -> Entry:
    """A new epoch of the signer's record."""
    return _signed(signer, run, epoch, 0, NO_PREVIOUS, 0, snapshot)


def next_entry(signer: Signer, run: RunId, last: Entry, update: bytes) -> Entry | None:
    """The entry after `last`; None when the tail is full and a new epoch is due."""
    tail_bytes = last.tail_bytes + len(update)
    if last.seq == MAX_TAIL or tail_bytes > MAX_TAIL_BYTES:
        return None
    return _signed(signer, run, last.epoch, last.seq + 1, last.digest, tail_bytes, update)


def _settled(author: PeerId, pool: tuple[Entry, ...]) -> Record:
    """The record that these entries make; no two of them clash."""
    opened = max((entry.epoch for entry in pool if entry.seq == 0), default=0)
    newest = max(entry.epoch for entry in pool)
    held = {entry.seq: entry for entry in pool if entry.epoch == opened}
    length = next(seq for seq in count() if seq not in held)
    chain = tuple(held[seq] for seq in range(length))
    ahead = (
        entry
        for entry in pool
        if entry.epoch == newest and not (newest == opened and entry.seq < length)
    )
    return Record(author, chain, tuple(sorted(ahead, key=lambda entry: entry.seq)))


def _signed(
    signer: Signer,
    run: RunId,
    epoch: int,
    seq: int,
    previous: Digest,
    tail_bytes: int,
    update: bytes,
) -> Entry:
    entry = Entry(
        author=signer.peer,
        epoch=epoch,
        seq=seq,
        previous=previous,
        tail_bytes=tail_bytes,
        update=update,
        signature=bytes(SIGNATURE_BYTES),
    )
    signature = signer.sign(Domain.RECORD, run, _signed_bytes(entry))
    return Entry(
        author=entry.author,
        epoch=epoch,
        seq=seq,
        previous=previous,
        tail_bytes=tail_bytes,
        update=update,
        signature=signature,
    )


def _signed_bytes(entry: Entry) -> bytes:
    """All fields but the signature; the run and the domain are added by the envelope."""
    place = (entry.author, entry.epoch, entry.seq, entry.previous, entry.tail_bytes)
    return codec.encode((*place, entry.update))
