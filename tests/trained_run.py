"""A data directory as a node leaves it: run, spec, blobs and snapshots, without the node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from samples import CREATOR
from small_run import MODEL, small_run
from torch import Generator, Tensor

from node import founding
from node.founding import HeldRun
from node.keys import DataDir
from node.worker.files import save_snapshot
from node.worker.materials import initial_slow
from protocol.algorithms import TrainerConfig
from protocol.ids import Round
from protocol.manifest import manifest_of
from protocol.spec import BlobRef, DataConfig, RunSpec, sign_spec
from protocol.ticket import Ticket
from trainers.inner import Moments
from trainers.state import Fast, Slow

CONTEXT = 96
ADDR = f"/ip4/127.0.0.1/tcp/1/p2p/{CREATOR.peer}"


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """The directory, and what the spec in it says."""

    directory: DataDir
    spec: RunSpec

    def weights(self, round: int) -> Tensor:
        """Of a round: the start, with every bias and norm moved, too."""
        rng = Generator().manual_seed(round)
        phi_P = initial_slow(self.spec).phi_P
        return phi_P + 0.1 * torch.randn(phi_P.shape, generator=rng)

    def save(self, round: int) -> Path:
        """The snapshot of a round, as the worker writes it; older ones go."""
        phi_P = self.weights(round)
        delta_P, first_P, second_P = (torch.zeros_like(phi_P) for _ in range(3))
        fast = Fast(phi_P + 1, Moments(first_P, second_P, round), round, 0)
        return save_snapshot(
            self.directory.worker, self.spec.run, Slow(Round(round), phi_P, delta_P), fast
        )

    def blob(self, name: str) -> Path:
        """A blob's file: tokenizer or validation."""
        ref: BlobRef = getattr(self.spec.data, name)
        return self.directory.blobs / ref.digest.hex()


def trained_run(root: Path, *rounds: int, trainer: TrainerConfig | None = None) -> TrainedRun:
    """Below `root`, with snapshots of these rounds."""
    files = root / "files"
    files.mkdir()
    small = small_run(files, trainer)
    blobs = {name: (files / name).read_bytes() for name in ("tokenizer", "validation")}
    refs = {
        name: BlobRef(digest=manifest_of(data).name, size_bytes=len(data))
        for name, data in blobs.items()
    }
    model = replace(MODEL, layers=2, context=CONTEXT)
    spec = replace(small.spec, model=model, data=DataConfig(**refs, corpus=None))
    directory = DataDir(root / "node")
    directory.create()
    ticket = Ticket(run=spec.run, addrs=(ADDR,), secret=b"")
    founding.save(HeldRun(ticket, sign_spec(spec, CREATOR)), directory)
    run = TrainedRun(directory, spec)
    for name, data in blobs.items():
        run.blob(name).write_bytes(data)
    for round in rounds:
        run.save(round)
    return run
