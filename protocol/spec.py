"""The run spec: everything that must be equal on all peers of a run.

Its canonical bytes are hashed into the `RunId` and signed by the creator, so two peers with
another setting are in another run and a mismatch cannot happen.  Constructors check ranges
and name field, value and range; the noloco settings refuse what diverges.

Sources: NoLoCo, https://arxiv.org/abs/2506.10911, section 3.2 and docs/decisions.md for the
stability bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import check, codec
from protocol.envelope import Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, RunId, digest_of

FORMAT_VERSION = 1
MAX_SPEC_BYTES = 16 * 1024
MIB = 1024 * 1024
MAX_CORPUS_BYTES = 64 * MIB
"""A larger corpus is each peer's own (`data = "own"`), not a blob of the run."""
MAX_PARAMETERS = 1 << 31
"""Bounds what a payload may claim: 4 GiB in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob by name and length: enough to fetch it from anyone and to know that it is it."""

    digest: Digest
    size_bytes: int

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, 1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptConfig:
    """A small decoder-only transformer.  The default has 0.94 M parameters."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128
    """Tokens a prediction can look back on."""
    vocab: int = 1024
    """Tokens of the run's BPE tokenizer."""

    def __post_init__(self) -> None:
        check.integer("model.layers", self.layers, 1, 256)
        check.integer("model.heads", self.heads, 1, 256)
        check.integer("model.width", self.width, 8, 16384)
        check.integer("model.context", self.context, 8, 65536)
        check.integer("model.vocab", self.vocab, 257, 1 << 20)
        if self.width % self.heads:
            raise ValueError(
                f"model.width is {self.width}, expected a multiple of {self.heads} heads"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerConfig:
    """The inner optimizer: AdamW, warm-up and cosine by round, clipping."""

    batch: int = 16
    """Sequences of `context` tokens in one inner step."""
    lr: float = 2e-3
    min_lr_ratio: float = 0.1
    """The cosine ends at lr times this.  NoLoCo 3.2: lr / 10."""
    warmup_rounds: float = 1.0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient of the whole model."""
    precision: str = "fp32"
    """fp32, or bf16 autocast with fp32 weights."""

    def __post_init__(self) -> None:
        check.integer("inner.batch", self.batch, 1, 65536)
        check.number("inner.lr", self.lr, 1e-8, 10.0)
        check.number("inner.min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        check.number("inner.warmup_rounds", self.warmup_rounds, 0.0, 1e6)
        check.number("inner.weight_decay", self.weight_decay, 0.0, 10.0)
        check.number("inner.beta1", self.beta1, 0.0, 0.99999)
        check.number("inner.beta2", self.beta2, 0.0, 0.99999)
        check.number("inner.clip", self.clip, 1e-6, 1e6)
        check.one_of("inner.precision", self.precision, ("fp32", "bf16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NolocoConfig:
    """Pair gossip.  Defaults: NoLoCo 3.2, gamma = beta as in its code."""

    inner_steps: int = 50
    """H, inner steps a round."""
    alpha: float = 0.5
    """Outer momentum (heavy ball)."""
    beta: float = 0.7
    """Outer learning rate."""
    gamma: float = 0.7
    """Strength of local averaging: how far slow weights move to the pair's mean."""
    codec: str = "bf16"
    """fp32, or bf16 with stochastic rounding."""
    proposal_deadline_s: float = 5.0
    """How long one peer may leave a proposal unanswered.  A guess."""
    exchange_deadline_s: float = 60.0
    """How long a pair may take from acceptance to commit.  A guess: 250 MB at 5 MB/s."""

    def __post_init__(self) -> None:
        check.integer("trainer.inner_steps", self.inner_steps, 1, 100_000)
        check.number("trainer.alpha", self.alpha, 0.0, 0.999)
        check.number("trainer.beta", self.beta, 0.0, 2.0)
        check.number("trainer.gamma", self.gamma, 0.0, 4.0)
        check.one_of("trainer.codec", self.codec, ("fp32", "bf16"))
        check.number("trainer.proposal_deadline_s", self.proposal_deadline_s, 0.1, 600.0)
        check.number("trainer.exchange_deadline_s", self.exchange_deadline_s, 0.5, 3600.0)
        bound = 2 * (1 - self.alpha**2)
        if self.gamma >= bound:
            raise ValueError(
                f"trainer.gamma is {self.gamma:g} with trainer.alpha {self.alpha:g}: peers would "
                f"diverge from each other; expected gamma below 2 (1 - alpha^2) = {bound:g}, "
                "so lower alpha or gamma"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is trained on, by digest.  Every blob is fetched from any member."""

    tokenizer: BlobRef
    """JSON of the BPE tokenizer, trained once by the creator."""
    validation: BlobRef
    """UTF-8 text that every peer measures its loss on."""
    corpus: BlobRef | None
    """UTF-8 training text; None: each peer trains on files of its own."""

    def __post_init__(self) -> None:
        check.integer("data.tokenizer", self.tokenizer.size_bytes, 1, 64 * MIB)
        check.integer("data.validation", self.validation.size_bytes, 1, MAX_CORPUS_BYTES)
        if self.corpus:
            check.integer("data.corpus", self.corpus.size_bytes, 1, MAX_CORPUS_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One training of one model."""

    format_version: int = FORMAT_VERSION
    name: str
    creator: PeerId
    seed: int
    rounds: int
    """The run ends when a peer has closed this many."""
    min_members: int
    """Members that a starting run waits for, before its first round."""
    start_deadline_s: float
    """How long it waits for them at most."""
    join_secret: Digest | None
    """Hash of the secret in a private run's ticket; None: anyone may join."""
    model: GptConfig
    inner: InnerConfig
    trainer: NolocoConfig
    data: DataConfig

    def __post_init__(self) -> None:
        check.integer("format_version", self.format_version, FORMAT_VERSION, FORMAT_VERSION)
        check.text("name", self.name, 64, least=1)
        check.peer("creator", self.creator)
        check.integer("seed", self.seed, 0, (1 << 63) - 1)
        check.integer("rounds", self.rounds, 1, 10_000_000)
        check.integer("min_members", self.min_members, 1, 64)
        check.number("start_deadline_s", self.start_deadline_s, 0.0, 86400.0)
        if self.join_secret is not None:
            check.digest("join_secret", self.join_secret)

    @property
    def run(self) -> RunId:
        """The name of the run."""
        return RunId(digest_of(codec.encode(self)))


@dataclass(frozen=True, slots=True)
class SignedSpec:
    """A run spec as it travels: canonical bytes and the creator's signature."""

    body: bytes
    signature: bytes

    def open(self, run: RunId) -> RunSpec:
        """The spec of `run`.

        Raises:
            Malformed: another run's, broken, or not signed by the creator it names.
        """
        if RunId(digest_of(self.body)) != run:
            raise Malformed("the spec of another run")
        spec = codec.decode(RunSpec, self.body, max_bytes=MAX_SPEC_BYTES)
        verify(spec.creator, Domain.SPEC, run, self.body, self.signature)
        return spec


def sign_spec(spec: RunSpec, signer: Signer) -> SignedSpec:
    """The spec as its creator publishes it."""
    body = codec.encode(spec)
    return SignedSpec(body, signer.sign(Domain.SPEC, spec.run, body))
