"""What a worker tells its node about snapshots, unasked; see `node.worker_wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol.ids import Round


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """A snapshot could not be written; training goes on, the older files stay."""

    TAG: ClassVar[int] = 10
    reason: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot is whole and on disk; a disk that is slower than the rounds gets fewer of them."""

    TAG: ClassVar[int] = 15
    round: Round
    inner_step: int
