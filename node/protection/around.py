"""What protection needs of the rest of its node: network, members, memory, files and time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.ports import Rpc
from node.telemetry import Waits
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, RunId
from protocol.messages import Checkpoint, Presence

UseShared = Callable[[Checkpoint], Awaitable[None]]
"""Is given a member's checkpoint that lies in the store; raises Malformed: it is of no use."""
Shared = Callable[[UseShared], Awaitable[None]]
"""Lets it have what all members of a group share, from whoever can be trusted to have that; raises
PeerError: nobody."""


class Blobs(Protocol):
    """What is needed of `node.blobs.store.BlobStore`."""

    async def bytes_of(self, digest: Digest) -> bytes:
        """All of a blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """One per node and run."""

    run: RunId
    signer: Signer
    boot: bytes
    caller: Rpc
    directory: Path
    """Where the worker keeps its snapshots."""
    memory_bytes: int
    """For shards, others' and our own."""
    store: Blobs
    """Where a member's checkpoint lies that was fetched."""
    live: Callable[[], Sequence[Presence]]
    """The members that are alive now, as far as is known here."""
    addrs: Callable[[], Sequence[str]]
    """Our own."""
    is_relayed: Callable[[PeerId], bool]
    blame: Callable[[PeerId, str], None]
    waits: Waits
    clock: Callable[[], float]
    unix_s: Callable[[], float]

    @property
    def members(self) -> Collection[PeerId]:
        """Who is alive now; not all who may ask for something."""
        return {presence.peer for presence in self.live()}
