"""Authors and their records, for the tests of `crdt` and of who uses it."""

from __future__ import annotations

from dataclasses import replace

from crdt import document
from crdt.author import Author
from crdt.record import NO_PREVIOUS, Entry, Record, _signed
from crdt.replica import Replica
from crdt.schema import MAX_CHECKPOINTS, ClosedRound, Content, Member, Progress
from crdt.sync import Parcel, Sync, answer
from protocol.envelope import Signer
from protocol.ids import Digest, Round, RunId, digest_of
from protocol.messages import Checkpoint

RUN = RunId(b"r" * 32)
OTHER_RUN = RunId(b"o" * 32)
ALICE, BOB, CAROL, MALLORY = (Signer(bytes([n]) * 32) for n in (1, 2, 3, 4))
JOINED = Content(member=Member(name="alice", since=Round(0)))


def author(signer: Signer = ALICE, *, client_id: int = 7, jump: int = 1) -> Author:
    return Author(signer=signer, run=RUN, client_id=client_id, jump=jump)


def digest(*words: object) -> Digest:
    return digest_of(repr(words).encode())


def after(content: Content, round: int) -> Content:
    """`content` after one more round, exchanged with BOB unless the round divides by 5."""
    alone = round % 5 == 0
    closed = ClosedRound(
        round=Round(round),
        tokens=102_400,
        partner=None if alone else BOB.peer,
        mine=digest(round, "mine"),
        theirs=None if alone else digest(round, "theirs"),
    )
    progress = Progress(
        round=Round(round), tokens=102_400, loss=2.5 + 1 / (round + 1), weights=digest(round)
    )
    content = content.with_round(closed, progress, half=False)
    if round % 10 == 0:
        offered = Checkpoint(Round(round), digest(round, "blob"), 7_500_000, digest(round))
        content = replace(content, checkpoints=(*content.checkpoints, offered)[-MAX_CHECKPOINTS:])
    return content


def history(
    rounds: int, signer: Signer = ALICE, *, client_id: int = 7, jump: int = 1
) -> tuple[list[Entry], Content]:
    """All entries that an honest author signs in its first rounds, and what they say at last."""
    writer = author(signer, client_id=client_id, jump=jump)
    record, content = Record(signer.peer), JOINED
    entries: list[Entry] = []
    for round in range(rounds + 1):
        entry = writer.next(record, content, is_lost=False)
        assert entry is not None
        entries.append(entry)
        record = record.merged(entry)
        content = after(content, round)
    return entries, _before_last(record)


def _before_last(record: Record) -> Content:
    view = replica(*record.chain).view(record.author)
    assert isinstance(view, Content)
    return view


def signed(
    update: bytes,
    signer: Signer = ALICE,
    *,
    epoch: int = 1,
    seq: int = 0,
    previous: Digest = NO_PREVIOUS,
    tail_bytes: int = 0,
) -> Entry:
    """Whatever an author likes to sign."""
    return _signed(signer, RUN, epoch, seq, previous, tail_bytes, update)


def following(last: Entry, update: bytes, signer: Signer = ALICE) -> Entry:
    """An entry that fits after `last`."""
    return signed(
        update,
        signer,
        epoch=last.epoch,
        seq=last.seq + 1,
        previous=last.digest,
        tail_bytes=last.tail_bytes + len(update),
    )


def forged(entry: Entry) -> Entry:
    """`entry` with another update under the old signature."""
    return replace(entry, update=bytes(reversed(entry.update)))


def update_of(content: dict[str, bytes], *before: bytes, client_id: int = 7) -> bytes:
    return document.written(before, content, client_id=client_id)


def replica(*entries: Entry) -> Replica:
    held = Replica(RUN)
    for entry in entries:
        held.merge(entry)
    return held


def holdings(held: Replica) -> dict[str, Parcel]:
    """The wire state: what the replica would hand to a peer that has nothing."""
    records = ((author, held.record(author)) for author in held.authors())
    return {
        author: Parcel(record.chain, (record.proof,) if record.proof else ())
        for author, record in records
    }


def synchronised(one: Replica, other: Replica) -> int:
    """Run the protocol from `one` to `other`; the number of calls."""
    session, calls = Sync(one), 0
    while (body := session.body) is not None:
        calls += 1
        session.answered(answer(other, body)[0])
    return calls
