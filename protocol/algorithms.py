"""The settings of every trainer: one class a trainer, the word for it in a run file its `KIND`.

They are part of the run spec, so all peers of a run have the same.  Constructors refuse what is
out of range or known to diverge, and name field, value and range.  What depends on the model,
too, is checked by `protocol.spec.RunSpec`.

Sources: NoLoCo, https://arxiv.org/abs/2506.10911; Streaming DiLoCo,
https://arxiv.org/abs/2501.18512; MeZO, https://arxiv.org/abs/2305.17333; CO2,
https://arxiv.org/abs/2401.16265; docs/algorithms.md for what was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol import check

VECTOR_CODECS = ("fp32", "bf16", "int8")
"""For vectors of the magnitude of weights: all of them round at random, for nearest stalls."""
GRADIENT_CODECS = ("fp32", "bf16", "int8", "e3m0", "sign", "topk")
MAX_INNER_STEPS = 100_000
MAX_GROUP = 16
"""Members of a diloco, streaming or sync run: each fetches from all others.  More use noloco."""
MAX_PATTERNS = 16
MAX_CHANGEABLE = 8
"""Settings that a spec may mark as changeable; no trainer has more than four."""
LR, INNER_STEPS = "inner.lr", "trainer.inner_steps"
CODEC, GRADIENT_CODEC = "trainer.codec", "trainer.gradient_codec"


@dataclass(frozen=True, slots=True, kw_only=True)
class _OuterOptions:
    """What every trainer with an outer step takes besides its own."""

    stale: bool = False
    """CO2: what was exchanged at the end of a round is applied at the end of the next one, so
    that an exchange may take a whole round."""
    gap_penalty: bool = False
    """CO2: divide the outer gradient by how far the slow weights have moved meanwhile."""
    momentum_clip: float = 0.0
    """CO2: bound of each entry of the outer momentum; 0: none.  Outer momenta are around 1e-3."""

    def __post_init__(self) -> None:
        check.number("trainer.momentum_clip", self.momentum_clip, 0.0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class NolocoConfig(_OuterOptions):
    """Pair gossip.  Defaults: NoLoCo 3.2, gamma = beta as in its code."""

    TAG: ClassVar[int] = 1
    KIND: ClassVar[str] = "noloco"
    inner_steps: int = 50
    """H, inner steps between two exchanges of the same fragment."""
    alpha: float = 0.5
    """Outer momentum (heavy ball)."""
    beta: float = 0.7
    """Outer learning rate."""
    gamma: float = 0.7
    """Strength of local averaging: how far slow weights move to the pair's mean."""
    vectors: int = 1
    """1: the one vector that suffices.  2: slow weights and outer gradient, as published."""
    codec: str = "bf16"
    """Of the one vector, or of the slow weights."""
    gradient_codec: str = "e3m0"
    """Of the outer gradient, with two vectors."""
    feedback: bool = False
    """Keep what the codec lost of the outer gradient for the next one (two vectors)."""
    fragment_layers: int = 0
    """Layers of a fragment, each exchanged with another partner; 0: the whole model at once."""
    proposal_deadline_s: float = 5.0
    """How long one peer may leave a proposal unanswered.  A guess."""
    exchange_deadline_s: float = 60.0
    """How long a pair may take from acceptance to commit.  A guess: 250 MB at 5 MB/s."""
    reanchor_rounds: int = 32
    """Peers so many rounds apart do not exchange; the one behind takes over weights of one ahead.
    Simulated speeds of 1 : 4 : 16 in a swarm of 60 stay within 16."""

    def __post_init__(self) -> None:
        _OuterOptions.__post_init__(self)
        check.integer("trainer.inner_steps", self.inner_steps, 1, MAX_INNER_STEPS)
        check.number("trainer.alpha", self.alpha, 0.0, 0.999)
        check.number("trainer.beta", self.beta, 0.0, 2.0)
        check.number("trainer.gamma", self.gamma, 0.0, 4.0)
        check.integer("trainer.vectors", self.vectors, 1, 2)
        check.one_of("trainer.codec", self.codec, VECTOR_CODECS)
        check.one_of("trainer.gradient_codec", self.gradient_codec, GRADIENT_CODECS)
        check.integer("trainer.fragment_layers", self.fragment_layers, 0, 256)
        check.number("trainer.proposal_deadline_s", self.proposal_deadline_s, 0.1, 600.0)
        check.number("trainer.exchange_deadline_s", self.exchange_deadline_s, 0.5, 3600.0)
        check.integer("trainer.reanchor_rounds", self.reanchor_rounds, 2, 10_000_000)
        if self.feedback and self.vectors == 1:
            raise ValueError(
                "trainer.feedback is true with trainer.vectors = 1, expected vectors = 2: one "
                "vector has the magnitude of weights and is rounded at random instead"
            )
        for option in ("stale", "gap_penalty"):
            if getattr(self, option) and self.vectors == 1:
                raise ValueError(
                    f"trainer.{option} is true with trainer.vectors = 1: averaging would be "
                    "stale, too, and peers would drift apart; expected vectors = 2"
                )
        bound = 2 * (1 - self.alpha**2)
        if self.gamma >= bound:
            raise ValueError(
                f"trainer.gamma is {self.gamma:g} with trainer.alpha {self.alpha:g}: peers would "
                f"diverge from each other; expected gamma below 2 (1 - alpha^2) = {bound:g}, "
                "so lower alpha or gamma"
            )

    @property
    def changeable(self) -> tuple[str, ...]:
        """Settings that a spec may let its creator change in the middle of the run.

        A peer may train for longer, or with another rate, than its partner: a pair's weights
        follow from tokens.  A payload says its codec itself.  What stands in the outer step
        (alpha, beta, gamma, vectors) would have to be equal on both sides of a pair.
        """
        of_gradient = (GRADIENT_CODEC,) if self.vectors == 2 else ()
        return (LR, INNER_STEPS, CODEC, *of_gradient)


@dataclass(frozen=True, slots=True, kw_only=True)
class DilocoConfig(_OuterOptions):
    """All peers average outer gradients and stay equal.  Defaults: DiLoCo as NoLoCo ran it."""

    TAG: ClassVar[int] = 2
    KIND: ClassVar[str] = "diloco"
    inner_steps: int = 100
    """H, inner steps between two averages of the same fragment."""
    outer_lr: float = 0.7
    outer_momentum: float = 0.3
    """Nesterov, in torch's form.  NoLoCo 3.2 found 0.3 better than DiLoCo's 0.9."""
    codec: str = "bf16"
    """Of the outer gradient, which is averaged in fp32."""
    feedback: bool = False
    """Keep what the codec lost for the next outer gradient of the same fragment."""
    fragment_layers: int = 0
    """Layers of a fragment, strided; embedding and last norm are one of their own; 0: one
    fragment, the whole model."""
    overlap_steps: int = 0
    """tau, inner steps made while a fragment is averaged."""
    mix: float = 0.0
    """a: how much of the fast weights stays when a fragment is applied; 0 none, 1 all."""
    round_deadline_s: float = 60.0
    """How long a leader waits for contributions, and members for its roster.  A guess."""

    def __post_init__(self) -> None:
        _OuterOptions.__post_init__(self)
        check.integer("trainer.inner_steps", self.inner_steps, 1, MAX_INNER_STEPS)
        check.number("trainer.outer_lr", self.outer_lr, 0.0, 10.0)
        check.number("trainer.outer_momentum", self.outer_momentum, 0.0, 0.999)
        check.one_of("trainer.codec", self.codec, GRADIENT_CODECS)
        check.integer("trainer.fragment_layers", self.fragment_layers, 0, 256)
        check.integer("trainer.overlap_steps", self.overlap_steps, 0, MAX_INNER_STEPS)
        check.number("trainer.mix", self.mix, 0.0, 1.0)
        check.number("trainer.round_deadline_s", self.round_deadline_s, 0.5, 3600.0)
        if self.stale and self.overlap_steps:
            raise ValueError(
                f"trainer.stale is true with trainer.overlap_steps {self.overlap_steps}, expected "
                "0: a stale average is applied a whole round later"
            )

    @property
    def changeable(self) -> tuple[str, ...]:
        """See `NolocoConfig.changeable`.

        Which fragment a round averages follows from its number, not from H, and nobody waits
        for who trains longer: it is called by the others, and weighted by tokens.  The outer
        rate and momentum have to be equal on all members to the bit.
        """
        return (LR, INNER_STEPS, CODEC)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfig(DilocoConfig):
    """DiLoCo fragment by fragment, overlapped, in four bits.  Defaults: Streaming DiLoCo 4.2."""

    TAG: ClassVar[int] = 3
    KIND: ClassVar[str] = "streaming"
    inner_steps: int = 100
    outer_lr: float = 0.4
    outer_momentum: float = 0.9
    codec: str = "e3m0"
    fragment_layers: int = 3
    overlap_steps: int = 1
    mix: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpsaConfig:
    """Shared-seed SPSA: one byte a sample.  Defaults: what worked in docs/results."""

    TAG: ClassVar[int] = 4
    KIND: ClassVar[str] = "spsa"
    inner_steps: int = 100
    """SPSA steps of a peer in a round; the rounds of a run give the schedule its length."""
    trainable: tuple[str, ...] = ("*norm*", "*bias*")
    """Patterns of parameter names: whole models do not learn at small scale."""
    lr: float = 3e-3
    eps: float = 1e-2
    """How far the weights are moved to either side."""
    samples: int = 1
    """Perturbations a step."""
    expected_peers: int = 4
    """Authors in the first interval, before a base says how many there are."""
    in_flight: float = 32.0
    """M: scalars that may be under way at once without being scaled down."""
    base_scalars: int = 10_000
    """A new base after so many scalars of all authors."""

    def __post_init__(self) -> None:
        check.integer("trainer.inner_steps", self.inner_steps, 1, MAX_INNER_STEPS)
        check.items("trainer.trainable", self.trainable, MAX_PATTERNS)
        for pattern in self.trainable:
            check.text("trainer.trainable", pattern, 64, least=1)
        if not self.trainable:
            raise ValueError("trainer.trainable is empty, expected patterns of parameter names")
        check.number("trainer.lr", self.lr, 1e-8, 1.0)
        check.number("trainer.eps", self.eps, 1e-6, 1.0)
        check.integer("trainer.samples", self.samples, 1, 64)
        check.integer("trainer.expected_peers", self.expected_peers, 1, 100_000)
        check.number("trainer.in_flight", self.in_flight, 1.0, 1e6)
        check.integer("trainer.base_scalars", self.base_scalars, 100, 100_000_000)

    @property
    def changeable(self) -> tuple[str, ...]:
        """Nothing: lr, eps and the steps of the run stand in the weight of every scalar, and a
        sum is only the same on all peers if they weigh every scalar alike."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """Data-parallel: the mean gradient of all peers at every step.  A yardstick."""

    TAG: ClassVar[int] = 5
    KIND: ClassVar[str] = "sync"
    codec: str = "fp32"
    """Of the gradient."""
    round_deadline_s: float = 60.0
    """How long a leader waits for gradients, and members for its roster."""

    def __post_init__(self) -> None:
        check.one_of("trainer.codec", self.codec, GRADIENT_CODECS)
        check.number("trainer.round_deadline_s", self.round_deadline_s, 0.5, 3600.0)

    @property
    def inner_steps(self) -> int:
        """A step is a round."""
        return 1

    @property
    def changeable(self) -> tuple[str, ...]:
        """The rate of a step is taken with everybody's gradient, so it has to be the same."""
        return (CODEC,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    """Nothing is exchanged.  A yardstick."""

    TAG: ClassVar[int] = 6
    KIND: ClassVar[str] = "local"
    inner_steps: int = 50

    def __post_init__(self) -> None:
        check.integer("trainer.inner_steps", self.inner_steps, 1, MAX_INNER_STEPS)

    @property
    def changeable(self) -> tuple[str, ...]:
        """What concerns nobody else."""
        return (LR, INNER_STEPS)


TrainerConfig = (
    NolocoConfig | DilocoConfig | StreamingConfig | SpsaConfig | SyncConfig | LocalConfig
)
GroupConfig = DilocoConfig | StreamingConfig | SyncConfig
"""Trainers whose peers average in one group and stay equal."""
TRAINERS: dict[str, type[TrainerConfig]] = {
    config.KIND: config
    for config in (
        NolocoConfig, DilocoConfig, StreamingConfig, SpsaConfig, SyncConfig, LocalConfig
    )
}  # fmt: skip
"""By the word in a run file."""
