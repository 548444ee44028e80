"""The trainer's view of the other peers: signed round messages out, payloads in.

A payload is fetched in pieces, straight into arena memory of the length that was announced, and
held only if it hashes to its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from node.arena import Arena, ArenaFull
from node.pieces import fetch_into
from node.ports import Rpc
from protocol import codec, rpc
from protocol.envelope import Domain, Signer
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import Digest, PeerId, RunId
from protocol.messages import Message, SignedMessage
from protocol.spsa import Frames, num_scalars


@dataclass(slots=True)
class ScalarTraffic:
    """What was sent of an spsa run's scalars."""

    messages: int = 0
    frames: int = 0
    scalars: int = 0

    def count(self, sent: Frames) -> None:
        """Take in a message."""
        self.messages += 1
        self.frames += len(sent.frames)
        self.scalars += sum(num_scalars(signed) for signed in sent.frames)


class Exchange:
    """`node.shell_ports.Network` over RPC."""

    def __init__(
        self,
        *,
        run: RunId,
        signer: Signer,
        caller: Rpc,
        arena: Arena,
        fetch_deadline_s: float,
        blame: Callable[[PeerId, str], None],
        is_relayed: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        """Args: is_relayed: whether a peer is reached through another, which is spared then."""
        self._run = run
        self._signer = signer
        self._caller = caller
        self._arena = arena
        self._fetch_deadline_s = fetch_deadline_s
        self.blame = blame
        self._is_relayed = is_relayed
        self.scalars = ScalarTraffic()
        self.fetched: Counter[int] = Counter()
        """Payloads that came in whole, by their length: as many lengths as fragments."""

    async def send(self, to: PeerId, message: Message) -> None:
        """Sign and deliver.  Raises `PeerError`."""
        body = codec.encode(message)
        signed = SignedMessage(body, self._signer.sign(Domain.ROUND, self._run, body))
        call = rpc.RoundCall(self._run, signed)
        if isinstance(message, Frames):
            await self._caller.call(to, rpc.SCALARS, call)
            self.scalars.count(message)
        else:
            await self._caller.call(to, rpc.ROUND, call)

    async def fetch(self, digest: Digest, size_bytes: int, source: PeerId) -> None:
        """Hold the payload, checked against its name.  Raises `PeerError`."""

        async def ask(offset: int, into: memoryview, deadline_s: float) -> None:
            call = rpc.FetchCall(self._run, digest, offset, len(into))
            await self._caller.call(source, rpc.FETCH, call, deadline_s=deadline_s, into=into)

        try:
            await fetch_into(
                self._arena,
                digest,
                size_bytes,
                source,
                ask,
                deadline_s=self._fetch_deadline_s,
                is_relayed=self._is_relayed,
            )
            self.fetched[size_bytes] += 1
        except ArenaFull as error:
            raise PeerUnavailable(source, f"no memory for its payload: {error}") from error
        except Malformed as error:
            self.blame(source, f"sent another payload: {error}")
            raise RemoteProtocolError(source, str(error)) from error

    def release(self, digest: Digest) -> None:
        """Drop the payload; one that is not held is no error."""
        self._arena.release(digest)
