"""The yardsticks: no exchange at all, and the mean gradient of all peers at every step.

Neither has slow weights of its own: they are the fast weights after each round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from protocol.algorithms import SyncConfig, TrainerConfig
from protocol.ids import Digest, PeerId, Round
from protocol.labels import choices, labels
from protocol.model import InnerConfig
from protocol.payload import Label
from trainers import outer
from trainers.effects import Share
from trainers.inner import Inner, lr_at
from trainers.outer_step import Applied, Buffer, Merge, Opened, Snapshots, written
from trainers.state import Slow


class LocalOuter:
    """See `trainers.outer_step.Outer`; nothing travels."""

    def __init__(self, slow: Slow) -> None:
        self.slow = slow

    def use(self, config: TrainerConfig) -> None:
        pass

    def payload_bytes(self, fragment: int) -> int:
        return 0

    def snapshot(
        self, round: Round, fragment: int, theta_P: Tensor, out: bytearray | memoryview
    ) -> Digest:
        raise AssertionError("local sends nothing")

    def restart(self, fragment: int) -> Merge | None:
        return None

    def apply(
        self,
        round: Round,
        fragment: int,
        mine: Digest | None,
        shares: Sequence[Share],
        contents: Mapping[Digest, Buffer],
    ) -> Applied:
        return Applied(merge=lambda inner: None, slow=None)


class SyncOuter:
    """See `trainers.outer_step.Outer`; what travels is the gradient of one batch."""

    def __init__(
        self,
        config: SyncConfig,
        inner: InnerConfig,
        slow: Slow,
        *,
        rounds: int,
        seed: int,
        peer: PeerId,
        changeable: tuple[str, ...] = (),
    ) -> None:
        """Args: changeable: of the run's spec."""
        self.slow = slow
        self._config = config
        self._inner = inner
        self._rounds = rounds
        self._snapshots = Snapshots(seed, peer, choices(config, changeable))

    def use(self, config: TrainerConfig) -> None:
        assert isinstance(config, SyncConfig)
        self._config = config

    def payload_bytes(self, fragment: int) -> int:
        return self._label(Round(0)).payload_bytes

    def snapshot(
        self, round: Round, fragment: int, theta_P: Tensor, out: bytearray | memoryview
    ) -> Digest:
        rng = self._snapshots.rng(round, theta_P.device)
        decoded_P = written(theta_P, self._label(round), rng, memoryview(out))
        return self._snapshots.add(out, Opened(theta_P, (decoded_P,), None, fragment))

    def restart(self, fragment: int) -> Merge | None:
        return None

    def apply(
        self,
        round: Round,
        fragment: int,
        mine: Digest | None,
        shares: Sequence[Share],
        contents: Mapping[Digest, Buffer],
    ) -> Applied:
        device = self.slow.phi_P.device
        if shares:
            vectors = [
                self._snapshots.read(share, (self._label(share.round),), contents, device)[0]
                for share in shares
            ]
            gradient_P = outer.weighted_mean(vectors, [share.weight for share in shares])
        else:
            assert mine is not None, "alone, and no gradient"
            gradient_P = self._snapshots.get(mine).theta_F
        self._snapshots.close(mine)
        lr = lr_at(self._inner, float(round), self._rounds)

        def merge(inner: Inner) -> None:
            inner.take_step(gradient_P, lr)

        return Applied(merge=merge, slow=None, gradient_norm=gradient_P.norm().item())

    def _label(self, round: Round) -> Label:
        count = len(self.slow.phi_P)
        (label,) = labels(self._config, round=round, fragment=0, count=count)
        return label
