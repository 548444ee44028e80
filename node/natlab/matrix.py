"""scripts/natlab matrix: which hosts reach which, how, after how long, and how fast.

Every kind of the list is tried with every other one and with itself, the dialer first; `lan2` is
a pair of its own.  Tries of all pairs are interleaved, so that a machine that slows down meanwhile
slows all of them down.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from node.local_swarm import NodeFailed
from node.natlab.commands import LabFailed
from node.natlab.pair import Outcome, try_pair
from node.natlab.rules import Kind
from protocol.errors import ConfigError

MAX_TRIES = 100
HEADINGS = ("dialer", "target", "connected", "contact", "direct", "cold", "warm", "relay")
NOTE = """contact: s to the first connection; direct: s from there to a direct one
cold, warm: MB/s of the first and the second 8 MiB; relay: MB that it sent
medians of the tries"""

Pair = tuple[Kind, ...]
"""Of dialer and target; one kind that has two hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person asked for."""

    kinds: tuple[Kind, ...]
    delay_ms: float
    rate_mbit: float
    tries: int
    json_file: Path | None

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= MAX_TRIES:
            raise ConfigError(f"natlab: --tries is {self.tries}, expected 1 to {MAX_TRIES}")
        if self.json_file and not self.json_file.absolute().parent.is_dir():
            raise ConfigError(
                f"{self.json_file}: there is no such directory; make it, or give another file"
            )


def pairs(kinds: Sequence[Kind]) -> list[Pair]:
    """Every pair of these kinds, both ways round."""
    alone = [kind for kind in kinds if kind.num_hosts == 1]
    made: list[Pair] = [(dialer, target) for dialer in alone for target in alone]
    return made + [(kind,) for kind in kinds if kind.num_hosts == 2]


async def main(options: Options) -> int:
    """Measure and tell; 1: some pair could not be measured."""
    console = Console()
    found: dict[Pair, list[Outcome]] = {pair: [] for pair in pairs(options.kinds)}
    failed = 0
    for _ in range(options.tries):
        for pair, outcomes in found.items():
            try:
                outcome = await try_pair(
                    pair, delay_ms=options.delay_ms, rate_mbit=options.rate_mbit
                )
            except (LabFailed, NodeFailed) as error:
                failed += 1
                Console(stderr=True, soft_wrap=True).print(
                    f"{_named(pair)}: {error}", markup=False, highlight=False
                )
                continue
            outcomes.append(outcome)
            console.print(f"{_named(pair)}: {_told(outcome)}", markup=False, highlight=False)
            _write(options, found)
    console.print(_table(found))
    return 1 if failed else 0


def _named(pair: Pair) -> str:
    return " -> ".join(kind.value for kind in pair)


def _told(outcome: Outcome) -> str:
    dialed = outcome.dialed
    speeds = " ".join(f"{speed:.1f}" for speed in dialed.mb_per_s)
    return f"{dialed.how} {_seconds(dialed.direct_s)} {speeds} {dialed.why}".rstrip()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(found: Mapping[Pair, Sequence[Outcome]]) -> Table:
    table = Table(padding=(0, 0, 0, 1), caption=NOTE, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True)
    for pair, outcomes in found.items():
        how = [outcome.dialed.how for outcome in outcomes]
        counts = ", ".join(f"{how.count(kind)} {kind}" for kind in sorted(set(how)))
        table.add_row(
            pair[0].value,
            pair[-1].value,
            counts or "not measured",
            _median(outcomes, lambda o: o.dialed.contact_s, 2),
            _median(outcomes, lambda o: o.dialed.direct_s, 2),
            _median(outcomes, lambda o: o.dialed.mb_per_s[0] if o.dialed.mb_per_s else None, 1),
            _median(outcomes, lambda o: o.dialed.mb_per_s[-1] if o.dialed.mb_per_s else None, 1),
            _median(outcomes, lambda o: o.relay_bytes / 1e6, 2),
        )
    return table


def _median(
    outcomes: Sequence[Outcome], value: Callable[[Outcome], float | None], digits: int
) -> str:
    known = [number for outcome in outcomes if (number := value(outcome)) is not None]
    return f"{statistics.median(known):.{digits}f}" if known else "-"


def _write(options: Options, found: Mapping[Pair, Sequence[Outcome]]) -> None:
    """All that is known by now, for a long matrix may be broken off."""
    if options.json_file is None:
        return
    figures = {
        "settings": {
            "delay_ms": options.delay_ms,
            "rate_mbit": options.rate_mbit,
            "tries": options.tries,
        },
        "pairs": [
            {
                "dialer": pair[0].value,
                "target": pair[-1].value,
                "tries": [asdict(outcome) for outcome in outcomes],
            }
            for pair, outcomes in found.items()
        ],
    }
    options.json_file.write_text(json.dumps(figures, indent=1) + "\n")
