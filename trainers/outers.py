"""Which outer step a run has: the one place that goes from a trainer's settings to its tensors."""

from __future__ import annotations

from typing import assert_never

from protocol.algorithms import DilocoConfig, LocalConfig, NolocoConfig, SpsaConfig, SyncConfig
from protocol.ids import PeerId
from protocol.spec import RunSpec
from trainers.fragments import fragments
from trainers.outer_group import GroupOuter
from trainers.outer_local import LocalOuter, SyncOuter
from trainers.outer_pair import PairOuter
from trainers.outer_step import Outer
from trainers.state import Slow


def outer_of(spec: RunSpec, peer: PeerId, slow: Slow) -> Outer:
    """The tensor side of the run's trainer, from these slow weights on."""
    config, names = spec.trainer, spec.changeable
    match config:
        case NolocoConfig():
            parts = fragments(spec.model, config.fragment_layers)
            return PairOuter(config, parts, slow, seed=spec.seed, peer=peer, changeable=names)
        case DilocoConfig():
            parts = fragments(spec.model, config.fragment_layers)
            return GroupOuter(config, parts, slow, seed=spec.seed, peer=peer, changeable=names)
        case SyncConfig():
            return SyncOuter(
                config,
                spec.inner,
                slow,
                rounds=spec.rounds,
                seed=spec.seed,
                peer=peer,
                changeable=names,
            )
        case LocalConfig():
            return LocalOuter(slow)
        case SpsaConfig():
            raise ValueError("spsa has no outer step")
        case _:
            assert_never(config)
