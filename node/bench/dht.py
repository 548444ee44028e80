"""scripts/bench dht: what finding each other costs, by the number of nodes, on one machine.

Nodes without workers, each with its own socket and thread, some in each process; each joins
through two of the first eight, as with a ticket, and looks up the run once.  Then all is quiet
until idle connections are closed, as it is between the lookups of a node.  Measured from there:
how long a lookup of a run's members takes, and of a member's address record after it; what is
sent while nobody asks anything, for which each node refreshes its routing table about once;
memory.

Sizes overlap: each begins when the one before it rests, which leaves the processors alone but
for the refreshes.  All nodes share the processors and have no distance between them: times
say how the work grows, not what the internet adds.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise

from node.bench import common
from node.bench.child import Failed
from node.bench.dht_swarm import Cost, Swarm, at_once, swarm
from node.discovery import PROVIDE_S, SLOW_S
from node.p2p.dht import REFRESH_S
from node.p2p.idle import LOOK_S

SIZES = "20,50,200"
"""How much it grows is asked from 50 to 200."""
REST_S = REFRESH_S
"""Each node refreshes once in this time, on the average."""
QUIET_S = 2.5 * LOOK_S
"""After which no idle connection is left, so that whoever asks dials anew."""
DOORS = 8
"""Nodes that the others join through: as many addresses as a ticket holds."""
MEMBERS = 16
"""Nodes that provide the run's key; a lookup stops at 32."""
LOOKUPS = 40
"""Enough for a p95 that is not the slowest one."""
HEADINGS = {
    "nodes": "nodes",
    "join_s": "all\nin\ns",
    "lookup_p50_s": "lookup\np50 s",
    "lookup_p95_s": "lookup\np95 s",
    "found_percent": "found\n%",
    "record_p95_s": "record\np95 s",
    "lookup_cpu_s": "asker's\nCPU s a\nlookup",
    "lookup_kb": "kB a\nlookup",
    "provide_kb": "kB a\nprovide",
    "rest_bytes_per_min": "bytes a\nnode and\nminute\nat rest",
    "run_bytes_per_min": "the same\nwith a\nrun's\nlookups",
    "connections": "connec-\ntions\na node",
    "memory_mb": "MB\na node",
}
GROWING = ("lookup_p95_s", "lookup_cpu_s", "rest_bytes_per_min", "run_bytes_per_min", "memory_mb")


def main() -> int:
    parser = common.parser("dht", "Time, bytes and memory of the DHT, by number of nodes.")
    parser.add_argument("--nodes", default=SIZES, help=f"sizes, with commas between ({SIZES})")
    parser.add_argument("--rest", type=float, default=REST_S, help="seconds of rest measured")
    args = parser.parse_args()
    sizes = sizes_in(args.nodes)
    if not sizes or min(sizes) < MEMBERS or args.rest <= 0:
        parser.error(f"--nodes are numbers of at least {MEMBERS}, and --rest is above 0")
    try:
        rows = asyncio.run(all_measured(sizes, args.rest))
    except Failed as error:
        raise SystemExit(f"bench dht: {error}") from None
    told = [f"{MEMBERS} members of one run, {LOOKUPS} lookups, rest over {args.rest:g} s."]
    told += [growth(pair) for pair in pairwise(rows)]
    settings: common.Row = {"rest_s": args.rest, "members": MEMBERS, "lookups": LOOKUPS}
    common.report("dht", rows, HEADINGS, "\n".join(told))
    common.write_json(args.json, rows, settings)
    if args.out:
        lines = [*told, "", *common.markdown(rows, HEADINGS)]
        common.write_page(args.out, "dht", "The DHT by number of nodes", lines)
        common.write_json(args.out / "dht.json", rows, settings)
    return 0


def sizes_in(text: str) -> list[int]:
    """Numbers with commas between; none: it is something else."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        return []


def growth(rows: Sequence[common.Row]) -> str:
    """How much each figure of the last size is of the first one's."""
    least, most = rows[0], rows[-1]
    told = []
    for name in GROWING:
        one, other = least[name], most[name]
        assert isinstance(one, float)
        assert isinstance(other, float)
        told.append(f"{name} x{other / one:.2f}" if one else f"{name} from nothing")
    return f"From {least['nodes']} to {most['nodes']} nodes: {', '.join(told)}."


async def all_measured(sizes: Sequence[int], rest_s: float) -> list[common.Row]:
    """The figures of all sizes: each begins when the one before it rests."""
    turn = asyncio.Lock()
    return await at_once([measured(size, rest_s, turn) for size in sizes])


async def measured(nodes: int, rest_s: float, turn: asyncio.Lock) -> common.Row:
    """The figures of one size."""
    async with AsyncExitStack() as stack:
        async with turn:
            all_nodes = await stack.enter_async_context(swarm(nodes))
            row = await asked(all_nodes, nodes)
        await asyncio.sleep(QUIET_S)
        rest = await rested(all_nodes, nodes, rest_s)
    a_minute = 1000 * (row["lookup_kb"] / (SLOW_S / 60) + row["provide_kb"] / (PROVIDE_S / 60))
    run = {"run_bytes_per_min": rest["rest_bytes_per_min"] + a_minute}
    whole: common.Row = {"nodes": nodes, **row, **rest, **run}
    sys.stderr.write(f"{json.dumps(whole)}\n")  # the whole takes 40 minutes
    return whole


async def asked(all_nodes: Swarm, nodes: int) -> dict[str, float]:
    """The figures of what nodes are asked to do."""
    rng, began = random.Random(nodes), time.monotonic()
    await join(all_nodes, nodes, rng)
    join_s = time.monotonic() - began
    say(nodes, f"all joined after {join_s:.0f} s")
    await asyncio.sleep(QUIET_S)
    members = [*range(DOORS, nodes), *range(DOORS)][:MEMBERS]
    provides = [await all_nodes.ask(one, "announce") for one in members]
    say(nodes, f"{MEMBERS} members announced after {time.monotonic() - began:.0f} s")
    lookups, records = await looked_up(all_nodes, nodes, members, rng)
    ended_s = time.monotonic() - began
    say(nodes, f"lookups done after {ended_s:.0f} s")
    return {
        "join_s": join_s,
        "lookups_ended_s": ended_s,
        "provided_percent": 100 * statistics.mean(one.found for one in provides),
        "provide_p95_s": p95([one.seconds for one in provides]),
        "provide_kb": statistics.median(one.moved_bytes for one in provides) / 1000,
        "lookup_p50_s": statistics.median(one.seconds for one in lookups),
        "lookup_p95_s": p95([one.seconds for one in lookups]),
        "lookup_kb": statistics.median(one.moved_bytes for one in lookups) / 1000,
        "lookup_cpu_s": statistics.median(one.cpu_s for one in lookups),
        "found_percent": 100 * statistics.mean(one.found for one in lookups),
        "record_p95_s": p95([one.seconds for one in records]),
        "record_kb": statistics.median(one.moved_bytes for one in records) / 1000,
        "records_found_percent": 100 * statistics.mean(one.found for one in records),
    }


async def join(all_nodes: Swarm, nodes: int, rng: random.Random) -> None:
    """Start all nodes, connect each to two of the first ones, and let each look up once."""
    addrs = await all_nodes.listen()

    def joined(number: int) -> Coroutine[None, None, Cost]:
        doors = rng.sample(range(min(DOORS, number)), min(2, number))
        return all_nodes.ask(number, "join", doors=[addrs[door] for door in doors])

    for number in range(DOORS):
        await joined(number)
    await at_once([joined(number) for number in range(DOORS, nodes)])
    say(nodes, "connected")
    # Fills the routing tables, which know the doors only.
    await at_once([all_nodes.ask(number, "look_up") for number in range(DOORS, nodes)])


async def looked_up(
    all_nodes: Swarm, nodes: int, members: Sequence[int], rng: random.Random
) -> tuple[list[Cost], list[Cost]]:
    """Lookups of the members, and one of a member's record after each.

    No node asks again while connections of its last lookup are open.
    """
    askers = list(range(DOORS + MEMBERS, nodes)) or list(range(nodes))
    lookups: list[Cost] = []
    records: list[Cost] = []
    while len(lookups) < LOOKUPS:
        for asker in rng.sample(askers, min(len(askers), LOOKUPS - len(lookups))):
            others = [member for member in members if member != asker]
            found = await all_nodes.ask(asker, "look_up")
            lookups.append(replace(found, found=found.found / len(others)))
            one = rng.choice(others)
            records.append(await all_nodes.ask(asker, "look_up_record", of=one))
        if len(lookups) < LOOKUPS:
            await asyncio.sleep(QUIET_S)
    return lookups, records


async def rested(all_nodes: Swarm, nodes: int, rest_s: float) -> dict[str, float]:
    """What a node costs while nobody asks anything."""
    began, before = time.monotonic(), await all_nodes.figures()
    await asyncio.sleep(rest_s)
    after = await all_nodes.figures()
    minutes = (time.monotonic() - began) / 60

    def a_minute(name: str) -> float:
        return (after[name] - before[name]) / minutes / nodes

    return {
        "rest_s": 60 * minutes,
        "rest_bytes_per_min": a_minute("sent_bytes"),
        "rest_cpu_ms_per_min": 1e3 * a_minute("cpu_s"),
        "connections": before["connections"] / nodes,
        "connections_after": after["connections"] / nodes,
        "memory_mb": before["memory_bytes"] / nodes / 1e6,
        "memory_mb_after": after["memory_bytes"] / nodes / 1e6,
    }


def say(nodes: int, what: str) -> None:
    """Where it is: the whole takes 40 minutes."""
    sys.stderr.write(f"{nodes} nodes: {what}\n")


def p95(seconds: Sequence[float]) -> float:
    """The time within which 95 of 100 ended."""
    return sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]


if __name__ == "__main__":
    sys.exit(main())
