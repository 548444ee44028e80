"""The learner as the driver sees it, with an eye on what it answers: that goes into the journal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from node.arena import ArenaFull
from node.journal import Journal
from node.learner import InnerResult, Learner
from node.records.tally import Due
from node.worker import wire
from node.worker.wire_control import ChangeSettings
from protocol.changes import InForce
from protocol.errors import ConfigError, PayloadRefused
from protocol.ids import Digest, PeerId, Round
from protocol.spsa import Frame
from trainers.effects import ApplyOuter
from trainers.events import Resumed, Sampled

PAIR = 2
MAX_PAYLOADS = 4
"""Payloads of ours whose tokens are remembered: one is open, and one ahead."""
SPREADS = 8
"""Exchanges whose spread is averaged for the live consensus figure.  A guess."""


def resumed(ready: wire.Ready) -> Resumed:
    """What a worker that stands somewhere means to the trainer."""
    return Resumed(ready.round, ready.weights, ready.horizon)


class NotedLearner:
    """`node.shell_ports.Learner` over the worker process."""

    def __init__(
        self,
        learner: Learner,
        journal: Journal,
        go_over_to: Callable[[PeerId], Awaitable[wire.Ready]],
    ) -> None:
        """Args: go_over_to: takes a member's weights; raises `PeerError`, `WorkerLost`."""
        self._learner = learner
        self._journal = journal
        self._go_over_to = go_over_to
        self._tokens = 0
        """Of the inner steps since the last snapshot."""
        self._payloads: dict[Digest, tuple[Round, int]] = {}
        """Rounds and tokens of our newest ones."""

    async def inner(self, round: Round, steps: int) -> InnerResult:
        result = await self._learner.inner(round, steps)
        self._tokens = result.tokens
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return result

    def close_inner(self) -> None:
        self._learner.close_inner()

    def change(self, changes: tuple[InForce, ...]) -> None:
        self._journal.changed(changes)
        self._learner.change(ChangeSettings(changes))

    async def snapshot(self, round: Round, fragment: int) -> tuple[Digest, int]:
        try:
            digest, size_bytes = await self._learner.snapshot(round, fragment)
        except ArenaFull as error:
            raise ConfigError(
                f"{error}; raise memory_mib in node.toml, or what the system grants (ulimit -n)"
            ) from error
        self._payloads[digest] = (round, self._tokens)
        self._payloads = dict(list(self._payloads.items())[-MAX_PAYLOADS:])
        self._tokens = 0
        return digest, size_bytes

    async def outer(self, effect: ApplyOuter) -> Digest:
        due = self._due(effect)
        self._journal.tally.add(due)
        await self._journal.tally.flush()  # before the worker can save what it counts
        try:
            done = await self._learner.outer(effect)
        except PayloadRefused:
            self._journal.tally.drop(due.closes)
            raise
        self._journal.stands_at(effect.round, done.weights)
        if len(effect.shares) == PAIR:
            self._journal.spreads = [*self._journal.spreads, done.spread][-SPREADS:]
        return done.weights

    def _due(self, effect: ApplyOuter) -> Due:
        """What the round will count; a payload that no roster names counts in a later one."""
        round, tokens = Round(effect.round - 1), 0
        if effect.mine is None:
            tokens = 0 if effect.shares else self._tokens  # local makes no payload
        elif effect.mine in self._payloads:
            round, tokens = self._payloads[effect.mine]
            if effect.shares and effect.mine not in {share.digest for share in effect.shares}:
                tokens = 0
        return Due(round, effect.round, tokens, len(effect.shares) < PAIR)

    async def sample(self, boot: bytes, step: int, steps: int) -> Sampled:
        sampled = await self._learner.sample(boot, step, steps)
        if self._journal.weights is None:  # a record names a sum before the first base does
            self._journal.weights = self._learner.began_at
        if self._learner.progress:
            self._journal.loss = self._learner.progress.loss
        return sampled

    async def add_scalars(self, frames: tuple[Frame, ...]) -> None:
        await self._journal.tally.flush()  # before the worker can save scalars of a closed round
        await self._learner.add_scalars(frames)

    async def name_sum(self, less: tuple[Frame, ...]) -> Digest:
        sum = self._journal.weights = await self._learner.name_sum(less)
        return sum

    async def catch_up(self, source: PeerId) -> Resumed:
        ready = await self._go_over_to(source)
        self._journal.resumed(ready.round)
        if not ready.horizon:  # spsa has taken over a sum, and goes on with its own steps
            self._journal.begins(ready.round, ready.weights)
        return resumed(ready)
