"""What the protection of private state costs, and how fast it comes back.

    scripts/bench protection [--json FILE] [--out FOLDER] [--runs N] [--mib N...] [--layouts K+M...]

The code alone, on one thread: MB of snapshot a second of CPU time, cut into n shards, and joined
from those k that need the most work (as many data shards lost as there is parity), beside the
other Reed-Solomon codes of the library.  Then whole: an owner and n holders with real libp2p on
loopback, all in this one process: bytes that the owner sends, time until every shard is held
(looked at once a second), and time until the snapshot is on disk again after the owner has lost
all.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import torch

from node.bench import common
from node.bench.protection_peers import Peer, Swarm, snapshot_in, spec_of
from node.protection.erasure import CODE, SEGMENT_BYTES, ErasureCode
from node.protection.owner import TICK_S
from node.snapshots import snapshot_files
from protocol.ids import digest_of
from protocol.limits import MIB
from protocol.shards import ProtectionConfig

RUNS = 5
LAYOUTS = ("2+1", "4+2", "6+2", "10+4")
SIZES_MIB = (64,)
OTHERS = ("liberasurecode_rs_vand", "isa_l_rs_vand")
"""Codes of the library that are measured beside ours."""
CODED_BYTES = 64 * MIB
LONGEST_S = 300.0

CODE_HEADINGS = {
    "layout": "k + m",
    "code": "code",
    "cut_mb_per_s": "cut\nMB/s",
    "join_mb_per_s": "join\nMB/s",
    "hash_mb_per_s": "BLAKE2b\nMB/s",
    "stored": "stored\nx",
}
WHOLE_HEADINGS = {
    "layout": "k + m",
    "snapshot_mib": "snapshot\nMiB",
    "sent_mib": "sent\nMiB",
    "sent_ratio": "sent /\nsnapshot",
    "n_over_k": "n / k",
    "held_s": "until all\nheld, s",
    "back_s": "until\nback, s",
    "back_mb_per_s": "back\nMB/s",
    "asked_bytes": "beside\nshards, B",
}


def main() -> int:
    parser = common.parser("protection", "Cost and recovery of in-memory protection.")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of which the median is taken")
    parser.add_argument("--mib", type=int, nargs="+", default=list(SIZES_MIB), help="snapshots")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), help="such as 2+1")
    args = parser.parse_args()
    if args.runs < 1 or min(args.mib) < 1:
        parser.error("--runs and --mib are at least 1")
    try:
        layouts = [layout_of(text) for text in args.layouts]
    except ValueError as error:
        parser.error(f"--layouts: {error}")
    torch.set_num_threads(1)
    coded = [row for layout in layouts for row in code_rows(layout, args.runs)]
    whole = [asyncio.run(measured(layout, mib)) for mib in args.mib for layout in layouts]
    code_note = (
        f"{CODED_BYTES // MIB} MiB on one thread, a second of CPU time, medians of {args.runs} "
        "interleaved runs"
    )
    whole_note = "one owner and n holders in one process, real libp2p on loopback, one run each"
    settings: common.Row = {"runs": args.runs, "segment_bytes": SEGMENT_BYTES}
    common.report("the code alone", coded, CODE_HEADINGS, code_note)
    common.report("protected and recovered", whole, WHOLE_HEADINGS, whole_note)
    common.write_json(args.json, [*coded, *whole], settings)
    if args.out:
        lines = ["## The code alone", "", f"{code_note}.", ""]
        lines += common.markdown(coded, CODE_HEADINGS)
        lines += ["", "## Protected and recovered", "", f"{whole_note}.", ""]
        lines += common.markdown(whole, WHOLE_HEADINGS)
        common.write_page(args.out, "protection", "In-memory protection", lines)
        common.write_json(args.out / "protection.json", [*coded, *whole], settings)
    return 0


def layout_of(text: str) -> ProtectionConfig:
    """`4+2`.  Raises ValueError: it is none."""
    data, plus, parity = text.partition("+")
    if not plus or not data.isdecimal() or not parity.isdecimal():
        raise ValueError(f"{text!r:.20}, expected two numbers such as 4+2")
    return ProtectionConfig(data=int(data), parity=int(parity), every_rounds=1)


# --- the code alone -------------------------------------------------------------------------


def code_rows(layout: ProtectionConfig, runs: int) -> list[common.Row]:
    """A row for our code, for each of the others, and for the hash that every byte goes through."""
    content = random.Random(1).randbytes(CODED_BYTES)
    cases: dict[str, Callable[[], object]] = {"hash": functools.partial(digest_of, content)}
    stored = {}
    for name in (CODE, *OTHERS):
        code = ErasureCode(layout.data, layout.parity, name)
        shards = [bytearray(code.shard_bytes(CODED_BYTES)) for _ in range(layout.shards)]
        views = [memoryview(shard) for shard in shards]
        code.cut(content, views)
        left = {index: shards[index] for index in range(layout.parity, layout.shards)}
        cases[f"cut {name}"] = functools.partial(code.cut, content, views)
        cases[f"join {name}"] = functools.partial(code.joined, left, CODED_BYTES)
        stored[name] = len(shards[0]) * layout.shards / CODED_BYTES
    seconds = common.median_seconds(cases, runs, time.process_time)
    speed = {name: round(CODED_BYTES / 1e6 / taken) for name, taken in seconds.items()}
    return [
        {
            "layout": f"{layout.data} + {layout.parity}",
            "code": name,
            "cut_mb_per_s": speed[f"cut {name}"],
            "join_mb_per_s": speed[f"join {name}"],
            "hash_mb_per_s": speed["hash"],
            "stored": stored[name],
        }
        for name in (CODE, *OTHERS)
    ]


# --- protected and recovered ----------------------------------------------------------------


async def measured(layout: ProtectionConfig, mib: int) -> common.Row:
    """Protect one snapshot of about so many MiB, lose its owner, and get it back."""
    with tempfile.TemporaryDirectory() as root:
        swarm = Swarm(spec_of(layout, mib), Path(root))
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            running = []
            for number in range(1, layout.shards + 1):
                holder = await stack.enter_async_context(swarm.member(number))
                running.append(tasks.create_task(holder.protection.run()))
            async with swarm.member(0) as owner:
                saved = snapshot_in(owner.directory, swarm.spec)
                held_s = await protected(owner, layout)
                sent = owner.sent
                stamp = owner.protection.owner.kept.stamp  # type: ignore[union-attr]
            back_s = await recovered(swarm, saved)
            for task in running:
                task.cancel()
        size = stamp.size_bytes
        return {
            "layout": f"{layout.data} + {layout.parity}",
            "snapshot_mib": size / MIB,
            "sent_mib": sent / MIB,
            "sent_ratio": sent / size,
            "n_over_k": layout.shards / layout.data,
            "held_s": held_s,
            "back_s": back_s,
            "back_mb_per_s": size / 1e6 / back_s,
            "asked_bytes": sent - stamp.shard_bytes * layout.shards,
        }


async def protected(owner: Peer, layout: ProtectionConfig) -> float:
    """How long it takes until every shard is held."""
    began = time.monotonic()
    shard_owner = owner.protection.owner
    assert shard_owner
    async with asyncio.timeout(LONGEST_S):
        while True:  # as `ShardOwner.run` does
            await shard_owner.tick()
            if shard_owner.kept and len(shard_owner.kept.held) == layout.shards:
                return time.monotonic() - began
            await asyncio.sleep(TICK_S)


async def recovered(swarm: Swarm, saved: bytes) -> float:
    """How long the owner takes to have its snapshot on disk again, which is compared."""
    async with swarm.member(0) as back:
        for file in back.directory.iterdir():
            file.unlink()
        began = time.monotonic()
        async with asyncio.timeout(LONGEST_S):
            if not await back.protection.recover(back.nothing_shared):
                raise RuntimeError("the snapshot did not come back")
        taken_s = time.monotonic() - began
        (file,) = snapshot_files(back.directory)
        if file.read_bytes() != saved:
            raise RuntimeError("another snapshot came back than was protected")
        return taken_s


if __name__ == "__main__":
    sys.exit(main())
