"""What the node and its worker say to each other, and how it crosses.

One SOCK_SEQPACKET unix socket: a packet is a message, in `protocol.codec`'s encoding, with at
most one file descriptor beside it.  A command carries an id; its one answer carries the same,
and everything that answers nothing carries 0.  `Setup` comes first, then one of the starts
until one is answered with `Ready`, then anything.

What a descriptor belongs to is said at the message.  It is a sealed memfd; the receiver owns
its copy, and the sender closes his or keeps it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from protocol import codec
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Checkpoint

MAX_PACKET_BYTES = 64 * 1024
"""A spec of 16 KiB and a few paths; a socket's default send buffer holds three."""
NO_ID = 0
"""Of messages that answer nothing."""
SNAPSHOTS = "snapshot-*.safetensors"

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
    """From a member's slow weights and outer momentum (descriptor); `Ready` or `Failed`."""

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
    """Encode the pair's vector from the weights of now; answer `SnapshotDone`."""

    TAG: ClassVar[int] = 7
    round: Round


@dataclass(frozen=True, slots=True)
class ApplyOuter:
    """Take the outer step that ends in `round`, from the snapshot `mine`.

    `theirs` None: alone.  Else the partner's payload is the descriptor.  Answer `OuterDone`
    or `OuterRefused`.
    """

    TAG: ClassVar[int] = 8
    round: Round
    mine: Digest
    theirs: Digest | None
    my_weight: float


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure the slow weights on the validation text; answer `Evaluated`."""

    TAG: ClassVar[int] = 9


@dataclass(frozen=True, slots=True)
class Export:
    """Slow weights and outer momentum as a blob; answer `Exported`."""

    TAG: ClassVar[int] = 10


@dataclass(frozen=True, slots=True)
class Stop:
    """Save and exit; so does a worker whose socket closes."""

    TAG: ClassVar[int] = 11


Start = StartFresh | StartFromDisk | StartFromCheckpoint
Command = Setup | Start | RunInner | CloseInner | Snapshot | ApplyOuter | Evaluate | Export | Stop

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
    """Of the slow weights alone."""
    note: str
    """What was passed over on the way, in a sentence; usually empty."""


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
    """Slow weights and momentum of `round` are in place, and on disk unless `SaveFailed` came."""

    TAG: ClassVar[int] = 6
    round: Round
    weights: Digest
    """Of the new slow weights alone."""
    gradient_norm: float
    """|phi - theta| at the snapshot: how far this peer's own inner steps went."""
    fast_spread: float
    """|v_i - v_j|^2 / (2 beta^2), see `trainers.outer.vector_spread`; 0 alone."""


@dataclass(frozen=True, slots=True)
class OuterRefused:
    """The partner's payload is no payload of this run; nothing was changed."""

    TAG: ClassVar[int] = 7
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
class SaveFailed:
    """A snapshot could not be written; training goes on, the older files stay."""

    TAG: ClassVar[int] = 10
    reason: str


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
    | Failed
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


def send(link: socket.socket, packet: ToWorker | FromWorker, fd: int | None = None) -> None:
    """Send one packet, whole, from any thread; the descriptor stays the caller's.

    Raises:
        BlockingIOError: of a non-blocking socket whose other side does not read.
        OSError: the other side is gone.
    """
    socket.send_fds(link, [codec.encode(packet)], [] if fd is None else [fd])


def receive(link: socket.socket, kind: type[P]) -> tuple[P, int | None] | None:
    """The next packet and its descriptor, which is the caller's; None: the other side is gone.

    Raises:
        BlockingIOError: of a non-blocking socket, nothing has come yet.
        Malformed: not a packet of this version.
    """
    try:
        data, fds, _, _ = socket.recv_fds(link, MAX_PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    if not data:
        return None
    return codec.decode(kind, data, max_bytes=MAX_PACKET_BYTES), fds[0] if fds else None


def snapshot_files(directory: Path) -> list[Path]:
    """The snapshots in a directory, newest first: their names sort by round and step."""
    return sorted(directory.glob(SNAPSHOTS), key=os.fspath, reverse=True)
