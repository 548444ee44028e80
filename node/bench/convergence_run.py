"""One cell of the convergence figures: peers with the real model, the very machines, a LAN.

Virtual time: an inner step takes a tenth of a second, peers have 1 Gbit/s each way.  So rates are
those of a swarm in which computing takes that long, whatever machine this runs on; losses and
bytes depend on time only as far as it orders events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from node.bench.convergence_cells import Cell, closed_form_bytes, signers, steps_before
from node.bench.texts import Text
from node.sim.line import MBIT, Line
from node.sim.model import ModelLearner
from node.sim.peer import Conditions
from node.sim.worker import Speed
from node.sim.world import World
from protocol.ids import Digest, PeerId, Round
from protocol.spec import RunSpec
from trainers import tokenizer
from trainers.data import Validation
from trainers.effects import Effect
from trainers.events import Event, OuterDone
from trainers.machines import machine_of
from trainers.model import model_on

STEP_S = 0.1
"""A round number near what this model takes on one core."""
OUTER_WORK_S = 0.02
"""A snapshot, or an outer step: measured, 10 to 30 ms for a million parameters."""
LAN = Conditions(latency_s=(0.0005, 0.002), presence_s=(0.0, 0.0))
"""All know each other from the start, as nodes do that have waited for `min_members`."""
LINE = Line(up_bytes_per_s=1000 * MBIT, down_bytes_per_s=1000 * MBIT)
BOOT = bytes(8)
"""Of every peer: nobody starts twice."""
CURVE_STEPS = (40, 80, 120, 180)
"""The curve has a point at the first round that ends at or after each."""
LOOK_S = 10.0
"""Virtual; between two looks whether all have finished."""
LONGEST = 20.0
"""Times the bare inner steps: a run that lasts longer is stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Of the curve of one peer."""

    steps: int
    payload_bytes: int
    """Received until then."""
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a cell came to.  Losses are of the validation text, in nats per byte."""

    loss_peer: float
    """Of a peer's slow weights, mean over peers."""
    loss_mean: float
    """Of the mean of all peers' slow weights."""
    curve: list[Point]
    payload_bytes: int
    """Received by a peer, mean over peers."""
    closed_form_bytes: int
    peak_bytes_per_s: int
    """In one second of virtual time, everything that a peer received; the highest of all peers."""
    rounds: int
    exchanges_made: int
    exchanges_missed: int
    steps: float
    """Inner steps made, mean over peers."""
    virtual_s: float
    seconds: float
    """Of one core, that it took to compute."""


def run_cell(cell: Cell, spec: RunSpec, text: Text, bpe_json: bytes) -> Result:
    """Run a cell; torch has one thread."""
    began = time.process_time()
    bpe = tokenizer.load_tokenizer(bpe_json, spec.model.vocab)

    def tokens(part: bytes) -> Tensor:
        return torch.tensor(tokenizer.encode(bpe, part.decode()), dtype=torch.int32)

    shards = {part: tokens(part) for part in set(text.shards(cell.peers))}
    peers_tokens = [shards[part] for part in text.shards(cell.peers)]
    measure = Measure(
        spec,
        Validation(tokens(text.validation), tokenizer.token_bytes(bpe), spec.model.context),
    )
    simulated = Simulated(spec, peers_tokens, measure)
    simulated.run()
    return simulated.result(time.process_time() - began)


class Measure:
    """The yardstick; equal weights are measured once."""

    def __init__(self, spec: RunSpec, validation: Validation) -> None:
        self._spec = spec
        self._validation = validation
        self._known: dict[Digest, float] = {}

    def of_peer(self, learner: ModelLearner) -> float:
        name = learner.weights()
        if name not in self._known:
            self._known[name] = self.of(learner.slow.phi_P)
        return self._known[name]

    def of(self, weights_P: Tensor) -> float:
        """Nats per byte."""
        return self._validation.loss(model_on(self._spec.model, weights_P))


class Simulated:
    """The swarm of one cell."""

    def __init__(
        self,
        spec: RunSpec,
        tokens: list[Tensor],
        measure: Measure,
        *,
        outer_work_s: float = OUTER_WORK_S,
    ) -> None:
        """Args: tokens: of each peer."""
        self._spec = spec
        self._measure = measure
        self.world = World(spec.seed, LAN)
        self.learners: list[ModelLearner] = []
        self.curve: list[Point] = []
        self._marks = list(CURVE_STEPS)
        inner = spec.inner
        speed = Speed(
            step_s=STEP_S,
            tokens_per_step=inner.batch * spec.model.context,
            snapshot_s=outer_work_s,
            outer_s=outer_work_s,
        )
        for signer, tokens_N in zip(signers(len(tokens)), tokens, strict=True):
            learner = ModelLearner(spec, signer.peer, tokens_N)
            self.learners.append(learner)
            self.world.add(signer.peer, machine_of(spec, signer, BOOT), learner, speed, line=LINE)
        self._watched = next(iter(self.world.peers.values()))
        self.world.trace = self._look

    def run(self) -> None:
        """Until everybody has finished."""
        world = self.world
        steps = steps_before(self._spec, Round(self._spec.rounds))
        latest = LONGEST * steps * STEP_S + LOOK_S
        while any(peer.trains for peer in world.peers.values()):
            assert world.clock.now < latest, "the swarm is stuck"
            world.run_until(world.clock.now + LOOK_S)
        assert not world.blamed, world.blamed

    def _look(self, now: float, peer: PeerId, event: Event, effects: list[Effect]) -> None:
        if peer != self._watched.id or not isinstance(event, OuterDone) or not self._marks:
            return
        steps = steps_before(self._spec, event.round)
        if steps < self._marks[0]:
            return
        self._marks = [mark for mark in self._marks if mark > steps]
        loss = self._measure.of_peer(self.learners[0])
        received = self._watched.stats.payload_bytes
        self.curve.append(Point(steps=steps, payload_bytes=received, loss=loss))

    def result(self, seconds: float) -> Result:
        """What it came to."""
        world, learners = self.world, self.learners
        peers = list(world.peers.values())
        total = world.total()
        losses = [self._measure.of_peer(learner) for learner in learners]
        mean_P = torch.stack([learner.slow.phi_P for learner in learners]).mean(0)
        are_equal = len({learner.weights() for learner in learners}) == 1
        return Result(
            loss_peer=sum(losses) / len(losses),
            loss_mean=losses[0] if are_equal else self._measure.of(mean_P),
            curve=self.curve,
            payload_bytes=round(total.payload_bytes / len(peers)),
            closed_form_bytes=closed_form_bytes(self._spec, len(peers)),
            peak_bytes_per_s=round(max(peer.down.peak(world.clock.now) for peer in peers)),
            rounds=self._spec.rounds,
            exchanges_made=total.made,
            exchanges_missed=total.missed,
            steps=sum(learner.inner_step for learner in learners) / len(learners),
            virtual_s=max(peer.closed_at for peer in peers),
            seconds=seconds,
        )
