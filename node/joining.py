"""What a joiner fetches from members: blobs of the spec, and a checkpoint to start from.

A blob is asked for until it is here, and a member that appears meanwhile is asked next; a
checkpoint is one donor's, and whoever wants it tries the next.  Every wait has a name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from node.arena import Arena, ArenaFull
from node.blobstore import BlobStore, NotFetched
from node.ports import Rpc
from node.telemetry import Waits
from protocol import codec, rpc
from protocol.envelope import Domain, verify
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import PeerId, RunId
from protocol.messages import MAX_MESSAGE_BYTES, Checkpoint
from protocol.spec import BlobRef

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Until members are asked again for a blob that none of them gave."""


async def fetch_blob(
    what: str,
    ref: BlobRef,
    *,
    run: RunId,
    store: BlobStore,
    caller: Rpc,
    peers: Callable[[], Sequence[PeerId]],
    waits: Waits,
) -> Path:
    """The file of a blob of the spec, from disk or from whichever member has it."""
    if path := await store.path(ref.digest):
        return path
    while True:
        try:
            with waits.on(what, "any member", rpc.BLOB.deadline_s):
                path = await store.fetch(caller, run, ref, peers())
        except NotFetched as error:
            log.info("not fetched yet: what=%s reason=%s", what, error)
            with waits.on(f"a member that has {what}", "any member", AGAIN_S):
                await asyncio.sleep(AGAIN_S)
        else:
            log.info("fetched: what=%s bytes=%d", what, ref.size_bytes)
            return path


async def ask_checkpoint(caller: Rpc, peer: PeerId, run: RunId) -> Checkpoint:
    """What `peer` offers a joiner to start from; its own signed word.

    Raises:
        PeerUnavailable: it has none, or is gone.
        RemoteProtocolError: it broke the protocol.
    """
    signed = await caller.call(peer, rpc.CHECKPOINT, rpc.CheckpointCall(run))
    try:
        verify(peer, Domain.CHECKPOINT, run, signed.body, signed.signature)
        return codec.decode(Checkpoint, signed.body, max_bytes=MAX_MESSAGE_BYTES)
    except Malformed as error:
        raise RemoteProtocolError(peer, f"offered a bad checkpoint: {error}") from error


async def fetch_checkpoint(
    donor: PeerId, *, run: RunId, caller: Rpc, arena: Arena, waits: Waits
) -> Checkpoint:
    """The donor's slow weights and momentum, held in the arena for the caller to release.

    Raises:
        PeerUnavailable: the donor has none, is gone, or there is no memory for it.
        RemoteProtocolError: what it sent is not what it signed.
    """
    with waits.on("a checkpoint", donor, rpc.CHECKPOINT.deadline_s):
        checkpoint = await ask_checkpoint(caller, donor, run)
    try:
        slot = arena.reserve(checkpoint.size_bytes)
    except ArenaFull as error:
        raise PeerUnavailable(donor, f"no memory for its checkpoint: {error}") from error
    try:
        for offset in range(0, checkpoint.size_bytes, rpc.CHUNK_BYTES):
            length = min(rpc.CHUNK_BYTES, checkpoint.size_bytes - offset)
            with waits.on(
                f"a checkpoint, {offset} of {checkpoint.size_bytes} bytes",
                donor,
                rpc.BLOB.deadline_s,
            ):
                part = slot.view[offset : offset + length]
                call = rpc.BlobCall(run, checkpoint.digest, offset, length)
                await caller.call(donor, rpc.BLOB, call, into=part)
                part.release()
        slot.commit(checkpoint.digest)
    except Malformed as error:
        raise RemoteProtocolError(donor, f"sent another checkpoint: {error}") from error
    finally:
        slot.abandon()
    return checkpoint
