"""One shard from a peer into memory, checked against its name.

A holder spares the owner's line, where rounds are exchanged meanwhile; an owner that lost all
takes what the line carries.
"""

from __future__ import annotations

from collections.abc import Callable

from node.arena import Arena
from node.pieces import fetch_into
from node.ports import Rpc
from protocol import rpc
from protocol.ids import Digest, PeerId, RunId
from protocol.shards import ShardCall

PATIENCE_S = 60.0
SLOWEST_BYTES_PER_S = 100_000
"""A shard comes within `PATIENCE_S` and the time that it takes at this speed, as checkpoints do."""


def deadline_s(size_bytes: int) -> float:
    """How long so many bytes may take."""
    return PATIENCE_S + size_bytes / SLOWEST_BYTES_PER_S


async def fetch_shard(
    digest: Digest,
    size_bytes: int,
    source: PeerId,
    *,
    run: RunId,
    caller: Rpc,
    memory: Arena,
    is_spared: Callable[[PeerId], bool],
) -> None:
    """Hold the shard.

    Args:
        is_spared: whether a peer gets few small requests at once.

    Raises:
        ArenaFull: there is no room.
        Malformed: `source` sent something else.
        PeerError: it did not come, or the peer broke the protocol.
    """

    async def ask(offset: int, into: memoryview, left_s: float) -> None:
        call = ShardCall(run, digest, offset, len(into))
        await caller.call(source, rpc.SHARD, call, deadline_s=left_s, into=into)

    limit_s = deadline_s(size_bytes)
    await fetch_into(
        memory, digest, size_bytes, source, ask, deadline_s=limit_s, is_relayed=is_spared
    )
