"""Every trainer of a run file has its machine and its tensor side."""

from __future__ import annotations

import pytest
import torch
from outer_peer import MODEL, START_P
from samples import CREATOR, spec

from protocol.algorithms import TRAINERS
from protocol.ids import Round
from trainers.local import Local
from trainers.machines import machine_of
from trainers.noloco import Noloco
from trainers.outer_group import GroupOuter
from trainers.outer_local import LocalOuter, SyncOuter
from trainers.outer_pair import PairOuter
from trainers.outers import outer_of
from trainers.spsa import Spsa
from trainers.state import Slow
from trainers.streaming import Streaming

MACHINES: dict[str, type] = {
    "noloco": Noloco,
    "diloco": Streaming,
    "streaming": Streaming,
    "spsa": Spsa,
    "sync": Streaming,
    "local": Local,
}
OUTERS: dict[str, type] = {
    "noloco": PairOuter,
    "diloco": GroupOuter,
    "streaming": GroupOuter,
    "sync": SyncOuter,
    "local": LocalOuter,
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_trainer_has_its_machine(kind: str) -> None:
    machine = machine_of(spec(trainer=TRAINERS[kind]()), CREATOR, bytes(8))
    assert type(machine) is MACHINES[kind]


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_trainer_but_spsa_has_its_outer_step(kind: str) -> None:
    run = spec(model=MODEL, trainer=TRAINERS[kind]())
    slow = Slow(Round(0), START_P, torch.zeros_like(START_P))
    if kind == "spsa":
        with pytest.raises(ValueError, match="spsa has no outer step"):
            outer_of(run, CREATOR.peer, slow)
    else:
        assert type(outer_of(run, CREATOR.peer, slow)) is OUTERS[kind]
