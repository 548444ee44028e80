"""What the node and its worker say to each other about weights to start from; see
`node.worker.wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import check
from protocol.ids import Digest, Round
from protocol.messages import Checkpoint
from protocol.witness import SKETCH_BYTES


@dataclass(frozen=True, slots=True)
class MakeSketch:
    """Sketch the slow weights of a checkpoint (descriptor), or our own; `Sketched` or `Failed`.

    Comes before a start, too: a stranger's weights are looked at before they are taken over.
    """

    TAG: ClassVar[int] = 16
    nonce: int
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Sketched:
    """The sketch; see `protocol.witness`."""

    TAG: ClassVar[int] = 16
    round: Round
    weights: Digest
    numbers: bytes

    def __post_init__(self) -> None:
        check.raw("numbers", self.numbers, SKETCH_BYTES, SKETCH_BYTES)
