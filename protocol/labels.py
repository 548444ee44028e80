"""What the payloads of a run are: the label of each part, and so their exact sizes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import assert_never

from protocol.algorithms import (
    CODEC,
    GRADIENT_CODEC,
    GRADIENT_CODECS,
    VECTOR_CODECS,
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.ids import Round
from protocol.payload import Buffer, Label, codec_of
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


def choices(config: TrainerConfig, changeable: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """For each part of a payload the codecs that it may have: one, or all that the creator may
    choose from in the middle of the run.

    Args:
        changeable: of the run's spec.
    """
    parts = labels(config, round=Round(0), fragment=0, count=1)
    names = (CODEC, GRADIENT_CODEC)
    return tuple(
        (GRADIENT_CODECS if part.content == "gradient" else VECTOR_CODECS)
        if name in changeable
        else (part.codec,)
        for name, part in zip(names, parts, strict=False)
    )


def found_in(
    data: Buffer, expected: tuple[Label, ...], choices: tuple[tuple[str, ...], ...]
) -> tuple[Label, ...]:
    """The labels of a payload, in the codecs that its own headers name.

    A part with a codec that is none of its choices keeps the expected label, which then refuses
    the payload (`protocol.payload.parts`).
    """
    found, start = [], 0
    for label, codecs in zip(expected, choices, strict=True):
        codec = codec_of(memoryview(data)[start:])
        label = replace(label, codec=codec) if codec and codec in codecs else label
        found.append(label)
        start += label.payload_bytes
    return tuple(found)


def possible_sizes(spec: RunSpec) -> tuple[frozenset[int], ...]:
    """Lengths that a payload of each fragment may have, whatever the creator changes."""
    codecs = choices(spec.trainer, spec.changeable)
    return tuple(
        frozenset(
            sum(
                replace(label, codec=codec).payload_bytes
                for label, codec in zip(expected, chosen, strict=True)
            )
            for chosen in product(*codecs)
        )
        for expected in (
            labels(spec.trainer, round=Round(0), fragment=fragment, count=count)
            for fragment, count in enumerate(spec.fragment_counts())
        )
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
