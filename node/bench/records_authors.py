"""`scripts/bench records`: what the authors of a run write, round by round, with real signatures.

python -m node.bench.records_authors LOWEST HIGHEST AUTHORS START ROUNDS FOLDER

Each round every author meets another one (a round-robin tournament), as in noloco, and says so:
name, progress, totals, the last closed rounds with both digests, three checkpoints that it
serves, and two peers that it blames with a sentence of ordinary length.  Everything follows from
(author, round), so a record can be made again from any earlier one of the same author.

Written into FOLDER for each author: `sizes-N.npy`, the bytes of its record after each round, and
`kept-N/ROUND`, the record itself as a parcel, every `KEEP_EVERY` rounds.  Prints the seconds of
processor that it took.
"""

from __future__ import annotations

import functools
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from crdt.author import Author
from crdt.record import Record
from crdt.schema import MAX_CHECKPOINTS, ClosedRound, Content, Member, Progress, Totals
from crdt.sync import Parcel
from crdt.values import view
from protocol import codec
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, Round, RunId, digest_of, seed_of
from protocol.messages import Checkpoint

RUN = RunId(digest_of(b"scripts/bench records"))
KEEP_EVERY = 1000
TOKENS = 102_400
"""Of a round: 100 steps of 8 x 128."""
CHECKPOINT_BYTES = 7_500_000
CHECKPOINT_EVERY = 10
BLAME_EVERY = 997
BLAMES = 2
REASON = "answered records/1 with 4711 bytes that are no Parcel: not in canonical form"
MAX_PARCEL_BYTES = 1 << 16


class Story:
    """One author of `authors`, from its first round on."""

    def __init__(self, number: int, authors: int, start: int) -> None:
        """Args: start: the first round; those before it are in the totals, and in nothing else."""
        rng = random.Random(seed_of("bench records", number))
        self.number = number
        self.authors = authors
        self.signer = signer_of(number)
        self._author = Author(
            signer=self.signer,
            run=RUN,
            client_id=rng.getrandbits(32),
            jump=1 + rng.getrandbits(20) + start,
        )
        self.record = Record(self.signer.peer)
        name = f"home of peer {number:02d}"
        member = Member(name=name, since=Round(0))
        before = Totals(
            tokens=start * TOKENS, rounds=start, exchanges=start, counted_to=Round(start)
        )
        self.content = Content(member=member, totals=before)
        for blamed in range(BLAMES):  # from the start: the worst is on
            peer = peers(authors)[(number + 1 + blamed) % authors]
            self.content = self.content.with_blame(peer, REASON)

    def go_on_from(self, record: Record) -> None:
        """As if it had written this itself."""
        found = view(record.updates)
        assert isinstance(found, Content), found
        self.record, self.content = record, found

    def write(self, round: int) -> None:
        """Close a round and sign what the record lacks."""
        self.content = after(self.content, self.number, self.authors, round)
        entry = self._author.next(self.record, self.content, is_lost=False)
        assert entry is not None
        self.record = self.record.merged(entry)

    def parcel(self) -> Parcel:
        """The record as it travels and lies on disk."""
        return Parcel(self.record.chain)


def signer_of(number: int) -> Signer:
    return Signer(digest_of(f"author {number}".encode()))


@functools.cache
def peers(authors: int) -> tuple[PeerId, ...]:
    """All authors of a run of so many."""
    return tuple(signer_of(number).peer for number in range(authors))


def partner_of(number: int, authors: int, round: int) -> int:
    """Everybody meets everybody: the circle method; `authors` is even."""
    circle = authors - 1
    if number == circle:  # stays where it is, and meets who meets itself
        return round * pow(2, -1, circle) % circle
    other = (round - number) % circle
    return circle if other == number else other


def payload(number: int, round: int) -> Digest:
    return digest_of(f"payload {number} {round}".encode())


def after(content: Content, number: int, authors: int, round: int) -> Content:
    """What the author says after one more round."""
    other = partner_of(number, authors, round)
    weights = digest_of(f"weights {number} {round}".encode())
    closed = ClosedRound(
        round=Round(round),
        tokens=TOKENS,
        partner=peers(authors)[other],
        mine=payload(number, round),
        theirs=payload(other, round),
        their_tokens=TOKENS,
    )
    loss = 2.0 + 1.0 / (round + 1) + number / 100
    progress = Progress(round=Round(round), tokens=TOKENS, loss=loss, weights=weights)
    content = content.with_round(closed, progress, half=False)
    if round % CHECKPOINT_EVERY == 0:
        blob = digest_of(f"blob {number} {round}".encode())
        offered = Checkpoint(Round(round), blob, CHECKPOINT_BYTES, weights)
        content = replace(content, checkpoints=(*content.checkpoints, offered)[-MAX_CHECKPOINTS:])
    if round % BLAME_EVERY == number:
        blamed = (number + 1 + round % BLAMES) % authors
        content = content.with_blame(peers(authors)[blamed], REASON)
    return content


def kept(file: Path, author: PeerId) -> Record:
    """A record that was kept."""
    record = Record(author)
    for entry in codec.decode(Parcel, file.read_bytes(), max_bytes=MAX_PARCEL_BYTES).entries:
        record = record.merged(entry)
    return record


def record_at(folder: Path, number: int, authors: int, start: int, round: int) -> Record:
    """The author's record after `round`, made again from what was kept before it."""
    story, before = Story(number, authors, start), round - (round + 1) % KEEP_EVERY
    if before >= start:
        file = folder / f"kept-{number}" / str(before)
        story.go_on_from(kept(file, story.signer.peer))
    for following in range(max(start, before + 1), round + 1):
        story.write(following)
    return story.record


def sizes(story: Story, start: int, rounds: int) -> Iterator[int]:
    """Bytes of the record, in its parcel, after each round."""
    for round in range(start, start + rounds):
        story.write(round)
        yield len(codec.encode(story.parcel()))


def main(lowest: int, highest: int, authors: int, start: int, rounds: int, folder: Path) -> None:
    for number in range(lowest, highest):
        story = Story(number, authors, start)
        keep = folder / f"kept-{number}"
        keep.mkdir(parents=True)
        found = np.zeros(rounds, np.int32)
        for round, size in enumerate(sizes(story, start, rounds), start):
            found[round - start] = size
            if (round + 1) % KEEP_EVERY == 0:
                assert view(story.record.updates) == story.content
                (keep / str(round)).write_bytes(codec.encode(story.parcel()))
        np.save(folder / f"sizes-{number}.npy", found)
    sys.stdout.write(f"{time.process_time()}\n")


if __name__ == "__main__":
    lowest, highest, authors, start, rounds = (int(word) for word in sys.argv[1:6])
    main(lowest, highest, authors, start, rounds, Path(sys.argv[6]))
