"""The command `shoal`: arguments, exit codes, and a client of the running node's API.

Exit status 0: done; 1: it failed; 2: bad input, with one sentence on standard error and no
traceback.  Standard output carries only what was asked for (a ticket, a status); logs go to
standard error.  The node itself, and with it libp2p, is imported only where one is started, and
so is the simulator: `shoal status` must answer at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from node import cli_control, cli_ledger, cli_model, corpus, handover, keys, telemetry, view
from node import demo as demo_swarm
from node.api import ApiClient
from node.cli_node import DataDir, ask
from node.config import (
    BootstrapOnly,
    CreateRun,
    JoinRun,
    Mode,
    NodeConfig,
    Resume,
    load_node_config,
)
from node.run_file import CORPORA
from protocol import ticket as tickets
from protocol.errors import ConfigError, ShoalError
from protocol.ticket import Ticket

BAD_INPUT = 2

app = typer.Typer(
    help="Train a model together with strangers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
run_app = typer.Typer(help="Make runs.", no_args_is_help=True)
data_app = typer.Typer(help="Fetch data.", no_args_is_help=True)
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")
app.add_typer(cli_model.app)
app.add_typer(cli_control.app)
app.add_typer(cli_ledger.app)

Listen = Annotated[
    list[str] | None,
    typer.Option(help="Multiaddr to listen on, /ip4/0.0.0.0/tcp/4001; may be repeated."),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option(help="Multiaddr of a peer to enter through, or @FILE with such; repeatable."),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(help="Multiaddr to publish instead of the bound ones; may be repeated."),
]
Name = Annotated[str | None, typer.Option(help="What status calls this node.")]


def main() -> None:
    """Entry point: runs a command, turns errors into a sentence and an exit status."""
    try:
        status = app(prog_name="shoal", standalone_mode=False)
    except typer.TyperException as error:
        _fail_to_parse(error)
    except ConfigError as error:
        _fail(error, BAD_INPUT)
    except ShoalError as error:
        _fail(error, 1)
    except BaseExceptionGroup as group:
        matched, rest = group.split(ConfigError)
        if matched is None or rest is not None:
            raise
        _fail(_leaf(matched), BAD_INPUT)
    sys.exit(status or 0)


def _fail_to_parse(error: typer.TyperException) -> NoReturn:
    """Say what is wrong with the command line; where it only lacks a command, show the commands."""
    said = error.format_message()
    if said.startswith("Usage: "):
        print(said, file=sys.stderr)
        sys.exit(BAD_INPUT)
    why = " ".join(said.split()).rstrip(".")
    sentence = f"command line: {why[:1].lower()}{why[1:]}; --help tells what is expected"
    _fail(ConfigError(sentence), BAD_INPUT)


def _fail(error: BaseException, status: int) -> NoReturn:
    print(f"shoal: {telemetry.harmless(str(error), but=chr(10))}", file=sys.stderr)
    sys.exit(status)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# --- commands that start a node ----------------------------------------------------------


@run_app.command("create")
def run_create(
    file: Annotated[Path, typer.Argument(help="The run as a TOML file.")],
    data_dir: DataDir = None,
    listen: Listen = None,
    bootstrap: Bootstrap = None,
    announce: Announce = None,
    name: Name = None,
) -> None:
    """Make a run, print its ticket, and train in it."""
    config = _config(data_dir, listen, bootstrap, announce, name)
    _run(config, CreateRun(file, on_ticket=lambda ticket: print(ticket, flush=True)))


@app.command()
def join(
    ticket: Annotated[str, typer.Argument(help="The ticket that `shoal run create` printed.")],
    data_dir: DataDir = None,
    listen: Listen = None,
    bootstrap: Bootstrap = None,
    announce: Announce = None,
    name: Name = None,
) -> None:
    """Join the run of a ticket and train in it."""
    parsed = tickets.parse(ticket)
    _run(_config(data_dir, listen, bootstrap, announce, name), JoinRun(parsed))


@app.command()
def up(
    auto_run: Annotated[
        Path | None, typer.Option(help="For containers: the run to make if nobody made it.")
    ] = None,
    ticket_file: Annotated[
        Path | None, typer.Option(help="With --auto-run: where its ticket is, or is to be.")
    ] = None,
    data_dir: DataDir = None,
    listen: Listen = None,
    bootstrap: Bootstrap = None,
    announce: Announce = None,
    name: Name = None,
) -> None:
    """Go on with the run of the data directory."""
    if (auto_run is None) != (ticket_file is None):
        raise ConfigError(
            "command line: found one of --auto-run and --ticket-file, expected both or none"
        )
    config = _config(data_dir, listen, bootstrap, announce, name)
    if auto_run is None or ticket_file is None:
        _run(config, Resume())
        return
    found = handover.ticket_or_claim(ticket_file, _waits())
    if isinstance(found, str):
        _run(config, JoinRun(tickets.parse(found)))
        return

    def hand_over(ticket: Ticket) -> None:
        handover.write_lines(ticket_file, [str(ticket)])
        found.close()

    directory = keys.DataDir(config.data_dir)
    held = handover.read_lines(directory.ticket) if directory.claimed_run() else []
    if held:  # all nodes were stopped, and the file ended with them: go on, make no second run
        hand_over(tickets.parse(held[0]))
        _run(config, Resume())
        return
    _run(config, CreateRun(auto_run, on_ticket=hand_over))


@app.command()
def bootstrap(
    addr_file: Annotated[
        Path | None, typer.Option(help="Write this node's addresses there, one a line.")
    ] = None,
    data_dir: DataDir = None,
    listen: Listen = None,
    bootstrap: Bootstrap = None,
    announce: Announce = None,
    name: Name = None,
) -> None:
    """Serve the DHT only: a door for others, without training."""

    def tell(addrs: tuple[str, ...]) -> None:
        print("\n".join(addrs), flush=True)
        if addr_file:
            handover.write_lines(addr_file, addrs)

    _run(_config(data_dir, listen, bootstrap, announce, name), BootstrapOnly(on_addrs=tell))


def _config(
    data_dir: Path | None,
    listen: list[str] | None,
    bootstrap: list[str] | None,
    announce: list[str] | None,
    name: str | None,
) -> NodeConfig:
    """This node's settings, with logs set up and `@FILE` replaced by the addresses in it."""
    flags = {"listen": listen or None, "announce": announce or None, "name": name}
    config = load_node_config(data_dir, flags)
    telemetry.set_up_logs(config.log_level, as_json=config.log_json)
    if not bootstrap:
        return config
    addrs: list[str] = []
    for item in bootstrap:
        if item.startswith("@"):
            what = "the addresses of a bootstrap node"
            addrs += handover.wait_for_lines(Path(item[1:]), what, _waits())
        else:
            addrs.append(item)
    return load_node_config(data_dir, {**flags, "bootstrap": addrs})


def _waits() -> telemetry.Waits:
    return telemetry.Waits(time.time)


def _run(config: NodeConfig, mode: Mode) -> None:
    from node.node import run_node  # here, for it brings libp2p: half a second

    raise typer.Exit(asyncio.run(run_node(config, mode)))


# --- commands that ask a running node ----------------------------------------------------


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Only the exit status: 0 if a node runs.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Show what the node does now."""
    found = ask(data_dir, ApiClient.status)
    if quiet:
        return
    if as_json:
        print(json.dumps(found))
        return
    Console().print(view.status_table(found, time.time()))
    print(view.copied(found))


@app.command()
def peers(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show the members that the node sees."""
    found = ask(data_dir, ApiClient.peers)
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(view.peers_table(found, console.width))


@app.command()
def leave(data_dir: DataDir = None) -> None:
    """Leave the run and stop the node; its files stay."""
    ask(data_dir, ApiClient.leave)


# --- the rest ----------------------------------------------------------------------------


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="shakespeare or pydoc")],
    cache: Annotated[Path | None, typer.Option(help="Directory of fetched corpora.")] = None,
) -> None:
    """Fetch a corpus into the cache, so that a run starts at once and without a network."""
    if name not in CORPORA:
        raise ConfigError(f"corpus: found {name!r:.60}, expected one of {', '.join(CORPORA)}")
    directory = cache or load_node_config(None, {}).cache_dir
    found = corpus.load(name, directory)
    print(f"{name}: {len(found.train)} bytes to train on, {len(found.validation)} held out")


@app.command()
def demo(
    nodes: Annotated[int, typer.Option(help="Nodes, 1 to 16.")] = 4,
    trainer: Annotated[
        str, typer.Option(help="How: noloco, diloco, streaming or spsa.")
    ] = "noloco",
    steps: Annotated[
        int | None, typer.Option(help="Inner steps of each node.  [default: as the run file has]")
    ] = None,
    kill_one: Annotated[
        bool, typer.Option("--kill-one", help="Kill a node in the middle.")
    ] = False,
    late_join: Annotated[bool, typer.Option("--late-join", help="One node joins halfway.")] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Then train one node alone.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the data directories there.")] = None,
) -> None:
    """Train a small language model in a swarm of nodes on this machine."""
    options = demo_swarm.Options(
        nodes=nodes,
        trainer=trainer,
        steps=steps,
        kill_one=kill_one,
        late_join=late_join,
        baseline=baseline,
        json_file=json_file,
        keep=keep,
    )
    raise typer.Exit(demo_swarm.main(options))


@app.command()
def sim(
    scenario: Annotated[Path, typer.Argument(help="The scenario as a TOML file.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures of the table.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the curves into FIGURE.png and FIGURE.svg.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's.")] = None,
) -> None:
    """Simulate a swarm of many peers under virtual time."""
    from node.sim.command import Options, main  # here, for it brings numpy

    main(Options(scenario=scenario, json_file=json_file, figure=figure, seed=seed))


if __name__ == "__main__":
    main()
