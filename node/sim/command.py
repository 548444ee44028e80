"""`shoal sim`: reads a scenario, lets it happen, says what was found."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from node.config import load_node_config
from node.sim.cast import toys_of
from node.sim.learners import Learners
from node.sim.report import Report, tables
from node.sim.run import Simulation
from node.sim.scenario import Scenario, read_scenario
from protocol.errors import ConfigError

PROGRESS_S = 10.0
"""A line about how far it is after so much real time, if somebody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    scenario: Path
    json_file: Path | None
    figure: Path | None
    """Stem of the names of the figure's files."""
    seed: int | None


def main(options: Options) -> None:
    """Run it.  Raises ConfigError: what is wrong with the file or the options."""
    scenario = read_scenario(options.scenario, seed=options.seed)
    for path in (options.json_file, options.figure):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no directory {path.parent}; make it first")
    console, watcher = Console(), Console(stderr=True)
    began = told = time.monotonic()

    def on_point(at: float) -> None:
        nonlocal told
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            watcher.print(f"at {at:,.0f} virtual seconds after {told - began:.0f} s")

    gc.disable()  # nothing that a simulation makes is cyclic; looking for it takes a quarter
    with _quiet():
        report = Simulation(scenario, learners_of(scenario)).run(on_point)
    gc.enable()
    took_s = time.monotonic() - began
    console.print(tables(report))
    rate = report.events / took_s
    console.print(f"\n{report.events:,} events in {took_s:.1f} s: {rate:,.0f} events/s")
    _write(options, report)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what simulated nodes would warn their operators of, such as disks that are lost."""
    log = logging.getLogger("node.records.records")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def learners_of(scenario: Scenario) -> Learners:
    """What its peers learn with."""
    if scenario.learner == "model":
        from node.sim.model import models_of  # here, for it brings torch: two seconds

        return models_of(scenario.spec, load_node_config(None, {}).cache_dir)
    return toys_of(scenario)


def _write(options: Options, report: Report) -> None:
    if options.json_file:
        options.json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if options.figure:
        from node.sim.figure import write_figure  # here, for it needs matplotlib

        write_figure(report, options.figure)
