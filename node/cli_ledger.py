"""The command `shoal contributions`: who trained how much, by the records of the run."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from node import view
from node.api import ApiClient
from node.cli_node import DataDir, ask

app = typer.Typer()


@app.command()
def contributions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show who trained how much, by the signed records: the same at every member."""
    found = ask(data_dir, ApiClient.contributions)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(view.contributions_table(found))
