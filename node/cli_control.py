"""The commands of a run's creator: `shoal pause`, `shoal resume`, `shoal stop`, `shoal set`.

They ask the creator's running node, which writes the word into its record.
"""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli_node import DataDir, ask

app = typer.Typer()


@app.command()
def pause(data_dir: DataDir = None) -> None:
    """For the creator: let all members wait, each after the round that it is in."""
    _order(data_dir, {"action": "pause"})


@app.command()
def resume(data_dir: DataDir = None) -> None:
    """For the creator: let all members go on."""
    _order(data_dir, {"action": "resume"})


@app.command()
def stop(data_dir: DataDir = None) -> None:
    """For the creator: end the run for good, each member after the round that it is in."""
    _order(data_dir, {"action": "stop"})


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="As in the run file: inner.lr, trainer.codec, ...")],
    value: Annotated[str, typer.Argument(help="What it is to be.")],
    from_round: Annotated[
        int | None, typer.Option(help="From this round on.  [default: the next one of this node]")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """For the creator: change a setting that the run file marks as changeable."""
    order = {"action": "set", "name": name, "value": value, "from_round": from_round}
    _order(data_dir, order)


def _order(data_dir: DataDir, order: dict[str, str | int | None]) -> None:
    print(ask(data_dir, lambda node: node.order(order)))
