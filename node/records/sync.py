"""Keeps a replica of a run's records equal to those of other peers.

News are pushed to a few live peers as they happen; one random live peer is compared with every
second, which finds what a push has missed.  A peer that is gone, or slow, holds up only what goes
to it.  Who sends what breaks the protocol is blamed, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial

from crdt import sync
from crdt.replica import Replica
from node.pausing import pause
from node.ports import Rpc
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import PeerId
from protocol.rpc import RECORDS, RecordCall

log = logging.getLogger(__name__)

SYNC_S = 1.0
"""Between two comparisons; equal replicas spend 0.3 KB on one."""
SYNC_DEADLINE_S = 30.0
"""Of one whole comparison: a joiner fetches up to 8 MB of records in one."""
MAX_COMPARISONS = 4
"""Under way at once, each with another peer: one that is gone costs a call's deadline."""
LOOK_S = 0.2
"""Until a joiner that sees nobody looks again: its first comparison begins at once."""
PUSH_DELAY_S = 0.1
"""News of this long travel in one push.  A guess: small beside a round."""
FAN_OUT = 3
"""Peers pushed to.  ln(64) < 3 + one comparison a second: a guess, nobody is left out long."""
MAX_PUSHES = 8
"""Pushes under way; one more is skipped, its entries are found by comparing."""


class RecordSync:
    """One replica and its peers.  For the event loop."""

    def __init__(
        self,
        replica: Replica,
        rpc: Rpc,
        *,
        peers: Callable[[], Sequence[PeerId]],
        merged: Callable[[], None],
        blame: Callable[[PeerId, str], None],
        rng: random.Random,
    ) -> None:
        """
        Args:
            peers: the peers that are alive now.
            merged: told whenever something may have come into the replica.
        """
        self._replica = replica
        self._rpc = rpc
        self._peers = peers
        self._merged = merged
        self._blame = blame
        self._rng = rng
        self._comparing: set[PeerId] = set()
        self._pushing: set[PeerId] = set()
        self._news = sync.Parcel()
        self._news_here = asyncio.Event()
        self._hurry = asyncio.Event()
        self.spread = asyncio.Event()
        """Nothing is to be pushed, and no push is under way."""
        self.spread.set()

    async def run(self) -> None:
        """Push and compare until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._push(tasks), name="records: push")
            tasks.create_task(self._compare(tasks), name="records: compare")

    def hurry(self) -> None:
        """Push without a pause from now on."""
        self._hurry.set()

    def forward(self, news: sync.Parcel) -> None:
        """Have news pushed; what does not fit is dropped and found by comparing."""
        entries, proofs = self._news.entries, self._news.proofs
        self._news = sync.fitting((*entries, *news.entries), (*proofs, *news.proofs))
        if self._news:
            self._news_here.set()
            self.spread.clear()

    def answer(self, body: bytes) -> bytes:
        """The answer to a peer's request; what it brought goes on to others.

        Raises:
            Malformed: the request breaks the protocol; what was good before that is merged.
        """
        try:
            answer, news = sync.answer(self._replica, body)
            self.forward(news)
        finally:
            self._merged()
        return answer

    async def fetch(self, peer: PeerId, author: PeerId, deadline_s: float) -> bool | None:
        """Merge what `peer` holds of `author`; whether that is anything.  None: no answer."""
        body = await self._call(peer, sync.newest_request(author), deadline_s)
        if body is None:
            return None
        return self._took(peer, partial(sync.merge_newest, self._replica, author, body))

    # --- comparing --------------------------------------------------------------------------

    async def _compare(self, tasks: asyncio.TaskGroup) -> None:
        has_met = False
        while True:
            free = [peer for peer in self._peers() if peer not in self._comparing]
            if free and len(self._comparing) < MAX_COMPARISONS:
                has_met = True
                peer = self._rng.choice(free)
                self._comparing.add(peer)
                tasks.create_task(self._compare_with(peer), name="records: one comparison")
            await asyncio.sleep(SYNC_S if has_met else LOOK_S)

    async def _compare_with(self, peer: PeerId) -> None:
        """Make our replica and the peer's equal; what came in before a failure stays."""
        session = sync.Sync(self._replica)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SYNC_DEADLINE_S):
                    while (request := session.body) is not None:
                        body = await self._call(peer, request, RECORDS.deadline_s)
                        if body is None or not self._took(peer, partial(session.answered, body)):
                            return
        finally:
            self._comparing.discard(peer)

    # --- pushing ----------------------------------------------------------------------------

    async def _push(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._news_here.wait()
            await pause(PUSH_DELAY_S, self._hurry)
            self._news_here.clear()
            free = [peer for peer in self._peers() if peer not in self._pushing]
            if self._pushing and not free:
                continue  # until a push is over
            body, self._news = sync.push_request(self._news), sync.Parcel()
            room = min(FAN_OUT, MAX_PUSHES - len(self._pushing), len(free))
            for peer in self._rng.sample(free, room):
                self._pushing.add(peer)
                tasks.create_task(self._push_to(peer, body), name="records: one push")
            self._note_spread()

    async def _push_to(self, peer: PeerId, body: bytes) -> None:
        await self._call(peer, body, RECORDS.deadline_s)
        self._pushing.discard(peer)
        self._note_spread()

    def _note_spread(self) -> None:
        if self._news:
            self._news_here.set()
        elif not self._pushing:
            self.spread.set()

    # --- calls ------------------------------------------------------------------------------

    async def _call(self, peer: PeerId, body: bytes, deadline_s: float) -> bytes | None:
        """The body of the answer; None if there is none."""
        call = RecordCall(self._replica.run, body)
        try:
            return (await self._rpc.call(peer, RECORDS, call, deadline_s=deadline_s)).body
        except (PeerUnavailable, RemoteProtocolError) as error:  # blamed where it was found
            log.debug("records not exchanged: %s", error)
        return None

    def _took(self, peer: PeerId, merge: Callable[[], bool]) -> bool | None:
        """Merge what `peer` answered; None, and it is blamed, if that is malformed."""
        try:
            return merge()
        except Malformed as error:
            self._blame(peer, f"answered {RECORDS.name} with {error}")
            return None
        finally:
            self._merged()
