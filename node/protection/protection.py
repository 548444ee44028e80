"""The protection of a run's private state, as this node takes part in it: owner and holder.

Off unless the spec has it.  Memory for shards, our own and others', is apart from that for
payloads, so that neither takes the other's room.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from node.arena import Arena
from node.own_thread import in_thread
from node.protection.around import Shared, Surroundings
from node.protection.erasure import ErasureCode
from node.protection.files import is_whole, place_of, whole_again
from node.protection.holder import ShardHolder, not_here
from node.protection.owner import ShardOwner
from node.protection.recovery import Recovered, Recovery
from node.rpc import Refused
from node.snapshots import SnapshotPlace, being_written, snapshot_name
from protocol.errors import ConfigError, Malformed, PeerError
from protocol.ids import PeerId
from protocol.messages import Checkpoint
from protocol.shards import Holding, Offers, ProtectCall, ShardCall, ShardsCall
from protocol.spec import RunSpec

log = logging.getLogger(__name__)

MAX_SHARDS_HELD = 160
"""Two for each of `MAX_OWNERS`, and our own; two descriptors each, of the usual 1,024."""
OFF = "off"
"""Refused: this run is not protected."""


class Protection:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(self, spec: RunSpec, around: Surroundings) -> None:
        self._spec = spec
        self._around = around
        self._memory = Arena(around.memory_bytes, MAX_SHARDS_HELD)
        self.owner: ShardOwner | None = None
        self.holder: ShardHolder | None = None
        self._code: ErasureCode | None = None
        if spec.protection is None:
            return
        self._code = ErasureCode(spec.protection.data, spec.protection.parity)
        self.owner = ShardOwner(spec, self._code, self._memory, around)
        self.holder = ShardHolder(spec, spec.protection, self._memory, around)

    async def run(self) -> None:
        """Hold for others, and have ours held, until cancelled."""
        if self.owner is None or self.holder is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.holder.run(), name="holder")
            tasks.create_task(self.owner.run(), name="owner")

    def close(self) -> None:
        """Let go of everything."""
        self._memory.close()

    @property
    def trouble(self) -> str | None:
        """What the operator should see to."""
        return self.owner.trouble if self.owner else None

    def status(self) -> dict[str, int | float] | None:
        """What is held of ours, and what of others; None: off."""
        if self.owner is None or self.holder is None:
            return None
        held, held_bytes = self.holder.held
        told: dict[str, int | float] = {"holds": held, "holds_bytes": held_bytes}
        told |= {"cut_bytes": self.owner.cut_bytes, "used_bytes": self._memory.size_bytes}
        told |= {"shards": 0, "of": self._spec.protection.shards if self._spec.protection else 0}
        if kept := self.owner.kept:
            stamp = kept.stamp
            told |= {"shards": len(kept.held), "round": stamp.round, "took_s": kept.took_s}
            told |= {"inner_step": stamp.inner_step, "size_bytes": stamp.size_bytes}
            told |= {"shard_bytes": stamp.shard_bytes, "needed": stamp.data}
        return told

    # --- what peers ask ---------------------------------------------------------------------

    async def protect(self, peer: PeerId, call: ProtectCall) -> Holding:
        return await self._holder().protect(peer, call)

    async def shards(self, peer: PeerId, call: ShardsCall) -> Offers:
        return await self._holder().shards(peer, call)

    async def shard(self, peer: PeerId, call: ShardCall) -> memoryview:
        """A shard for its owner, or for whom we asked to hold it."""
        part = self._holder().shard(peer, call)
        if part is None and self.owner:
            part = self.owner.shard(peer, call)
        if part is None:
            raise not_here(call)
        return part

    def _holder(self) -> ShardHolder:
        if self.holder is None:
            raise Refused(OFF, "this run is not protected: its spec has no table protection")
        return self.holder

    # --- after the loss of our disk ---------------------------------------------------------

    async def recover(self, shared: Shared) -> bool:
        """Put our newest protected snapshot where the worker looks for it; whether there is one.

        Raises:
            ConfigError: it cannot be written.  Its holders still have it.
        """
        if self.owner is None or self._code is None:
            return False
        recovery = Recovery(self._code, self._memory, self._around)
        recovered = await recovery.newest()
        self.owner.beyond(recovery.serial)
        if recovered is None:
            return False
        try:
            await self._restore(recovered, shared)
        except Malformed as error:
            log.warning("recovery: no snapshot of it: reason=%s", error)
            return False
        except PeerError as error:
            log.warning("recovery: our own part is of no use without what all share: %s", error)
            return False
        return True

    async def _restore(self, recovered: Recovered, shared: Shared) -> None:
        """Write the snapshot; in a group with what all share, from a member.

        Raises:
            Malformed: what was recovered is no snapshot.
            PeerError: no member gives what all share.
            ConfigError: it cannot be written.
        """
        ours = recovered.content
        place = place_of(ours)  # before members are asked: it is not for them to mend

        async def write(place: SnapshotPlace, content: bytes) -> None:
            directory = self._around.directory
            await in_thread(lambda: _write(directory, place, content), name="recovered")
            log.info(
                "recovered: round=%d inner_step=%d protected_in_round=%d bytes=%d",
                *(place.round, place.inner_step, recovered.stamp.round, len(content)),
            )

        async def use(checkpoint: Checkpoint) -> None:
            theirs = await self._around.store.bytes_of(checkpoint.digest)
            await write(*await asyncio.to_thread(whole_again, ours, theirs, checkpoint))

        if is_whole(self._spec):
            await write(place, ours)
        else:
            await shared(use)


def _write(directory: Path, place: SnapshotPlace, content: bytes) -> None:
    """Raises ConfigError: there is no room, or the disk does not work."""
    try:
        with being_written(directory / snapshot_name(place), len(content)) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ConfigError(
            f"disk: the snapshot of round {place.round} that members gave back is not written: "
            f"{error}; they keep it, start this node again when there is room"
        ) from error
