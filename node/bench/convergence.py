"""scripts/bench convergence: how well each trainer learns from real text, and at how many bytes.

Every cell (node.bench.convergence_cells) is computed once, by a process of its own with one
thread, and its result kept as one file in the cache: a second call goes on where the first one
was broken off, and a call with all results there only draws table and figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from node.bench import common, texts
from node.bench.convergence_cells import STEPS as DEFAULT_STEPS
from node.bench.convergence_cells import Cell, chosen, key_of, named, spec_of
from node.bench.convergence_figures import draw
from node.bench.convergence_report import page, rows_of, show
from node.bench.convergence_run import Point, Result, run_cell
from node.config import load_node_config
from node.files import write_atomically
from node.signals import INTERRUPTED, on_stop
from protocol.errors import ConfigError
from protocol.spec import RunSpec

MAX_JOBS = 64
MAX_STEPS = 100_000
TOLD_CHARS = 300
"""Of what a failed process said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell, its run, and where its result is kept."""

    cell: Cell
    spec: RunSpec
    kept: Path


Compute = Callable[[Planned], Awaitable[str]]
"""Has the result in `kept` and answers with nothing, or says why it has not."""


def main() -> int:
    """The exit status: 0, 1 a cell failed, 2 a wrong option or no data."""
    options = _options()
    try:
        return _run(options)
    except ConfigError as error:
        print(f"scripts/bench convergence: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        _say("stopped; what was computed is kept, and the same command goes on from there")
        return INTERRUPTED


def _options() -> argparse.Namespace:
    parser = common.parser("convergence", "Loss of every trainer on real text, against bytes.")
    parser.add_argument("--cells", metavar="PATTERN", default="*",
                        help="only those whose names match, such as 'shakespeare/noloco*/4/1'; "
                        "commas separate patterns")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="cells at once (2)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS,
                        help=f"inner steps of a peer ({DEFAULT_STEPS})")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the cells and do nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    for name, limit in (("jobs", MAX_JOBS), ("steps", MAX_STEPS)):
        if not 1 <= getattr(options, name) <= limit:
            found = getattr(options, name)
            raise ConfigError(f"--{name} is {found}, expected a whole number from 1 to {limit}")
    cache = load_node_config(None, {}).cache_dir
    if options.child:
        (planned,) = plan([named(options.child)], options.steps, cache)
        _compute_here(planned, cache)
        return 0
    cells = chosen(options.cells)
    if options.list:
        _say("\n".join(cell.name for cell in cells))
        return 0
    planned_cells = plan(cells, options.steps, cache)

    def compute(planned: Planned) -> Awaitable[str]:
        return _in_a_process(planned, options.steps)

    async def compute_or_stop() -> int:
        if task := asyncio.current_task():
            on_stop(task.cancel)
        return await compute_missing(planned_cells, options.jobs, compute, _say)

    failed = asyncio.run(compute_or_stop())
    results = {p.cell: read_result(p.kept) for p in planned_cells if p.kept.is_file()}
    _publish(results, options)
    return 1 if failed else 0


def _publish(results: Mapping[Cell, Result], options: argparse.Namespace) -> None:
    if not results:
        return
    rows = rows_of(results)
    show(rows)
    settings: dict[str, str | int | float | None] = {"steps": options.steps}
    common.write_json(options.json, rows, settings)
    if options.out:
        lines = page(rows, results)
        common.write_page(options.out, "convergence", "Convergence on real text", lines)
        common.write_json(options.out / "convergence.json", rows, settings)
        draw(results, options.out / "convergence")


# --- cells ---------------------------------------------------------------------------------------


def plan(cells: list[Cell], steps: int, cache: Path) -> list[Planned]:
    """The runs of these cells; a text that is not in the cache is fetched."""
    loaded = {name: texts.load(name, cache) for name in sorted({cell.text for cell in cells})}
    folder = cache / "convergence"
    folder.mkdir(parents=True, exist_ok=True)
    planned = []
    for cell in cells:
        spec = spec_of(cell, steps, loaded[cell.text], cache)
        kept = folder / f"{key_of(cell, spec)}.json"
        planned.append(Planned(cell=cell, spec=spec, kept=kept))
    return planned


async def compute_missing(
    planned: list[Planned], jobs: int, compute: Compute, say: Callable[[str], None]
) -> int:
    """Compute what is not there, so many at once; how many failed."""
    todo = [each for each in planned if not each.kept.is_file()]
    say(f"{len(planned)} cells, {len(planned) - len(todo)} of them computed before")
    done, failed, began = 0, 0, time.monotonic()
    waiting = iter(todo)

    async def one_after_the_other() -> None:
        nonlocal done, failed
        for each in waiting:
            why = await compute(each)
            done += 1
            failed += bool(why)
            passed_s = time.monotonic() - began
            left_s = passed_s / done * (len(todo) - done)
            say(
                f"{done}/{len(todo)} {each.cell.name}: "
                + (f"FAILED: {why}" if why else _told(read_result(each.kept)))
                + f"; about {left_s / 60:.0f} minutes left"
            )

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(one_after_the_other())
    return failed


def _told(result: Result) -> str:
    return (
        f"{result.loss_peer:.4f} nats/byte, {result.payload_bytes / 1e6:.2f} MB a peer, "
        f"{result.seconds:.0f} s"
    )


def read_result(kept: Path) -> Result:
    """The result in a file of ours."""
    fields = json.loads(kept.read_bytes())
    curve = [Point(**point) for point in fields.pop("curve")]
    return Result(curve=curve, **fields)


def write_result(kept: Path, result: Result) -> None:
    """Whole or not at all."""
    write_atomically(kept, json.dumps(asdict(result), indent=1).encode())


async def _in_a_process(planned: Planned, steps: int) -> str:
    """Compute a cell in a process of its own; see `Compute`."""
    process = await asyncio.create_subprocess_exec(
        *("env", "OMP_NUM_THREADS=1", "RAYON_NUM_THREADS=1", sys.executable),
        *("-m", "node.bench.convergence", "--child", planned.cell.name, "--steps", str(steps)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C ends this process, which then ends that one
    )
    try:
        _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
    if process.returncode == 0 and planned.kept.is_file():
        return ""
    lines = said.decode(errors="replace").strip().splitlines() or ["said nothing"]
    return f"exit status {process.returncode}: {lines[-1][:TOLD_CHARS]}"


def _compute_here(planned: Planned, cache: Path) -> None:
    torch.set_num_threads(1)
    text = texts.load(planned.cell.text, cache)
    bpe_json = text.tokenizer(planned.spec.model.vocab, cache)
    write_result(planned.kept, run_cell(planned.cell, planned.spec, text, bpe_json))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
