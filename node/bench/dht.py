"""scripts/bench dht: what finding each other costs, by the number of nodes, on one machine.

Nodes without workers, each with its own socket and thread, all of a size in one process; each
joins through two of the first eight, as with a ticket.  Measured: how long a lookup of a run's
members takes, and of a member's address record; what is sent while nobody asks anything, over
more than one of the library's maintenance cycles of ten minutes; memory.

Every size has a process of its own, so that memory is its own.  All nodes share the processor
and have no distance between them: times say how the work grows, not what the internet adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from node.bench import common
from node.bridge import Bridge
from node.discovery import PROVIDE_S, SLOW_S, provider_key
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import RunId, digest_of
from protocol.peer_record import TTL_S, PeerRecord, record_key, sign_peer_record

SIZES = "20,50"
"""200 nodes in one process did not end within 50 minutes on two cores (docs/results/dht.md)."""
REST_S = 620.0
"""One maintenance cycle of the library, and some."""
SETTLE_S = 15.0
"""From the last lookup until resting is measured: streams close, identify ends."""
DOORS = 8
"""Nodes that the others join through: as many addresses as a ticket holds."""
MEMBERS = 16
"""Nodes that provide the run's key; a lookup stops at 32."""
LOOKUPS = 40
"""Enough for a p95 that is not the slowest one."""
JOINING = 8
"""Nodes that start at a time."""
JOIN_S = 60.0
CHILD_S = 3600.0
"""Deadline of one size."""
RUN = RunId(digest_of(b"scripts/bench dht"))
HEADINGS = {
    "nodes": "nodes",
    "lookup_p50_s": "lookup\np50 s",
    "lookup_p95_s": "lookup\np95 s",
    "found_percent": "members\nfound %",
    "record_p95_s": "record\np95 s",
    "lookup_kb": "kB a\nlookup",
    "provide_kb": "kB a\nprovide",
    "rest_bytes_per_min": "bytes a node\nand minute\nat rest",
    "run_bytes_per_min": "the same with\na run's\nlookups",
    "connections": "connections\na node",
    "memory_mb": "MB\na node",
}


def main() -> int:
    parser = common.parser("dht", "Time, bytes and memory of the DHT, by number of nodes.")
    parser.add_argument("--nodes", default=SIZES, help=f"sizes, with commas between ({SIZES})")
    parser.add_argument("--rest", type=float, default=REST_S, help="seconds of rest measured")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(json.dumps(asyncio.run(measured(args.child, args.rest))))
        return 0
    try:
        sizes = [int(size) for size in args.nodes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < DOORS or args.rest <= 0:
        parser.error(f"--nodes are numbers of at least {DOORS}, and --rest is above 0")
    rows = [asyncio.run(in_child(size, args.rest)) for size in sizes]
    note = f"{MEMBERS} members of one run, {LOOKUPS} lookups, rest over {args.rest:g} s. " + growth(
        rows
    )
    settings: common.Row = {"rest_s": args.rest, "members": MEMBERS, "lookups": LOOKUPS}
    common.report("dht", rows, HEADINGS, note)
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [note, "", *common.markdown(rows, HEADINGS)]
        common.write_page(args.out, "dht", "The DHT by number of nodes", lines)
        common.write_json(args.out / "dht.json", rows, settings)
    return 0


def growth(rows: Sequence[common.Row]) -> str:
    """How much each figure of the largest size is of the smallest one's."""
    least, most = rows[0], rows[-1]
    if least is most:
        return ""
    told = []
    for name in ("lookup_p95_s", "rest_bytes_per_min", "run_bytes_per_min", "memory_mb"):
        one, other = least[name], most[name]
        assert isinstance(one, float)
        assert isinstance(other, float)
        told.append(f"{name} x{other / one:.2f}" if one else f"{name} from nothing")
    return f"From {least['nodes']} to {most['nodes']} nodes: {', '.join(told)}."


async def in_child(nodes: int, rest_s: float) -> common.Row:
    """The figures of one size, from a process of its own."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node.bench.dht", "--child", str(nodes), "--rest", str(rest_s)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHILD_S):
            said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise SystemExit(f"bench dht: the process of {nodes} nodes ended with {child.returncode}")
    row: common.Row = json.loads(said)
    sys.stderr.write(f"{said.decode()}\n")  # the next size may take half an hour
    return row


async def measured(nodes: int, rest_s: float) -> common.Row:
    """The figures of one size."""
    rng, before = random.Random(nodes), memory_bytes()
    signers = [Signer(digest_of(number.to_bytes(4, "big"))) for number in range(nodes)]
    async with AsyncExitStack() as stack:
        bridges = await started(signers, stack, rng)
        say(nodes, "started")
        for bridge in bridges[DOORS:]:  # fills the routing tables: everybody walks once
            await bridge.find_providers(provider_key(RUN))
        say(nodes, "everybody has looked up once")
        provides = await cost(bridges, [announce(*pair) for pair in chosen(signers, bridges)])
        askers = [rng.choice(bridges[DOORS + MEMBERS :] or bridges) for _ in range(LOOKUPS)]
        lookups = await cost(bridges, [members_found(asker) for asker in askers])
        records = await cost(bridges, [record_found(asker, signers, rng) for asker in askers])
        say(nodes, f"lookups done, {rest_s:g} s of rest begin")
        await asyncio.sleep(SETTLE_S)
        memory = memory_bytes() - before
        sent, began = sent_bytes(bridges), time.monotonic()
        await asyncio.sleep(rest_s)
        minutes = (time.monotonic() - began) / 60
        rest = (sent_bytes(bridges) - sent) / nodes / minutes
        lookup_bytes, provide_bytes = lookups[1] / LOOKUPS, provides[1] / MEMBERS
        return {
            "nodes": nodes,
            "lookup_p50_s": statistics.median(seconds for seconds, _ in lookups[0]),
            "lookup_p95_s": p95([seconds for seconds, _ in lookups[0]]),
            "found_percent": 100 * statistics.mean(found for _, found in lookups[0]) / MEMBERS,
            "record_p95_s": p95([seconds for seconds, _ in records[0]]),
            "records_found_percent": 100 * statistics.mean(found for _, found in records[0]),
            "lookup_kb": lookup_bytes / 1000,
            "record_kb": records[1] / LOOKUPS / 1000,
            "provide_kb": provide_bytes / 1000,
            "rest_bytes_per_min": rest,
            "run_bytes_per_min": rest + 60 * (lookup_bytes / SLOW_S + provide_bytes / PROVIDE_S),
            "memory_mb": memory / nodes / 1e6,
            "connections": statistics.mean(len(bridge.connected()) for bridge in bridges),
        }


def say(nodes: int, what: str) -> None:
    """Where it is: a size may take half an hour."""
    sys.stderr.write(f"{nodes} nodes: {what}\n")


async def started(
    signers: Sequence[Signer], stack: AsyncExitStack, rng: random.Random
) -> list[Bridge]:
    """All nodes, each connected to two of the first ones."""
    bridges = [Bridge(signer, listen=["/ip4/127.0.0.1/tcp/0"]) for signer in signers]
    places = asyncio.Semaphore(JOINING)

    async def start(number: int, bridge: Bridge) -> None:
        async with places:
            await stack.enter_async_context(bridge)
            for door in rng.sample(bridges[: min(DOORS, number)], min(2, number)):
                try:
                    await bridge.connect(door.addrs()[0], JOIN_S)
                except PeerUnavailable as error:
                    sys.stderr.write(f"node {number} not joined: {error.reason}\n")

    for number, bridge in enumerate(bridges[:DOORS]):
        await start(number, bridge)
    async with asyncio.TaskGroup() as starting:
        for number, bridge in enumerate(bridges[DOORS:], DOORS):
            starting.create_task(start(number, bridge))
    return bridges


def chosen(signers: Sequence[Signer], bridges: Sequence[Bridge]) -> list[tuple[Signer, Bridge]]:
    """The members of the run: the first that are no doors."""
    pairs = list(zip(signers, bridges, strict=True))
    return (pairs[DOORS:] + pairs[:DOORS])[:MEMBERS]


async def announce(signer: Signer, bridge: Bridge) -> tuple[float, float]:
    """Say in the DHT that this node is a member, and where."""
    began, now = time.monotonic(), int(time.time())
    record = PeerRecord(
        peer=signer.peer, run=RUN, addrs=bridge.addrs(), seq=now, expires_unix_s=now + TTL_S
    )
    told = await bridge.provide(provider_key(RUN))
    key, value = record_key(signer.peer, RUN), sign_peer_record(record, signer)
    told = await bridge.put_record(key, value) and told
    return time.monotonic() - began, float(told)


async def members_found(asker: Bridge) -> tuple[float, float]:
    """Seconds of one lookup, and how many members it found."""
    began = time.monotonic()
    found = await asker.find_providers(provider_key(RUN))
    return time.monotonic() - began, float(len(found))


async def record_found(
    asker: Bridge, signers: Sequence[Signer], rng: random.Random
) -> tuple[float, float]:
    """Seconds of the lookup of one member's record, and whether it was found."""
    members = (list(signers[DOORS:]) + list(signers[:DOORS]))[:MEMBERS]
    began = time.monotonic()
    found = await asker.find_record(record_key(rng.choice(members).peer, RUN))
    return time.monotonic() - began, float(found is not None)


async def cost(
    bridges: Sequence[Bridge], works: Sequence[Awaitable[tuple[float, float]]]
) -> tuple[list[tuple[float, float]], int]:
    """What each work gave, one after the other, and the bytes that all nodes sent meanwhile."""
    before = sent_bytes(bridges)
    return [await work for work in works], sent_bytes(bridges) - before


def sent_bytes(bridges: Sequence[Bridge]) -> int:
    """By all nodes together: each byte counts once, where it is sent."""
    return sum(bridge.counters().raw_up for bridge in bridges)


def memory_bytes() -> int:
    """Of this process, resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def p95(seconds: Sequence[float]) -> float:
    """The time within which 95 of 100 ended."""
    return sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]


if __name__ == "__main__":
    sys.exit(main())
