"""Asks the yardstick what the snapshots of a local swarm are worth.

The yardstick is a program of its own (`node.yardstick`), for it needs torch; it gets files
that the nodes name in their status, and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json

from node.local_swarm import Child, LocalSwarm, NodeFailed
from node.report import Measured

MEASURE_DEADLINE_S = 120.0
"""For the validation loss of all snapshots and their mean: seconds on an idle machine."""


async def measure(swarm: LocalSwarm) -> Measured:
    """Validation loss of each node's newest snapshot and of their mean, and the consensus.

    Raises:
        NodeFailed: the measuring program failed or was too slow.
    """
    ended = [child for child in swarm.children if child.status and not child.killed]
    try:
        async with asyncio.timeout(MEASURE_DEADLINE_S):
            return await _yardstick(swarm, ended)
    except TimeoutError:
        raise NodeFailed("yardstick", f"took over {MEASURE_DEADLINE_S:g} s", ()) from None


async def _yardstick(swarm: LocalSwarm, children: list[Child]) -> Measured:
    statuses = {child.name: child.status for child in children if child.status}
    snapshots = {name: status["snapshot"] for name, status in statuses.items()}
    first = next(iter(statuses.values()))
    files = {"spec": first["spec"], **first["blobs"]}
    options = [f"--{name}={files[name]}" for name in ("spec", "tokenizer", "validation")]
    printed = await swarm.output_of(
        "yardstick", "-m", "node.yardstick", *options, *map(str, snapshots.values())
    )
    found = json.loads(printed)
    return Measured(
        start=found["start"],
        mean=found["mean"],
        nodes=dict(zip(snapshots, found["nodes"], strict=True)),
        consensus=found["consensus"],
    )
