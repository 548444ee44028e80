"""What commands share about this machine's node: its data directory, and what to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from node.api import ApiClient
from node.config import load_node_config

T = TypeVar("T")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory of this node.  [default: $SHOAL_DATA or ~/.local/share/shoal]"),
]


def ask(data_dir: Path | None, call: Callable[[ApiClient], Awaitable[T]]) -> T:
    """What the running node answers.

    Raises:
        ConfigError: no node runs there, or it refuses.
    """

    async def answer() -> T:
        async with ApiClient(load_node_config(data_dir, {}).api_socket) as node:
            return await call(node)

    return asyncio.run(answer())
