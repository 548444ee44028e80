"""What the records of a run weigh after many rounds, and what it costs to join, or to be attacked.

    scripts/bench records [--json FILE] [--out FOLDER] [--rounds N] [--start N] [--jobs N]

Every author writes every round, with the node's own `Author`, pycrdt and Ed25519, in processes of
its own (`node.bench.records_authors`).  Records only grow and shrink by what their authors write,
so the state of the run after a round is the sum of the authors' records after it.  Of all rounds
the one where that sum is largest is made again, every signature in it is checked by a replica, it
is saved as a node saves it, and a joiner gets it from a member over loopback: two processes, each
with the node's bridge, calls and `Records`.

What is not done for every one of the rounds: checking the signatures at each of 32 receivers,
which keep the same bytes or none.  Every thousandth round each record is read and compared with
what its author wanted to say.  With --start the rounds before that one are in the authors' totals
and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from crdt.replica import Replica
from node.bench import common
from node.bench.child import Failed
from node.bench.records_authors import KEEP_EVERY, RUN, record_at
from node.bench.records_hostile import KINDS
from node.records.files import RecordFiles
from protocol.limits import KIB

AUTHORS = 32
ROUNDS = 100_000
JOINS = 5
AIM_BYTES = 64 * KIB
AIM_S = 1.0
PROCESS_S = 120.0
"""Of a process that joins, serves or is attacked.  Those that write take as long as they take."""
SIZE_HEADINGS = {
    "authors": "authors",
    "rounds": "rounds",
    "worst_round": "largest\nafter round",
    "disk_bytes": "bytes\non disk",
    "largest_record_bytes": "largest\nrecord",
    "mean_bytes": "mean of\nall rounds",
    "write_ms": "ms of CPU\na write",
    "aim_bytes": "aim",
    "met": "met",
}
JOIN_HEADINGS = {
    "joins": "joins",
    "seconds": "s until equal\nand read",
    "slowest_s": "slowest",
    "cpu_seconds": "s of\ncomputing",
    "bytes_down": "bytes of\ncalls down",
    "bytes_up": "up",
    "raw_down": "down at\nthe socket",
    "met": "met",
}
HOSTILE_HEADINGS = {
    "record": "record",
    "bytes": "bytes",
    "merge_ms": "CPU ms to\ntake in",
    "read_ms": "CPU ms\nto read",
    "memory_kib": "KiB of\nmemory",
    "view": "why it is not read",
}


@dataclass(frozen=True, slots=True)
class Run:
    """What is written."""

    folder: Path
    authors: int
    start: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Written:
    """What the authors' processes left."""

    sizes_AR: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    """Bytes of each author's record after each round, int32 (authors, rounds)."""
    write_s: float
    """Seconds of a processor for one write."""

    @property
    def worst(self) -> int:
        """After which of these rounds the sum is largest."""
        return int(self.sizes_AR.sum(axis=0).argmax())


def main() -> int:
    parser = common.parser("records", "Size of the records after many rounds; joining; attacks.")
    parser.add_argument("--authors", type=int, default=AUTHORS, help="an even number")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="that are written")
    parser.add_argument("--start", type=int, default=0, help="the first that is written")
    parser.add_argument("--jobs", type=int, default=2, help="processes that write")
    args = parser.parse_args()
    if args.authors < 2 or args.authors % 2 or min(args.rounds, args.jobs, args.start + 1) < 1:
        parser.error("--authors is even, --rounds and --jobs are at least 1, --start at least 0")
    with tempfile.TemporaryDirectory(prefix="shoal-records-") as folder:
        run = Run(Path(folder), args.authors, args.start, args.rounds)
        sizes, joins, hostile = asyncio.run(figures(run, args.jobs))
    tables = (
        ("size of all records", [sizes], SIZE_HEADINGS, "on disk after the round where it is most"),
        ("joining over loopback", [joins], JOIN_HEADINGS, f"medians of {JOINS} joins"),
        ("records made to harm", hostile, HOSTILE_HEADINGS, "as large as they are kept"),
    )
    for title, rows, headings, note in tables:
        common.report(title, rows, headings, note)
    rows = [sizes, joins, *hostile]
    names = ("authors", "start", "rounds", "jobs")
    settings: common.Row = {name: getattr(args, name) for name in names}
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [
            line
            for title, found, headings, note in tables
            for line in (f"## {title}", "", *common.markdown(found, headings), "", f"{note}.", "")
        ]
        common.write_page(args.out, "records", "Records", lines[:-1])
        common.write_json(args.out / "records.json", rows, settings)
    return 0


async def figures(run: Run, jobs: int) -> tuple[common.Row, common.Row, list[common.Row]]:
    """Of the sizes, of joining, and of each hostile record."""
    written = await wrote(run, jobs)
    worst = run.folder / "worst"
    replica = saved(run, written, worst)
    joins = [await joined(worst, run.folder / f"joiner-{n}", run.authors) for n in range(JOINS)]
    hostile = [json.loads(await output("records_hostile", kind)) for kind in KINDS]
    return size_row(run, written, worst, replica), join_row(joins), hostile


async def wrote(run: Run, jobs: int) -> Written:
    """Let all authors write all rounds, so many processes at once."""
    edges = [run.authors * job // jobs for job in range(jobs + 1)]
    numbers = (run.authors, run.start, run.rounds)
    async with asyncio.TaskGroup() as tasks:
        writing = [
            tasks.create_task(
                output(
                    "records_authors",
                    *(str(word) for word in (lowest, highest, *numbers, run.folder)),
                    within_s=None,
                )
            )
            for lowest, highest in pairwise(edges)
        ]
    seconds = sum(float(task.result()) for task in writing)
    sizes = [np.load(run.folder / f"sizes-{number}.npy") for number in range(run.authors)]
    return Written(np.stack(sizes), seconds / run.authors / run.rounds)


def saved(run: Run, written: Written, folder: Path) -> Replica:
    """A replica as it is after the worst round, its signatures checked, and its files."""
    replica, files = Replica(RUN), RecordFiles(folder)
    files.load(replica)
    worst_round = run.start + written.worst
    for number in range(run.authors):
        record = record_at(run.folder, number, run.authors, run.start, worst_round)
        assert all(replica.merge(entry) for entry in record.chain)
        files.save(replica.record(record.author), durable=False)
    return replica


async def joined(folder: Path, joiner: Path, authors: int) -> dict[str, float]:
    """One join of a fresh peer to a member with these files."""
    command = (sys.executable, "-m", "node.bench.records_peer", str(folder))
    pipe = asyncio.subprocess.PIPE
    member = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert member.stdin
    assert member.stdout
    try:
        async with asyncio.timeout(PROCESS_S):
            told = json.loads(await member.stdout.readline())
        found = await output("records_peer", str(joiner), told["addr"], told["root"])
        row: dict[str, float] = json.loads(found)
    finally:
        member.stdin.close()
        await member.wait()
    if row["authors"] != authors:
        raise Failed(f"the joiner reads {row['authors']} records, expected {authors}")
    return row


async def output(name: str, *words: str, within_s: float | None = PROCESS_S) -> bytes:
    """What a process of this bench prints."""
    command = (sys.executable, "-m", f"node.bench.{name}", *words)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(within_s):
            found, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Failed(f"{name} ended with {process.returncode}; what it said is above")
    return found


def size_row(run: Run, written: Written, worst: Path, replica: Replica) -> common.Row:
    disk = sum(file.stat().st_size for file in worst.iterdir())
    assert disk == written.sizes_AR[:, written.worst].sum(), "not what the authors wrote"
    return {
        "authors": run.authors,
        "rounds": f"{run.start} to {run.start + run.rounds - 1}",
        "worst_round": run.start + written.worst,
        "disk_bytes": disk,
        "largest_record_bytes": int(written.sizes_AR.max()),
        "mean_bytes": int(written.sizes_AR.sum(axis=0).mean()),
        "write_ms": 1e3 * written.write_s,
        "aim_bytes": AIM_BYTES,
        "met": met(disk < AIM_BYTES),
        "root": replica.root().hex(),
        "kept_every": KEEP_EVERY,
    }


def join_row(joins: Sequence[dict[str, float]]) -> common.Row:
    names = ("seconds", "cpu_seconds", "bytes_down", "bytes_up", "raw_down")
    medians = {name: statistics.median(join[name] for join in joins) for name in names}
    slowest = max(join["seconds"] for join in joins)
    is_met = slowest < AIM_S and max(join["bytes_down"] for join in joins) < AIM_BYTES
    return {"joins": len(joins), **medians, "slowest_s": slowest, "met": met(is_met)}


def met(is_met: bool) -> str:
    return "yes" if is_met else "no"


if __name__ == "__main__":
    sys.exit(main())
