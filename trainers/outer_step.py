"""The tensor side of a trainer: what a round's snapshot sends, and what its outer step changes.

One object lives in the worker (and in a simulated peer), belongs to one thread, and is told by
the machine when.  A payload that is not what it must be changes nothing.  The fast weights
belong to the training thread, so what an outer step does to them is handed over as a `Merge`,
carried out between two inner steps.

Here: the contract and what all have in common; `trainers.outer_pair`, `trainers.outer_group`
and `trainers.outer_local` are the trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from protocol.algorithms import TrainerConfig
from protocol.errors import Malformed, PayloadRefused
from protocol.ids import Digest, PeerId, Round, digest_of, seed_of
from protocol.labels import found_in
from protocol.payload import Label, parts
from trainers import compress
from trainers.effects import Share
from trainers.inner import Inner
from trainers.state import Slow
from trainers.subspace import Subspace

Buffer = bytes | bytearray | memoryview
Merge = Callable[[Inner], None]
MAX_OPEN = 2
"""Snapshots whose outer step is not taken: the newest, and with `stale` the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An outer step that was taken."""

    merge: Merge
    """What it does to the fast weights."""
    slow: Slow | None
    """Slow weights and momentum from now on; None: the fast weights after the merge."""
    gradient_norm: float = 0.0
    """How far this peer's own inner steps went."""
    spread: float = 0.0
    """Of the pair, see `trainers.outer.vector_spread`; 0 alone."""


class Outer(Protocol):
    """The tensor side of one trainer."""

    slow: Slow

    def use(self, config: TrainerConfig) -> None:
        """Settings of the next snapshot; what the creator can change of them is the codec."""

    def payload_bytes(self, fragment: int) -> int:
        """Length of the payload of a fragment, exact."""

    def snapshot(
        self, round: Round, fragment: int, theta_P: Tensor, out: bytearray | memoryview
    ) -> Digest:
        """Write the payload into `out`, which has its length, and keep what the step needs.

        Args:
            theta_P: the fast weights (sync: the gradient), which are this object's from now on.

        Raises:
            ValueError: a value is not finite: training diverged.
        """

    def restart(self, fragment: int) -> Merge | None:
        """What a snapshot of a fragment does to the fast weights; None: they stay.

        Stale (CO2): inner steps begin anew from the slow weights, for those made so far are on
        their way and come back in the average.
        """

    def apply(
        self,
        round: Round,
        fragment: int,
        mine: Digest | None,
        shares: Sequence[Share],
        contents: Mapping[Digest, Buffer],
    ) -> Applied:
        """Take the outer step that ends in `round`; see `trainers.effects.ApplyOuter`.

        Raises:
            PayloadRefused: a payload is not what it must be; nothing was changed.
        """


@dataclass(frozen=True, slots=True)
class Opened:
    """A snapshot whose outer step is not taken."""

    theta_F: Tensor
    """The fast weights of the fragment, exact."""
    decoded: tuple[Tensor, ...]
    """Each part of the payload as the others will decode it."""
    residual_F: Tensor | None
    """What the codec lost, to be kept if the payload is used."""
    fragment: int


def written(vector_F: Tensor, label: Label, rng: Generator, out: memoryview) -> Tensor:
    """Encode a vector; as the others will decode it."""
    compress.encode(vector_F, label, rng, out)
    return compress.decode(out, label).to(vector_F.device)


def shifted(part: Subspace, shift_F: Tensor) -> Merge:
    """The fast weights of a fragment move by this; what they had come by stays."""

    def merge(inner: Inner) -> None:
        part.scatter(part.gather(inner.theta_P) + shift_F, inner.theta_P)

    return merge


def whole(kept: Mapping[str, Tensor], name: str, like_P: Tensor) -> Tensor:
    """A vector that is kept beside the slow weights; zero before there was any."""
    whole_P = kept.get(name)
    return torch.zeros_like(like_P) if whole_P is None else whole_P


class Snapshots:
    """The open snapshots of one peer, and how payloads are written and read."""

    def __init__(self, seed: int, peer: PeerId, choices: tuple[tuple[str, ...], ...]) -> None:
        """Args: choices: for each part of a payload the codecs that another's may have."""
        self._seed = seed
        self._peer = peer
        self._choices = choices
        self._open: dict[Digest, Opened] = {}

    def rng(self, round: Round, device: torch.device) -> Generator:
        """Draws the rounding of this round."""
        return Generator(device).manual_seed(seed_of(self._seed, "rounding", self._peer, round))

    def add(self, out: Buffer, opened: Opened) -> Digest:
        """Keep a snapshot under the name of its payload."""
        digest = digest_of(out)
        self._open[digest] = opened
        for old in list(self._open)[:-MAX_OPEN]:
            del self._open[old]
        return digest

    def newest_of(self, fragment: int) -> Opened | None:
        """The newest open snapshot of a fragment."""
        found = [opened for opened in self._open.values() if opened.fragment == fragment]
        return found[-1] if found else None

    def change(self, fragment: int, change: Callable[[Opened], Opened]) -> None:
        """Replace the open snapshots of a fragment."""
        for digest, opened in self._open.items():
            if opened.fragment == fragment:
                self._open[digest] = change(opened)

    def get(self, digest: Digest) -> Opened:
        """The open snapshot of this payload.  Raises KeyError: there is none."""
        return self._open[digest]

    def close(self, digest: Digest | None) -> None:
        """Its outer step is taken."""
        if digest is not None:
            del self._open[digest]

    def read(
        self,
        share: Share,
        labels: tuple[Label, ...],
        contents: Mapping[Digest, Buffer],
        device: torch.device,
    ) -> tuple[Tensor, ...]:
        """The parts of a payload: of our own as kept, of another's from its bytes.

        Another's may be in another codec, if the creator may change that.

        Raises:
            PayloadRefused: it is not what the labels say.
        """
        if share.digest in self._open:
            return self._open[share.digest].decoded
        try:
            labels = found_in(contents[share.digest], labels, self._choices)
            views = parts(contents[share.digest], labels)
            return tuple(
                compress.decode(view, label).to(device)
                for view, label in zip(views, labels, strict=True)
            )
        except Malformed as error:
            raise PayloadRefused(share.digest, str(error)) from error
