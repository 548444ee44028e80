"""Whose weights a joiner starts from, and why it believes them.

Members are asked for their offers first, all at once; an offer is signed and names its bytes, so
that its author is bound to them before it knows how they will be looked at.

diloco, streaming, sync: the members of a group are bit-equal, so an offer counts if a second member
(if there is one) makes the same, and then both give the bytes, or had the same weights then.  Who
has strayed goes over to one member's, if another had them too; where no two of the others agree,
all were cut apart, and one word has to do.

noloco: every member has weights of its own.  One member's are taken if they lie near those of
others: half of the sketches under a nonce drawn after the offers must be within three times the
distance that their authors have seen to their own partners (`protocol.witness`).

spsa: the sums of members move all the time, but at a base they are bit-equal, so a joiner asks for
the sum there; an offer counts if a second member (if there is one) makes the same.  What
came since the base it gets as every peer gets scalars.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import PeerError
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import Checkpoint
from protocol.witness import Sketch, distance

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ASKED = 8
"""Members asked for an offer; each of them may have to make one.  Half of the largest group."""
WITNESSES = 3
"""Members whose sketches are compared with."""
AGREE = 2
"""Members of a group that must have had the same weights, if there are so many."""
NEAR = 3.0
"""Times the distance of pairs.  Peers that train together are within one; the same weights half
trained, or of another run, are further (docs/results/join.md)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to start from, and who gives it."""

    checkpoint: Checkpoint
    donors: tuple[PeerId, ...]
    """All of them give the very same bytes."""
    sketches: tuple[tuple[PeerId, Sketch], ...] = ()
    """noloco: what others look like."""
    nonce: int = 0


async def of_group(
    offers: Mapping[PeerId, Checkpoint], ask: Callable[[PeerId, Round], Awaitable[Digest | None]]
) -> list[Choice]:
    """What a second member stands up for, the most offered first, then the newest.

    Members close a round at slightly different times, so equal ones may offer different rounds:
    then another one is asked which weights it had.
    """
    alike: dict[Checkpoint, list[PeerId]] = {}
    for peer, offer in sorted(offers.items()):
        alike.setdefault(offer, []).append(peer)
    found = []
    for offer, donors in alike.items():
        if len(donors) < min(AGREE, len(offers)):
            others = [peer for peer in sorted(offers) if peer not in donors]
            if not await is_known(offer, others, ask):
                continue
        found.append(Choice(offer, tuple(donors)))
    return sorted(found, key=lambda choice: (-len(choice.donors), -choice.checkpoint.round))


async def is_known(
    offer: Checkpoint,
    peers: Sequence[PeerId],
    ask: Callable[[PeerId, Round], Awaitable[Digest | None]],
) -> bool:
    """Whether one of the peers had these weights after that round."""
    said = await asked(peers, lambda peer: ask(peer, offer.round), "word of its weights")
    return offer.weights in said.values()


def of_sums(offers: Mapping[PeerId, Checkpoint]) -> list[Choice]:
    """The same sum from whoever offers it, the most offered first, then the newest.

    Each donor stands in a round of its own; a joiner begins in the middle one.
    """
    alike: dict[tuple[Digest, int, Digest], list[tuple[Round, PeerId]]] = {}
    for peer, offer in sorted(offers.items()):
        name = (offer.digest, offer.size_bytes, offer.weights)
        alike.setdefault(name, []).append((offer.round, peer))
    found = []
    for (digest, size_bytes, weights), donors in alike.items():
        round, _ = sorted(donors)[(len(donors) - 1) // 2]
        checkpoint = Checkpoint(round, digest, size_bytes, weights)
        found.append(Choice(checkpoint, tuple(peer for _, peer in donors)))
    return sorted(found, key=lambda choice: (-len(choice.donors), -choice.checkpoint.round))


def of_each(offers: Mapping[PeerId, Checkpoint]) -> list[Choice]:
    """What each member offers, the newest first."""
    found = [Choice(offer, (peer,)) for peer, offer in sorted(offers.items())]
    return sorted(found, key=lambda choice: -choice.checkpoint.round)


async def asked(
    peers: Sequence[PeerId], ask: Callable[[PeerId], Awaitable[T]], what: str
) -> dict[PeerId, T]:
    """What these peers answer, asked all at once; those that do not are left out."""

    async def one(peer: PeerId) -> T | None:
        try:
            return await ask(peer)
        except PeerError as error:
            log.info("no %s from there: %s", what, error)
            return None

    async with asyncio.TaskGroup() as tasks:
        asking = {peer: tasks.create_task(one(peer)) for peer in peers}
    answers = {peer: task.result() for peer, task in asking.items()}
    return {peer: answer for peer, answer in answers.items() if answer is not None}


async def witnessed(
    choices: Sequence[Choice],
    peers: Sequence[PeerId],
    ask: Callable[[PeerId, int], Awaitable[Sketch]],
    rng: random.Random,
) -> list[Choice]:
    """The choices of noloco with what they will be compared with."""
    nonce = rng.getrandbits(64)
    some = rng.sample(list(peers), min(WITNESSES + 1, len(peers)))  # one may be the donor
    sketches = tuple((await asked(some, lambda peer: ask(peer, nonce), "sketch")).items())
    return [
        Choice(
            choice.checkpoint,
            choice.donors,
            tuple(seen for seen in sketches if seen[0] not in choice.donors),
            nonce,
        )
        for choice in choices
    ]


def objection(choice: Choice, round: Round, numbers: bytes) -> str | None:
    """Why these weights are not to be trusted; None: they are near those of other members.

    Half of the members that can tell must find them near, for one may be astray itself, or lie.
    Without any that can tell they are taken: it is the first rounds, or a swarm of two.

    Args:
        numbers: of the sketch of the weights that came.
    """
    objections, near = [], 0
    for peer, sketch in choice.sketches:
        if sketch.distance is None:
            continue
        apart = distance(numbers, sketch.numbers)
        if apart <= NEAR * sketch.distance:
            near += 1
            continue
        objections.append(
            f"{apart:.4g} from those of {short(peer)} in round {sketch.round}, expected "
            f"{NEAR * sketch.distance:.4g} at most"
        )
    if not objections and not near:
        log.info("weights not compared with another member's: nobody can tell round=%d", round)
    if len(objections) <= near:
        return None
    return f"weights of round {round} lie {'; '.join(objections)}"
