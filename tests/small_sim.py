"""Small simulated worlds: names, runs, and a trainer that does what a test tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from node.sim.world import World
from protocol.algorithms import SpsaConfig, TrainerConfig
from protocol.ids import Digest, PeerId, digest_of, peer_id
from protocol.model import GptConfig, InnerConfig
from protocol.spec import BlobRef, DataConfig, RunSpec
from trainers.effects import Effect
from trainers.events import Event

FAST_SPSA = SpsaConfig(inner_steps=50, lr=0.05, expected_peers=1, in_flight=4.0)


def name(n: int) -> PeerId:
    return peer_id(n.to_bytes(4, "big") + bytes(28))


def digest(text: str) -> Digest:
    return digest_of(text.encode())


def spec_of(trainer: TrainerConfig, *, rounds: int = 20) -> RunSpec:
    blob = BlobRef(digest=Digest(bytes(32)), size_bytes=1)
    return RunSpec(
        name="small",
        creator=name(0),
        seed=1,
        rounds=rounds,
        min_members=1,
        start_deadline_s=0.0,
        join_secret=None,
        model=GptConfig(layers=2, heads=1, width=8, context=8, vocab=300),
        inner=InnerConfig(batch=1),
        trainer=trainer,
        data=DataConfig(tokenizer=blob, validation=blob, corpus=None),
    )


def carry_out(world: World, id: PeerId, effect: Effect) -> None:
    """Do what the trainer of this peer might have asked for."""
    world._do[type(effect)](world.peers[id], effect)


@dataclass
class Script:
    """A trainer that records what it is told, with the time, and asks for what a test wants."""

    then: Callable[[Event], list[Effect]] = lambda _: []
    told: list[tuple[float, Event]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.told.append((round(now, 3), event))
        return self.then(event)

    def heard(self, kind: type) -> list[tuple[float, Event]]:
        """What it was told of this kind."""
        return [(at, event) for at, event in self.told if isinstance(event, kind)]
