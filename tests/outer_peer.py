"""A peer without a worker: fast weights, and the outer step that moves them by merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from samples import spec
from torch import Generator, Tensor

from protocol.algorithms import TrainerConfig
from protocol.envelope import Signer
from protocol.ids import Digest, Round
from protocol.model import GptConfig, InnerConfig
from protocol.spec import RunSpec
from trainers.effects import Share
from trainers.inner import Inner
from trainers.model import initial_weights
from trainers.outer_step import Applied
from trainers.outers import outer_of
from trainers.state import Slow

MODEL = GptConfig(layers=2, heads=2, width=16, context=8, vocab=300)
START_P = initial_weights(MODEL, Generator().manual_seed(3))
LR = 1e-2
INNER = InnerConfig(batch=2)


def run_of(trainer: TrainerConfig, **changes: object) -> RunSpec:
    """A run of a model of two layers."""
    return spec(trainer=trainer, **({"model": MODEL, "inner": INNER} | changes))


class OuterPeer:
    """One peer; its data depends on `data_seed` and the step alone."""

    def __init__(self, run: RunSpec, name: int = 1, data_seed: int | None = None) -> None:
        torch.set_num_threads(1)  # of so small a model the threads would only wait for each other
        self.id = Signer(bytes([name]) * 32).peer
        self.inner = Inner(run.model, run.inner, START_P.clone())
        slow = Slow(Round(0), START_P, torch.zeros_like(START_P))
        self.outer = outer_of(run, self.id, slow)
        self.steps = 0
        self._data_seed = name if data_seed is None else data_seed

    @property
    def theta_P(self) -> Tensor:
        return self.inner.theta_P

    def train(self, steps: int) -> None:
        """Make inner steps."""
        for _ in range(steps):
            train_step(self.inner, self._data_seed, self.steps)
            self.steps += 1

    def drift(self) -> None:
        """Go a part of the way to this peer's own target.

        Instead of training, where weights are compared that differ in the last bit: AdamW makes
        whole steps of that in parameters without a gradient, such as key biases.
        """
        drift(self.theta_P, self._data_seed)

    def snapshot(self, round: int, fragment: int = 0) -> tuple[Digest, bytes]:
        """Name and bytes of a payload."""
        out = bytearray(self.outer.payload_bytes(fragment))
        digest = self.outer.snapshot(Round(round), fragment, self.theta_P.clone(), out)
        if restart := self.outer.restart(fragment):
            restart(self.inner)
        return digest, bytes(out)

    def apply(
        self,
        round: int,
        mine: Digest | None,
        shares: Sequence[Share] = (),
        contents: Mapping[Digest, bytes] | None = None,
        fragment: int = 0,
    ) -> Applied:
        """End `round`: take the outer step and merge it."""
        applied = self.outer.apply(Round(round + 1), fragment, mine, shares, contents or {})
        applied.merge(self.inner)
        return applied

    def alone(self, round: int, fragment: int = 0) -> Applied:
        """End `round` with nobody."""
        digest, _ = self.snapshot(round, fragment)
        return self.apply(round, digest, fragment=fragment)

    def state(self) -> list[Tensor]:
        """All that an outer step may change, copied."""
        slow = self.outer.slow
        kept = [*slow.shared.values(), *slow.own.values()]
        return [vector.clone() for vector in (slow.phi_P, slow.delta_P, self.theta_P, *kept)]


def train_step(inner: Inner, data_seed: int, step: int) -> None:
    """The inner step of this number."""
    rng = Generator().manual_seed(1000 * data_seed + step)
    tokens = torch.randint(0, MODEL.vocab, (2, MODEL.context + 1), generator=rng)
    inner.step(tokens[:, :-1], tokens[:, 1:], LR)


def drift(theta_P: Tensor, data_seed: int) -> None:
    """See `OuterPeer.drift`."""
    noise_P = torch.randn(len(theta_P), generator=Generator().manual_seed(data_seed))
    theta_P.add_(0.05 * noise_P - theta_P, alpha=0.2)


def average(peers: Sequence[OuterPeer], round: int, fragment: int = 0) -> list[Applied]:
    """End `round` on all of them with the mean of what they have, in their order."""
    made = [peer.snapshot(round, fragment) for peer in peers]
    shares = shares_of(round, [digest for digest, _ in made])
    contents = dict(made)
    return [
        peer.apply(round, mine, shares, contents, fragment)
        for peer, (mine, _) in zip(peers, made, strict=True)
    ]


def shares_of(round: int, digests: Sequence[Digest]) -> tuple[Share, ...]:
    """Equal shares of payloads that were made in `round`."""
    return tuple(Share(digest, Round(round), 1 / len(digests)) for digest in digests)


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
