"""The checkpoints that this node offers to joiners, and what it tells others to judge theirs by.

A checkpoint is made only when somebody asks and we stand elsewhere than at the last one; who asks
meanwhile waits for the same one.  It lies in the blob store and is fetched from there; our record
names what is whole.  In spsa the sum moves all the time, with scalars of others when our own rounds
are over, too: that of now is made for whoever asks, that at a base once for each base.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import replace

from node.blobs.files import NoSpace
from node.blobs.store import BlobStore
from node.journal import FIRST_ROUND, Journal
from node.learner import Learner, StartRefused
from protocol.algorithms import SpsaConfig
from protocol.errors import WorkerLost
from protocol.ids import Digest, Round
from protocol.messages import HAS_WEIGHTS, Checkpoint
from protocol.witness import Sketch

log = logging.getLogger(__name__)

Stand = tuple[Round, Digest | None]
KEPT = 2
"""The newest, and the one before it, which slow joiners are still fetching."""


class Offers:
    """One per node and run.  For the event loop; `run` makes what is asked for."""

    def __init__(
        self, learner: Learner, store: BlobStore, journal: Journal, *, fragments: int
    ) -> None:
        """Args: fragments: P; a spread is one fragment's."""
        self._learner = learner
        self._store = store
        self._journal = journal
        self._fragments = fragments
        self._held: deque[Checkpoint] = deque()
        """In the store, oldest first; at most `KEPT`."""
        self._made: tuple[Stand, Checkpoint] | None = None
        """The newest that is good for more than one who asks, and where we stood then."""
        self._asked: dict[bool, asyncio.Future[Checkpoint | None]] = {}
        """The answer to all who ask now for a checkpoint that is still to be made."""
        self._is_asked = asyncio.Event()
        self.trouble: str | None = None
        """Why joiners get nothing newer from us, until it is over."""

    async def run(self) -> None:
        """Make what is asked for, until cancelled."""
        self._advertise()  # what was held before is not any more
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            for at_base in list(self._asked):
                newest = await self._export(at_base)
                self._asked.pop(at_base).set_result(newest)

    async def checkpoint(self, *, at_base: bool = False) -> Checkpoint | None:
        """What a joiner may start from, its blob in the store; None: nothing at the moment.

        It goes on being made when the one who asked first has given up.

        Args:
            at_base: spsa: the sum at the newest base.
        """
        if self._journal.state not in HAS_WEIGHTS:
            return None
        if self._made:
            stood, newest = self._made
            if stood == self._stand(at_base) and newest in self._held:
                return newest
        if at_base not in self._asked:
            self._asked[at_base] = asyncio.get_running_loop().create_future()
            self._is_asked.set()
        return await asyncio.shield(self._asked[at_base])

    def _stand(self, at_base: bool) -> Stand | None:
        """What is another one when there is something else to offer; None: there always is."""
        if not self._is_sum:
            return self._journal.round, self._journal.weights
        return (FIRST_ROUND, self._journal.weights) if at_base else None  # which names a base

    @property
    def _is_sum(self) -> bool:
        """It is spsa's."""
        return self._journal.spec is not None and isinstance(self._journal.spec.trainer, SpsaConfig)

    async def sketch(self, nonce: int) -> Sketch | None:
        """Our slow weights under a nonce; None: there are none at the moment."""
        if self._journal.state not in HAS_WEIGHTS:
            return None
        try:
            made = await self._learner.sketch(nonce)
        except (WorkerLost, StartRefused) as error:
            log.info("no sketch: reason=%s", error)
            return None
        return Sketch(made.round, made.weights, self._distance(), made.numbers)

    def _distance(self) -> float | None:
        """Root mean square distance to the last partners, as if whole models had been exchanged."""
        spreads = self._journal.spreads
        if not spreads:
            return None
        return math.sqrt(2 * self._fragments * sum(spreads) / len(spreads))

    async def _export(self, at_base: bool) -> Checkpoint | None:
        """The newest checkpoint there is: a new one, if worker and disk allow."""
        stood = self._stand(at_base)
        try:
            newest = await self._learner.export(at_base=at_base)
        except WorkerLost as error:
            log.warning("no new checkpoint: reason=%s", error)
        except NoSpace as error:
            if self.trouble is None:
                log.warning("no new checkpoint: reason=%s", error)
            self.trouble = f"no room for a checkpoint, so nobody can join from here: {error}"
            await self._forget()  # so that there is room when we are asked again
        else:
            self.trouble = None
            await self._keep(newest)
            if stood is not None:
                self._made = stood, newest
            return newest
        return self._newest_held()

    def _newest_held(self) -> Checkpoint | None:
        """What we had before and still stand by; old sums are of no use to who is behind."""
        if self._is_sum:
            return None
        ours = [one for one in self._held if self._journal.past.get(one.round) == one.weights]
        return ours[-1] if ours else None

    async def _keep(self, newest: Checkpoint) -> None:
        if newest in self._held:
            await self._store.release(newest.digest)  # held once is enough
            return
        self._held.append(newest)
        if len(self._held) > KEPT:
            await self._forget()
        self._advertise()

    async def _forget(self) -> None:
        """Give the oldest back."""
        if self._held:
            oldest = self._held.popleft()
            self._advertise()
            await self._store.release(oldest.digest)

    def _advertise(self) -> None:
        """Our record names what is whole here, and nothing else."""
        held = {offer.round: offer for offer in self._held}
        newest = tuple(held[round] for round in sorted(held))
        self._journal.write(lambda content: replace(content, checkpoints=newest))
