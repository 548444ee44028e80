"""What the node tells its worker of the creator's changes; see `node.worker.wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import check
from protocol.changes import MAX_CHANGES, InForce
from trainers.control import KEPT


@dataclass(frozen=True, slots=True)
class ChangeSettings:
    """All changes of settings, each from its round on; see `trainers.effects.ChangeSettings`.

    No answer of its own.  Comes before what belongs to such a round.
    """

    TAG: ClassVar[int] = 17
    changes: tuple[InForce, ...]

    def __post_init__(self) -> None:
        check.items("changes", self.changes, MAX_CHANGES * KEPT)
