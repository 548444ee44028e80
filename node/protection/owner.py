"""Our own snapshot in the memory of others: cut, stamped, offered to holders, and watched.

Every few rounds the newest snapshot file is cut into shards, which stay in memory here, and one
member after the other is asked to hold one of them; each fetches its own.  Training waits for
none of this.  A snapshot that is under way is given up for a newer one only when it is stuck; a
holder that is gone is replaced from the shards that are here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from node.arena import Arena, ArenaFull, Slot
from node.own_thread import in_thread
from node.p2p.answering import TRANSIENT
from node.protection.around import Surroundings
from node.protection.erasure import ErasureCode
from node.protection.fetch import deadline_s
from node.protection.files import private_part
from node.protection.holder import part_of
from node.protection.places import host_in, new_holders
from node.rpc import CallRefused
from node.snapshots import SnapshotPlace, snapshot_place, snapshots_seen
from protocol import rpc
from protocol.errors import Malformed, PeerError
from protocol.ids import Digest, PeerId, Round, digest_of, short
from protocol.messages import Presence
from protocol.shards import ProtectCall, ShardCall, SignedStamp, Stamp, sign_stamp
from protocol.spec import RunSpec

log = logging.getLogger(__name__)

TICK_S = 1.0
"""Between two looks at files, members and holders."""
RENEW_S = 30.0
"""Holders of a whole snapshot are asked so often whether they still have it: one may have been
started again with an empty memory."""
AWAY_S = 20.0
"""A holder that no presence was heard of for so long is replaced; one lives ten seconds."""
REFUSED_S = 60.0
"""Until a member that refused is asked again."""
UNREACHED_S = 15.0
"""Until one that could not be reached is: it may be starting again."""
AGAIN_S = 30.0
"""Until a snapshot is cut again that could not be."""
SLOT = "protection"


@dataclass(slots=True)
class Placing:
    """One snapshot in shards, and who holds which."""

    signed: SignedStamp
    stamp: Stamp
    began: float
    holders: dict[int, PeerId] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    """Shards that their holder says it has."""
    is_whole: bool = False
    asked_at: float | None = None
    took_s: float = 0.0
    """From the cut to whole."""


class ShardOwner:
    """One per node and run.  Everything happens in the one event loop, cutting in a thread."""

    def __init__(
        self, spec: RunSpec, code: ErasureCode, memory: Arena, around: Surroundings
    ) -> None:
        assert spec.protection
        self._spec = spec
        self._every_rounds = spec.protection.every_rounds
        self._code = code
        self._memory = memory
        self._around = around
        self._clock = around.clock
        self.kept: Placing | None = None
        """The newest that is whole."""
        self.coming: Placing | None = None
        self.trouble: str | None = None
        """Why nothing can be protected."""
        self.cut_bytes = 0
        """Of all that was cut so far, as it was before."""
        self._serial = 0
        self._failed: tuple[SnapshotPlace, float] | None = None
        self._last_seen: dict[PeerId, float] = {}
        """Holders only."""
        self._refused: dict[PeerId, float] = {}
        """Until when a member is not asked; live ones only."""

    def beyond(self, serial: int) -> None:
        """Snapshots from now on are newer than this one, whatever the wall clock says."""
        self._serial = max(self._serial, serial)

    async def run(self) -> None:
        """Protect until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """One look at everything."""
        if self.coming is None and (due := self._due()):
            await self._begin(*due)
        # One at a time: a holder that lost both has room for one that comes in.
        if placing := self.coming or self.kept:
            await self._place(placing)
        if self.coming:
            await self._settle(self.coming)

    def shard(self, peer: PeerId, call: ShardCall) -> memoryview | None:
        """Bytes of a shard that `peer` was asked to hold; None: it was not."""
        for placing in (self.coming, self.kept):
            for index, holder in placing.holders.items() if placing else ():
                if holder == peer and placing and placing.stamp.shards[index] == call.digest:
                    return part_of(self._memory, call)
        return None

    # --- cutting ----------------------------------------------------------------------------

    def _due(self) -> tuple[Path, SnapshotPlace] | None:
        """The newest snapshot, if it is time to protect it."""
        files = snapshots_seen(self._around.directory)
        place = snapshot_place(files[0]) if files else None
        if place is None or place.inner_step == 0:
            return None
        if self._failed and self._failed[0] == place and self._clock() < self._failed[1] + AGAIN_S:
            return None
        if self.kept:
            since = place.round - self.kept.stamp.round
            if 0 <= since < self._every_rounds:
                return None
        return files[0], place

    async def _begin(self, path: Path, place: SnapshotPlace) -> None:
        try:
            self.coming = await self._cut(path, place)
        except (ArenaFull, Malformed, OSError) as error:
            self._failed = (place, self._clock())
            if isinstance(error, ArenaFull):
                self.trouble = (
                    f"the snapshot is not protected: {error}; raise protection_mib in node.toml"
                )
            log.warning("snapshot not cut: file=%s reason=%s", path.name, error)
            return
        self._failed = self.trouble = None
        stamp = self.coming.stamp
        what = f"{len(stamp.shards)} shards of the snapshot of round {stamp.round} to be held"
        self._around.waits.begin(SLOT, what, "any member", deadline_s(self._sent_bytes(stamp)))

    async def _cut(self, path: Path, place: SnapshotPlace) -> Placing:
        began = self._clock()
        content = await in_thread(lambda: private_part(self._spec, path.read_bytes()), name="cut")
        shard_bytes = self._code.shard_bytes(len(content))
        slots: list[Slot] = []
        digests: list[Digest] = []
        try:
            for _ in range(self._code.data + self._code.parity):
                slots.append(self._memory.reserve(shard_bytes))  # noqa: PERF401  given back below
            await asyncio.to_thread(self._code.cut, content, [slot.view for slot in slots])
            for slot in slots:
                digest = await asyncio.to_thread(digest_of, slot.view)
                slot.commit_as(digest)
                digests.append(digest)
        except BaseException:
            for digest in digests:
                self._memory.release(digest)
            raise
        finally:
            for slot in slots:
                slot.abandon()
        stamp = self._stamp(place, content, await asyncio.to_thread(digest_of, content), digests)
        self.cut_bytes += len(content)
        return Placing(sign_stamp(stamp, self._around.run, self._around.signer), stamp, began)

    def _stamp(
        self, place: SnapshotPlace, content: bytes, digest: Digest, shards: list[Digest]
    ) -> Stamp:
        self._serial = max(self._serial + 1, int(self._around.unix_s() * 1000))
        return Stamp(
            owner=self._around.signer.peer,
            boot=self._around.boot,
            serial=self._serial,
            round=Round(place.round),
            inner_step=place.inner_step,
            data=self._code.data,
            parity=self._code.parity,
            size_bytes=len(content),
            digest=digest,
            shard_bytes=self._code.shard_bytes(len(content)),
            shards=tuple(shards),
        )

    # --- placing ----------------------------------------------------------------------------

    async def _place(self, placing: Placing) -> None:
        """Find a holder for each shard that has none, and ask all that are to be asked."""
        now = self._clock()
        live = {presence.peer: presence for presence in self._around.live()}
        self._look_for_holders(live, now)
        for index, peer in list(placing.holders.items()):
            if now - self._last_seen[peer] > AWAY_S:
                self._lose(placing, index, "it is gone")
        new = self._new_holders(placing, live, now)
        placing.holders |= new
        is_due = placing.asked_at is None or now >= placing.asked_at + RENEW_S
        asked = placing.holders if is_due or not placing.is_whole else self._unsure(placing)
        if is_due:
            placing.asked_at = now
        async with asyncio.TaskGroup() as calls:
            for index, peer in list(asked.items()):
                if peer in live:
                    calls.create_task(self._ask(placing, index, peer), name=f"shard {index}")

    def _look_for_holders(self, live: Collection[PeerId], now: float) -> None:
        """Note when each was alive last; one that we ask now was so a moment ago."""
        placings = [placing for placing in (self.coming, self.kept) if placing]
        peers = {peer for placing in placings for peer in placing.holders.values()}
        self._last_seen = {
            peer: now if peer in live else self._last_seen.get(peer, now) for peer in peers
        }

    def _unsure(self, placing: Placing) -> dict[int, PeerId]:
        return {i: peer for i, peer in placing.holders.items() if i not in placing.held}

    def _new_holders(
        self, placing: Placing, live: dict[PeerId, Presence], now: float
    ) -> dict[int, PeerId]:
        """Who held a shard of the snapshot before is asked first: it has the room."""
        self._refused = {p: end for p, end in self._refused.items() if p in live and end > now}
        holding = set(placing.holders.values())
        missing = set(range(len(placing.stamp.shards))) - set(placing.holders)
        free = {peer: p for peer, p in live.items() if peer not in self._refused}
        found: dict[int, PeerId] = {}
        before = self.kept.holders if self.kept and placing is self.coming else {}
        for index in sorted(missing & set(before)):
            if before[index] in free and before[index] not in holding:
                found[index] = before[index]
        found |= new_holders(
            missing - set(found),
            list(free.values()),
            taken=holding | set(found.values()),
            owner=self._around.signer.peer,
            owner_host=host_in(self._around.addrs()),
            run=self._around.run,
            is_relayed=self._around.is_relayed,
        )
        return found

    async def _ask(self, placing: Placing, index: int, peer: PeerId) -> None:
        call = ProtectCall(self._around.run, placing.signed, index, placing.is_whole)
        try:
            holding = await self._around.caller.call(peer, rpc.PROTECT, call)
        except PeerError as error:
            is_refusal = isinstance(error, CallRefused)
            passes = isinstance(error, CallRefused) and error.code in TRANSIENT
            if passes or (index in placing.held and not is_refusal):
                return  # it is asked again; one that is gone drops out of presence
            self._refused[peer] = self._clock() + (REFUSED_S if is_refusal else UNREACHED_S)
            self._lose(placing, index, str(error))
        else:
            if holding.state == "held":
                placing.held.add(index)
            else:
                placing.held.discard(index)

    def _lose(self, placing: Placing, index: int, reason: str) -> None:
        peer = placing.holders.pop(index, None)
        placing.held.discard(index)
        if peer:
            log.info("shard without holder: index=%d was=%s reason=%s", index, short(peer), reason)

    async def _settle(self, placing: Placing) -> None:
        """Whether the snapshot that is coming is whole, as good as it gets, or stuck."""
        stamp, took_s = placing.stamp, self._clock() - placing.began
        is_stuck = took_s > deadline_s(self._sent_bytes(stamp))
        is_all = len(placing.held) == len(stamp.shards)
        before = len(self.kept.held) if self.kept else 0
        nobody_is_left = before <= len(placing.held) == len(placing.holders)
        if is_all or (len(placing.held) >= stamp.data and (nobody_is_left or is_stuck)):
            if self.kept:
                self._release(self.kept)
            self.kept, self.coming = placing, None
            placing.is_whole, placing.took_s = True, took_s
            self._around.waits.end(SLOT)
            log.info(
                "snapshot protected: round=%d inner_step=%d shards=%d of=%d bytes=%d took_s=%.1f",
                *(stamp.round, stamp.inner_step, len(placing.held), len(stamp.shards)),
                *(stamp.size_bytes, took_s),
            )
            placing.asked_at = None
            await self._place(placing)  # let them drop the one before
        elif is_stuck:
            log.warning(
                "snapshot not protected: round=%d held=%d needed=%d after_s=%.0f",
                *(stamp.round, len(placing.held), stamp.data, took_s),
            )
            self._release(placing)
            self.coming = None
            self._around.waits.end(SLOT)

    def _release(self, placing: Placing) -> None:
        for digest in placing.stamp.shards:
            self._memory.release(digest)

    @staticmethod
    def _sent_bytes(stamp: Stamp) -> int:
        return stamp.shard_bytes * len(stamp.shards)
