"""What the node and its worker say to each other about snapshots; see `node.worker.wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol.ids import Round


@dataclass(frozen=True, slots=True)
class Save:
    """Write a snapshot of now; answer `SaveDone`."""

    TAG: ClassVar[int] = 18


@dataclass(frozen=True, slots=True)
class SaveDone:
    """What `Save` asked for is on disk, unless a `SaveFailed` before this said why it is not."""

    TAG: ClassVar[int] = 17


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """Unasked: a snapshot could not be written; training goes on, the older files stay."""

    TAG: ClassVar[int] = 10
    reason: str


@dataclass(frozen=True, slots=True)
class Saved:
    """Unasked: a snapshot is whole and on disk; a slow disk gets fewer of them than rounds."""

    TAG: ClassVar[int] = 15
    round: Round
    inner_step: int
