"""Real nodes over real libp2p on loopback, and the creator's word, given with real commands."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest
from real_nodes import POLL_S, RUN, said, ticket_of, until

from node.keys import DataDir
from node.local_swarm import ROOT, Child, LocalSwarm
from node.trained import Trained, read_trained, validation_loss

SPSA = """
[inner]
batch = 2

[trainer]
kind = "spsa"
inner_steps = 20
trainable = ["tokens.weight", "*.bias", "*norm*"]
lr = 4e-3
base_scalars = 400
"""

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]


async def shoal(*arguments: str) -> tuple[int, str]:
    """The exit status of a command, and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node.cli", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def order(child: Child, *arguments: str) -> tuple[int, str]:
    return await shoal(*arguments, "--data-dir", str(child.directory))


def are(state: str, *children: Child) -> bool:
    return all(child.status and child.status["state"] == state for child in children)


def lines(child: Child, pattern: str) -> list[str]:
    """What its log says of it."""
    return re.findall(pattern, child.log.read_text(errors="replace"))


async def again(swarm: LocalSwarm, child: Child) -> Child:
    """Killed, and started again."""
    await ended(swarm, child)
    return await swarm.start(child.name, "up")


async def ended(swarm: LocalSwarm, child: Child) -> None:
    swarm.kill(child)
    await child.process.wait()
    await child.client.__aexit__()
    swarm.children.remove(child)


async def back_without_disk(swarm: LocalSwarm, child: Child, *command: str) -> Child:
    """Killed, and all is gone that it had, but for its key."""
    await ended(swarm, child)
    key = (child.directory / "key").read_bytes()
    shutil.rmtree(child.directory)
    child.directory.mkdir(mode=0o700)
    (child.directory / "key").touch(0o600)
    (child.directory / "key").write_bytes(key)
    return await swarm.start(child.name, *command)


def run_file_in(swarm: LocalSwarm, root: Path) -> Path:
    (root / "corpus.txt").write_text("To be, or not to be, that is the question. " * 4000)
    file = root / "run.toml"
    file.write_text(RUN.format(rounds=4000, members=3))
    return file


async def test_the_creator_pauses_resumes_and_changes_the_rate_is_killed_and_nothing_stops(
    tmp_path: Path,
) -> None:
    async with LocalSwarm(tmp_path) as swarm:
        file = run_file_in(swarm, tmp_path)
        creator = await swarm.start("node1", "run", "create", str(file))
        ticket = await ticket_of(swarm, creator)
        others = [await swarm.start(f"node{n}", "join", ticket) for n in (2, 3)]
        everyone = (creator, *others)
        await until(swarm, lambda: all(c.status and c.status["round"] >= 2 for c in everyone))

        code, text = await order(others[0], "pause")
        assert (code, "nobody else can pause" in text) == (2, True), text

        assert (await order(creator, "pause"))[0] == 0
        await until(swarm, lambda: are("paused", *everyone))
        rounds = [said(child)["round"] for child in everyone]
        waits = [(said(child)["waiting"] or {}).get("what") for child in everyone]
        assert waits == ["the creator to resume the run"] * 3
        for _ in range(20):
            await asyncio.sleep(POLL_S)
            await swarm.poll()
        assert [said(child)["round"] for child in everyone] == rounds

        code, text = await order(creator, "set", "inner.lr", "0.0005")
        assert code == 0, text
        code, text = await order(creator, "set", "trainer.alpha", "0.1")
        assert (code, "trainer.alpha is not changeable" in text) == (2, True), text
        code, text = await order(creator, "set", "trainer.codec", "zip")
        assert (code, "expected one of fp32, bf16, int8" in text) == (2, True), text
        assert (await order(creator, "set", "trainer.codec", "int8"))[0] == 0

        await until(swarm, lambda: all("inner.lr" in said(c)["changes"] for c in everyone))
        others[1] = await again(swarm, others[1])
        everyone = (creator, *others)
        await until(swarm, lambda: are("paused", *everyone))

        assert (await order(creator, "resume"))[0] == 0
        for child in everyone:
            await until(swarm, lambda c=child: said(c)["round"] >= max(rounds) + 3)  # type: ignore[misc]
        found = [lines(c, r"setting inner.lr 0.002 -> 0.0005 from round \d+") for c in everyone]
        assert [len(each) for each in found] == [1, 1, 2]  # a line for each start of the node
        assert [said(c)["changes"] for c in everyone] == [
            {"inner.lr": "0.0005", "trainer.codec": "int8"}
        ] * 3
        made = [said(child)["exchanges"]["made"] for child in everyone]

        swarm.kill(creator)
        at = max(said(child)["round"] for child in others)
        await until(swarm, lambda: min(said(child)["round"] for child in others) > at + 3)
        assert all(
            said(child)["exchanges"]["made"] > before
            for child, before in zip(others, made[1:], strict=True)
        )
        for child in others:
            assert lines(child, r"refused: .*|peer blamed: .*|Traceback.*") == []


async def test_a_run_that_its_creator_stopped_ends_everywhere_and_takes_no_joiner(
    tmp_path: Path,
) -> None:
    async with LocalSwarm(tmp_path) as swarm:
        file = run_file_in(swarm, tmp_path)
        file.write_text(file.read_text().replace("members = 3", "members = 2"))
        creator = await swarm.start("node1", "run", "create", str(file))
        ticket = await ticket_of(swarm, creator)
        other = await swarm.start("node2", "join", ticket)
        both = (creator, other)
        await until(swarm, lambda: all(c.status and c.status["round"] >= 1 for c in both))
        assert (await order(creator, "stop"))[0] == 0
        await until(swarm, lambda: are("finished", *both))
        assert max(said(child)["round"] for child in both) < 1000
        code, text = await order(creator, "resume")
        assert (code, "it is stopped for good" in text) == (2, True), text

        swarm.kill(creator)
        address = said(other)["addrs"][0]
        code, text = await shoal(
            *("join", ticket, "--bootstrap", address),
            *("--data-dir", str(tmp_path / "late"), "--listen", "/ip4/127.0.0.1/tcp/0"),
        )
        assert code == 2, text
        sentence = text.strip().splitlines()[-1]
        assert sentence.startswith("shoal: ticket: run ")
        assert "has ended, its creator has stopped it; expected one that is under way" in sentence

        back = await again(swarm, other)  # a member is let in
        await until(swarm, lambda: are("finished", back))
        creator = await again(swarm, creator)
        await until(swarm, lambda: are("finished", back, creator))
        taken = len(lines(back, "weights taken: "))
        join = ("join", ticket, "--bootstrap", said(creator)["addrs"][0])
        bare = await back_without_disk(swarm, back, *join)  # who holds its record lets it in
        await until(swarm, lambda: are("finished", bare, creator))
        assert said(bare)["peer"] == said(other)["peer"]
        assert len(lines(bare, "weights taken: ")) > taken


async def test_after_a_stop_members_of_an_spsa_run_come_to_export_the_very_same_weights(
    tmp_path: Path,
) -> None:
    """Who is done goes on adding what the others measure: its file and its figure follow."""
    async with LocalSwarm(tmp_path) as swarm:
        file = run_file_in(swarm, tmp_path)
        file.write_text(file.read_text().partition("[inner]")[0] + SPSA)
        creator = await swarm.start("node1", "run", "create", str(file))
        ticket = await ticket_of(swarm, creator)
        everyone = (creator, *[await swarm.start(f"node{n}", "join", ticket) for n in (2, 3)])
        await until(swarm, lambda: all(c.status and c.status["round"] >= 3 for c in everyone))
        assert (await order(creator, "stop"))[0] == 0
        await until(swarm, lambda: are("finished", *everyone))

        def saved() -> list[Trained]:
            return [read_trained(DataDir(child.directory)) for child in everyone]

        def are_one() -> bool:
            first, *others = saved()
            return all(first.weights_P.equal(other.weights_P) for other in others)

        def agree() -> bool:
            ends = {said(child)["val"]["end"] for child in everyone}
            return are_one() and ends == {validation_loss(DataDir(creator.directory), saved()[0])}

        await until(swarm, agree)
        assert max(said(child)["round"] for child in everyone) < 4000
