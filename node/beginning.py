"""The way to the first round, and back into the run: what the worker's weights are taken from.

    our own snapshot > our own snapshot in the memory of members > a member's weights > the seed

Who was away so long that its own weights would only hold the others back goes over to a member's,
before it meets anybody.  Members' weights are believed as `node.late_join` says.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from node import late_join
from node.blobs.files import NoSpace
from node.donors import Members
from node.journal import Journal
from node.late_join import Choice
from node.learner import Learner, StartRefused
from node.protection.around import Shared, UseShared
from node.worker import wire
from protocol.algorithms import GroupConfig, NolocoConfig, SpsaConfig
from protocol.errors import Malformed, PeerError, PeerUnavailable, WorkerLost
from protocol.ids import PeerId, short
from protocol.messages import BEGUN, HAS_WEIGHTS, Checkpoint, Presence
from protocol.spec import RunSpec
from trainers import reanchor

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Until members are looked at again, when nobody had weights.  A presence is as old."""
ALONE_S = 10.0
"""The creator begins afresh if no member beyond round 0 shows up for so long: a presence lives
ten seconds."""
ORPHANED_S = 60.0
"""Everyone else does after this: the creator is gone before it gave its weights to anybody.
The seed gives all the same round 0, so who is too early did no harm.  A guess."""
LOOK_S = 0.2
SHARED_S = 30.0
"""How long members are asked for what all share, when our own part of it came back: they may be
closing a round, starting, or busy.  Without it our own part is lost.  A guess."""
VOUCHED_S = 5.0
"""How long is waited for a second member with the same.  spsa: a new base is known to all after a
pull or two, which are 2 s apart.  In a group it may be about to close the round.  A guess there."""

T = TypeVar("T")

Use = Callable[[Checkpoint], Awaitable[T]]
"""Is given a checkpoint that lies in the store; raises StartRefused, Malformed: it is of no use."""
Take = Callable[[wire.StartFromCheckpoint], Awaitable[wire.Ready]]
Recover = Callable[[Shared], Awaitable[bool]]


class Beginning:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        spec: RunSpec,
        me: PeerId,
        *,
        learner: Learner,
        journal: Journal,
        members: Members,
        live: Callable[[], Sequence[Presence]],
        recover: Recover,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """
        Args:
            live: the members that are alive now.
            recover: puts our newest protected snapshot on disk, if members hold one
                (`node.protection.protection`); is given a way to what all members of a group share.
        """
        self._spec = spec
        self._me = me
        self._learner = learner
        self._journal = journal
        self._members = members
        self._live = live
        self._recover = recover
        self._clock = clock
        self._rng = rng

    async def weights(self, *, is_new: bool) -> wire.Ready:
        """Something to start from.

        Args:
            is_new: this node made the run just now, so nobody else can have weights.
        """
        if is_new:
            return await self._fresh()
        if self._learner.has_snapshot and (ready := await self._from_disk()):
            return await self._rejoined(ready)
        if await self._recover(self._shared) and (ready := await self._from_disk()):
            return await self._rejoined(ready)
        return await self._from_members_or_seed()

    async def go_over_to(self, source: PeerId) -> wire.Ready:
        """For a trainer that has fallen behind.  A full disk is no reason to end: it goes on.

        Raises:
            PeerError: the source's weights cannot be had, or not be trusted.
        """
        is_start = not isinstance(self._spec.trainer, SpsaConfig)  # that adds its own steps
        try:
            return await self._taken([source], self._learner.take_over, is_start=is_start)
        except NoSpace as error:
            log.warning("no room for a checkpoint: reason=%s", error)
            raise PeerUnavailable(source, f"no room for its checkpoint: {error}") from error

    async def _fresh(self) -> wire.Ready:
        ready = await self._learner.start(wire.StartFresh())
        self._journal.stands_at(ready.round, ready.weights)
        return ready

    async def _from_disk(self) -> wire.Ready | None:
        try:
            ready = await self._learner.start(wire.StartFromDisk())
        except StartRefused as error:
            log.warning("own snapshot not used: reason=%s", error)
            return None
        self._journal.goes_on(ready.round, ready.weights)
        return ready

    async def _rejoined(self, ready: wire.Ready) -> wire.Ready:
        """Where we stand, or where members do who are too far ahead of that."""
        if not isinstance(self._spec.trainer, NolocoConfig):
            return ready  # their machines find out for themselves
        until = self._clock() + reanchor.BACK_S
        what = "members to compare rounds with"
        with self._journal.waits.on(what, "any member", reanchor.BACK_S):
            while (  # noqa: ASYNC110  presence expires by itself
                len(self._begun()) < reanchor.LEAST_AHEAD and self._clock() < until
            ):
                await asyncio.sleep(LOOK_S)
        rounds = {presence.peer: presence.round for presence in self._begun()}
        source = reanchor.source(ready.round, rounds, reanchor.AWAY_ROUNDS)
        if source is None:
            return ready
        log.info("was away: own_round=%d round=%d", ready.round, rounds[source])
        try:
            there = await self.go_over_to(source)
        except (PeerError, WorkerLost) as error:
            log.info("goes on from its own snapshot: %s", error)
            return ready  # where another worker stands is told as ever
        self._journal.begins(there.round, there.weights)
        return there

    def _begun(self) -> list[Presence]:
        return [presence for presence in self._live() if presence.state in BEGUN]

    async def _from_members_or_seed(self) -> wire.Ready:
        patience_s = ALONE_S if self._spec.creator == self._me else ORPHANED_S
        alone_since = self._clock()
        while True:
            try:
                ready = await self._taken(self._donors(), self._learner.start, is_start=True)
            except PeerError as error:
                log.info("no weights yet: %s", error)
            else:
                self._journal.begins(ready.round, ready.weights)
                return ready
            if any(presence.round > 0 for presence in self._live()):
                alone_since = self._clock()
            elif self._clock() - alone_since > patience_s:
                log.info("begins afresh: nobody beyond round 0 for_s=%g", patience_s)
                ready = await self._fresh()
                self._journal.begins(ready.round, ready.weights)
                return ready
            with self._journal.waits.on("a member with weights", "any member", AGAIN_S):
                await asyncio.sleep(AGAIN_S)

    def _donors(self) -> list[PeerId]:
        """The members that others may start from; who says that it is furthest comes first."""
        donors = [presence for presence in self._live() if presence.state in HAS_WEIGHTS]
        return [p.peer for p in sorted(donors, key=lambda p: p.round, reverse=True)]

    async def _shared(self, use: UseShared) -> None:
        """What all members of a group share, for `node.protection.protection`.

        Raises:
            PeerError: nobody gave any that can be trusted, and was of use, in `SHARED_S`.
            NoSpace: there is no room for it.
        """
        until = self._clock() + SHARED_S
        while True:
            try:
                return await self._from_members(self._donors(), use)
            except PeerError as error:
                if self._clock() >= until:
                    raise
                log.info("not what all share yet: %s", error)
            with self._journal.waits.on("what all members share", "any member", AGAIN_S):
                await asyncio.sleep(AGAIN_S)

    async def _taken(self, donors: Sequence[PeerId], take: Take, *, is_start: bool) -> wire.Ready:
        """Start from, or go over to, the weights of one of these, or of all if they are equal.

        Args:
            is_start: rounds from there on are new.

        Raises:
            PeerError: none has any, or none that can be trusted.
            NoSpace: there is no room for them.
        """

        async def use(checkpoint: Checkpoint) -> wire.Ready:
            if is_start:
                await self._journal.may_begin(checkpoint.round, checkpoint.weights)
            try:
                return await take(wire.StartFromCheckpoint(checkpoint))
            except StartRefused:
                self._journal.tally.stay()
                raise

        ready = await self._from_members(donors, use)
        self._journal.stands_at(ready.round, ready.weights)
        return ready

    async def _from_members(self, donors: Sequence[PeerId], use: Use[T]) -> T:
        """Use the best checkpoint of these.  Raises PeerError and NoSpace as `_taken`."""
        failure: PeerError = PeerUnavailable(self._me, "no member has weights")
        for choice in await self._choices(donors[: late_join.MAX_ASKED]):
            try:
                return await self._used(choice, use)
            except PeerError as error:
                log.info("no weights from there: %s", error)
                failure = error
        raise failure

    async def _choices(self, donors: Sequence[PeerId]) -> list[Choice]:
        """What may be started from, the best first."""
        if isinstance(self._spec.trainer, SpsaConfig) and len(donors) > 1:
            return await self._sums(donors)
        offers = await late_join.asked(donors, self._members.checkpoint, "checkpoint")
        match self._spec.trainer:
            case NolocoConfig():
                others = [p.peer for p in self._live() if p.state in HAS_WEIGHTS]
                each = late_join.of_each(offers)
                return await late_join.witnessed(each, others, self._members.sketch, self._rng)
            case trainer if isinstance(trainer, GroupConfig) and len(donors) > 1:
                return await late_join.of_group(offers, self._members.weights)
            case trainer if isinstance(trainer, GroupConfig) and offers:
                return await self._of_one(donors[0], offers[donors[0]])
            case _:
                return late_join.of_each(offers)

    async def _of_one(self, donor: PeerId, offer: Checkpoint) -> list[Choice]:
        """A group: what one member offers, if another had these weights, too.

        Where no two of the others agree everybody trains alone, as after the failure of a switch,
        and one word has to do: else all would wait for each other for ever.

        Raises:
            PeerUnavailable: the others agree, on other weights.
        """
        others = [peer for peer in self._donors() if peer != donor][: late_join.MAX_ASKED]
        until = self._clock() + VOUCHED_S
        while others and not await late_join.is_known(offer, others, self._members.weights):
            if self._clock() >= until:
                if await self._do_agree(others):
                    what = f"its weights of round {offer.round} are not those of other members"
                    raise PeerUnavailable(donor, what)
                log.warning("weights are taken on one word: no two members agree")
                break
            with self._journal.waits.on("a second member with the same weights", "any", AGAIN_S):
                await asyncio.sleep(AGAIN_S)
        return [Choice(offer, (donor,))]

    async def _do_agree(self, members: Sequence[PeerId]) -> bool:
        """Whether two of them stand up for the same weights."""
        offers = await late_join.asked(members, self._members.checkpoint, "checkpoint")
        if len(offers) < late_join.AGREE:
            return False
        return bool(await late_join.of_group(offers, self._members.weights))

    async def _sums(self, donors: Sequence[PeerId]) -> list[Choice]:
        """spsa: sums at a base that two members offer; after a while those that one does."""
        until = self._clock() + VOUCHED_S
        while True:
            offers = await late_join.asked(donors, self._at_base, "sum at a base")
            choices = late_join.of_sums(offers)
            vouched = [choice for choice in choices if len(choice.donors) >= late_join.AGREE]
            if vouched or not offers:
                return vouched
            if self._clock() >= until:
                log.warning("a sum is taken on one word: no two members offer the same")
                return choices
            with self._journal.waits.on("a second member with the same sum", "any", AGAIN_S):
                await asyncio.sleep(AGAIN_S)

    async def _at_base(self, peer: PeerId) -> Checkpoint:
        return await self._members.checkpoint(peer, at_base=True)

    async def _used(self, choice: Choice, use: Use[T]) -> T:
        """Fetch a checkpoint, and use it.

        Raises:
            PeerError: it cannot be had, or what came cannot be used.
            NoSpace: there is no room for it.
        """
        checkpoint, donor = choice.checkpoint, choice.donors[0]
        await self._members.fetch(checkpoint, choice.donors)
        try:
            if choice.sketches:
                await self._compare(choice)
            result = await use(checkpoint)
        except (StartRefused, Malformed) as error:
            log.warning("weights refused: donor=%s reason=%s", short(donor), error)
            raise PeerUnavailable(donor, str(error)) from error
        finally:
            await self._members.release(checkpoint)
        names = ",".join(short(peer) for peer in choice.donors)
        log.info("weights taken: donors=%s round=%d", names, checkpoint.round)
        return result

    async def _compare(self, choice: Choice) -> None:
        """Raises StartRefused: the weights that came are not to be trusted."""
        try:
            seen = await self._learner.sketch(choice.nonce, choice.checkpoint)
        except WorkerLost as error:
            raise StartRefused(f"not compared with others: {error}") from error
        if objection := late_join.objection(choice, seen.round, seen.numbers):
            raise StartRefused(objection)
