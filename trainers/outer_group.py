"""The outer step of diloco and streaming: everybody averages the same payloads in the same order.

Slow weights, Nesterov buffers and what else is `shared` are equal on all members to the bit, for
they follow from the same shares in float32.  A fragment has a buffer of its own.

Sources: DiLoCo, https://arxiv.org/abs/2311.08105; Streaming DiLoCo,
https://arxiv.org/abs/2501.18512, algorithm 2; docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from protocol.algorithms import DilocoConfig, TrainerConfig
from protocol.ids import Digest, PeerId, Round
from protocol.labels import choices, labels
from protocol.payload import Label
from trainers import compress, outer
from trainers.effects import Share
from trainers.inner import Inner
from trainers.outer_step import Applied, Buffer, Merge, Opened, Snapshots, shifted, whole, written
from trainers.state import Slow
from trainers.subspace import Subspace

RESIDUAL = "residual"
GAP = "gap"
"""Two numbers a fragment: how far its last step went, and the longest outer gradient so far."""


class GroupOuter:
    """See `trainers.outer_step.Outer`."""

    def __init__(
        self,
        config: DilocoConfig,
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
        assert isinstance(config, DilocoConfig)
        self._config = config

    def payload_bytes(self, fragment: int) -> int:
        return self._label(Round(0), fragment).payload_bytes

    def snapshot(
        self, round: Round, fragment: int, theta_P: Tensor, out: bytearray | memoryview
    ) -> Digest:
        part, label = self._fragments[fragment], self._label(round, fragment)
        theta_F = part.gather(theta_P)
        gradient_F = outer.outer_gradient(part.gather(self.slow.phi_P), theta_F)
        rng = self._snapshots.rng(round, theta_F.device)
        if not self._config.feedback:
            decoded_F = written(gradient_F, label, rng, memoryview(out))
            return self._snapshots.add(out, Opened(theta_F, (decoded_F,), None, fragment))
        before = self._snapshots.newest_of(fragment)  # stale: its outer step may not be taken yet
        lost_F = before.residual_F if before else None
        if lost_F is None:
            lost_F = self._residual(fragment)
        decoded_F, residual_F = compress.encode_with_feedback(gradient_F, lost_F, label, rng, out)
        return self._snapshots.add(out, Opened(theta_F, (decoded_F,), residual_F, fragment))

    def restart(self, fragment: int) -> Merge | None:
        if not self._config.stale:
            return None
        part, phi_F = self._fragments[fragment], self._fragments[fragment].gather(self.slow.phi_P)

        def merge(inner: Inner) -> None:
            part.scatter(phi_F, inner.theta_P)

        return merge

    def apply(
        self,
        round: Round,
        fragment: int,
        mine: Digest | None,
        shares: Sequence[Share],
        contents: Mapping[Digest, Buffer],
    ) -> Applied:
        part = self._fragments[fragment]
        opened = self._snapshots.get(mine) if mine else None
        before_F = part.gather(self.slow.phi_P)
        is_in = not shares or mine in [share.digest for share in shares]
        shared, own = dict(self.slow.shared), dict(self.slow.own)
        gradient_F = self._mean(fragment, opened, before_F, shares, contents)
        phi_F, buffer_F = self._step(fragment, before_F, gradient_F, shared)
        self._snapshots.close(mine)
        is_sent = bool(is_in and shares)
        unsent = None if is_sent else opened
        self._rebase(fragment, phi_F - before_F, unsent)
        if opened and opened.residual_F is not None and is_sent:
            whole_P = whole(own, RESIDUAL, self.slow.phi_P)
            own[RESIDUAL] = part.replaced(opened.residual_F, whole_P)
        self.slow = Slow(
            round,
            part.replaced(phi_F, self.slow.phi_P),
            part.replaced(buffer_F, self.slow.delta_P),
            shared,
            own,
        )
        if opened and is_in:
            merge, went_F = self._merge_ours(part, before_F, phi_F), opened.theta_F
        elif opened and self._config.stale:  # we have begun anew, and that was not averaged
            merge, went_F = shifted(part, phi_F - before_F + opened.theta_F - before_F), before_F
        else:
            merge, went_F = shifted(part, phi_F - before_F), before_F
        norm = (before_F - went_F).norm().item()
        return Applied(merge=merge, slow=self.slow, gradient_norm=norm)

    def _mean(
        self,
        fragment: int,
        opened: Opened | None,
        phi_F: Tensor,
        shares: Sequence[Share],
        contents: Mapping[Digest, Buffer],
    ) -> Tensor:
        """The mean outer gradient; our own exact one where there is nobody else."""
        if not shares:
            assert opened is not None, "alone, and no snapshot"
            return outer.outer_gradient(phi_F, opened.theta_F)
        vectors: list[Tensor] = []
        for share in shares:
            label = self._label(share.round, fragment)
            vectors += self._snapshots.read(share, (label,), contents, phi_F.device)
        return outer.weighted_mean(vectors, [share.weight for share in shares])

    def _step(
        self, fragment: int, phi_F: Tensor, gradient_F: Tensor, shared: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Slow weights and buffer after the outer step; with CO2's options `shared` changes."""
        config, part = self._config, self._fragments[fragment]
        if config.gap_penalty:
            gaps = shared.get(GAP, torch.zeros(2 * len(self._fragments))).clone()
            moved, reach = gaps[2 * fragment : 2 * fragment + 2]
            reach.fill_(max(reach.item(), gradient_F.norm().item()))
            gradient_F = gradient_F / outer.staleness_gap(moved.item(), reach.item())
            shared[GAP] = gaps
        after_F, buffer_F = outer.nesterov(
            phi_F,
            part.gather(self.slow.delta_P),
            gradient_F,
            lr=config.outer_lr,
            momentum=config.outer_momentum,
            clip=config.momentum_clip,
        )
        if config.gap_penalty:
            moved.fill_((after_F - phi_F).norm().item())
        return after_F, buffer_F

    def _rebase(self, fragment: int, shift_F: Tensor, unsent: Opened | None) -> None:
        """Measure a newer snapshot of the fragment from the new slow weights.

        With `stale` there may be one.  Its payload is under way, so its theta moves with what it
        was measured from; and if the older payload was not used, neither is what that one lost.
        """

        def changed(newer: Opened) -> Opened:
            residual_F = newer.residual_F
            if residual_F is not None and unsent and unsent.residual_F is not None:
                residual_F = residual_F - unsent.residual_F + self._residual(fragment)
            return replace(newer, theta_F=newer.theta_F + shift_F, residual_F=residual_F)

        self._snapshots.change(fragment, changed)

    def _residual(self, fragment: int) -> Tensor:
        """What the codec has lost of this fragment."""
        whole_P = whole(self.slow.own, RESIDUAL, self.slow.phi_P)
        return self._fragments[fragment].gather(whole_P)

    def _merge_ours(self, part: Subspace, before_F: Tensor, phi_F: Tensor) -> Merge:
        """What the step does to our fast weights, whose way is in the mean."""
        if self._config.stale:  # they have begun anew since
            return shifted(part, phi_F - before_F)
        mix = self._config.mix

        def merge(inner: Inner) -> None:
            now_F = part.gather(inner.theta_P)
            part.scatter(outer.mixed(now_F, phi_F, mix=mix), inner.theta_P)

        return merge

    def _label(self, round: Round, fragment: int) -> Label:
        count = self._fragments[fragment].size
        (label,) = labels(self._config, round=round, fragment=fragment, count=count)
        return label
