"""Shards that this node holds for others: fetched when asked to, given back to their owner alone.

Of each owner the newest snapshot that is whole is kept, and the one that is coming in; the former
goes only when the owner says that all shards of the latter are held.  So whenever the owner is
lost, one of the two is whole.  Memory is bounded, and an owner that was away for long is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from node.arena import Arena, ArenaFull
from node.protection.around import Surroundings
from node.protection.fetch import fetch_shard
from node.protection.files import most_bytes
from node.rpc import Refused
from node.services import BAD_RANGE, NOT_HERE
from protocol.errors import Malformed, PeerError
from protocol.ids import Digest, PeerId, short
from protocol.shards import (
    Holding,
    Offer,
    Offers,
    ProtectCall,
    ProtectionConfig,
    ShardCall,
    ShardsCall,
    SignedStamp,
    Stamp,
)
from protocol.spec import RunSpec

log = logging.getLogger(__name__)

MAX_OWNERS = 64
"""As many as a view of presence has members."""
FORGET_S = 86400.0
"""An owner that was not heard of for so long gets its memory back no more.  A guess: a person
whose disk broke buys another one."""
AWAY_S = 3600.0
"""One that was away for so long goes first, when there is no room for another's shard."""
LOOK_S = 60.0
"""Between two looks for owners to forget."""
FETCHES = 2
"""Shards that come in at once, so that exchanges get most of the line."""
OVERHEAD = 0.125
HEADER_BYTES = 4096
"""What a shard may have beside its part of the content: 80 bytes a fragment, 1 MiB / k each."""
NO_ROOM = "no-room"


@dataclass(slots=True, eq=False)
class _Shard:
    """One shard of one snapshot, held or coming in."""

    signed: SignedStamp
    stamp: Stamp
    index: int
    is_held: bool = False
    fetch: asyncio.Task[None] | None = None

    @property
    def digest(self) -> Digest:
        return self.stamp.shards[self.index]

    def is_of(self, call: ProtectCall) -> bool:
        return (self.signed.body, self.index) == (call.stamp.body, call.index)


@dataclass(slots=True)
class _Owner:
    heard_at: float
    kept: _Shard | None = None
    """Of a snapshot that is whole."""
    coming: _Shard | None = None

    @property
    def held(self) -> list[_Shard]:
        return [shard for shard in (self.kept, self.coming) if shard and shard.is_held]


class ShardHolder:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self, spec: RunSpec, config: ProtectionConfig, memory: Arena, around: Surroundings
    ) -> None:
        self._config = config
        self._most_bytes = most_bytes(spec)
        self._memory = memory
        self._around = around
        self._clock = around.clock
        self._owners: dict[PeerId, _Owner] = {}
        self._fetches: asyncio.TaskGroup | None = None
        self._turns = asyncio.Semaphore(FETCHES)

    async def run(self) -> None:
        """Fetch what is asked for, and forget in time, until cancelled."""
        async with asyncio.TaskGroup() as self._fetches:
            while True:
                self._forget(FORGET_S)
                await asyncio.sleep(LOOK_S)

    @property
    def held(self) -> tuple[int, int]:
        """Shards, and bytes of them."""
        shards = [shard for owner in self._owners.values() for shard in owner.held]
        return len(shards), sum(shard.stamp.shard_bytes for shard in shards)

    # --- what peers ask ---------------------------------------------------------------------

    async def protect(self, peer: PeerId, call: ProtectCall) -> Holding:
        """Hold a shard of the caller's; says how far that is."""
        stamp = call.stamp.open(self._around.run, peer)
        self._check(stamp, call.index)
        owner = self._owner(peer)
        if owner.kept and owner.kept.is_of(call):
            return Holding("held")
        if owner.coming is None or not owner.coming.is_of(call):
            self._begin(peer, owner, _Shard(call.stamp, stamp, call.index))
            return Holding("coming")
        if not owner.coming.is_held:
            return Holding("coming")
        if call.whole:
            self._drop(owner.kept)
            owner.kept, owner.coming = owner.coming, None
        return Holding("held")

    async def shards(self, peer: PeerId, call: ShardsCall) -> Offers:
        """What is held of the caller's own."""
        owner = self._owners.get(peer)
        if owner is None:
            return Offers(())
        owner.heard_at = self._clock()
        return Offers(tuple(Offer(shard.signed, shard.index) for shard in owner.held))

    def shard(self, peer: PeerId, call: ShardCall) -> memoryview | None:
        """Bytes of a shard of the caller's own; None: there is none of this name."""
        owner = self._owners.get(peer)
        if owner is None or call.digest not in [shard.digest for shard in owner.held]:
            return None
        return part_of(self._memory, call)

    # --- memory -----------------------------------------------------------------------------

    def _check(self, stamp: Stamp, index: int) -> None:
        """Raises Malformed: no honest owner of this run asks for that."""
        config = self._config
        if (stamp.data, stamp.parity) != (config.data, config.parity):
            raise Malformed(
                f"a snapshot in {stamp.data} + {stamp.parity} shards, expected {config.data} + "
                f"{config.parity}"
            )
        if index >= config.shards:
            raise Malformed(f"shard {index} of {config.shards}")
        most = int(stamp.size_bytes / stamp.data * (1 + OVERHEAD)) + HEADER_BYTES
        if stamp.size_bytes > self._most_bytes or stamp.shard_bytes > most:
            raise Malformed(
                f"a snapshot of {stamp.size_bytes} bytes in shards of {stamp.shard_bytes}, "
                f"expected at most {self._most_bytes} in shards of {most}"
            )

    def _owner(self, peer: PeerId) -> _Owner:
        owner = self._owners.get(peer)
        if owner is None:
            if len(self._owners) >= MAX_OWNERS:
                self._forget(AWAY_S)
            if len(self._owners) >= MAX_OWNERS:
                raise Refused(NO_ROOM, f"shards of {MAX_OWNERS} owners are held here already")
            owner = self._owners[peer] = _Owner(self._clock())
        owner.heard_at = self._clock()
        return owner

    def _begin(self, peer: PeerId, owner: _Owner, shard: _Shard) -> None:
        if self._fetches is None:
            raise Refused(NO_ROOM, "this node is not ready")
        self._drop(owner.coming)
        owner.coming = None
        if not self._has_room(shard.stamp.shard_bytes):
            self._forget(AWAY_S)
        if not self._has_room(shard.stamp.shard_bytes):
            raise Refused(
                NO_ROOM,
                f"{self._memory.size_bytes} of {self._memory.max_bytes} bytes for shards are used, "
                f"and this one has {shard.stamp.shard_bytes}; the owner of this node may raise "
                "protection_mib",
            )
        owner.coming = shard
        shard.fetch = self._fetches.create_task(self._fetch(peer, owner, shard), name="shard")

    def _has_room(self, size_bytes: int) -> bool:
        return self._memory.size_bytes + size_bytes <= self._memory.max_bytes

    async def _fetch(self, peer: PeerId, owner: _Owner, shard: _Shard) -> None:
        """Fetch it from its owner, who asks again if that fails."""
        try:
            async with self._turns:
                await fetch_shard(
                    shard.digest,
                    shard.stamp.shard_bytes,
                    peer,
                    run=self._around.run,
                    caller=self._around.caller,
                    memory=self._memory,
                    is_spared=lambda _: True,
                )
        except (PeerError, ArenaFull) as error:
            log.info("shard not fetched: owner=%s reason=%s", short(peer), error)
        except Malformed as error:
            self._around.blame(peer, f"sent another shard than its stamp names: {error}")
        else:
            shard.is_held = True
            log.info(
                "shard held: owner=%s round=%d inner_step=%d index=%d bytes=%d",
                *(short(peer), shard.stamp.round, shard.stamp.inner_step),
                *(shard.index, shard.stamp.shard_bytes),
            )
        shard.fetch = None
        if not shard.is_held and owner.coming is shard:
            owner.coming = None

    def _drop(self, shard: _Shard | None) -> None:
        if shard is None:
            return
        if shard.fetch:
            shard.fetch.cancel()
        if shard.is_held:
            self._memory.release(shard.digest)

    def _forget(self, after_s: float) -> None:
        """Let go of owners that are not alive, and were not heard of for so long."""
        now, alive = self._clock(), self._around.members
        for peer, owner in list(self._owners.items()):
            if peer in alive:
                owner.heard_at = now
            elif now - owner.heard_at >= after_s:
                log.info("owner forgotten: peer=%s away_s=%d", short(peer), now - owner.heard_at)
                self._drop(owner.kept)
                self._drop(owner.coming)
                del self._owners[peer]


def part_of(memory: Arena, call: ShardCall) -> memoryview:
    """The bytes of a held shard that are asked for.  Raises Refused: it has not so many."""
    part = memory.view(call.digest)[call.offset : call.offset + call.length]
    if len(part) != call.length:
        raise Refused(
            BAD_RANGE,
            f"asked for {call.length} bytes at {call.offset} of shard {short(call.digest)}, which "
            f"has {len(part)} there",
        )
    return part


def not_here(call: ShardCall) -> Refused:
    """Nothing of that name for this caller."""
    return Refused(NOT_HERE, f"shard {short(call.digest)} is not, or no longer, here for you")
