"""The command `shoal contributions`: who trained how much, by the records of the run."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console

from node import view
from node.api import ApiClient, Contributions
from node.cli_model import DataDir
from node.config import load_node_config

app = typer.Typer()


@app.command()
def contributions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show who trained how much, by the signed records: the same at every member."""

    async def ask() -> Contributions:
        async with ApiClient(load_node_config(data_dir, {}).api_socket) as node:
            return await node.contributions()

    found = asyncio.run(ask())
    if as_json:
        print(json.dumps(found))
        return
    Console().print(view.contributions_table(found))
