"""scripts/bench checkpoint: what saving costs a worker that trains, and how fast it is read again.

    scripts/bench checkpoint [--json FILE] [--out FOLDER] [--runs N] [--directory DIR]

The worker's own training loop, saver and files, in this process, one thread for torch.  Blocks of
inner steps with one save and without any take turns; the interval of the table is what a round
has: H steps.  `step` and `pause` are seconds of processor of the training thread, which a busy
machine does not change: what a step takes, and what the copy takes for which it stands still.
`slower` is by the clock, the fastest block with a save against the fastest without: it has in it
also what the saver takes of processor, memory and Python's lock, and what other programs do.
Loading reads every byte, checks its digests, and finds the file in the system's cache.
"""

from __future__ import annotations

import queue
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator

from node.bench import common
from node.worker.files import load_newest, save_snapshot
from node.worker.loop import Goal, TrainingLoop
from node.worker.materials import initial_slow
from node.worker.saver import Rooms, Saver
from node.worker.wire import InnerDone
from protocol.algorithms import NolocoConfig
from protocol.fragments import num_parameters
from protocol.ids import PeerId, Round, digest_of
from protocol.model import GptConfig, InnerConfig
from protocol.spec import BlobRef, DataConfig, RunSpec
from trainers.inner import Inner, Moments
from trainers.state import Fast, Slow

RUNS = 5
INTERVAL = 50
"""H: inner steps of a round, after which a snapshot is taken."""
TOKENS = 100_000
"""Made up: what they are does not matter here."""

HEADINGS = {
    "model": "model",
    "parameters": "parameters",
    "step_ms": "step\nCPU ms",
    "pause_ms": "pause\nCPU ms",
    "pause_percent": "pause of\ninterval %",
    "slower_ms": "slower\nby ms",
    "slower_percent": "slower of\ninterval %",
    "file_mb": "file\nMB",
    "save_s": "save\ns",
    "save_mb_per_s": "save\nMB/s",
    "load_s": "load\ns",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    model: GptConfig
    inner: InnerConfig
    steps: int
    """Of a block: longer than a save takes."""


@dataclass(frozen=True, slots=True)
class Block:
    """Seconds for some inner steps: by the clock, and of processor in the training thread."""

    wall_s: float
    cpu_s: float


CASES = (
    Case(name="default", model=GptConfig(), inner=InnerConfig(), steps=20),
    Case(
        name="25 M, batch 4",
        model=GptConfig(layers=8, heads=8, width=512),
        inner=InnerConfig(batch=4),
        steps=4,
    ),
)


def main() -> int:
    parser = common.parser("checkpoint", "What saving costs a worker that trains.")
    parser.add_argument(
        "--runs", type=int, default=RUNS, help="blocks of which the median is taken"
    )
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs is at least 1")
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            rows.append(measured(case, args.runs, Path(directory)))
    note = f"one save in {INTERVAL} inner steps; one thread; {args.runs} interleaved blocks of each"
    settings: common.Row = {"runs": args.runs, "interval_steps": INTERVAL, "threads": 1}
    common.report("checkpoint", rows, HEADINGS, note)
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [f"{note}.", "", *common.markdown(rows, HEADINGS)]
        common.write_page(args.out, "checkpoint", "Snapshots", lines)
        common.write_json(args.out / "checkpoint.json", rows, settings)
    return 0


def measured(case: Case, runs: int, directory: Path) -> common.Row:
    """Blocks with and without a save, in turns; the first of each is not counted."""
    training = Training(case, directory)
    without, saving = [], []
    for count in range(runs + 1):
        plain, saved = training.block(), training.block(saving=True)
        if count:
            without.append(plain)
            saving.append(saved)
    step_s = statistics.median(block.cpu_s for block in without) / case.steps
    block_s = min(block.wall_s for block in without)
    slower_s = min(block.wall_s for block in saving) - block_s
    pause_s = statistics.median(training.pauses[1:])
    save_s = statistics.median(training.saves[1:])
    size = next(directory.glob("snapshot-*")).stat().st_size
    began = time.perf_counter()
    load_newest(directory, training.spec.run, num_parameters(case.model))
    load_s = time.perf_counter() - began
    return {
        "model": case.name,
        "parameters": num_parameters(case.model),
        "step_ms": 1e3 * step_s,
        "pause_ms": 1e3 * pause_s,
        "pause_percent": 100 * pause_s / (INTERVAL * step_s),
        "slower_ms": 1e3 * slower_s,
        "slower_percent": 100 * slower_s / (INTERVAL * block_s / case.steps),
        "block_s": block_s,
        "file_bytes": size,
        "file_mb": size / 1e6,
        "save_s": save_s,
        "save_mb_per_s": size / 1e6 / save_s,
        "load_s": load_s,
        "block_steps": case.steps,
    }


class Training:
    """A worker that trains and saves, without a node."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.spec = made_up(case)
        self.pauses: list[float] = []
        """Seconds of the training thread."""
        self.saves: list[float] = []
        """Seconds from the state to a file that is flushed and named."""
        self._case = case
        self._directory = directory
        self._slow = initial_slow(self.spec)
        count = num_parameters(case.model)
        moments = Moments(torch.zeros(count), torch.zeros(count), 0)
        tokens_N = torch.randint(0, case.model.vocab, (TOKENS,), generator=Generator())
        fast = Fast(self._slow.phi_P, moments, 0, 0)
        self._loop = TrainingLoop(self.spec, PeerId("me"), tokens_N, fast, lambda _report: None)
        self._loop.start()
        self._rooms = Rooms(count)
        self._saver: Saver[tuple[Slow, Fast]] = Saver(self._save)
        self._done: queue.Queue[InnerDone] = queue.Queue()
        self._saved: queue.Queue[None] = queue.Queue()

    def block(self, *, saving: bool = False) -> Block:
        """Some inner steps; the disk has nothing to do before and after."""
        spent: list[float] = []
        self._loop.merge(lambda _inner: spent.append(time.thread_time()))
        began = time.perf_counter()
        self._loop.run_inner(Goal(Round(0), self._case.steps, self._done.put))
        if saving:
            room = self._rooms.other_than(None)
            fast, pause_s = self._loop.merge_and_copy(nothing, room)
            self.pauses.append(pause_s)
            self._saver.save((self._slow, fast))
        self._done.get()
        seconds = time.perf_counter() - began
        self._loop.merge(lambda _inner: spent.append(time.thread_time()))
        if saving:
            self._saved.get()
        self._loop.take_snapshot()  # counts anew
        return Block(seconds, spent[1] - spent[0])

    def _save(self, state: tuple[Slow, Fast]) -> None:
        began = time.perf_counter()
        save_snapshot(self._directory, self.spec.run, *state)
        self.saves.append(time.perf_counter() - began)
        self._saved.put(None)


def nothing(_inner: Inner) -> None:
    """An outer step that changes nothing."""


def made_up(case: Case) -> RunSpec:
    """A run of this model; nobody fetches its files."""
    blob = BlobRef(digest=digest_of(b"x"), size_bytes=1)
    return RunSpec(
        name="checkpoint",
        creator=PeerId("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"),
        seed=1,
        rounds=10_000,
        min_members=1,
        start_deadline_s=1.0,
        join_secret=None,
        model=case.model,
        inner=case.inner,
        trainer=NolocoConfig(inner_steps=INTERVAL),
        data=DataConfig(tokenizer=blob, validation=blob, corpus=blob),
    )


if __name__ == "__main__":
    sys.exit(main())
