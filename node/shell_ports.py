"""What the driver needs to carry out a trainer's effects: a worker, other peers, a journal."""

from __future__ import annotations

from typing import Protocol

from protocol.changes import InForce
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Decision, Message
from protocol.spsa import Frame
from trainers.effects import ApplyOuter, Closed, Finished, Paused, Unpaused, Wait
from trainers.events import Resumed, Sampled


class InnerResult(Protocol):
    """What an inner phase made since the last snapshot."""

    @property
    def steps(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class Learner(Protocol):
    """The worker.  It keeps deadlines of its own: whoever does not answer is lost."""

    async def inner(self, round: Round, steps: int) -> InnerResult:
        """Train until `steps` are made since the last snapshot.  Raises `WorkerLost`."""

    def close_inner(self) -> None:
        """Let `inner` end at the next step boundary, if it is under way."""

    def change(self, changes: tuple[InForce, ...]) -> None:
        """Settings that the creator has changed, before what belongs to such a round."""

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        """Name and bytes of the payload, which can be served now.  Raises `WorkerLost`."""

    async def outer(self, effect: ApplyOuter) -> Digest:
        """Take the outer step; the name of the slow weights after it.

        Raises:
            WorkerLost: the worker died.
            PayloadRefused: a payload is none of this run; nothing was changed.
        """

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        """spsa: the scalars of these steps, or of fewer after `close_inner`."""

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        """spsa: add these frames to the sum, after what was asked before.  Raises `WorkerLost`."""

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        """spsa: the name of the sum less these frames.  Raises `WorkerLost`."""

    async def catch_up(self, source: PeerId) -> Resumed:
        """Go over to the weights of a member; what was asked for before is void.

        Raises:
            WorkerLost: the worker died.
            PeerError: the member has none, or is gone.
        """


class Network(Protocol):
    """The other peers.  Each call keeps the deadline of its method."""

    async def send(self, to: PeerId, message: Message) -> None:
        """Sign and deliver.  Raises `PeerError`."""

    async def fetch(self, digest: Digest, size_bytes: int, source: PeerId) -> None:
        """Hold the payload, checked against its name.  Raises `PeerError`."""

    def release(self, digest: Digest) -> None:
        """Drop the payload; one that is not held is no error."""

    def blame(self, peer: PeerId, reason: str) -> None:
        """`peer` broke the protocol."""


class Journal(Protocol):
    """Presence, records, counters and logs.  Nothing here waits."""

    def publish(self, decisions: tuple[Decision, ...]) -> None:
        """Keep them in our presence."""

    def closed(self, closed: Closed) -> None:
        """Count and record the end of a round."""

    def waiting(self, wait: Wait, for_s: float) -> None:
        """Print the one line of this wait, which ends in `for_s` seconds at most; show it."""

    def held(self, held: Paused | Unpaused) -> None:
        """The creator has paused the run here, or resumed it."""

    def finished(self, finished: Finished) -> None:
        """The last round is closed."""
