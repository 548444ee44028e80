"""Real node processes that lose their disks, and get their own state back from each other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from real_nodes import said, ticket_of, until

from node.local_swarm import Child, LocalSwarm

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

RUN = """
name = "small"
data = "text:corpus.txt"
rounds = 4000
seed = 7
min_members = {nodes}
start_deadline_s = 60

[model]
layers = 2
heads = 2
width = 64
context = 64
vocab = 300

[inner]
batch = 8

[trainer]
kind = "{kind}"
inner_steps = 10
{deadlines}

[protection]
data = {data}
parity = {parity}
every_rounds = 2
"""
DEADLINES = {
    "noloco": "proposal_deadline_s = 2\nexchange_deadline_s = 4",
    "diloco": "round_deadline_s = 8",
}


async def started(swarm: LocalSwarm, root: Path, nodes: int, **run: object) -> str:
    """A run of so many nodes; its ticket."""
    (root / "corpus.txt").write_text("To be, or not to be, that is the question. " * 4000)
    run_file = root / "run.toml"
    run_file.write_text(RUN.format(nodes=nodes, **run))
    creator = await swarm.start("node1", "run", "create", str(run_file))
    ticket = await ticket_of(swarm, creator)
    for number in range(2, nodes + 1):
        await swarm.start(f"node{number}", "join", ticket)
    return ticket


def protection(child: Child) -> dict[str, Any]:
    found = said(child)["protection"]
    assert found is not None
    return found


def is_protected(child: Child, shards: int, round: int = 0) -> bool:
    told = child.status["protection"] if child.status else None
    return bool(told and told["shards"] == shards and told["round"] >= round)


def wiped(child: Child) -> None:
    """The disk is lost; the key was elsewhere, too."""
    key = (child.directory / "key").read_bytes()
    shutil.rmtree(child.directory)
    child.directory.mkdir(mode=0o700)
    (child.directory / "key").touch(0o600)
    (child.directory / "key").write_bytes(key)


def recovered(child: Child) -> tuple[int, int]:
    """Round and inner step that the log says came back."""
    found = re.search(r"recovered: round=(\d+) inner_step=(\d+)", child.log.read_text())
    assert found, child.log.read_text()[-3000:]
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("kind", ["noloco", "diloco"])
async def test_a_node_killed_with_its_disk_goes_on_from_its_own_newest_snapshot(
    tmp_path: Path, kind: str
) -> None:
    async with LocalSwarm(tmp_path) as swarm:
        ticket = await started(
            swarm, tmp_path, 4, kind=kind, deadlines=DEADLINES[kind], data=2, parity=1
        )
        victim = swarm.children[2]
        await until(swarm, lambda: all(is_protected(c, 3, 4) for c in swarm.children))
        swarm.kill(victim)
        before = protection(victim)
        assert before["inner_step"] > 0
        wiped(victim)
        back = await swarm.start("node3", "join", ticket)
        await until(
            swarm, lambda: bool(back.status and back.status["inner_step"] > before["inner_step"])
        )
        round, inner_step = recovered(back)
        assert inner_step >= before["inner_step"]
        assert said(back)["peer"] == said(victim)["peer"]
        if kind == "noloco":
            assert round >= before["round"]
        # and is protected again, as are the others, who had lost one of their holders
        living = [child for child in swarm.children if not child.killed]
        await until(swarm, lambda: all(is_protected(c, 3, round + 1) for c in living))


async def test_two_nodes_of_five_lose_their_disks_at_once_and_both_come_back(
    tmp_path: Path,
) -> None:
    """2 + 2: each of the two is a holder of the other."""
    async with LocalSwarm(tmp_path) as swarm:
        ticket = await started(
            swarm, tmp_path, 5, kind="noloco", deadlines=DEADLINES["noloco"], data=2, parity=2
        )
        await until(swarm, lambda: all(is_protected(c, 4, 2) for c in swarm.children))
        victims = swarm.children[3:5]
        for victim in victims:
            swarm.kill(victim)
        steps = [protection(victim)["inner_step"] for victim in victims]
        for victim in victims:
            wiped(victim)
        backs = [await swarm.start(victim.name, "join", ticket) for victim in victims]
        await until(
            swarm,
            lambda: all(
                back.status and back.status["inner_step"] > step
                for back, step in zip(backs, steps, strict=True)
            ),
        )
        for back, step in zip(backs, steps, strict=True):
            assert recovered(back)[1] >= step
