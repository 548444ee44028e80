"""What convergence is measured of: the cells, and the run spec of each.

A cell is one run: a text, a variant of a trainer, so many peers, a seed.  All have equal tokens:
180 inner steps a peer, and exchange a parameter every 20.  Its key names everything that its
result depends on, so a result that is kept under the key need not be computed again.

The settings of the variants were chosen by their results on the first seed; what else was tried
is in docs/results/convergence.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from node.bench.texts import SHAKESPEARE, SPEECHES, TEXTS, Text
from protocol import codec
from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    StreamingConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.envelope import Signer
from protocol.errors import ConfigError
from protocol.ids import Round, digest_of
from protocol.labels import payload_sizes
from protocol.model import GptConfig, InnerConfig
from protocol.spec import BlobRef, DataConfig, RunSpec

BENCH_VERSION = 1
"""Counts up when a change of the code changes results, so that kept ones are not taken."""
STEPS = 180
"""Inner steps of a peer."""
BATCH = 8
"""So four peers see 0.7 M tokens, which takes one core two to three minutes, and all cells some 85
minutes on two cores; with twice the batch a cell took five minutes."""
INNER_STEPS = 20
"""H."""
WARMUP_STEPS = 40
FRAGMENT_LAYERS = 2
"""Of the four: two fragments of layers and one of the embeddings."""
SEEDS = (1, 2, 3)
KINDS = {SHAKESPEARE: "IID", SPEECHES: "non-IID: an era a peer"}
MAX_PEERS = 64
KEY_CHARS = 24

DILOCO = DilocoConfig(inner_steps=INNER_STEPS, outer_lr=1.0, outer_momentum=0.3)
"""Nine outer steps are too few for the published momentum of ten."""
STREAMING = StreamingConfig(
    inner_steps=INNER_STEPS, fragment_layers=FRAGMENT_LAYERS, outer_lr=1.0, outer_momentum=0.3
)
NOLOCO = NolocoConfig(inner_steps=INNER_STEPS, alpha=0.3, beta=1.0, gamma=1.0)
LOWER = replace(DILOCO, outer_lr=0.7)
"""What the costs of codecs and options were measured with."""
STREAMING_LOWER = replace(STREAMING, outer_lr=0.7)
PUBLISHED = NolocoConfig(inner_steps=INNER_STEPS)

VARIANTS: dict[str, TrainerConfig] = {
    "local": LocalConfig(inner_steps=INNER_STEPS),
    "sync": SyncConfig(),
    "diloco": DILOCO,
    "diloco-h60": replace(DILOCO, inner_steps=3 * INNER_STEPS),
    **{f"streaming-tau{tau}": replace(STREAMING, overlap_steps=tau) for tau in (0, 1, 5)},
    "noloco": NOLOCO,
    "noloco-fragments": replace(NOLOCO, fragment_layers=FRAGMENT_LAYERS),
    # What was tried besides, and what codecs and options cost.
    "diloco-published": replace(DILOCO, outer_lr=0.4, outer_momentum=0.9),
    "diloco-lr07": LOWER,
    **{
        f"diloco-lr07-{name}": replace(LOWER, codec=name, feedback=True)
        for name in ("e3m0", "sign", "topk")
    },
    "diloco-lr07-stale": replace(LOWER, stale=True, gap_penalty=True),
    "streaming-published": replace(STREAMING, outer_lr=0.4, outer_momentum=0.9),
    "streaming-lr07": STREAMING_LOWER,
    "streaming-lr07-mix0": replace(STREAMING_LOWER, mix=0.0),
    "noloco-gamma07": replace(NOLOCO, gamma=0.7),
    "noloco-published": PUBLISHED,
    "noloco-published-gamma1": replace(PUBLISHED, gamma=1.0),
    "noloco-published-h10": replace(PUBLISHED, inner_steps=INNER_STEPS // 2),
    "noloco-published-int8": replace(PUBLISHED, codec="int8"),
    "noloco-published-two-vectors": replace(PUBLISHED, vectors=2),
}
"""By the word in a cell's name.  diloco-h60 receives with 4 peers as much as noloco: three
payloads every third round."""
WITH_SEEDS = ("sync", "diloco", "streaming-tau1", "noloco")
WITH_ONE_SEED = ("local", "diloco-h60", "streaming-tau0", "streaming-tau5", "noloco-fragments")
WITH_EIGHT_PEERS = ("sync", "diloco", "streaming-tau1", "noloco")
EXTRA = tuple(name for name in VARIANTS if name not in WITH_SEEDS + WITH_ONE_SEED)
"""Of one text and one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run."""

    text: str
    variant: str
    peers: int
    seed: int

    @property
    def name(self) -> str:
        """As --cells knows it."""
        return f"{self.text}/{self.variant}/{self.peers}/{self.seed}"


def all_cells() -> list[Cell]:
    """The long ones first, so that two workers end at about the same time."""
    cells = [
        *(
            Cell(text=text, variant=variant, peers=8, seed=1)
            for text in TEXTS
            for variant in WITH_EIGHT_PEERS
        ),
        *(
            Cell(text=text, variant=variant, peers=4, seed=seed)
            for seed in SEEDS
            for text in TEXTS
            for variant in (*WITH_SEEDS, *(WITH_ONE_SEED if seed == 1 else ()))
        ),
    ]
    extra = [Cell(text=SHAKESPEARE, variant=variant, peers=4, seed=1) for variant in EXTRA]
    return cells + extra


def chosen(patterns: str) -> list[Cell]:
    """The cells whose names match one of the patterns, which commas separate.

    Raises:
        ConfigError: a pattern matches none.
    """
    cells = all_cells()
    for pattern in patterns.split(","):
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            raise ConfigError(
                f'--cells has "{pattern}", which matches no cell; a name is '
                f"TEXT/VARIANT/PEERS/SEED, such as {cells[0].name}"
            )
    return [
        cell
        for cell in cells
        if any(fnmatchcase(cell.name, pattern) for pattern in patterns.split(","))
    ]


def named(name: str) -> Cell:
    """The cell of this name."""
    (cell,) = [cell for cell in all_cells() if cell.name == name]
    return cell


def signers(peers: int) -> list[Signer]:
    """The peers, the same in every cell."""
    return [Signer(digest_of(f"convergence {n}".encode())) for n in range(peers)]


def spec_of(cell: Cell, steps: int, text: Text, cache: Path) -> RunSpec:
    """The run of a cell.

    Raises:
        ConfigError: `steps` are no whole rounds.
    """
    model, trainer = GptConfig(), VARIANTS[cell.variant]
    if steps < 1 or steps % trainer.inner_steps:
        raise ConfigError(
            f"--steps is {steps}, expected a multiple of the {trainer.inner_steps} inner steps "
            f"of {cell.variant}"
        )

    def made(rounds: int, warmup_rounds: float) -> RunSpec:
        return RunSpec(
            name="convergence",
            creator=signers(1)[0].peer,
            seed=cell.seed,
            rounds=rounds,
            min_members=cell.peers,
            start_deadline_s=0.0,
            join_secret=None,
            model=model,
            inner=InnerConfig(batch=BATCH, warmup_rounds=warmup_rounds),
            trainer=trainer,
            data=DataConfig(
                tokenizer=_ref(text.tokenizer(model.vocab, cache)),
                validation=_ref(text.validation),
                corpus=_ref(text.train),
            ),
        )

    fragments = made(1, 1.0).num_fragments
    round_steps = trainer.inner_steps / fragments
    return made(steps // trainer.inner_steps * fragments, WARMUP_STEPS / round_steps)


def key_of(cell: Cell, spec: RunSpec) -> str:
    """Names all that the result of a cell depends on."""
    said = f"{BENCH_VERSION} {cell.name}".encode() + codec.encode(spec)
    return digest_of(said).hex()[:KEY_CHARS]


def closed_form_bytes(spec: RunSpec, peers: int) -> int:
    """Payload bytes that a peer receives in the run, if every exchange is made.

    noloco: one payload a round; diloco, streaming and sync: one of each other peer; local: none.
    """
    sizes = payload_sizes(spec)
    others = min(1, peers - 1) if isinstance(spec.trainer, NolocoConfig) else peers - 1
    return others * sum(sizes[round % len(sizes)] for round in range(spec.rounds))


def steps_before(spec: RunSpec, round: Round) -> int:
    """Inner steps of all rounds before this one."""
    return sum(spec.round_steps(Round(earlier)) for earlier in range(round))


def _ref(data: bytes) -> BlobRef:
    return BlobRef(digest=digest_of(data), size_bytes=len(data))
