"""The run spec: everything that must be equal on all peers of a run.

Its canonical bytes are hashed into the `RunId` and signed by the creator, so two peers with
another setting are in another run and a mismatch cannot happen.  Constructors check ranges
and name field, value and range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from protocol import check, codec, fragments
from protocol.algorithms import (
    INNER_STEPS,
    MAX_CHANGEABLE,
    MAX_INNER_STEPS,
    DilocoConfig,
    GroupConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.envelope import Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.limits import MAX_TOKENS, MIB
from protocol.manifest import MAX_BLOB_BYTES
from protocol.model import GptConfig, InnerConfig
from protocol.shards import ProtectionConfig

FORMAT_VERSION = 1
MAX_SPEC_BYTES = 16 * 1024
LEFT_ROUNDS = 4
"""Rounds in a row that no roster may name, and whose tokens still count in the next.  A guess."""
MAX_CORPUS_BYTES = 64 * MIB
"""A larger corpus is each peer's own (`data = "own"`), not a blob of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob by name and length: enough to fetch it from anyone and to know that it is it."""

    digest: Digest
    """Of its manifest, which names every chunk: `protocol.manifest`."""
    size_bytes: int

    def __post_init__(self) -> None:
        check.digest("digest", self.digest)
        check.integer("size_bytes", self.size_bytes, 1, MAX_BLOB_BYTES)


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
    trainer: TrainerConfig
    data: DataConfig
    protection: ProtectionConfig | None = None
    """How each member's private state is kept in the memory of others; None: it is not."""
    changeable: tuple[str, ...] = ()
    """Settings that the creator may change in the middle of the run (`protocol.changes`), as a
    run file names them; sorted, and of those that its trainer can stand."""

    def __post_init__(self) -> None:
        check.integer("format_version", self.format_version, FORMAT_VERSION, FORMAT_VERSION)
        check.line("name", self.name, 64, least=1)
        check.peer("creator", self.creator)
        check.integer("seed", self.seed, 0, (1 << 63) - 1)
        check.integer("rounds", self.rounds, 1, 10_000_000)
        check.integer("min_members", self.min_members, 1, 64)
        check.number("start_deadline_s", self.start_deadline_s, 0.0, 86400.0)
        if self.join_secret is not None:
            check.digest("join_secret", self.join_secret)
        self._check_steps()
        self._check_changeable()
        self._check_protection()

    def _check_changeable(self) -> None:
        """That a change in the middle breaks nothing, whoever hears of it when."""
        check.items("changeable", self.changeable, MAX_CHANGEABLE)
        allowed = self.trainer.changeable
        for name in self.changeable:
            if name not in allowed:
                raise ValueError(
                    f"changeable names {name!r:.40}, which no {self.trainer.KIND} run can change "
                    f"in the middle; expected some of {', '.join(allowed) or 'nothing'}"
                )
        if list(self.changeable) != sorted(set(self.changeable)):
            raise ValueError("changeable is not sorted, or names a setting twice")

    def _check_steps(self) -> None:
        """That every round has a step, and an overlap ends before the next fragment's turn."""
        trainer, fragments = self.trainer, self.num_fragments
        shortest = trainer.inner_steps // fragments
        if shortest < 1:
            raise ValueError(
                f"trainer.inner_steps is {trainer.inner_steps} with {fragments} fragments, "
                "expected a step or more for each of them"
            )
        overlap = trainer.overlap_steps if isinstance(trainer, DilocoConfig) else 0
        if overlap and overlap >= shortest:
            raise ValueError(
                f"trainer.overlap_steps is {overlap}, expected less than the {shortest} inner "
                "steps of a round: trainer.inner_steps over the number of fragments"
            )

    def _check_protection(self) -> None:
        if self.protection and isinstance(self.trainer, SpsaConfig | SyncConfig):
            raise ValueError(
                f"there is a table protection, but trainer.kind is {self.trainer.KIND}, expected "
                "noloco, diloco, streaming or local: here every member holds all there is to lose"
            )

    @property
    def num_fragments(self) -> int:
        """P: in so many rounds every parameter is exchanged once."""
        trainer = self.trainer
        if isinstance(trainer, NolocoConfig | DilocoConfig):
            return fragments.num_fragments(self.model, trainer.fragment_layers)
        return 1

    def fragment_counts(self) -> tuple[int, ...]:
        """Numbers in each fragment."""
        trainer = self.trainer
        layers = trainer.fragment_layers if isinstance(trainer, NolocoConfig | DilocoConfig) else 0
        return fragments.fragment_counts(self.model, layers)

    def round_steps(self, round: Round) -> int:
        """Inner steps of this round."""
        return fragments.round_steps(self.trainer.inner_steps, self.num_fragments, round)

    @property
    def exchange_deadline_s(self) -> float:
        """How long a payload may be on its way; the round goes on without it."""
        match self.trainer:
            case NolocoConfig(exchange_deadline_s=deadline_s):
                return deadline_s
            case (
                DilocoConfig(round_deadline_s=deadline_s) | SyncConfig(round_deadline_s=deadline_s)
            ):
                return deadline_s
            case SpsaConfig() | LocalConfig():
                return 0.0  # nothing is fetched
            case _:
                assert_never(self.trainer)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one round of one peer that weigh in a mean: those of a round as founded,
        for weights must not depend on when somebody heard that it is longer now."""
        steps = -(-self.trainer.inner_steps // self.num_fragments)
        return steps * self.inner.batch * self.model.context

    @property
    def most_claimed(self) -> int:
        """Most tokens that one contribution may claim: of a round as long as the creator may make
        it, and in a group of those before it that no roster named."""
        steps = self.trainer.inner_steps
        if INNER_STEPS in self.changeable:
            steps = MAX_INNER_STEPS
        rounds = LEFT_ROUNDS if isinstance(self.trainer, GroupConfig) else 1
        most = rounds * -(-steps // self.num_fragments) * self.inner.batch * self.model.context
        return min(most, MAX_TOKENS)

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
