"""A run small enough to train for real in a test, with its files on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.worker import wire
from protocol import codec
from protocol.algorithms import NolocoConfig, TrainerConfig
from protocol.envelope import Signer
from protocol.ids import digest_of
from protocol.model import GptConfig, InnerConfig
from protocol.spec import BlobRef, DataConfig, RunSpec
from trainers.tokenizer import train_tokenizer

MODEL = GptConfig(layers=1, heads=2, width=16, context=8, vocab=300)
TEXT = "the quick brown fox jumps over the lazy dog\nand the dog does not mind\n" * 100


@dataclass(frozen=True, slots=True)
class SmallRun:
    """Files under `root`, and the spec that names them."""

    root: Path
    spec: RunSpec

    def setup(self, peer: bytes = b"\x01") -> wire.Setup:
        """What a peer with a directory of its own tells its worker."""
        directory = self.root / peer.hex()
        directory.mkdir(exist_ok=True)
        return wire.Setup(
            spec_body=codec.encode(self.spec),
            peer=Signer(peer * 32).peer,
            tokenizer=str(self.root / "tokenizer"),
            validation=str(self.root / "validation"),
            corpus=(str(self.root / "corpus"),),
            directory=str(directory),
        )


def small_run(root: Path, trainer: TrainerConfig | None = None, seed: int = 1) -> SmallRun:
    """A run of a model with 8,240 parameters."""
    blobs = {
        "tokenizer": train_tokenizer(TEXT, MODEL.vocab),
        "validation": TEXT[:500].encode(),
        "corpus": TEXT.encode(),
    }
    for name, data in blobs.items():
        (root / name).write_bytes(data)
    refs = {
        name: BlobRef(digest=digest_of(data), size_bytes=len(data)) for name, data in blobs.items()
    }
    spec = RunSpec(
        name="small",
        creator=Signer(b"\x01" * 32).peer,
        seed=seed,
        rounds=10,
        min_members=1,
        start_deadline_s=1.0,
        join_secret=None,
        model=MODEL,
        inner=InnerConfig(batch=4),
        trainer=trainer or NolocoConfig(inner_steps=4),
        data=DataConfig(**refs),
    )
    return SmallRun(root, spec)
