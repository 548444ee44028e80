"""The owner of a run's records: merges, writes ours, saves, and keeps peers equal.

Everything happens in one event loop; nothing but the disk has a thread.  Three tasks: one
writes our own record, one pushes what is new to a few peers, one compares with a random live
peer every second and saves.  Promises:

* our own entry is on disk before any peer can see it, so a kill -9 never makes us sign the
  same place twice;
* `write` never waits and is never lost in memory: with a full disk one sentence is logged,
  nothing is published, and it is tried again;
* what peers send costs them their reputation if it breaks the protocol, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence

from crdt import sync
from crdt.author import Author
from crdt.replica import Replica
from crdt.schema import Content, NoView, View
from node.pausing import pause
from node.ports import Rpc
from node.records.files import CLOSE_S, RETRY_S, RecordFiles
from node.records.sync import RecordSync
from node.telemetry import Waits
from protocol.errors import LocalProtocolError, Malformed
from protocol.ids import Digest, PeerId, short
from protocol.rpc import RecordCall

log = logging.getLogger(__name__)

ASK_S = 5.0
"""How long we ask peers for our own record before we write the first time, if nobody has it."""
ASK_ONE_S = 1.0
"""Of it for one peer: one that has just died must not take the time of the others."""
ASK_PEERS = 3
"""Answers that are enough, though none had it.  A guess: one may have joined a second ago."""
ASK_TICK_S = 0.2
KNOWN_S = ASK_S + ASK_ONE_S
"""For the whole search; beyond that the processor has no time for us."""
MAX_EARLY = 32
"""Changes that wait for our own record: where the weights are from, that we joined.  Rounds wait
for the record (`until_known`), so one too many is a bug."""
SAVE_S = 5.0
"""Between two times that records of others are saved; a kill loses no more than that."""
WRITE_S = 1.0
"""Between two entries of ours; what is written meanwhile comes together in the next one.  Also
the pace at which two nodes with one key would fight over their record."""

Change = Callable[[Content], Content]


class Records:
    """This node's copy of the records of one run."""

    def __init__(
        self,
        *,
        author: Author,
        replica: Replica,
        files: RecordFiles,
        rpc: Rpc,
        peers: Callable[[], Sequence[PeerId]],
        changed: Callable[[tuple[PeerId, ...]], None],
        blame: Callable[[PeerId, str], None],
        waits: Waits,
        rng: random.Random,
        is_new: bool = False,
    ) -> None:
        """Loads what is on disk.

        Args:
            peers: the peers that are alive now.
            changed: told the authors whose records changed; must not wait.
            is_new: nobody can hold a record of ours, for our key was made just now.

        Raises:
            ConfigError: the directory cannot be read.
        """
        self._author = author
        self._me = author.signer.peer
        self._replica = replica
        self._files = files
        self._peers = peers
        self._changed = changed
        self._waits = waits
        self._rng = rng
        self._content: Content | None = None
        """What our record is to say; None until we know what it says."""
        self._base = Content()
        """What it said when we began: our own changes are what has come since."""
        self._is_new = is_new
        self._early: list[Change] = []
        self._blames = Content()
        """Whom we blamed before we knew what our record says; says nothing else."""
        self._known = asyncio.Event()
        self._due = asyncio.Event()
        self._settled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._unsaved: set[PeerId] = set()
        self._is_urgent = asyncio.Event()
        self._sync = RecordSync(
            replica, rpc, peers=peers, merged=self._notice, blame=blame, rng=rng
        )
        files.load(replica)
        replica.take_changed()
        self._on_disk = replica.record(self._me)
        self._settled.set()

    def views(self) -> dict[PeerId, View]:
        """What every author says, or why there is nothing to read; sorted."""
        return self._replica.views()

    def root(self) -> Digest:
        """One hash over all records: equal at two peers that hold the same."""
        return self._replica.root()

    def write(self, change: Change) -> None:
        """Change our own record, at most once a round; published in the background.

        Raises:
            ValueError: the change makes a content that is not valid; nothing is changed.
        """
        if self._content is not None:
            self._content = change(self._content)
        elif len(self._early) < MAX_EARLY:
            self._early.append(change)
        else:
            raise LocalProtocolError(f"more than {MAX_EARLY} changes before the record is known")
        self._changed_own()

    def write_blame(self, peer: PeerId, reason: str) -> None:
        """Blame `peer` in our record; what is no peer is left out unsaid."""
        with contextlib.suppress(ValueError):
            if self._content is not None:
                self._content = self._content.with_blame(peer, reason)
            else:
                self._blames = self._blames.with_blame(peer, reason)
            self._changed_own()

    def _changed_own(self) -> None:
        self._settled.clear()
        self._due.set()

    async def until_known(self) -> None:
        """Wait until we know what our own record says, whether it was on disk, at peers, or new.

        The wait has a name, and ends with the search for the record: after `ASK_S` at most.
        """
        if self._known.is_set():
            return
        with (
            self._waits.on("our own record", "any member", KNOWN_S),
            contextlib.suppress(TimeoutError),
        ):
            async with asyncio.timeout(KNOWN_S):
                await self._known.wait()

    async def flush(self, deadline_s: float) -> bool:
        """Have all on disk and a few peers told, with no pause from now on; False if too slow."""
        self._hurry.set()
        self._sync.hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._settled.wait()
                await self._sync.spread.wait()
        return self._settled.is_set() and self._sync.spread.is_set()

    async def handle(self, _peer: PeerId, call: RecordCall) -> RecordCall:
        """Serve `records/1`: what it brings is signed, so who passes it on does not matter.

        Raises:
            Malformed: the peer broke the protocol.
        """
        if call.run != self._replica.run:
            raise Malformed(f"records of the run {short(call.run)}, this is another one")
        return RecordCall(call.run, self._sync.answer(call.body))

    async def run(self) -> None:
        """Write, push, compare and save until cancelled; then save once more."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_own(), name="records: write")
                tasks.create_task(self._sync.run(), name="records: others")
                tasks.create_task(self._save_others(), name="records: save")
        finally:
            left = [self._replica.record(other) for other in sorted(self._unsaved)]
            with self._waits.on("the last records", "the disk", CLOSE_S):
                await self._files.close(left)

    # --- our own record -----------------------------------------------------------------

    async def _write_own(self) -> None:
        if not self._is_new:
            with self._waits.on("our own record", "any member", ASK_S, aside=True):
                await self._ask_for_own()
        view = self._replica.view(self._me)
        content = self._base = Content() if isinstance(view, NoView) else view
        for change in self._early:
            content = change(content)
        self._content = content.with_blames(self._blames.blamed)
        self._early.clear()
        self._known.set()
        log.info("2 of 4, records: authors=%d", len(self._replica.authors()))
        while True:
            await self._due.wait()
            self._due.clear()
            if not await self._publish():
                await asyncio.sleep(RETRY_S)
                self._due.set()
            elif not self._due.is_set():
                self._settled.set()
                await pause(WRITE_S, self._hurry)  # or until `flush`

    async def _ask_for_own(self) -> None:
        """Fetch our own record from peers: our disk may be lost, or older than theirs.

        Who answers that it has none may have joined just now, and who has it may be met next: only
        three such answers, or the deadline, end the search.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + ASK_S
        asked: set[PeerId] = set()
        answers = 0
        is_found = False
        while answers < ASK_PEERS and (left := until - loop.time()) > 0:
            peers = [peer for peer in self._peers() if peer not in asked]
            if peers:
                peer = self._rng.choice(peers)
                asked.add(peer)
                held = await self._sync.fetch(peer, self._me, min(left, ASK_ONE_S))
                answers += held is not None
                is_found |= bool(held)
            elif is_found:
                return
            else:
                await asyncio.sleep(ASK_TICK_S)

    async def _publish(self) -> bool:
        """Sign what our record lacks, save it, then show it; False if the disk refuses."""
        record = self._replica.record(self._me)
        if record.proof and self._on_disk != record:
            log.error(
                "own record frozen: two nodes write with the key of %s; stop one of them and "
                "give it a key of its own",
                short(self._me),
            )
        is_lost = record != self._on_disk
        if is_lost and not record.proof:
            log.warning(
                "own record newer elsewhere: peers hold epoch %d of it, our disk %d; the disk is "
                "an old copy, or another node has our key; a new epoch is opened",
                record.newest_epoch,
                self._on_disk.newest_epoch,
            )
            self._build_on(self._replica.view(self._me))
        assert self._content is not None
        entry = self._author.next(record, self._content, is_lost=is_lost)
        aim = record.merged(entry) if entry else record
        if aim != self._on_disk:
            if not await self._files.saved([aim], durable=True):
                return False
            self._on_disk = aim
        if self._replica.record(self._me) != record:
            self._due.set()  # peers had more of our record: this entry is never shown
        elif entry:
            self._replica.merge(entry)
            self._sync.forward(sync.Parcel((entry,)))
            self._notice()
        return True

    def _build_on(self, found: View) -> None:
        """Peers hold more of our record than we began with: our own changes come on top."""
        if isinstance(found, Content) and self._content is not None:
            self._content, self._base = self._content.moved(self._base, found), found

    # --- other peers --------------------------------------------------------------------

    def _notice(self) -> None:
        """Tell and note which records changed."""
        if changed := self._replica.take_changed():
            self._unsaved.update(author for author in changed if author != self._me)
            if self._me in changed:
                self._due.set()  # it may not say what we want it to say
            self._changed(changed)

    def save_soon(self) -> None:
        """What has come of others matters after a kill: do not wait with saving it."""
        self._is_urgent.set()

    async def _save_others(self) -> None:
        while True:
            await pause(SAVE_S, self._is_urgent)
            self._is_urgent.clear()
            due, self._unsaved = self._unsaved, set()
            records = [self._replica.record(author) for author in sorted(due)]
            is_saved = False
            try:
                is_saved = not due or await self._files.saved(records, durable=False)
            finally:  # cancelled, too: the write may not have begun
                if not is_saved:
                    self._unsaved |= due
