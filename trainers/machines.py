"""Which machine a run has: the one place that goes from a trainer's settings to its decisions."""

from __future__ import annotations

from random import Random
from typing import assert_never

from protocol.algorithms import (
    CODEC,
    GRADIENT_CODEC,
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    SyncConfig,
)
from protocol.envelope import Signer
from protocol.ids import seed_of
from protocol.labels import possible_sizes
from protocol.spec import RunSpec
from trainers.local import Local
from trainers.machine import Trainer
from trainers.noloco import Noloco
from trainers.spsa import Spsa
from trainers.streaming import Streaming


def machine_of(spec: RunSpec, signer: Signer, boot: bytes) -> Trainer:
    """The machine of this peer in the run.

    Args:
        boot: 8 random bytes of this start of the node.
    """
    config = spec.trainer
    sizes = possible_sizes(spec) if {CODEC, GRADIENT_CODEC} & set(spec.changeable) else ()
    match config:
        case NolocoConfig():
            return Noloco(
                signer.peer,
                config,
                run=spec.run,
                rounds=spec.rounds,
                fragments=spec.num_fragments,
                max_tokens=spec.max_tokens,
                most_claimed=spec.most_claimed,
                sizes=sizes,
            )
        case LocalConfig():
            return Local(config, rounds=spec.rounds)
        case DilocoConfig() | SyncConfig():
            return Streaming(
                signer.peer,
                config,
                run=spec.run,
                signer=signer,
                rounds=spec.rounds,
                fragments=spec.num_fragments,
                max_tokens=spec.max_tokens,
                most_claimed=spec.most_claimed,
                sizes=sizes,
            )
        case SpsaConfig():
            return Spsa(
                signer.peer,
                config,
                run=spec.run,
                seal=signer,
                boot=boot,
                rng=Random(seed_of(spec.run, signer.peer, boot, "partners")),
                rounds=spec.rounds,
            )
        case _:
            assert_never(config)
