"""The command `shoal contributions`: who trained how much, by the records of the run."""

from __future__ import annotations

import json
import sys
from typing import Annotated, cast

import typer
from rich.console import Console

from crdt.replica import Replica
from node import keys, view
from node.api import ApiClient, Contributions
from node.cli_node import DataDir, ask
from node.config import load_node_config
from node.founding import resumed
from node.records.contributions import told
from node.records.files import merge_files
from protocol.algorithms import GroupConfig
from protocol.errors import ConfigError, NotRunning
from protocol.ids import short

app = typer.Typer()


@app.command()
def contributions(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show who trained how much, by the signed records: the same at every member."""
    try:
        found = ask(data_dir, ApiClient.contributions)
    except NotRunning:
        directory = keys.DataDir(load_node_config(data_dir, {}).data_dir)
        if directory.claimed_run() is None:
            raise
        found = _on_disk(directory)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(view.contributions_table(found))


def _on_disk(directory: keys.DataDir) -> Contributions:
    """What the records say that a node which does not run has kept.

    Raises:
        ConfigError: the directory's run cannot be read.
    """
    held = resumed(directory)
    if held.signed is None:
        raise ConfigError(
            f"{directory.spec}: the spec of run {short(held.run)} is not there yet, expected a run "
            "with members; start the node with `shoal up`"
        )
    spec = held.spec()
    replica = Replica(held.run, reserved=(spec.creator,))
    for path, error in merge_files(directory.records, replica):
        print(f"shoal: left out: record of {short(path.stem)}: {error}", file=sys.stderr)
    is_group = isinstance(spec.trainer, GroupConfig)
    return cast(Contributions, told(replica.views(), replica.root(), is_group=is_group))
