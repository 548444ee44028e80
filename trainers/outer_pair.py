"""noloco's outer step: the mean with one partner, heavy ball, on a fragment or the whole model.

`vectors` = 1: one payload with v.  `vectors` = 2: slow weights, and the outer gradient in few
bits, as published; here both are under way while the next inner steps are made.

Source: NoLoCo, https://arxiv.org/abs/2506.10911; docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protocol.algorithms import NolocoConfig, TrainerConfig
from protocol.ids import Digest, PeerId, Round
from protocol.labels import choices, labels
from protocol.payload import Label
from trainers import compress, outer
from trainers.effects import Share
from trainers.outer_step import Applied, Buffer, Merge, Opened, Snapshots, shifted, whole, written
from trainers.state import Slow
from trainers.subspace import Subspace

RESIDUAL = "residual"
STALE = "stale"
REACH = "reach"


class PairOuter:
    """See `trainers.outer_step.Outer`."""

    def __init__(
        self,
        config: NolocoConfig,
        fragments: tuple[Subspace, ...],
        slow: Slow,
        *,
        seed: int,
        peer: PeerId,
        changeable: tuple[str, ...] = (),
    ) -> None:
        """Args: changeable: of the run's spec."""
        self.slow = slow
        self._config = config
        self._fragments = fragments
        self._snapshots = Snapshots(seed, peer, choices(config, changeable))

    def use(self, config: TrainerConfig) -> None:
        assert isinstance(config, NolocoConfig)
        self._config = config

    def payload_bytes(self, fragment: int) -> int:
        return sum(label.payload_bytes for label in self._labels(Round(0), fragment))

    def snapshot(
        self, round: Round, fragment: int, theta_P: Tensor, out: bytearray | memoryview
    ) -> Digest:
        config, part = self._config, self._fragments[fragment]
        theta_F, phi_F = part.gather(theta_P), part.gather(self.slow.phi_P)
        rng = self._snapshots.rng(round, theta_F.device)
        parts = self._labels(round, fragment)
        view = memoryview(out)
        if config.vectors == 1:
            vector_F = outer.pair_vector(theta_F, phi_F, beta=config.beta, gamma=config.gamma)
            return self._snapshots.add(
                out, Opened(theta_F, (written(vector_F, parts[0], rng, view),), None, fragment)
            )
        cut = parts[0].payload_bytes
        slow_F = written(phi_F, parts[0], rng, view[:cut])
        gradient_F = outer.outer_gradient(phi_F, theta_F)
        if not config.feedback:
            gradient_F = written(gradient_F, parts[1], rng, view[cut:])
            return self._snapshots.add(out, Opened(theta_F, (slow_F, gradient_F), None, fragment))
        gradient_F, residual_F = compress.encode_with_feedback(
            gradient_F, self._own(RESIDUAL, fragment), parts[1], rng, view[cut:]
        )
        return self._snapshots.add(out, Opened(theta_F, (slow_F, gradient_F), residual_F, fragment))

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
        assert mine is not None, "a pair's outer step has a snapshot"
        config, part = self._config, self._fragments[fragment]
        opened = self._snapshots.get(mine)
        phi_F, delta_F = part.gather(self.slow.phi_P), part.gather(self.slow.delta_P)
        own = dict(self.slow.own)
        spread = 0.0
        if shares:
            read = [self._read(share, fragment, contents) for share in shares]
            weights = [share.weight for share in shares]
            means = [outer.weighted_mean(vectors, weights) for vectors in zip(*read, strict=True)]
            if opened.residual_F is not None:
                own[RESIDUAL] = self._replaced(RESIDUAL, opened.residual_F, fragment)
            if len(read) == 2:
                spread = self._spread(read)
        else:
            means = []
        pull_F = self._pull(fragment, opened, phi_F, delta_F, means, own)
        phi_F, delta_F = outer.heavy_ball(
            phi_F, delta_F, pull_F, alpha=config.alpha, clip=config.momentum_clip
        )
        shift_F = outer.overlap_shift(phi_F, opened.theta_F)
        gradient_norm = (part.gather(self.slow.phi_P) - opened.theta_F).norm().item()
        slow = Slow(
            round,
            part.replaced(phi_F, self.slow.phi_P),
            part.replaced(delta_F, self.slow.delta_P),
            self.slow.shared,
            own,
        )
        self._snapshots.close(mine)
        self.slow = slow
        return Applied(
            merge=shifted(part, shift_F), slow=slow, gradient_norm=gradient_norm, spread=spread
        )

    def _pull(
        self,
        fragment: int,
        opened: Opened,
        phi_F: Tensor,
        delta_F: Tensor,
        means: list[Tensor],
        own: dict[str, Tensor],
    ) -> Tensor:
        """What is added to the outer momentum; with CO2's options `own` is changed, too."""
        config = self._config
        if config.vectors == 1:
            if not means:
                return outer.alone_pull(phi_F, opened.theta_F, beta=config.beta)
            return outer.pair_pull(means[0], phi_F, gamma=config.gamma)
        slow_F = means[0] if means else phi_F
        gradient_F = means[1] if means else outer.outer_gradient(phi_F, opened.theta_F)
        if config.stale:
            before_F = self._own(STALE, fragment)
            own[STALE] = self._replaced(STALE, gradient_F, fragment)
            gradient_F = before_F
        if config.gap_penalty:
            reaches = own.get(REACH, torch.zeros(len(self._fragments))).clone()
            went = outer.outer_gradient(phi_F, opened.theta_F).norm().item()
            reaches[fragment] = max(reaches[fragment].item(), went)
            own[REACH] = reaches
            gap = outer.staleness_gap(delta_F.norm().item(), reaches[fragment].item())
            gradient_F = gradient_F / gap
        return outer.two_vector_pull(
            slow_F, gradient_F, phi_F, beta=config.beta, gamma=config.gamma
        )

    def _spread(self, read: list[tuple[Tensor, ...]]) -> float:
        """N9: of the slow weights where they travel, else of the fast ones."""
        (mine_F, *_), (theirs_F, *_) = read
        if self._config.vectors == 2:
            return outer.spread(mine_F, theirs_F)
        return outer.vector_spread(mine_F, theirs_F, beta=self._config.beta)

    def _read(
        self, share: Share, fragment: int, contents: Mapping[Digest, Buffer]
    ) -> tuple[Tensor, ...]:
        device = self.slow.phi_P.device
        return self._snapshots.read(share, self._labels(share.round, fragment), contents, device)

    def _labels(self, round: Round, fragment: int) -> tuple[Label, ...]:
        count = self._fragments[fragment].size
        return labels(self._config, round=round, fragment=fragment, count=count)

    def _own(self, name: str, fragment: int) -> Tensor:
        """A fragment of what only this peer needs."""
        return self._fragments[fragment].gather(self._whole(name))

    def _replaced(self, name: str, part_F: Tensor, fragment: int) -> Tensor:
        return self._fragments[fragment].replaced(part_F, self._whole(name))

    def _whole(self, name: str) -> Tensor:
        return whole(self.slow.own, name, self.slow.phi_P)
