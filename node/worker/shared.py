"""What a checkpoint has besides slow weights and outer momentum, by the run's trainer.

sync: AdamW's state, which is everybody's, for all take the same steps.  noloco: AdamW's second
moments in short, so that a joiner need not begin with none.  diloco and streaming with a gap
penalty: how far the slow weights have moved; no moments, for those are each member's own and
members' checkpoints are equal.  Nothing else; a stranger chose names, sizes and numbers, so they
are checked before anything relies on them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from protocol.algorithms import DilocoConfig, NolocoConfig, SyncConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.spec import RunSpec
from trainers.compact import compact, compact_count, expanded
from trainers.inner import Moments
from trainers.outer_group import GAP
from trainers.state import Slow

FIRST, SECOND, STEPS, COMPACT = "first", "second", "steps", "compact"
MAX_STEPS = 1 << 24
"""AdamW counts in float32, which is exact up to here."""


def check_shared(slow: Slow, spec: RunSpec) -> None:
    """That a checkpoint has what the run's trainer shares, and nothing else.

    Raises:
        Malformed: it has not.
    """
    found = {name: len(vector) for name, vector in slow.shared.items()}
    expected = _sizes(spec, slow)
    if found not in ({}, expected):
        raise Malformed(f"a checkpoint that shares {found}, expected {expected}")
    if STEPS in found and not 0 <= slow.shared[STEPS].item() <= MAX_STEPS:
        raise Malformed(f"a checkpoint of {slow.shared[STEPS].item():g} optimizer steps")
    for name in {SECOND, COMPACT} & set(found):
        if (slow.shared[name] < 0).any():
            raise Malformed("a checkpoint with second moments below zero")


def has_moments(spec: RunSpec) -> bool:
    """Whether a joiner of the run is given moments."""
    return isinstance(spec.trainer, SyncConfig | NolocoConfig)


def with_moments(slow: Slow, moments: Moments, spec: RunSpec) -> Slow:
    """What a joiner of a run that has moments to give starts from."""
    kept = {STEPS: torch.tensor([float(moments.steps)])}
    if isinstance(spec.trainer, SyncConfig):
        kept |= {FIRST: moments.first_P, SECOND: moments.second_P}
    else:
        kept |= {COMPACT: compact(spec.model, moments.second_P)}
    return replace(slow, shared={**slow.shared, **kept})


def split_moments(slow: Slow, spec: RunSpec) -> tuple[Slow, Moments | None]:
    """The optimizer's state that a checkpoint has, if it has any, and what else is in it."""
    kept = dict(slow.shared)
    if STEPS not in kept:
        return slow, None
    steps = int(kept.pop(STEPS).item())
    if COMPACT in kept:
        second_P = expanded(spec.model, kept.pop(COMPACT), slow.phi_P)
        moments = Moments(torch.zeros_like(second_P), second_P, steps)
    else:
        moments = Moments(kept.pop(FIRST), kept.pop(SECOND), steps)
    return replace(slow, shared=kept), moments


def _sizes(spec: RunSpec, slow: Slow) -> dict[str, int]:
    """Numbers in each vector that is shared."""
    count = num_parameters(spec.model)
    match spec.trainer:
        case SyncConfig():
            return {FIRST: count, SECOND: count, STEPS: 1}
        case NolocoConfig():
            return {COMPACT: compact_count(spec.model, slow.phi_P), STEPS: 1}
        case DilocoConfig(gap_penalty=True):
            return {GAP: 2 * spec.num_fragments}
        case _:
            return {}
