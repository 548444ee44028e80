"""What a checkpoint has besides slow weights and outer momentum, by the run's trainer.

sync: AdamW's state, which is everybody's, for all take the same steps.  diloco and streaming with
a gap penalty: how far the slow weights have moved.  Nothing else; a stranger chose names and
sizes, so they are checked before anything relies on them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from protocol.algorithms import DilocoConfig, SyncConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.spec import RunSpec
from trainers.inner import Moments
from trainers.outer_group import GAP
from trainers.state import Slow

FIRST, SECOND, STEPS = "first", "second", "steps"
MAX_STEPS = 1 << 24
"""AdamW counts in float32, which is exact up to here."""


def check_shared(slow: Slow, spec: RunSpec) -> None:
    """That a checkpoint has what the run's trainer shares, and nothing else.

    Raises:
        Malformed: it has not.
    """
    found = {name: len(vector) for name, vector in slow.shared.items()}
    expected = _sizes(spec)
    if found not in ({}, expected):
        raise Malformed(f"a checkpoint that shares {found}, expected {expected}")
    if STEPS in found and not 0 <= slow.shared[STEPS].item() <= MAX_STEPS:
        raise Malformed(f"a checkpoint of {slow.shared[STEPS].item():g} optimizer steps")


def with_moments(slow: Slow, moments: Moments) -> Slow:
    """What a joiner of a sync run starts from."""
    steps = torch.tensor([float(moments.steps)])
    kept = {FIRST: moments.first_P, SECOND: moments.second_P, STEPS: steps}
    return replace(slow, shared={**slow.shared, **kept})


def split_moments(slow: Slow) -> tuple[Slow, Moments | None]:
    """The optimizer's state in a checkpoint of a sync run, and what else is in it."""
    kept = dict(slow.shared)
    if STEPS not in kept:
        return slow, None
    moments = Moments(kept.pop(FIRST), kept.pop(SECOND), int(kept.pop(STEPS).item()))
    return replace(slow, shared=kept), moments


def _sizes(spec: RunSpec) -> dict[str, int]:
    """Numbers in each vector that is shared."""
    count = num_parameters(spec.model)
    match spec.trainer:
        case SyncConfig():
            return {FIRST: count, SECOND: count, STEPS: 1}
        case DilocoConfig(gap_penalty=True):
            return {GAP: 2 * spec.num_fragments}
        case _:
            return {}
