"""Our own private state back from the memory of others, after our disk is lost.

Members say which shards of ours they hold.  Of the newest snapshot with enough of them any k are
fetched; a member that gives something else is blamed and its shard is as good as lost.  What
comes out is checked against the stamp that we signed, and becomes a snapshot file.  If the newest
cannot be had, the one before is tried, and then it is for the caller to join as if it were new.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from node.arena import Arena, ArenaFull
from node.protection.around import Surroundings
from node.protection.erasure import ErasureCode, NotDecodable
from node.protection.fetch import deadline_s, fetch_shard
from protocol import rpc
from protocol.errors import Malformed, PeerError
from protocol.ids import PeerId, digest_of, short
from protocol.shards import ShardsCall, Stamp

log = logging.getLogger(__name__)

FIRST_S = 20.0
"""How long a member is waited for at all.  Who is alone has nobody to ask."""
SETTLE_S = 5.0
"""After a member that was new, until all that are there are known: presence spreads in a second or
two."""
LACKING_S = 30.0
"""As long where some shards are offered, but too few: holders may be starting again."""
AGAIN_S = 0.25
"""Between two looks at who is there."""
REFUSED_S = 2.0
"""Until who could not be asked is asked again."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was cut into shards, as it was."""

    stamp: Stamp
    content: bytes


@dataclass(slots=True)
class _Found:
    """One snapshot of ours, and who offers which shard of it."""

    stamp: Stamp
    holders: dict[int, list[PeerId]] = field(default_factory=dict)

    @property
    def is_enough(self) -> bool:
        return len(self.holders) >= self.stamp.data


class Recovery:
    """One per node and run.  Everything happens in the one event loop, decoding in a thread."""

    def __init__(self, code: ErasureCode, memory: Arena, around: Surroundings) -> None:
        self._code = code
        self._memory = memory
        self._around = around
        self._clock = around.clock
        self._found: dict[bytes, _Found] = {}
        """By the stamp's bytes."""
        self._answered: dict[PeerId, float] = {}
        """Who has answered, and when."""
        self._failed: dict[PeerId, float] = {}
        """Who has not, and when it is asked again."""

    @property
    def serial(self) -> int:
        """The highest of our stamps that was offered."""
        return max((found.stamp.serial for found in self._found.values()), default=0)

    async def newest(self) -> Recovered | None:
        """The newest snapshot of ours that members can give back; None: there is none."""
        await self._survey()
        ordered = sorted(self._found.values(), key=lambda f: f.stamp.serial, reverse=True)
        for found in ordered:
            stamp = found.stamp
            log.info(
                "recovery: round=%d inner_step=%d shards=%d of=%d needed=%d bytes=%d",
                *(stamp.round, stamp.inner_step, len(found.holders), len(stamp.shards)),
                *(stamp.data, stamp.size_bytes),
            )
            if not found.is_enough:
                continue
            if recovered := await self._recovered(found):
                return recovered
        log.info("recovery: nothing asked=%d offers=%d", len(self._answered), len(ordered))
        return None

    # --- who holds what ---------------------------------------------------------------------

    async def _survey(self) -> None:
        """Ask everybody that is there, until waiting longer is of no use."""
        began = self._clock()
        with self._around.waits.on("shards of our snapshot", "any member", FIRST_S + LACKING_S):
            while True:
                await self._ask_all()
                if self._is_over(began, self._clock()):
                    return
                await asyncio.sleep(AGAIN_S)

    def _is_over(self, began: float, now: float) -> bool:
        if not self._answered:
            return now - began >= FIRST_S
        newest = max(self._found.values(), key=lambda f: f.stamp.serial, default=None)
        if newest and len(newest.holders) == len(newest.stamp.shards):
            return True
        patience_s = LACKING_S if newest and not newest.is_enough else SETTLE_S
        is_quiet = now - max(self._answered.values()) >= patience_s
        return is_quiet or now - began >= FIRST_S + LACKING_S

    async def _ask_all(self) -> None:
        now = self._clock()
        async with asyncio.TaskGroup() as calls:
            for presence in self._around.live():
                is_early = now < self._failed.get(presence.peer, now)
                if presence.peer not in self._answered and not is_early:
                    calls.create_task(self._ask(presence.peer), name="shards")

    async def _ask(self, peer: PeerId) -> None:
        try:
            answer = await self._around.caller.call(peer, rpc.SHARDS, ShardsCall(self._around.run))
            for offer in answer.offers:
                stamp = offer.stamp.open(self._around.run, self._around.signer.peer)
                if offer.index >= len(stamp.shards):
                    raise Malformed(f"shard {offer.index} of {len(stamp.shards)}")
                found = self._found.setdefault(offer.stamp.body, _Found(stamp))
                found.holders.setdefault(offer.index, []).append(peer)
        except PeerError as error:
            log.info("shards not told: %s", error)
            self._failed[peer] = self._clock() + REFUSED_S  # it is asked again while it is there
            return
        except Malformed as error:
            self._around.blame(peer, f"offered a shard that is none of ours: {error}")
        self._answered[peer] = self._clock()

    # --- fetching ---------------------------------------------------------------------------

    async def _recovered(self, found: _Found) -> Recovered | None:
        """The content of a snapshot; None: it cannot be had."""
        stamp, got = found.stamp, set[int]()
        began = self._clock()
        limit_s = deadline_s(stamp.shard_bytes * stamp.data)
        try:
            what = f"{stamp.data} shards of {stamp.shard_bytes} bytes"
            with self._around.waits.on(what, "the members that hold them", limit_s):
                async with asyncio.timeout(limit_s):
                    await self._fetch(found, got)
            if len(got) < stamp.data:
                log.warning("recovery: only %d of %d shards came", len(got), stamp.data)
                return None
            shards = {index: self._memory.view(stamp.shards[index]) for index in got}
            content = await asyncio.to_thread(self._decoded, stamp, shards)
        except TimeoutError:
            log.warning("recovery: %d of %d shards in %g s", len(got), stamp.data, limit_s)
            return None
        except NotDecodable as error:
            log.warning("recovery: not decoded: reason=%s", error)
            return None
        finally:
            for index in got:
                self._memory.release(stamp.shards[index])
        log.info(
            "recovery: decoded bytes=%d round=%d inner_step=%d took_s=%.2f",
            *(len(content), stamp.round, stamp.inner_step, self._clock() - began),
        )
        return Recovered(stamp, content)

    async def _fetch(self, found: _Found, got: set[int]) -> None:
        """Fetch any k; data shards first, which need no decoding."""
        left = sorted(found.holders)
        async with asyncio.TaskGroup() as fetches:
            for _ in range(found.stamp.data):
                fetches.create_task(self._fetch_one(found, left, got), name="shard")

    async def _fetch_one(self, found: _Found, left: list[int], got: set[int]) -> None:
        """One shard that nobody else here fetches."""
        while left:
            index = left.pop(0)
            for peer in found.holders[index]:
                if await self._fetched(found.stamp, index, peer):
                    got.add(index)
                    return

    async def _fetched(self, stamp: Stamp, index: int, peer: PeerId) -> bool:
        try:
            await fetch_shard(
                stamp.shards[index],
                stamp.shard_bytes,
                peer,
                run=self._around.run,
                caller=self._around.caller,
                memory=self._memory,
                is_spared=self._around.is_relayed,
            )
        except (PeerError, ArenaFull) as error:
            log.info("shard not fetched: holder=%s index=%d reason=%s", short(peer), index, error)
        except Malformed as error:
            self._around.blame(peer, f"gave another shard than our stamp names: {error}")
        else:
            log.info("shard fetched: holder=%s index=%d", short(peer), index)
            return True
        return False

    def _decoded(self, stamp: Stamp, shards: dict[int, memoryview]) -> bytes:
        """Raises NotDecodable: they do not give what the stamp says."""
        if (stamp.data, stamp.parity) != (self._code.data, self._code.parity):
            raise NotDecodable(f"cut in {stamp.data} + {stamp.parity}")
        content = self._code.joined(shards, stamp.size_bytes)
        if digest_of(content) != stamp.digest:
            raise NotDecodable("the content has another hash than the stamp says")
        return content
