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

from node.rpc import Refused
from protocol import codec, hello, rpc
from protocol.envelope import Domain, Signer, verify
from protocol.ids import Digest, PeerId, RunId, short
from protocol.messages import MAX_MESSAGE_BYTES, Checkpoint, Message
from protocol.spec import SignedSpec
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

    async def read(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """These bytes of a verified blob, fewer at its end; None if it is not here."""


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
        checkpoint: Callable[[], Awaitable[Checkpoint | None]],
        arena: Arena,
        blobs: Blobs,
    ) -> None:
        """
        Args:
            secret: of a private run, else empty.
            received: takes a round message; may wait, so that a busy node is read slower.
            checkpoint: what a joiner may start from, its blob in `arena` or `blobs`.
        """
        self._run = run
        self._spec = spec
        self._secret = secret
        self._signer = signer
        self._received = received
        self._presence = presence
        self._records = records
        self._checkpoint = checkpoint
        self._arena = arena
        self._blobs = blobs
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
        server.serve(rpc.FETCH, self.fetch)
        server.serve(rpc.BLOB, self.blob)

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
        newest = await self._checkpoint()
        if newest is None:
            raise Refused(NOT_HERE, "no checkpoint here yet; ask another member, or later")
        body = codec.encode(newest)
        return rpc.SignedCheckpoint(body, self._signer.sign(Domain.CHECKPOINT, self._run, body))

    async def fetch(self, peer: PeerId, call: rpc.FetchCall) -> bytes:
        self._check(peer, call.run)
        if call.digest not in self._arena:
            raise Refused(NOT_HERE, f"payload {short(call.digest)} is not, or no longer, here")
        view = self._arena.view(call.digest)
        part = view[call.offset : call.offset + call.length]
        self._check_range("payload", call, len(part))
        self.served[len(view)] += len(part)
        return part  # type: ignore[return-value]  # not copied: sent part by part

    async def blob(self, peer: PeerId, call: rpc.BlobCall) -> bytes:
        self._check(peer, call.run)
        if call.digest in self._arena:
            part = bytes(self._arena.view(call.digest)[call.offset : call.offset + call.length])
        else:
            read = await self._blobs.read(call.digest, call.offset, call.length)
            if read is None:
                raise Refused(NOT_HERE, f"blob {short(call.digest)} is not here")
            part = read
        self._check_range("blob", call, len(part))
        return part

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
