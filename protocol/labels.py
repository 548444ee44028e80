"""What the payloads of a run are: the label of each part, and so their exact sizes."""

from __future__ import annotations

from typing import assert_never

from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.ids import Round
from protocol.payload import Label
from protocol.spec import RunSpec


def labels(config: TrainerConfig, *, round: Round, fragment: int, count: int) -> tuple[Label, ...]:
    """The parts of a payload, in their order; none where nothing travels.

    Args:
        count: numbers in the fragment.
    """
    match config:
        case NolocoConfig(vectors=1):
            sent = [("vector", config.codec)]
        case NolocoConfig():
            sent = [("slow", config.codec), ("gradient", config.gradient_codec)]
        case DilocoConfig() | SyncConfig():
            sent = [("gradient", config.codec)]
        case SpsaConfig() | LocalConfig():
            sent = []
        case _:
            assert_never(config)
    return tuple(
        Label(codec=codec, content=content, fragment=fragment, round=round, count=count)
        for content, codec in sent
    )


def payload_sizes(spec: RunSpec) -> tuple[int, ...]:
    """Length of the payload of each fragment, exact; 0 where nothing travels."""
    return tuple(
        sum(
            label.payload_bytes
            for label in labels(spec.trainer, round=Round(0), fragment=fragment, count=count)
        )
        for fragment, count in enumerate(spec.fragment_counts())
    )
