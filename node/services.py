"""What this node does for its peers: one async function for each method of `protocol.rpc`.

A handler gets a valid request from an authenticated caller.  It refuses calls of another run
and, in a private run, everything but `hello` to whoever has not proved to know the secret.
It raises `Malformed` for a bad signature, which `node.rpc` blames on the caller.

A peer is admitted by its own `hello`, and when we greeted it and it proved itself to us.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.blobs.store import Held
from node.rpc import Refused
from protocol import codec, hello, rpc
from protocol.envelope import Domain, Signer, verify
from protocol.ids import Digest, PeerId, Round, RunId, short
from protocol.manifest import CHUNK_BYTES
from protocol.messages import MAX_MESSAGE_BYTES, Checkpoint, Message
from protocol.shards import Holding, Offers, ProtectCall, ShardCall, ShardsCall
from protocol.spec import SignedSpec
from protocol.witness import Sketch, SketchCall, Weights, WeightsCall
from trainers.events import Received

log = logging.getLogger(__name__)

MAX_ADMITTED = 1024
"""Peers admitted to a private run; the one admitted first is forgotten and must greet again."""

OTHER_RUN = "other-run"
NOT_ADMITTED = "not-admitted"
NOT_HERE = "not-here"
BAD_RANGE = "bad-range"


class Server(Protocol):
    """What `node.rpc.Rpc` offers to handlers."""

    def serve(
        self, method: rpc.Method[rpc.Q, rpc.A], handler: Callable[[PeerId, rpc.Q], Awaitable[rpc.A]]
    ) -> None: ...


class Arena(Protocol):
    """Payloads in flight."""

    def __contains__(self, digest: Digest) -> bool: ...

    def view(self, digest: Digest) -> memoryview: ...


class Blobs(Protocol):
    """Blobs on disk."""

    def held(self, digest: Digest) -> Held | None:
        """What is here of a blob, whole or not; None: nothing."""

    async def read(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """These bytes of a right chunk, fewer at its end; None if it is not here."""


class Protection(Protocol):
    """Shards of members' snapshots; see `node.protection.protection`."""

    async def protect(self, peer: PeerId, call: ProtectCall) -> Holding: ...

    async def shards(self, peer: PeerId, call: ShardsCall) -> Offers: ...

    async def shard(self, peer: PeerId, call: ShardCall) -> memoryview: ...


class Services:
    """The handlers of one node in one run."""

    def __init__(
        self,
        *,
        run: RunId,
        spec: SignedSpec,
        secret: bytes,
        signer: Signer,
        received: Callable[[Received], Awaitable[None]],
        presence: Callable[[PeerId, rpc.PresenceCall], Awaitable[rpc.PresenceCall]],
        records: Callable[[PeerId, rpc.RecordCall], Awaitable[rpc.RecordCall]],
        checkpoint: Callable[[bool], Awaitable[Checkpoint | None]],
        sketch: Callable[[int], Awaitable[Sketch | None]],
        weights: Callable[[Round], Digest | None],
        arena: Arena,
        blobs: Blobs,
        protection: Protection,
    ) -> None:
        """
        Args:
            secret: of a private run, else empty.
            received: takes a round message; may wait, so that a busy node is read slower.
            sketch: of our slow weights under a nonce; None: there are none yet.
            weights: the hash of our slow weights after a round; None: not known.
            checkpoint: what a joiner may start from, its bytes in `blobs`.
        """
        self._run = run
        self._spec = spec
        self._secret = secret
        self._signer = signer
        self._received = received
        self._presence = presence
        self._records = records
        self._checkpoint = checkpoint
        self._sketch = sketch
        self._weights = weights
        self._arena = arena
        self._blobs = blobs
        self._protection = protection
        self._admitted: dict[PeerId, None] = {}
        self.served: Counter[int] = Counter()
        """Bytes of payloads sent to who asked for them, by the length of the payload."""

        self.heard = 0
        """Calls with scalars."""

    def serve_on(self, server: Server) -> None:
        """Answer every method of the table from now on."""
        server.serve(rpc.HELLO, self.hello)
        server.serve(rpc.ROUND, self.round)
        server.serve(rpc.SCALARS, self.scalars)
        server.serve(rpc.PRESENCE, self.presence)
        server.serve(rpc.RECORDS, self.records)
        server.serve(rpc.CHECKPOINT, self.checkpoint)
        server.serve(rpc.SKETCH, self.sketch)
        server.serve(rpc.WEIGHTS, self.weights)
        server.serve(rpc.FETCH, self.fetch)
        server.serve(rpc.BLOB_INFO, self.blob_info)
        server.serve(rpc.BLOB, self.blob)
        server.serve(rpc.PROTECT, self.protect)
        server.serve(rpc.SHARDS, self.shards)
        server.serve(rpc.SHARD, self.shard)

    def admit(self, peer: PeerId) -> None:
        """`peer` has proved to be a member."""
        if peer not in self._admitted and len(self._admitted) >= MAX_ADMITTED:
            del self._admitted[next(iter(self._admitted))]
        self._admitted[peer] = None

    async def hello(self, peer: PeerId, call: rpc.Hello) -> rpc.Welcome:
        self._check_run(call.run)
        if not hello.is_admitted(call, self._secret, peer, self._signer.peer):
            log.info("not admitted: peer=%s reason=wrong secret", short(peer))
            raise Refused(NOT_ADMITTED, "the run is private and the proof is not of its secret")
        self.admit(peer)
        return hello.welcome(self._spec, call, self._secret, peer, self._signer)

    async def round(self, peer: PeerId, call: rpc.RoundCall) -> rpc.Done:
        self._check(peer, call.run)
        signed = call.message
        verify(peer, Domain.ROUND, self._run, signed.body, signed.signature)
        message: Message = codec.decode(
            Message,  # type: ignore[arg-type]
            signed.body,
            max_bytes=MAX_MESSAGE_BYTES,
        )
        await self._received(Received(peer, message))
        return rpc.Done()

    async def scalars(self, peer: PeerId, call: rpc.RoundCall) -> rpc.Done:
        self.heard += 1
        return await self.round(peer, call)

    async def presence(self, peer: PeerId, call: rpc.PresenceCall) -> rpc.PresenceCall:
        self._check(peer, call.run)
        return await self._presence(peer, call)

    async def records(self, peer: PeerId, call: rpc.RecordCall) -> rpc.RecordCall:
        self._check(peer, call.run)
        return await self._records(peer, call)

    async def checkpoint(self, peer: PeerId, call: rpc.CheckpointCall) -> rpc.SignedCheckpoint:
        self._check(peer, call.run)
        newest = await self._checkpoint(call.at_base)
        if newest is None:
            raise Refused(NOT_HERE, "no checkpoint is to be had here; ask another member, or later")
        body = codec.encode(newest)
        return rpc.SignedCheckpoint(body, self._signer.sign(Domain.CHECKPOINT, self._run, body))

    async def sketch(self, peer: PeerId, call: SketchCall) -> Sketch:
        self._check(peer, call.run)
        made = await self._sketch(call.nonce)
        if made is None:
            raise Refused(NOT_HERE, "no weights are to be had here; ask another member, or later")
        return made

    async def weights(self, peer: PeerId, call: WeightsCall) -> Weights:
        self._check(peer, call.run)
        return Weights(self._weights(call.round))

    async def fetch(self, peer: PeerId, call: rpc.FetchCall) -> bytes:
        self._check(peer, call.run)
        if call.digest not in self._arena:
            raise Refused(NOT_HERE, f"payload {short(call.digest)} is not, or no longer, here")
        view = self._arena.view(call.digest)
        part = view[call.offset : call.offset + call.length]
        self._check_range("payload", call, len(part))
        self.served[len(view)] += len(part)
        return part  # type: ignore[return-value]  # not copied: sent part by part

    async def blob_info(self, peer: PeerId, call: rpc.BlobInfoCall) -> rpc.BlobInfo:
        self._check(peer, call.run)
        held = self._blobs.held(call.digest)
        if held is None:
            raise Refused(NOT_HERE, f"blob {short(call.digest)} is not here")
        return rpc.BlobInfo(held.manifest if call.is_manifest_wanted else b"", held.chunks)

    async def blob(self, peer: PeerId, call: rpc.BlobCall) -> bytes:
        self._check(peer, call.run)
        part = await self._blobs.read(call.digest, call.offset, call.length)
        if part is None:
            chunk = f"chunk {call.offset // CHUNK_BYTES} of blob {short(call.digest)}"
            raise Refused(NOT_HERE, f"{chunk} is not here")
        self._check_range("blob", call, len(part))
        return part

    async def protect(self, peer: PeerId, call: ProtectCall) -> Holding:
        self._check(peer, call.run)
        return await self._protection.protect(peer, call)

    async def shards(self, peer: PeerId, call: ShardsCall) -> Offers:
        self._check(peer, call.run)
        return await self._protection.shards(peer, call)

    async def shard(self, peer: PeerId, call: ShardCall) -> bytes:
        self._check(peer, call.run)
        return await self._protection.shard(peer, call)  # type: ignore[return-value]  # not copied

    def _check_range(self, what: str, call: rpc.BlobCall | rpc.FetchCall, there: int) -> None:
        if there != call.length:
            raise Refused(
                BAD_RANGE,
                f"asked for {call.length} bytes at {call.offset} of {what} {short(call.digest)}, "
                f"which has {there} there",
            )

    def _check(self, peer: PeerId, run: RunId) -> None:
        self._check_run(run)
        if self._secret and peer not in self._admitted:
            raise Refused(NOT_ADMITTED, "the run is private; say hello with its proof first")

    def _check_run(self, run: RunId) -> None:
        if run != self._run:
            raise Refused(
                OTHER_RUN, f"asked about run {short(run)}, this node is in run {short(self._run)}"
            )
