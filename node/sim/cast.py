"""The peers of a scenario: who they are, how fast, how connected, with what machine.

What a peer is follows from the scenario's seed and its number alone, whatever happens.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from node.sim.learners import Learners
from node.sim.line import MBIT, Line
from node.sim.peer import Peer
from node.sim.scenario import Scenario
from node.sim.settings import GroupConfig, pair
from node.sim.toy import Toys, Vector
from node.sim.toy_scalars import ScalarToys, boot_of
from node.sim.worker import Speed
from node.sim.world import World
from protocol.algorithms import SpsaConfig
from protocol.envelope import SIGNATURE_BYTES, Domain, Signer
from protocol.errors import Malformed
from protocol.ids import PeerId, RunId, seed_of
from trainers.machines import machine_of


class HonestSigner(Signer):
    """Signs with a hash that anybody could make: no simulated peer forges anything.

    Ed25519 would be nine tenths of the time of a simulation with thousands of signed frames.
    """

    def sign(self, domain: Domain, run: RunId, body: bytes) -> bytes:
        return _mark(self.peer, domain, run, body)

    def verify(
        self, peer: PeerId, domain: Domain, run: RunId, body: bytes, signature: bytes
    ) -> None:
        if _mark(peer, domain, run, body) != signature:
            raise Malformed(f"not signed by {peer} as {domain.value.decode()}")


def _mark(peer: PeerId, domain: Domain, run: RunId, body: bytes) -> bytes:
    named = peer.encode() + domain.value + run + body
    return hashlib.blake2b(named, digest_size=SIGNATURE_BYTES).digest()


def toys_of(scenario: Scenario) -> Learners:
    """Learners for thousands."""
    groups = [group.target for group in scenario.groups for _ in range(group.count)]
    mean = sum(groups) / len(groups)

    def targets(number: int) -> Vector:
        rng = np.random.default_rng(seed_of(scenario.seed, "target", number))
        around = groups[number] if number < len(groups) else mean
        return around + scenario.toy.spread * rng.normal(size=scenario.toy.numbers)

    if isinstance(scenario.spec.trainer, SpsaConfig):
        return ScalarToys(scenario.spec, targets)
    return Toys(scenario.spec, targets)


@dataclass(slots=True)
class _Role:
    """Who a peer is, however often it starts."""

    group: str
    number: int
    signer: Signer
    speed: Speed
    starts: int = 1


class Cast:
    """All peers that take part, now and later."""

    def __init__(self, scenario: Scenario, learners: Learners, world: World) -> None:
        self.members: dict[str, list[Peer]] = {group.name: [] for group in scenario.groups}
        """By group, in the order in which they came; also those that are gone."""
        self._scenario = scenario
        self._learners = learners
        self._world = world
        self._groups = {group.name: group for group in scenario.groups}
        self._count = 0
        self._roles: dict[PeerId, _Role] = {}
        self._records = (
            world.keep_records(scenario.spec, scenario.seed) if scenario.records else None
        )
        for group in scenario.groups:
            for n in range(group.count):
                is_relayed = n < round(group.relayed * group.count)
                self.enter(group.name, is_relayed=is_relayed)
        world.meet()

    def enter(self, name: str, *, late: bool = False, is_relayed: bool | None = None) -> Peer:
        """One more peer of a group takes part."""
        scenario, group = self._scenario, self._groups[name]
        number, self._count = self._count, self._count + 1
        rng = random.Random(seed_of(scenario.seed, "peer", number))
        signer = self._signer(number)
        relayed = rng.random() < group.relayed if is_relayed is None else is_relayed
        line = Line(
            up_bytes_per_s=group.up_mbit * MBIT,
            down_bytes_per_s=group.down_mbit * MBIT,
            latency_s=rng.uniform(*pair(group.latency_s)),
            relayed=relayed,
        )
        trainer = machine_of(scenario.spec, signer, boot_of(signer.peer))
        learner = self._learners.learner(signer.peer, number)
        speed = self._speed(group, rng)
        if late:
            peer = self._world.join(signer.peer, trainer, learner, speed, line)
        else:
            peer = self._world.add(signer.peer, trainer, learner, speed, line=line)
        peer.skew_s = rng.uniform(*pair(group.clock_s))
        self.members[name].append(peer)
        self._roles[peer.id] = _Role(name, number, signer, speed)
        if self._records:
            self._records.open(peer, Signer(signer.seed))
        return peer

    def come_back(self, id: PeerId, *, is_wiped: bool) -> None:
        """A killed peer starts again under its key."""
        role, members = self._roles[id], self.members[self._roles[id].group]
        trainer = machine_of(self._scenario.spec, role.signer, boot_of(id, role.starts))
        role.starts += 1
        learner = self._learners.learner(id, role.number)
        place = [peer.id for peer in members].index(id)
        members[place] = self._world.come_back(id, trainer, learner, role.speed, is_wiped=is_wiped)
        if self._records:
            self._records.open(members[place], Signer(role.signer.seed), is_wiped=is_wiped)

    def _signer(self, number: int) -> Signer:
        seed = hashlib.blake2b(f"{self._scenario.seed}|{number}".encode(), digest_size=32).digest()
        is_spsa = isinstance(self._scenario.spec.trainer, SpsaConfig)
        return HonestSigner(seed) if is_spsa else Signer(seed)

    def _speed(self, group: GroupConfig, rng: random.Random) -> Speed:
        spec = self._scenario.spec
        return Speed(
            step_s=group.step_s * rng.uniform(1 - group.step_spread, 1 + group.step_spread),
            tokens_per_step=group.tokens or spec.inner.batch * spec.model.context,
        )
