"""The protection of a run's private state, as this node takes part in it: owner and holder.

Off unless the spec has it.  Memory for shards, our own and others', is apart from that for
payloads, so that neither takes the other's room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.arena import Arena
from node.erasure import ErasureCode
from node.files import write_atomically
from node.ports import Rpc
from node.protection_files import is_whole, place_of, whole_again
from node.protection_holder import ShardHolder, not_here
from node.protection_owner import ShardOwner
from node.recovery import Recovered, Recovery
from node.rpc import Refused
from node.snapshots import snapshot_name
from node.telemetry import Waits
from protocol.envelope import Signer
from protocol.errors import ConfigError, Malformed, PeerError
from protocol.ids import Digest, PeerId, RunId
from protocol.messages import Checkpoint, Presence
from protocol.shards import Holding, Offers, ProtectCall, ShardCall, ShardsCall
from protocol.spec import RunSpec

log = logging.getLogger(__name__)

MAX_SHARDS_HELD = 160
"""Two for each of `MAX_OWNERS`, and our own; two descriptors each, of the usual 1,024."""
DONOR_STATES = ("starting", "training", "finished")
OFF = "off"
"""Refused: this run is not protected."""


class Checkpoints(Protocol):
    """What is needed of `node.blobstore.BlobStore`."""

    async def bytes_of(self, digest: Digest) -> bytes:
        """All of a blob."""

    async def release(self, digest: Digest) -> None:
        """One holder fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What protection needs of the rest of the node."""

    run: RunId
    signer: Signer
    boot: bytes
    caller: Rpc
    directory: Path
    """Where the worker keeps its snapshots."""
    memory_bytes: int
    store: Checkpoints
    """Where a member's checkpoint lies that was fetched."""
    live: Callable[[], Sequence[Presence]]
    addrs: Callable[[], Sequence[str]]
    is_relayed: Callable[[PeerId], bool]
    blame: Callable[[PeerId, str], None]
    waits: Waits
    clock: Callable[[], float]
    unix_s: Callable[[], float]


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
        self.owner = ShardOwner(
            run=around.run,
            spec=spec,
            code=self._code,
            signer=around.signer,
            boot=around.boot,
            caller=around.caller,
            memory=self._memory,
            directory=around.directory,
            live=around.live,
            addrs=around.addrs,
            is_relayed=around.is_relayed,
            waits=around.waits,
            clock=around.clock,
            unix_s=around.unix_s,
        )
        self.holder = ShardHolder(
            run=around.run,
            spec=spec,
            config=spec.protection,
            caller=around.caller,
            memory=self._memory,
            members=lambda: {presence.peer for presence in around.live()},
            blame=around.blame,
            clock=around.clock,
        )

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

    async def recover(self, fetch_checkpoint: Callable[[PeerId], Awaitable[Checkpoint]]) -> bool:
        """Put our newest protected snapshot where the worker looks for it; whether there is one.

        Args:
            fetch_checkpoint: as in `node.training.Training`.
        """
        if self.owner is None or self._code is None:
            return False
        around = self._around
        recovery = Recovery(
            run=around.run,
            me=around.signer.peer,
            code=self._code,
            caller=around.caller,
            memory=self._memory,
            live=around.live,
            is_relayed=around.is_relayed,
            blame=around.blame,
            waits=around.waits,
            clock=around.clock,
        )
        recovered = await recovery.newest()
        self.owner.beyond(recovery.serial)
        if recovered is None:
            return False
        try:
            return await self._restored(recovered, fetch_checkpoint)
        except (Malformed, ConfigError) as error:
            log.warning("recovery: no snapshot of it: reason=%s", error)
            return False

    async def _restored(
        self, recovered: Recovered, fetch_checkpoint: Callable[[PeerId], Awaitable[Checkpoint]]
    ) -> bool:
        """Write the snapshot; in a group with what all share from a member.

        Raises:
            Malformed: what was recovered is no snapshot.
            ConfigError: it cannot be written.
        """
        content = recovered.content
        if is_whole(self._spec):
            place = place_of(content)
        else:
            checkpoint = await self._checkpoint(fetch_checkpoint)
            if checkpoint is None:
                log.warning("recovery: no member gives what all share; our own part is of no use")
                return False
            try:
                shared = await self._around.store.bytes_of(checkpoint.digest)
                place, content = whole_again(content, memoryview(shared))
            finally:
                await self._around.store.release(checkpoint.digest)
        path = self._around.directory / snapshot_name(place)
        await asyncio.to_thread(write_atomically, path, content)
        log.info(
            "recovered: round=%d inner_step=%d protected_in_round=%d bytes=%d",
            *(place.round, place.inner_step, recovered.stamp.round, len(content)),
        )
        return True

    async def _checkpoint(
        self, fetch_checkpoint: Callable[[PeerId], Awaitable[Checkpoint]]
    ) -> Checkpoint | None:
        donors = [p for p in self._around.live() if p.state in DONOR_STATES]
        for donor in sorted(donors, key=lambda p: p.round, reverse=True):
            try:
                return await fetch_checkpoint(donor.peer)
            except PeerError as error:
                log.info("no weights from there: %s", error)
        return None
