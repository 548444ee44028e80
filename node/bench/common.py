"""What every bench shares: --json, --out, interleaved runs, medians, a table on the terminal.

A bench prints a table for people and, where asked, writes the same figures as JSON: one object
with the command, the machine and a list of rows; and as a page with figures, for docs/results.
Runs of what is compared are interleaved, so that a machine which slows down meanwhile slows all
of it down; the median is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = Mapping[str, str | int | float | None]
"""Figures by name; what a row has not is None."""

NOTES = "## Notes"
"""Where on a page begins what a person wrote: it stays when the rest is written anew."""
CONSOLE_COLUMNS = 120
"""Of a table that is not printed to a terminal."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options of a bench, with --json among them."""
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="write a page and figures there")
    return made


def median_seconds(
    cases: Mapping[str, Callable[[], object]],
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """How long each case takes: the median of `runs` rounds through all of them.

    One round before those is not counted: it fills caches and makes memory.

    Args:
        clock: seconds; `time.process_time` for what else runs on the machine not to count.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for count in range(runs + 1):
        for name, case in cases.items():
            began = clock()
            case()
            if count:
                taken[name].append(clock() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def report(title: str, rows: Sequence[Row], headings: Mapping[str, str], note: str) -> None:
    """Print a table of the figures that have a heading, in its order."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=CONSOLE_COLUMNS)
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    table.padding = (0, 0, 0, 1)
    for name, heading in headings.items():
        is_text = any(isinstance(row[name], str) for row in rows)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_told(row[name]) for name in headings))
    console.print(table)


def write_json(file: Path | None, rows: Sequence[Row], settings: Row) -> None:
    """Write the figures, the command and the machine, if a file is asked for."""
    if file is None:
        return
    figures = {
        "command": _command(),
        "machine": _machine(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    file.write_text(json.dumps(figures, indent=1) + "\n")


def write_page(folder: Path, name: str, title: str, lines: Sequence[str]) -> None:
    """FOLDER/NAME.md: command, day, machine, these lines, and the notes that it had before."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.md"
    before = file.read_text() if file.is_file() else ""
    notes = before[before.find(NOTES) :] if NOTES in before else f"{NOTES}\n"
    day = datetime.now(UTC).date().isoformat()
    head = [f"# {title}", "", "Written by this command, but for the notes at the end.", ""]
    head += [f"    {_command()}", "", f"{day}, {_machine()}.", ""]
    file.write_text("\n".join([*head, *lines, "", notes]))


def markdown(rows: Sequence[Row], headings: Mapping[str, str]) -> list[str]:
    """The same table as `report` prints, for a page."""
    table = [[heading.replace("\n", " ") for heading in headings.values()]]
    table += [["---"] * len(headings)]
    table += [[_told(row[name]) for name in headings] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in table]


def _command() -> str:
    return shlex.join(["scripts/bench", Path(sys.argv[0]).stem, *sys.argv[1:]])


def _machine() -> str:
    kind = f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores"
    return f"{kind}, Python {platform.python_version()}"


def _told(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"
