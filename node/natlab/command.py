"""The command behind scripts/natlab: a lab for a person, and what is measured in labs.

scripts/natlab up cone sym --delay 10     a lab, until Ctrl-C
scripts/natlab exec h1 ip addr            in that lab, from another terminal
scripts/natlab down                       what labs left behind whose process was killed
scripts/natlab matrix                     which kinds of hosts reach which, and how
scripts/natlab training                   six nodes behind six NATs train while the relay dies
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console

from node.local_swarm import NodeFailed
from node.natlab import leftovers, matrix, training
from node.natlab.commands import LabFailed, check_machine
from node.natlab.lab import Lab, enter
from node.natlab.plan import kind_of
from node.natlab.rules import Kind
from node.signals import INTERRUPTED, run_until_stop
from protocol.errors import ConfigError

OPERATOR = 2
"""Exit status when it is the operator's to correct."""


def main() -> int:
    """Carry out the command line; its exit status."""
    given = _parser().parse_args()
    try:
        if given.command == "exec":
            _execute(given.machine, given.words)
        work = {"up": _up, "down": _down, "matrix": _matrix, "training": _training}[given.command]
        return run_until_stop(work(given))
    except asyncio.CancelledError:
        return INTERRUPTED
    except (ConfigError, LabFailed, NodeFailed) as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False, highlight=False)
        return OPERATOR if isinstance(error, ConfigError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/natlab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    known = ", ".join(kind.value for kind in Kind)
    up = commands.add_parser("up", help="make a lab and keep it until Ctrl-C")
    up.add_argument("kinds", nargs="+", metavar="KIND", help=known)
    _add_line_options(up)
    execute = commands.add_parser("exec", help="run a command on a machine of the newest lab")
    execute.add_argument("machine", metavar="NODE", help="h1, r1, relay...")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD...")
    commands.add_parser("down", help="remove what dead labs left behind")
    measured = commands.add_parser("matrix", help="measure every pair of kinds")
    measured.add_argument("--kinds", default=known.replace(" ", ""), metavar="A,B,...", help=known)
    measured.add_argument("--tries", type=int, default=1, metavar="N")
    measured.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    _add_line_options(measured)
    trained = commands.add_parser("training", help="train across NATs while the relay is killed")
    trained.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    trained.add_argument("--delay", type=float, default=0, metavar="MS", help="one way, per uplink")
    return parser


def _add_line_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delay", type=float, default=0, metavar="MS", help="one way, per uplink")
    parser.add_argument("--rate", type=float, default=0, metavar="MBIT", help="per uplink; 0: any")


async def _up(given: argparse.Namespace) -> int:
    kinds = [kind_of(text) for text in given.kinds]
    console = Console()
    async with Lab(kinds, delay_ms=given.delay, rate_mbit=given.rate) as lab:
        for name in lab.machines:
            console.print(f"{name:6} {lab.ip(name)}", highlight=False)
        console.print(f"{lab.name} is up until Ctrl-C; scripts/natlab exec h1 CMD runs in it")
        await asyncio.Event().wait()
    return 0


def _execute(machine: str, words: list[str]) -> None:
    """Become the command."""
    check_machine(with_tunnels=False)
    labs = [lab for lab in leftovers.claims() if not lab.is_dead]
    if not labs:
        raise ConfigError("natlab: found no lab, expected one; start it with scripts/natlab up")
    found = [name.removeprefix(f"{labs[-1].name}-") for name in leftovers.namespaces(labs[-1].name)]
    if machine not in found or not words:
        raise ConfigError(
            f"natlab: found {' '.join([machine, *words])!r:.80}, expected one of "
            f"{', '.join(found)}, and a command"
        )
    sys.stdout.flush()
    os.execvp("ip", [*enter(labs[-1].name, machine), *words])


async def _down(_: argparse.Namespace) -> int:
    check_machine(with_tunnels=False)
    for lab in leftovers.claims():
        if lab.is_dead:
            await leftovers.remove(lab)
            Console().print(f"{lab.name} removed")
        else:
            Console().print(f"{lab.name} belongs to process {lab.pid}, which is to remove it")
    return 0


async def _matrix(given: argparse.Namespace) -> int:
    options = matrix.Options(
        kinds=tuple(kind_of(text) for text in given.kinds.split(",")),
        delay_ms=given.delay,
        rate_mbit=given.rate,
        tries=given.tries,
        json_file=given.json,
    )
    return await matrix.main(options)


async def _training(given: argparse.Namespace) -> int:
    return await training.main(given.json, given.delay)


if __name__ == "__main__":
    sys.exit(main())
