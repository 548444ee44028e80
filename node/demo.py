"""`shoal demo`: a whole swarm on this machine, each node a process of its own.

The first node makes the run; the others get only its ticket.  This process knows no more of
them than a person would: it starts the command, asks each node's API, and reads the files
that they name.  At the end a program of its own measures the weights on disk and their mean.

Ends within three seconds of Ctrl-C and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table

from node import report, view
from node.api import Status
from node.local_swarm import ROOT, Child, LocalSwarm, NodeFailed
from node.measuring import measure
from node.report import Measured, NodeResult, Report
from node.run_file import NamedCorpus, RunDraft, read_run_file
from node.signals import INTERRUPTED, run_until_stop
from protocol.algorithms import SpsaConfig
from protocol.errors import ConfigError

T = TypeVar("T")

RUN_FILES = {
    "noloco": ROOT / "examples" / "shakespeare.toml",
    "diloco": ROOT / "examples" / "shakespeare-diloco.toml",
    "streaming": ROOT / "examples" / "shakespeare-streaming.toml",
    "spsa": ROOT / "examples" / "shakespeare-spsa.toml",
}
"""By trainer."""
MAX_NODES = 16
"""Each has a worker with torch, some 400 MB."""
POLL_S = 0.5
LINE_INTERVAL_S = 5.0
"""Where no terminal is, a line of progress this often."""
STALL_S = 180.0
"""No node got further for so long: a first start fetches the corpus and imports torch in
every worker, which took under a minute on two cores."""
OWN_MEASURE_S = 60.0
"""For a finished node to measure itself; some seconds, where all do it at once."""
SETTLE_S = 90.0
"""For nodes of an spsa run to add what others measured last, and to save and measure it: twenty
seconds after others' last scalars came, and those may take as long to get around."""
KILL_AT = 0.4
JOIN_AT = 0.5
"""Share of the rounds after which a node is killed, or joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person asked for."""

    nodes: int
    trainer: str
    steps: int | None
    """Inner steps of each node; None: those of the run file."""
    kill_one: bool
    late_join: bool
    baseline: bool
    json_file: Path | None
    keep: Path | None

    def __post_init__(self) -> None:
        if self.trainer not in RUN_FILES:
            raise ConfigError(
                f"command line: --trainer is {self.trainer!r:.40}, expected one of "
                f"{', '.join(RUN_FILES)}"
            )
        least = 1 + self.kill_one + self.late_join
        if not least <= self.nodes <= MAX_NODES:
            raise ConfigError(
                f"command line: --nodes is {self.nodes}, expected {least} to {MAX_NODES}: one is "
                "left after --kill-one and before --late-join"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"command line: --steps is {self.steps}, expected 1 or more")
        if self.json_file and not self.json_file.absolute().parent.is_dir():
            raise ConfigError(
                f"{self.json_file}: there is no such directory; make it, or give another file"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """A stretch of training, whole or cut short by a failure."""

    seconds: float
    nodes: tuple[NodeResult, ...]
    measured: Measured | None
    failure: NodeFailed | None


def main(options: Options) -> int:
    """Run the demo; its exit status."""
    console = Console()
    draft = read_run_file(RUN_FILES[options.trainer])
    draft = replace(draft, min_members=options.nodes - options.late_join)
    if options.steps:
        rounds = max(1, round(options.steps * draft.num_fragments / draft.trainer.inner_steps))
        draft = replace(draft, rounds=rounds)
    alone = replace(options, nodes=1, kill_one=False, late_join=False)
    baseline = None
    with _directory(options.keep) as root:
        try:
            outcome = run_until_stop(_train(options, draft, root, console))
            if options.baseline and not outcome.failure:
                console.print("one node alone, the same steps:")
                baseline = run_until_stop(
                    _train(alone, replace(draft, min_members=1), root / "alone", console)
                )
        except asyncio.CancelledError:
            return INTERRUPTED
    result = _report(outcome, baseline)
    if options.json_file:
        options.json_file.write_text(json.dumps(result.as_json(), indent=2) + "\n")
    if result.nodes:
        console.print(report.tables(result))
    for failure in filter(None, (outcome.failure, baseline and baseline.failure)):
        Console(stderr=True, soft_wrap=True).print(f"shoal demo: {failure}", markup=False)
    return 0 if result.ok else 1


def run_file_text(draft: RunDraft) -> str:
    """The run file of a draft on a named corpus; a JSON scalar is a TOML one."""
    assert isinstance(draft.data, NamedCorpus)
    top = asdict(draft) | {"data": draft.data.name}
    tables = {name: top.pop(name) for name in ("model", "inner", "trainer", "protection")}
    tables = {name: table for name, table in tables.items() if table is not None}
    tables["trainer"] = {"kind": draft.trainer.KIND} | tables["trainer"]
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
    return "\n".join(lines) + "\n"


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Where everything lies; removed in the end unless it is to be kept."""
    if keep is None:
        root = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
        try:
            yield root
        finally:
            shutil.rmtree(root)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ConfigError(f"{keep}: is in use, expected a new or empty directory; give another")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.absolute()


def _report(outcome: _Outcome, baseline: _Outcome | None) -> Report:
    failed = outcome.failure or (baseline and baseline.failure)
    result = Report(
        ok=False,
        seconds=outcome.seconds,
        nodes=outcome.nodes,
        measured=outcome.measured,
        baseline=baseline.measured.mean if baseline and baseline.measured else None,
    )
    return replace(result, ok=not failed and result.has_learned())


# --- one stretch of training ---------------------------------------------------------------


async def _train(options: Options, draft: RunDraft, root: Path, console: Console) -> _Outcome:
    """Start the nodes, see them through the run, measure what they learned."""
    began, failure, measured = time.monotonic(), None, None
    run_file = _write_run_file(root, draft)
    async with LocalSwarm(root) as swarm:
        with _shown(console) as show:
            try:
                await _Training(swarm, draft, show).run(options, run_file)
                measured = await measure(swarm)
            except NodeFailed as error:
                failure = error
        children = tuple(swarm.children)
    return _Outcome(
        seconds=time.monotonic() - began,
        nodes=tuple(_result(child, measured) for child in children if child.status),
        measured=measured,
        failure=failure,
    )


def _write_run_file(root: Path, draft: RunDraft) -> Path:
    root.mkdir(exist_ok=True)
    path = root / "run.toml"
    path.write_text(run_file_text(draft))
    return path


class _Training:
    """The story of one run: who starts, who dies, who comes late, when it is over."""

    def __init__(
        self, swarm: LocalSwarm, draft: RunDraft, show: Callable[[list[Child]], None]
    ) -> None:
        self._swarm = swarm
        self._draft = draft
        self._show = show

    async def run(self, options: Options, run_file: Path) -> None:
        """Through the whole run.

        Raises:
            NodeFailed: a node ended on its own, or nobody got further.
        """
        swarm = self._swarm
        creator = await swarm.start("node1", "run", "create", str(run_file))
        await self._until("a ticket", lambda: bool(_ticket(creator)))
        joiners = [f"node{number}" for number in range(2, options.nodes + 1)]
        late = joiners.pop() if options.late_join else None
        for name in joiners:
            await swarm.start(name, "join", _ticket(creator))
        if options.kill_one:
            await self._until("the kill", lambda: self._progress() >= KILL_AT)
            swarm.kill(swarm.children[1 if joiners else 0])
        if late:
            await self._until("the late join", lambda: self._progress() >= JOIN_AT)
            await swarm.start(late, "join", _ticket(creator))
        await self._until("the last round", self._is_over)
        await self._until("its validation loss", self._is_measured, for_s=OWN_MEASURE_S)
        deadline = time.monotonic() + SETTLE_S
        await self._until("equal sums", lambda: self._are_settled() or time.monotonic() > deadline)

    async def _until(
        self, what: str, reached: Callable[[], bool], *, for_s: float = STALL_S
    ) -> None:
        """Poll, check and show the nodes until `reached`.

        Raises:
            NodeFailed: a node ended, or none made a step for `for_s` seconds.
        """
        seen, deadline = -1, 0.0
        while True:
            await self._swarm.poll()
            self._show(self._swarm.children)
            self._swarm.check()
            if reached():
                return
            now = time.monotonic()
            if (steps := self._steps()) != seen:
                seen, deadline = steps, now + for_s
            elif now > deadline:
                raise self._swarm.stalled(what)
            await asyncio.sleep(POLL_S)

    def _progress(self) -> float:
        rounds = [child.status["round"] for child in self._swarm.children if child.status]
        return max(rounds, default=0) / self._draft.rounds

    def _steps(self) -> int:
        return sum(child.status["inner_step"] for child in self._swarm.children if child.status)

    def _is_over(self) -> bool:
        return all(child.killed or child.has_finished for child in self._swarm.children)

    def _are_settled(self) -> bool:
        """In spsa all end with one sum, whose loss each has measured."""
        alive = [child for child in self._swarm.children if not child.killed]
        ends = {child.status["val"]["end"] for child in alive if child.status}
        return self._draft.trainer.KIND != SpsaConfig.KIND or len(ends) == 1

    def _is_measured(self) -> bool:
        """Each node has measured itself, so that both cores are free for the yardstick."""
        return all(
            child.killed or (child.status and child.status["val"]["end"] is not None)
            for child in self._swarm.children
        )


def _ticket(child: Child) -> str:
    return child.status["ticket"] if child.status else ""


def _result(child: Child, measured: Measured | None) -> NodeResult:
    assert child.status is not None
    return NodeResult(
        name=child.name,
        status=child.status,
        val_end=measured.nodes.get(child.name) if measured else None,
        killed=child.killed,
    )


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[list[Child]], None]]:
    """How progress is shown: a live table on a terminal, else a line now and then."""
    if not console.is_terminal:
        last = 0.0

        def print_line(children: list[Child]) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_INTERVAL_S:
                last = time.monotonic()
                line = view.swarm_line(_named(children), time.time())
                console.print(line, soft_wrap=True, highlight=False)

        yield print_line
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda children: live.update(_table(children), refresh=True)


def _table(children: list[Child]) -> Table:
    return view.swarm_table(_named(children), time.time())


def _named(children: list[Child]) -> list[tuple[str, Status | None]]:
    return [(child.name, child.status) for child in children]
