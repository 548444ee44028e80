"""How fast a joiner gets a blob of 256 MiB: from 1, 2 and 4 donors, beside one bare socket.

    scripts/bench join [--json FILE] [--out FOLDER] [--runs N] [--mib N]

Donors and joiner are processes of their own on loopback, over real libp2p, each with a store on
disk; the bare socket is one TCP stream of asyncio into memory, neither encrypted, hashed nor
written.  Then the donors may send 20 MB/s each, as over a line: four of them must give 3.5 times as
much as one.  In each round all of it is measured once, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from node.bench import common
from node.bench.child import Child, Command, Failed, Told, children
from protocol.limits import MIB

RUNS = 5
SIZE_MIB = 256
DONORS = (1, 2, 4)
LINE_MB_PER_S = 20
"""What each donor may send in the second part."""
MBIT_PER_MB = 8
WANTED = 3.5
"""Times the rate of one donor that four give over such lines."""
START_S = 60.0
ORDER_S = 300.0
SOCKET = "bare socket"
MEGABYTE = 1e6

HEADINGS = {
    "from": "from",
    "line": "each donor sends",
    "mb_per_s": "MB/s",
    "least_mb_per_s": "least",
    "most_mb_per_s": "most",
    "times_one": "times one\ndonor",
    "of_socket": "of the\nbare socket",
    "cpu_s": "joiner's\nCPU s",
}
AIM_HEADINGS = {"aim": "aim", "found": "found", "wanted": "wanted", "met": "met"}


class Peer:
    """One process, and where it can be reached."""

    def __init__(self, child: Child, addr: str, socket: str) -> None:
        self._child = child
        self.addr = addr
        self.socket = socket

    async def order(self, what: str, **terms: object) -> Told:
        """What came of it."""
        return await self._child.order(what, ORDER_S, **terms)


def main() -> int:
    parser = common.parser("join", "A blob from many donors, beside one bare socket.")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of which the median is taken")
    parser.add_argument("--mib", type=int, default=SIZE_MIB, help="size of the blob")
    args = parser.parse_args()
    if args.runs < 1 or not 1 <= args.mib <= 1024:
        parser.error("--runs is at least 1, --mib 1 to 1024")
    try:
        taken = asyncio.run(measured(args.runs, args.mib))
    except Failed as error:
        sys.stderr.write(f"scripts/bench join: {error}\n")
        return 1
    return 0 if show(taken, args) else 1


Taken = dict[tuple[str, str, str], list[float]]
"""Seconds and CPU seconds by what they are of, from whom, and over which line."""


async def measured(runs: int, mib: int) -> Taken:
    """Everything in turn, again and again; the first time does not count."""
    taken: Taken = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as root:
        for line, up_mbit in (("all it can", 0), (f"{LINE_MB_PER_S} MB/s", line_mbit())):
            folder = Path(root) / f"{up_mbit:g}"
            async with (
                peers(folder / "donors", mib, up_mbit, max(DONORS)) as donors,
                peers(folder / "joiner", mib, 0.0, 1) as (joiner,),
            ):
                for donor in donors:
                    await donor.order("hold")
                for run in range(runs + 1):
                    await one_run(donors, joiner, line, taken if run else defaultdict(list))
    return taken


async def one_run(donors: Sequence[Peer], joiner: Peer, line: str, taken: Taken) -> None:
    for count in DONORS:
        addrs = [donor.addr for donor in donors[:count]]
        found = await joiner.order("fetch", addrs=addrs)
        note(taken, found, donors_of(count), line)
    if line == "all it can":
        note(taken, await joiner.order("receive", addr=donors[0].socket), SOCKET, line)
        found = await joiner.order("hash")
        for name in ("hash_s", "write_s"):
            taken[name, "", ""].append(float(found[name]))


def note(taken: Taken, found: Told, source: str, line: str) -> None:
    for name in ("seconds", "cpu_s"):
        taken[name, source, line].append(float(found[name]))


@asynccontextmanager
async def peers(folder: Path, mib: int, up_mbit: float, count: int) -> AsyncIterator[list[Peer]]:
    """So many processes; ended afterwards."""
    commands = [
        Command(
            name=f"the process of {folder.name} {number}",
            module="node.bench.join_peer",
            words=(str(folder / f"{number}"), f"{mib}", f"{up_mbit}"),
        )
        for number in range(count)
    ]
    async with children(commands) as made:
        said = [await child.answer(START_S) for child in made]
        yield [
            Peer(child, str(one["addr"]), str(one["socket"]))
            for child, one in zip(made, said, strict=True)
        ]


def line_mbit() -> float:
    return float(LINE_MB_PER_S * MBIT_PER_MB)


def donors_of(count: int) -> str:
    return f"{count} donor{'s' if count > 1 else ''}"


# --- what came of it -------------------------------------------------------------------------


def show(taken: Taken, args: argparse.Namespace) -> bool:
    """On the terminal and where else it is wanted; whether the aim is met."""
    rows = table(taken, args.mib)
    by_name = {(row["from"], row["line"]): row for row in rows}
    found = by_name[donors_of(4), f"{LINE_MB_PER_S} MB/s"]["times_one"]
    assert isinstance(found, float)
    is_met = found >= WANTED
    what = f"four donors of {LINE_MB_PER_S} MB/s / one of them"
    wanted = f"at least {WANTED:g}"
    aims: list[common.Row] = [
        {"aim": what, "found": found, "wanted": wanted, "met": "yes" if is_met else "no"}
    ]
    note = f"{args.mib} MiB; medians of {args.runs} interleaved runs"
    common.report("a blob from donors", rows, HEADINGS, note)
    common.report("aim", aims, AIM_HEADINGS, note)
    alone = {name: statistics.median(taken[name, "", ""]) for name in ("hash_s", "write_s")}
    lines = [f"{note}.", "", *common.markdown(rows, HEADINGS), ""]
    lines += [
        f"The joiner also hashes the blob ({alone['hash_s']:.2f} s alone) and writes it "
        f"({alone['write_s']:.2f} s alone, to the disk), the bare socket does neither.",
        "",
        "## Aim",
        "",
        *common.markdown(aims, AIM_HEADINGS),
    ]
    settings: common.Row = {"runs": args.runs, "mib": args.mib, **alone}
    common.write_json(args.json, [*rows, *aims], settings)
    if args.out:
        common.write_page(args.out, "join", "Joining: a blob from many donors", lines)
    return is_met


def table(taken: Taken, mib: int) -> list[common.Row]:
    rate = {
        (source, line): mib * MIB / MEGABYTE / statistics.median(seconds)
        for (name, source, line), seconds in taken.items()
        if name == "seconds"
    }
    rows: list[common.Row] = []
    for (source, line), mb_per_s in rate.items():
        socket = rate[SOCKET, "all it can"]
        seconds = taken["seconds", source, line]
        # Of the same round, some seconds apart: what else the machine does is alike.
        of_one = zip(taken["seconds", donors_of(1), line], seconds, strict=True)
        times_one = statistics.median(one / these for one, these in of_one)
        is_alone = source == SOCKET
        rows.append(
            {
                "from": source,
                "line": line,
                "mb_per_s": mb_per_s,
                "least_mb_per_s": mib * MIB / MEGABYTE / max(seconds),
                "most_mb_per_s": mib * MIB / MEGABYTE / min(seconds),
                "times_one": None if is_alone else times_one,
                "of_socket": None if is_alone else mb_per_s / socket,
                "cpu_s": statistics.median(taken["cpu_s", source, line]),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
