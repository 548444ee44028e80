"""What a joiner fetches from members: blobs of the spec, and a checkpoint to start from.

A blob is asked for until it is here, and a member that appears meanwhile is asked next; a
checkpoint is one donor's, and whoever wants it tries the next.  A checkpoint has to have the
size that the run's model gives it, and to come at a speed worth waiting for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from node.arena import Arena, ArenaFull
from node.blobstore import FETCH_S, BlobStore, NotFetched
from node.ports import Rpc
from node.telemetry import Waits
from protocol import codec, rpc
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain, verify
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.fragments import num_parameters
from protocol.ids import PeerId, RunId
from protocol.messages import MAX_MESSAGE_BYTES, Checkpoint
from protocol.spec import BlobRef, RunSpec
from protocol.spsa import MAX_HORIZON_BYTES

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Until members are asked again for a blob that none of them gave."""
CHECKPOINT_S = 60.0
SLOWEST_BYTES_PER_S = 100_000
"""A checkpoint comes within `CHECKPOINT_S` and the time that it takes at this speed, or another
member is asked: 140 s for the default model.  A guess at the slowest donor worth waiting for."""
NUMBERS_BYTES = 2 * 4
"""Of a parameter in a checkpoint: slow weight and outer momentum, float32."""
SHARED_BYTES = 2 * 4
"""The same of what else all members share, at most: a sync run's optimizer."""
SUM_BYTES = 8
"""Of a trainable parameter in a checkpoint of spsa: all of them at most."""
HEADER_BYTES = 4096
"""Of a checkpoint at most: names, shapes, round and the run, some 200 bytes of JSON."""


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
            with waits.on(what, "any member", FETCH_S):
                path = await store.fetch(caller, run, ref, peers(), deadline_s=FETCH_S)
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
    donor: PeerId, *, run: RunId, spec: RunSpec, caller: Rpc, arena: Arena, waits: Waits
) -> Checkpoint:
    """The donor's slow weights and momentum, held in the arena for the caller to release.

    Raises:
        PeerUnavailable: the donor has none, is gone or too slow, or there is no memory for it.
        RemoteProtocolError: what it offers is no checkpoint of this model, or what it sent is
            not what it signed.
    """
    with waits.on("a checkpoint", donor, rpc.CHECKPOINT.deadline_s):
        checkpoint = await ask_checkpoint(caller, donor, run)
    size_bytes = checkpoint.size_bytes
    least, most = checkpoint_bounds(spec)
    if not least < size_bytes <= most:
        raise RemoteProtocolError(
            donor, f"offered a checkpoint of {size_bytes} bytes, expected {least} to {most}"
        )
    deadline_s = CHECKPOINT_S + size_bytes / SLOWEST_BYTES_PER_S
    try:
        with waits.on(f"a checkpoint of {size_bytes} bytes", donor, deadline_s):
            async with asyncio.timeout(deadline_s):
                await _take(donor, checkpoint, run=run, caller=caller, arena=arena)
    except TimeoutError:
        raise PeerUnavailable(donor, f"no whole checkpoint within {deadline_s:g} s") from None
    except ArenaFull as error:
        raise PeerUnavailable(donor, f"no memory for its checkpoint: {error}") from error
    except Malformed as error:
        raise RemoteProtocolError(donor, f"sent another checkpoint: {error}") from error
    return checkpoint


def checkpoint_bounds(spec: RunSpec) -> tuple[int, int]:
    """A checkpoint of this run has more bytes than the first, and at most the second."""
    count = num_parameters(spec.model)
    if isinstance(spec.trainer, SpsaConfig):
        return 0, SUM_BYTES * count + HEADER_BYTES + 2 * MAX_HORIZON_BYTES
    least = NUMBERS_BYTES * count
    return least, least + SHARED_BYTES * count + HEADER_BYTES


async def _take(
    donor: PeerId, checkpoint: Checkpoint, *, run: RunId, caller: Rpc, arena: Arena
) -> None:
    """The checkpoint's bytes, chunk by chunk, into the arena."""
    slot = arena.reserve(checkpoint.size_bytes)
    try:
        for offset in range(0, checkpoint.size_bytes, rpc.CHUNK_BYTES):
            length = min(rpc.CHUNK_BYTES, checkpoint.size_bytes - offset)
            call = rpc.BlobCall(run, checkpoint.digest, offset, length)
            part = slot.view[offset : offset + length]
            await caller.call(donor, rpc.BLOB, call, into=part)
            part.release()  # not if the call failed: its receiver may still hold the part
        await slot.verify_and_commit(checkpoint.digest)
    finally:
        slot.abandon()
