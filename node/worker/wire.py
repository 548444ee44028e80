"""What the node and its worker say to each other, and how it crosses.

One SOCK_SEQPACKET unix socket: a packet is a message, in `protocol.codec`'s encoding, with
file descriptors beside it where it has to do with payloads.  A command carries an id; its one
answer carries the same, and everything that answers nothing carries 0.  `Setup` comes first,
then one of the starts until one is answered with `Ready`, then anything.  A worker whose socket
closes saves and exits.

What a descriptor belongs to is said at the message.  Each is a sealed memfd; the receiver owns
its copies, and the sender closes his or keeps them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from node.worker.wire_control import ChangeSettings
from node.worker.wire_join import MakeSketch, Sketched
from node.worker.wire_save import Save, Saved, SaveDone, SaveFailed
from node.worker.wire_spsa import Added, AddScalars, NameSum, Sample, Sampled, SumNamed
from protocol import codec
from protocol.algorithms import MAX_GROUP
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Checkpoint
from trainers.effects import Share

MAX_PACKET_BYTES = 64 * 1024
"""A spec of 16 KiB and a few paths; a socket's default send buffer holds three."""
MAX_FDS = MAX_GROUP
"""The payloads of a whole group; Linux takes 253."""
NO_ID = 0
"""Of messages that answer nothing."""

# --- commands -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The run and the files it needs; answer `Prepared` or `Failed`."""

    TAG: ClassVar[int] = 1
    spec_body: bytes
    peer: PeerId
    tokenizer: str
    """Absolute path of the tokenizer's JSON."""
    validation: str
    """Absolute path of the validation text."""
    corpus: tuple[str, ...]
    """Absolute paths of the training text: the run's corpus, or a person's own files."""
    directory: str
    """Where snapshots are kept."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    threads: int = 1
    """On the CPU.  Several workers share a machine, and a small model gains little from more."""
    nice: int = 10
    """Training gives way to whatever else the machine does."""


@dataclass(frozen=True, slots=True)
class StartFresh:
    """From the run's seed, at round 0; answer `Ready` or `Failed`."""

    TAG: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class StartFromDisk:
    """From the newest snapshot that can be read; answer `Ready` or `Failed`."""

    TAG: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class StartFromCheckpoint:
    """From a member's slow weights and outer momentum (descriptor); `Ready` or `Failed`.

    A worker that has started goes over to them: what it was training for is given up.
    """

    TAG: ClassVar[int] = 4
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class RunInner:
    """Train until `steps` inner steps are made since the last snapshot; answer `InnerDone`."""

    TAG: ClassVar[int] = 5
    round: Round
    steps: int


@dataclass(frozen=True, slots=True)
class CloseInner:
    """Finish `RunInner` at the next step boundary; no answer of its own."""

    TAG: ClassVar[int] = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Encode what is exchanged of a fragment from the weights of now; answer `SnapshotDone`."""

    TAG: ClassVar[int] = 7
    round: Round
    fragment: int


@dataclass(frozen=True, slots=True)
class ApplyOuter:
    """Take the outer step that ends in `round`; see `trainers.effects.ApplyOuter`.

    The payloads of all shares but `mine` are the descriptors, in the order of the shares.
    Answer `OuterDone` or `OuterRefused`.
    """

    TAG: ClassVar[int] = 8
    round: Round
    fragment: int
    mine: Digest | None
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure the slow weights on the validation text; answer `Evaluated`."""

    TAG: ClassVar[int] = 9


@dataclass(frozen=True, slots=True)
class Export:
    """Slow weights and outer momentum, or the sum of spsa, as a blob; answer `Exported`."""

    TAG: ClassVar[int] = 10
    at_base: bool = False
    """spsa: the sum that was named last, or that the worker began with, not that of now."""


Start = StartFresh | StartFromDisk | StartFromCheckpoint
Command = (
    Setup
    | Start
    | RunInner
    | CloseInner
    | Snapshot
    | ApplyOuter
    | Evaluate
    | Export
    | MakeSketch
    | ChangeSettings
    | Sample
    | AddScalars
    | NameSum
    | Save
)

# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files of `Setup` were read."""

    TAG: ClassVar[int] = 1
    tokens: int
    """Length of the training text."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker stands at the start of `round`."""

    TAG: ClassVar[int] = 2
    round: Round
    inner_step: int
    """Inner steps this peer has made in the run."""
    weights: Digest
    """Of the slow weights alone; spsa: of the sum."""
    note: str
    """What was passed over on the way, in a sentence; usually empty."""
    horizon: bytes = b""
    """spsa: of the sum."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is, at most four times a second."""

    TAG: ClassVar[int] = 3
    round: Round
    inner_step: int
    """In the run."""
    step_in_round: int
    """Since the last snapshot."""
    loss: float
    """Mean of the steps since the last report, nats per token."""
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class InnerDone:
    """`RunInner` is over: steps and tokens since the last snapshot."""

    TAG: ClassVar[int] = 4
    steps: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SnapshotDone:
    """The payload (descriptor)."""

    TAG: ClassVar[int] = 5
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterDone:
    """Slow weights and momentum of `round` are in place; `Saved` says when they are on disk."""

    TAG: ClassVar[int] = 6
    round: Round
    weights: Digest
    """Of the new slow weights alone."""
    gradient_norm: float
    """|phi - theta| at the snapshot: how far this peer's own inner steps went."""
    spread: float
    """Half the squared distance to the partner, see `trainers.outer.vector_spread`; 0 alone."""


@dataclass(frozen=True, slots=True)
class OuterRefused:
    """The payload `culprit` is none of this run and round; nothing was changed."""

    TAG: ClassVar[int] = 7
    culprit: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Validation loss of the slow weights."""

    TAG: ClassVar[int] = 8
    round: Round
    nats_per_byte: float


@dataclass(frozen=True, slots=True)
class Exported:
    """The checkpoint (descriptor)."""

    TAG: ClassVar[int] = 9
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Failed:
    """The command could not be carried out; with id 0 the worker ends."""

    TAG: ClassVar[int] = 11
    reason: str


Event = (
    Prepared
    | Ready
    | Progress
    | InnerDone
    | SnapshotDone
    | OuterDone
    | OuterRefused
    | Evaluated
    | Exported
    | SaveFailed
    | Saved
    | SaveDone
    | Failed
    | Sketched
    | Sampled
    | Added
    | SumNamed
)

# --- packets --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToWorker:
    """A command and the id that its answer will carry."""

    id: int
    body: Command


@dataclass(frozen=True, slots=True)
class FromWorker:
    """An answer to the command `id`, or news with id 0."""

    id: int
    body: Event


P = TypeVar("P", ToWorker, FromWorker)


def send(link: socket.socket, packet: ToWorker | FromWorker, fds: Sequence[int] = ()) -> None:
    """Send one packet, whole, from any thread; the descriptors stay the caller's.

    Raises:
        BlockingIOError: of a non-blocking socket whose other side does not read.
        OSError: the other side is gone.
    """
    socket.send_fds(link, [codec.encode(packet)], fds)


def receive(link: socket.socket, kind: type[P]) -> tuple[P, tuple[int, ...]] | None:
    """The next packet and its descriptors, which are the caller's; None: the other is gone.

    Raises:
        BlockingIOError: of a non-blocking socket, nothing has come yet.
        Malformed: not a packet of this version.
    """
    try:
        data, fds, _, _ = socket.recv_fds(link, MAX_PACKET_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return codec.decode(kind, data, max_bytes=MAX_PACKET_BYTES), tuple(fds)
