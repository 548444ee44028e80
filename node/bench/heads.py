"""A classifier on sentences trained by four peers: with scalars, and with gradients.

Peers are simulated in one process, each with its quarter of the training sentences and every
message delivered at once; what is counted is what a peer would receive.

    spsa          each peer publishes frames of 64 scalars, the peers one after the other, so a
                  scalar is measured while others' frames arrive and its own wait to be full
    adamw         the mean gradient of all peers at every step, in fp32, by a ring

A sentence's features are standardised with the training sentences' mean and deviation.

Shape suffixes: N sentences, B batch, C features, Q numbers that are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from node.bench.features import Features
from node.bench.minilm import LAYERS, WIDTH, Encoder, pooled, through_layer
from protocol.scalar import MAX_FRAME_SCALARS, Draw, LinearSchedule, shift, to_byte, weight
from trainers.perturb import signs
from trainers.scalars import Term, add_terms, slope, weights_of

PEERS = 4
NUM_TRAIN = 4_000
HEAD_NUMBERS = 2 * WIDTH + 2
FRAME_OVERHEAD_BYTES = 185
"""A message with one signed frame, less its scalars, as `protocol.spsa` encodes it."""
MIN_LR_RATIO = 0.1
LEAST_DEVIATION = 0.01
"""Three of MiniLM's features are always zero, but for some 1e-33; the others deviate by 0.09 and
more."""
EVALUATED_AT_ONCE = 100
"""Sentences of which the last layer's states are in memory."""


@dataclass(frozen=True, slots=True)
class Point:
    """How good the weights were after some steps of a peer."""

    steps: int
    received_bytes: int
    """By a peer, so far."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Sentences:
    """Standardised features and labels in the order of one seed: training, then test."""

    order_N: Tensor
    features_NC: Tensor
    labels_N: Tensor
    mean_C: Tensor
    deviation_C: Tensor

    def rows(self, peer: int, size: int, rng: Generator) -> Tensor:
        """A random batch out of the peer's quarter of the training sentences."""
        return torch.randint(0, NUM_TRAIN // PEERS, (size,), generator=rng) * PEERS + peer

    def rows_of_all(self, size: int, rng: Generator) -> Tensor:
        """Such a batch of each peer."""
        return torch.cat([self.rows(peer, size, rng) for peer in range(PEERS)])

    def standardised(self, pooled_BC: Tensor) -> Tensor:
        """Features as the head sees them."""
        return (pooled_BC - self.mean_C) / self.deviation_C

    def accuracy(self, head_Q: Tensor) -> float:
        """On the test sentences."""
        found = logits(head_Q, self.features_NC[NUM_TRAIN:]).argmax(1)
        return (found == self.labels_N[NUM_TRAIN:]).double().mean().item()


def shuffled(features: Features, seed: int) -> Sentences:
    """Another split into training and test for every seed."""
    rng = Generator().manual_seed(seed)
    order_N = torch.randperm(len(features.labels_N), generator=rng)
    pooled_NC = features.pooled_NC[order_N]
    mean_C = pooled_NC[:NUM_TRAIN].mean(0)
    deviation_C = pooled_NC[:NUM_TRAIN].std(0).clamp(min=LEAST_DEVIATION)
    standardised_NC = (pooled_NC - mean_C) / deviation_C
    return Sentences(order_N, standardised_NC, features.labels_N[order_N], mean_C, deviation_C)


def logits(head_Q: Tensor, features_BC: Tensor) -> Tensor:
    """(B, 2)."""
    return F.linear(features_BC, head_Q[:-2].view(2, WIDTH), head_Q[-2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class SpsaSettings:
    """`protocol.algorithms.SpsaConfig` as far as it matters here."""

    lr: float
    eps: float
    in_flight: float
    batch: int
    """Sentences of one scalar."""
    scalars: int
    """Of each peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamwSettings:
    """torch's AdamW with a line from lr down to a tenth of it."""

    lr: float
    """Of the head."""
    batch: int
    """Sentences of a peer in one step."""
    steps: int
    layer_lr: float = 0.0
    """Of the last layer, which is pretrained."""
    evaluate_every: int = 1


def spsa_head(sentences: Sentences, seed: int, settings: SpsaSettings) -> list[Point]:
    """Train the head with scalars; a point for every frame that was published."""
    start_Q = theta_Q = torch.zeros(HEAD_NUMBERS)
    sum_Q = torch.zeros(HEAD_NUMBERS, dtype=torch.int64)
    rng = Generator().manual_seed(seed)
    part_steps = MAX_FRAME_SCALARS // PEERS
    frames: list[list[tuple[Draw, int]]] = [[] for _ in range(PEERS)]
    points, sent_bytes = [Point(0, 0, sentences.accuracy(theta_Q))], 0
    for part in range(settings.scalars // part_steps):
        for peer, frame in enumerate(frames):
            draws = [
                Draw(key=seed * PEERS + peer, step=part * part_steps + i, sample=0)
                for i in range(part_steps)
            ]
            for draw, signs_Q in zip(draws, signs(draws, HEAD_NUMBERS), strict=True):
                loss = partial(_loss, sentences, sentences.rows(peer, settings.batch, rng))
                frame.append((draw, to_byte(slope(theta_Q, signs_Q, settings.eps, loss))))
        add_terms(sum_Q, _terms(frames[part % PEERS], settings))
        sent_bytes += len(frames[part % PEERS]) + FRAME_OVERHEAD_BYTES
        frames[part % PEERS] = []
        theta_Q = weights_of(start_Q, sum_Q, shift(settings.lr))
        received = sent_bytes * (PEERS - 1) // PEERS
        points.append(Point((part + 1) * part_steps, received, sentences.accuracy(theta_Q)))
    return points


def new_head() -> nn.Parameter:
    """Zeros: where every method starts."""
    return nn.Parameter(torch.zeros(HEAD_NUMBERS))


def adamw_head(
    sentences: Sentences, seed: int, settings: AdamwSettings, head_Q: nn.Parameter
) -> list[Point]:
    """Train the head with gradients."""
    rng = Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows_B = sentences.rows_of_all(settings.batch, rng)
        found = logits(head_Q, sentences.features_NC[rows_B])
        return F.cross_entropy(found, sentences.labels_N[rows_B])

    optimizer = torch.optim.AdamW([head_Q], lr=settings.lr)
    return _adamw(optimizer, settings, loss, lambda: sentences.accuracy(head_Q.detach()))


def adamw_last_layer(
    encoder: Encoder,
    features: Features,
    sentences: Sentences,
    seed: int,
    settings: AdamwSettings,
    head_Q: nn.Parameter,
) -> list[Point]:
    """Train the encoder's last layer and a head that is trained already, with gradients."""
    layer = {name: nn.Parameter(part) for name, part in encoder.layer(LAYERS - 1).items()}
    rng = Generator().manual_seed(seed)

    def found(rows_B: Tensor) -> Tensor:
        states_BTC, mask_BT = features.states(sentences.order_N[rows_B])
        pooled_BC = pooled(through_layer(states_BTC, mask_BT, layer), mask_BT)
        return logits(head_Q, sentences.standardised(pooled_BC))

    def loss() -> Tensor:
        rows_B = sentences.rows_of_all(settings.batch, rng)
        return F.cross_entropy(found(rows_B), sentences.labels_N[rows_B])

    @torch.no_grad()
    def accuracy() -> float:
        lengths_N = features.starts_N.diff()[sentences.order_N[NUM_TRAIN:]]
        rows = torch.split(lengths_N.argsort() + NUM_TRAIN, EVALUATED_AT_ONCE)  # little padding
        right = sum(int((found(r).argmax(1) == sentences.labels_N[r]).sum()) for r in rows)
        return right / len(lengths_N)

    groups = [
        {"params": [head_Q], "lr": settings.lr},
        {"params": [*layer.values()], "lr": settings.layer_lr},
    ]
    return _adamw(torch.optim.AdamW(groups), settings, loss, accuracy)


def _adamw(
    optimizer: torch.optim.AdamW,
    settings: AdamwSettings,
    loss: Callable[[], Tensor],
    accuracy: Callable[[], float],
) -> list[Point]:
    """A point for every step that is evaluated; the first and the last are."""
    groups = optimizer.param_groups
    numbers = sum(parameter.numel() for group in groups for parameter in group["params"])
    highest = [group["lr"] for group in groups]
    points = []
    for step in range(settings.steps + 1):
        if step % settings.evaluate_every == 0 or step == settings.steps:
            points.append(Point(step, step * ring_bytes(numbers), accuracy()))
        if step == settings.steps:
            break
        for group, lr in zip(groups, highest, strict=True):
            group["lr"] = lr * (1 - step / settings.steps * (1 - MIN_LR_RATIO))
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return points


def ring_bytes(numbers: int) -> int:
    """What a peer receives for one mean of all gradients: a ring, 2 (n - 1) / n of them."""
    return 2 * (PEERS - 1) * 4 * numbers // PEERS


def _terms(frame: list[tuple[Draw, int]], settings: SpsaSettings) -> list[Term]:
    """The scalars of a frame with their weights."""
    schedule = LinearSchedule(
        lr=settings.lr, min_lr_ratio=MIN_LR_RATIO, warmup_steps=0, steps=settings.scalars
    )
    return [
        Term(
            draw=draw,
            byte=byte,
            weight=weight(
                schedule,
                step=draw.step,
                authors=PEERS,
                frame_scalars=len(frame),
                in_flight=settings.in_flight,
            ),
        )
        for draw, byte in frame
    ]


def _loss(sentences: Sentences, rows_B: Tensor, head_Q: Tensor) -> float:
    found = logits(head_Q, sentences.features_NC[rows_B])
    losses_B = F.cross_entropy(found, sentences.labels_N[rows_B], reduction="none")
    return losses_B.double().mean().item()
