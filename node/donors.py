"""What a joiner asks of members one by one: an offer, its bytes, and what others say of it.

An offer has to have the size that the run's model gives a checkpoint, and its bytes come from all
who made the same one, at a speed worth waiting for.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.blobs.progress import Report
from node.blobs.transfers import NotFetched, Transfers
from node.ports import Rpc
from node.telemetry import Waits
from protocol import codec, rpc
from protocol.algorithms import SpsaConfig
from protocol.envelope import Domain, verify
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.fragments import num_parameters
from protocol.ids import Digest, PeerId, Round, short
from protocol.messages import MAX_MESSAGE_BYTES, Checkpoint
from protocol.spec import BlobRef, RunSpec
from protocol.spsa import MAX_HORIZON_BYTES
from protocol.witness import Sketch, SketchCall, WeightsCall

CHECKPOINT_S = 60.0
SLOWEST_BYTES_PER_S = 100_000
"""A checkpoint comes within `CHECKPOINT_S` and the time that it takes at this speed, or another
one is asked for: 140 s for the default model.  A guess at the slowest donor worth waiting for."""
NUMBERS_BYTES = 2 * 4
"""Of a parameter in a checkpoint: slow weight and outer momentum, float32."""
SHARED_BYTES = 2 * 4
"""The same of what else all members share, at most: a sync run's optimizer."""
SUM_BYTES = 8
"""Of a trainable parameter in a checkpoint of spsa: all of them at most."""
HEADER_BYTES = 4096
"""Of a checkpoint at most: names, shapes, round and the run, some 200 bytes of JSON."""


class Members:
    """The members of one run, as a joiner sees them."""

    def __init__(self, spec: RunSpec, transfers: Transfers, waits: Waits) -> None:
        self._spec = spec
        self._transfers = transfers
        self._waits = waits

    async def checkpoint(self, peer: PeerId, *, at_base: bool = False) -> Checkpoint:
        """What `peer` offers to start from; its own signed word.

        Args:
            at_base: spsa: its sum at the newest base, not that of now.

        Raises:
            PeerUnavailable: it has nothing, or is gone.
            RemoteProtocolError: it offers what is no checkpoint of this run.
        """
        with self._waits.on("a checkpoint", peer, rpc.CHECKPOINT.deadline_s):
            call = rpc.CheckpointCall(self._transfers.run, at_base)
            offer = await ask_checkpoint(self._transfers.caller, peer, call)
        least, most = checkpoint_bounds(self._spec)
        if not least < offer.size_bytes <= most:
            raise RemoteProtocolError(
                peer,
                f"offered a checkpoint of {offer.size_bytes} bytes, expected {least} to {most}",
            )
        return offer

    async def sketch(self, peer: PeerId, nonce: int) -> Sketch:
        """What the slow weights of `peer` look like under a nonce.

        Raises:
            PeerError: it does not say.
        """
        call = SketchCall(self._transfers.run, nonce)
        with self._waits.on("a sketch to compare with", peer, rpc.SKETCH.deadline_s):
            return await self._transfers.caller.call(peer, rpc.SKETCH, call)

    async def weights(self, peer: PeerId, round: Round) -> Digest | None:
        """The hash of the slow weights that `peer` had after `round`, if it knows.

        Raises:
            PeerError: it does not answer.
        """
        call = WeightsCall(self._transfers.run, round)
        with self._waits.on("word of its weights", peer, rpc.WEIGHTS.deadline_s):
            return (await self._transfers.caller.call(peer, rpc.WEIGHTS, call)).digest

    async def fetch(self, checkpoint: Checkpoint, donors: Sequence[PeerId]) -> None:
        """Have it in the store, from all of these at once, until it is released.

        What came of it stays for a next try.

        Raises:
            PeerUnavailable: they gave not all of it, or not in time.
            NoSpace: there is no room for it.
        """
        size_bytes = checkpoint.size_bytes
        ref = BlobRef(digest=checkpoint.digest, size_bytes=size_bytes)
        deadline_s = CHECKPOINT_S + size_bytes / SLOWEST_BYTES_PER_S
        source = ", ".join(short(donor) for donor in donors)
        report = Report("a checkpoint", source, deadline_s, self._waits)
        fetching = self._transfers.fetch(
            ref,
            lambda: donors,
            is_lasting=False,
            deadline_s=deadline_s,
            progress=report.told,
        )
        try:
            await report.on(fetching)
        except NotFetched as error:
            raise PeerUnavailable(donors[0], f"no whole checkpoint: {error}") from error

    async def release(self, checkpoint: Checkpoint) -> None:
        """It is not needed any more, nor is what came of others."""
        await self._transfers.store.release(checkpoint.digest)
        await self._transfers.store.forget_partials()


async def ask_checkpoint(caller: Rpc, peer: PeerId, call: rpc.CheckpointCall) -> Checkpoint:
    """The offer of `peer`, whatever it is worth; raises as `Members.checkpoint`."""
    signed = await caller.call(peer, rpc.CHECKPOINT, call)
    try:
        verify(peer, Domain.CHECKPOINT, call.run, signed.body, signed.signature)
        return codec.decode(Checkpoint, signed.body, max_bytes=MAX_MESSAGE_BYTES)
    except Malformed as error:
        raise RemoteProtocolError(peer, f"offered a bad checkpoint: {error}") from error


def checkpoint_bounds(spec: RunSpec) -> tuple[int, int]:
    """A checkpoint of this run has more bytes than the first, and at most the second."""
    count = num_parameters(spec.model)
    if isinstance(spec.trainer, SpsaConfig):
        return 0, SUM_BYTES * count + HEADER_BYTES + 2 * MAX_HORIZON_BYTES
    least = NUMBERS_BYTES * count
    return least, least + SHARED_BYTES * count + HEADER_BYTES
