"""How fast calls and payloads are between two processes, beside three others that do the same.

    scripts/bench rpc [--json FILE] [--out FOLDER] [--runs N] [--lab]

Small calls carry 128 bytes and bring them back.  The others are one bare stream of py-libp2p (Noise
and Yamux, no calls), bare TCP of asyncio (nothing encrypted), and Lattica (calls on rust-libp2p;
`pip install lattica==1.0.21`).  --lab repeats it on a line of 100 Mbit/s with 20 and 100 ms of
round trip, in network namespaces, which takes root.  Beside what was found stands what was wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from node.bench import common
from node.bench.child import Failed
from node.bench.rpc_pair import Pair, Place, pair
from node.natlab.lab import Lab
from node.natlab.rules import Kind
from protocol.errors import ShoalError
from protocol.limits import MIB

RUNS = 5
LAB_RUNS = 2
LAB_RTTS_MS = (20, 100)
LAB_MBIT = 100
LOOPBACK = "loopback"

SHOAL, LIBP2P, TCP, LATTICA = "shoal", "libp2p", "tcp", "lattica"
CALLERS = (SHOAL, LATTICA)
"""Who has calls, many at once, in either direction, and while bulk is under way."""
IN_FLIGHT = {1: 400, 8: 1200, 32: 2400}
"""Calls at once, and how many are made in all: a third of a second each."""
LAB_IN_FLIGHT = {1: 10, 8: 40, 32: 160}
LAB_WARM_MIBS = (8,)
"""Fetched before what counts: a line of 100 Mbit/s takes 5 s for the largest."""
MIBS = (1, 8, 64)
LARGE = MIBS[-1]

CALL_HEADINGS = {
    "link": "link",
    "contestant": "contestant",
    "in_flight": "at once",
    "calls_per_s": "calls/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
}
BULK_HEADINGS = {
    "link": "link",
    "contestant": "contestant",
    **{f"mb_per_s_{mib}": f"{mib} MiB\nMB/s" for mib in MIBS},
    "mb_per_s_back": f"{LARGE} MiB\nother way",
    "mixed_p50_ms": "a call meanwhile\np50 ms",
    "mixed_p99_ms": "p99 ms",
}
AIM_HEADINGS = {"aim": "aim", "found": "found", "wanted": "wanted", "met": "met"}


@dataclass(slots=True)
class Samples:
    """What the runs of one link found: by contestant and figure."""

    link: str
    taken: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, contestant: str, figure: str, value: float) -> None:
        self.taken[contestant, figure].append(value)

    def median(self, contestant: str, figure: str) -> float | None:
        found = self.taken.get((contestant, figure))
        return statistics.median(found) if found else None


def main() -> int:
    parser = common.parser("rpc", "Calls and payloads, beside py-libp2p, TCP and Lattica.")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of which the median is taken")
    parser.add_argument("--lab", action="store_true", help="also 100 Mbit/s at 20 and 100 ms")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs is at least 1")
    try:
        links = asyncio.run(measured(args.runs, args.lab))
    except (Failed, ShoalError) as error:
        sys.stderr.write(f"scripts/bench rpc: {error}\n")
        return 1
    show(links, args.runs, args)
    return 0


async def measured(runs: int, with_lab: bool) -> list[Samples]:
    """Loopback, and the lines of the lab."""
    found = [await on_link(LOOPBACK, [Place(), Place()], runs, IN_FLIGHT)]
    for rtt_ms in LAB_RTTS_MS if with_lab else ():
        # Two hosts, each with a delay one way on its uplink: four of them are a round trip.
        kinds = [Kind.NONE, Kind.NONE]
        async with Lab(kinds, delay_ms=rtt_ms / 4, rate_mbit=LAB_MBIT) as lab:
            places = [Place(enter=lab.enter(name), host=lab.ip(name)) for name in lab.hosts]
            link = f"{rtt_ms} ms, {LAB_MBIT} Mbit/s"
            found.append(await on_link(link, places, LAB_RUNS, LAB_IN_FLIGHT))
    return found


async def on_link(
    link: str, places: Sequence[Place], runs: int, in_flight: Mapping[int, int]
) -> Samples:
    """Every contestant in turn, again and again; the first time does not count."""
    samples = Samples(link)
    names = [name for name in (SHOAL, LIBP2P, TCP, LATTICA) if is_installed(name)]
    async with AsyncExitStack() as stack:
        pairs = [
            await stack.enter_async_context(pair(name, places, both=name in CALLERS))
            for name in names
        ]
        for run in range(runs + 1):
            for each in pairs:
                if run:
                    await one_run(each, samples, in_flight, MIBS, with_back=link == LOOPBACK)
                else:
                    warm = LAB_WARM_MIBS if link != LOOPBACK else MIBS
                    await one_run(each, Samples(link), in_flight, warm, with_back=False)
    return samples


def is_installed(name: str) -> bool:
    """Says so if Lattica is not."""
    if name != LATTICA or importlib.util.find_spec(LATTICA) is not None:
        return True
    sys.stderr.write("scripts/bench rpc: Lattica is left out: pip install lattica==1.0.21\n")
    return False


async def one_run(
    each: Pair,
    samples: Samples,
    in_flight: Mapping[int, int],
    mibs: Sequence[int],
    *,
    with_back: bool,
) -> None:
    """Everything once with one contestant; the lines of the lab are alike both ways."""
    for at_once, count in in_flight.items():
        if at_once > 1 and each.name not in CALLERS:
            continue
        found = await each.order("calls", in_flight=at_once, count=count)
        samples.add(each.name, f"calls_per_s {at_once}", count / float(found["seconds"]))
        for name in ("p50_ms", "p99_ms"):
            samples.add(each.name, f"{name} {at_once}", float(found[name]))
    for mib in mibs:
        found = await each.order("fetch", size_bytes=mib * MIB)
        samples.add(each.name, f"mb_per_s_{mib}", mb_per_s(mib, found))
    if each.name in CALLERS and with_back:
        found = await each.order("fetch", back=True, size_bytes=LARGE * MIB)
        samples.add(each.name, "mb_per_s_back", mb_per_s(LARGE, found))
    if each.name in CALLERS:
        found = await each.order("mixed", size_bytes=mibs[-1] * MIB)
        for name in ("p50_ms", "p99_ms"):
            samples.add(each.name, f"mixed_{name}", float(found[name]))


def mb_per_s(mib: int, found: Mapping[str, float | str]) -> float:
    return mib * MIB / 1e6 / float(found["seconds"])


# --- what came of it -------------------------------------------------------------------------


def show(links: Sequence[Samples], runs: int, args: argparse.Namespace) -> None:
    """On the terminal and where else it is wanted."""
    calls = [row for samples in links for row in call_rows(samples)]
    bulk = [row for samples in links for row in bulk_rows(samples)]
    found = aims(links)
    note = f"medians of {runs} interleaved runs, {LAB_RUNS} in the lab"
    tables = (
        ("calls of 128 bytes", calls, CALL_HEADINGS),
        ("payloads", bulk, BULK_HEADINGS),
        ("aims", found, AIM_HEADINGS),
    )
    lines = [f"{note}.", ""]
    for title, rows, headings in tables:
        common.report(title, rows, headings, note)
        lines += [f"## {title.capitalize()}", "", *common.markdown(rows, headings), ""]
    settings: common.Row = {"runs": runs, "lab_runs": LAB_RUNS, "call_bytes": 128}
    common.write_json(args.json, [*calls, *bulk, *found], settings)
    if args.out:
        common.write_page(args.out, "rpc", "Calls and payloads", lines)
        common.write_json(args.out / "rpc.json", [*calls, *bulk, *found], settings)


def call_rows(samples: Samples) -> list[common.Row]:
    return [
        {
            "link": samples.link,
            "contestant": name,
            "in_flight": at_once,
            "calls_per_s": round(samples.median(name, f"calls_per_s {at_once}") or 0),
            "p50_ms": samples.median(name, f"p50_ms {at_once}"),
            "p99_ms": samples.median(name, f"p99_ms {at_once}"),
        }
        for at_once in IN_FLIGHT
        for name in (SHOAL, LATTICA, LIBP2P, TCP)
        if samples.median(name, f"p50_ms {at_once}") is not None
    ]


def bulk_rows(samples: Samples) -> list[common.Row]:
    figures = [name for name in BULK_HEADINGS if name not in ("link", "contestant")]
    return [
        {
            "link": samples.link,
            "contestant": name,
            **{figure: samples.median(name, figure) for figure in figures},
        }
        for name in (SHOAL, LATTICA, LIBP2P, TCP)
        if samples.median(name, f"mb_per_s_{LARGE}") is not None
    ]


def aims(links: Sequence[Samples]) -> list[common.Row]:
    """What was wanted beside what was found; a contestant that was left out gives none."""
    here, *lab = links
    rows = [
        ratio(here, "time of a call / Lattica's", LATTICA, "p50_ms 1", most=1.6),
        ratio(here, "calls/s, 32 at once / Lattica's", LATTICA, "calls_per_s 32", least=1.0),
        ratio(here, "MB/s of 64 MiB / Lattica's", LATTICA, "mb_per_s_64", least=1.3),
        ratio(here, "MB/s of 8 MiB / Lattica's", LATTICA, "mb_per_s_8", least=1.0),
        ratio(here, "MB/s of 64 MiB / a bare stream's", LIBP2P, "mb_per_s_64", least=0.85),
    ]
    for samples in lab:
        share = (samples.median(SHOAL, "mb_per_s_64") or 0.0) * 8 / LAB_MBIT
        rows.append(aim(f"share of the line, {samples.link}", share, least=0.8))
    return [row for row in rows if row is not None]


def ratio(
    samples: Samples, what: str, other: str, figure: str, *, least: float = 0.0, most: float = 0.0
) -> common.Row | None:
    mine, theirs = samples.median(SHOAL, figure), samples.median(other, figure)
    if mine is None or theirs is None:
        return None
    return aim(what, mine / theirs, least=least, most=most)


def aim(what: str, found: float, *, least: float = 0.0, most: float = 0.0) -> common.Row:
    """At least, or at most."""
    wanted = f"at least {least:g}" if least else f"at most {most:g}"
    is_met = found >= least if least else found <= most
    return {"aim": what, "found": found, "wanted": wanted, "met": "yes" if is_met else "no"}


if __name__ == "__main__":
    sys.exit(main())
