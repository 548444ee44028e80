"""Real node processes over real libp2p on loopback: what happens to a swarm in the world."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from real_nodes import (
    POLL_S,
    RUN,
    WITHOUT_ROOT,
    have_finished,
    ip,
    said,
    swarm_of,
    ticket_of,
    until,
    until_of,
    wired_hosts,
)

from crdt.replica import Replica
from crdt.schema import Content, Member
from node.local_swarm import ROOT, Child, LocalSwarm
from node.records.files import RecordFiles
from protocol.ids import PeerId, RunId

FAST = """
name = "fast"
data = "text:corpus.txt"
rounds = 1_000_000

[model]
layers = 1
heads = 1
width = 16
context = 8
vocab = 300

[inner]
batch = 1

[trainer]
kind = "local"
inner_steps = 1
"""

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]


async def test_four_nodes_find_each_other_by_one_ticket_and_train_to_the_end(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 4, rounds=6) as swarm:
        await until(swarm, lambda: have_finished(*swarm.children))
        await swarm.poll()  # who finished first may have been asked while it gave its last payload
        statuses = [said(child) for child in swarm.children]
    assert [status["round"] for status in statuses] == [6] * 4
    assert [status["members"] for status in statuses] == [4] * 4
    assert sum(status["exchanges"]["half"] for status in statuses) == 0
    made = [status["exchanges"]["made"] for status in statuses]
    assert min(made) >= 1
    assert sum(made) % 2 == 0  # an exchange counts at both its peers
    for status in statuses:
        counted = status["bytes"]["up"]["payload"]
        assert counted == pytest.approx(status["closed_form"]["payload"], rel=0.03)


async def test_the_others_finish_when_one_is_killed(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, 4, rounds=12) as swarm:
        victim, *others = swarm.children[1], swarm.children[0], *swarm.children[2:]
        await until(swarm, lambda: bool(victim.status and victim.status["round"] >= 3))
        swarm.kill(victim)
        await until(swarm, lambda: have_finished(*others))
        assert [said(child)["round"] for child in others] == [12] * 3


async def test_a_node_that_was_stopped_for_a_while_comes_back_and_finishes(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 3, rounds=24) as swarm:
        frozen, *others = swarm.children[2], *swarm.children[:2]
        await until(swarm, lambda: bool(frozen.status and frozen.status["round"] >= 3))
        os.killpg(frozen.process.pid, signal.SIGSTOP)
        before = max(said(child)["round"] for child in others)
        await until_of(swarm, others, lambda: min(said(c)["round"] for c in others) > before + 3)
        os.killpg(frozen.process.pid, signal.SIGCONT)
        await until(swarm, lambda: have_finished(*swarm.children))
        assert said(frozen)["round"] == 24


async def test_a_joiner_takes_weights_from_a_member_and_trains_from_its_round(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 2, rounds=4000) as swarm:
        first = swarm.children[0]
        await until(swarm, lambda: bool(first.status and first.status["round"] >= 5))
        late = await swarm.start("late", "join", said(first)["ticket"])
        seen: list[int] = []

        def late_trains() -> bool:
            if late.status and late.status["state"] == "training":
                seen.append(late.status["round"])
            return bool(seen)

        await until(swarm, late_trains)
        await until(swarm, lambda: said(late)["exchanges"]["made"] >= 3)
    assert seen[0] >= 5


async def test_the_others_know_since_when_a_member_trained_and_that_it_left(
    tmp_path: Path,
) -> None:
    """Its record says so, not only its silence: its last entry is out before it ends."""
    async with swarm_of(tmp_path, 2, rounds=4000) as swarm:
        first = swarm.children[0]
        await until(swarm, lambda: bool(first.status and first.status["round"] >= 5))
        late = await swarm.start("late", "join", said(first)["ticket"])
        seen: list[int] = []

        def late_trains() -> bool:
            if late.status and late.status["state"] == "training":
                seen.append(late.status["round"])
            return bool(late.status and late.status["exchanges"]["made"])

        await until(swarm, late_trains)
        late.killed = True
        await late.client.leave()
        assert await late.process.wait() == 0
        run, me = RunId(bytes.fromhex(said(first)["run"])), PeerId(said(late)["peer"])
        for child in swarm.children[:2]:  # the test's timeout is the deadline
            while await standing(child, me) != "left the run":  # noqa: ASYNC110  asked by HTTP
                await asyncio.sleep(POLL_S)
    disk = Replica(run)
    RecordFiles(late.directory / "records").load(disk)
    view = disk.view(me)
    assert isinstance(view, Content)
    assert view.member
    assert view.member == Member(name="late", since=view.member.since, status="left")
    assert 5 <= view.member.since <= seen[0]


async def standing(node: Child, peer: PeerId) -> str:
    """What `node` says that `peer` is."""
    return next(other["standing"] for other in await node.client.peers() if other["peer"] == peer)


async def test_a_restarted_node_goes_on_from_its_own_snapshot(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, 2, rounds=40) as swarm:
        first, second = swarm.children
        await until(swarm, lambda: bool(second.status and second.status["round"] >= 5))
        before = said(second)["round"]
        os.killpg(first.process.pid, signal.SIGSTOP)  # else it would be too far ahead
        swarm.kill(second)
        await second.process.wait()
        again = await swarm.start("node2", "up")
        started = tmp_path / "node2.log"
        async with asyncio.timeout(300):
            while started.read_text().count("4 of 4") < 2:  # noqa: ASYNC110  asked by nobody
                await asyncio.sleep(POLL_S)
        os.killpg(first.process.pid, signal.SIGCONT)
        await until(swarm, lambda: have_finished(first, again))
        log = (tmp_path / "node2.log").read_text()
        assert said(again)["peer"] == said(second)["peer"]
        assert before >= 5
    assert "weights taken" not in log.split("node up")[-1]


async def test_a_node_alone_with_many_rounds_a_second_starts_at_once_and_again_after_a_kill(
    tmp_path: Path,
) -> None:
    """Nobody tells it what its record says; each round is a change of that."""
    looks_for_record = 'what="our own record"'
    file = tmp_path / "run.toml"
    (tmp_path / "corpus.txt").write_text("To be, or not to be, that is the question. " * 400)
    file.write_text(FAST)
    async with LocalSwarm(tmp_path) as swarm:
        first = await swarm.start("node1", "run", "create", str(file))
        await until(swarm, lambda: bool(first.status and first.status["round"] >= 200))
        assert looks_for_record not in first.log.read_text()  # its key is new: nobody can have it
        swarm.kill(first)
        await first.process.wait()
        again = await swarm.start("node1", "up")
        await until(swarm, lambda: bool(again.status and again.status["state"] == "training"))
        since = said(again)["round"]
        assert since >= 100
        await until(swarm, lambda: said(again)["round"] >= since + 200)
        assert looks_for_record in again.log.read_text()
        again.killed = True
        await again.client.leave()
        assert await again.process.wait() == 0


@pytest.mark.skipif(WITHOUT_ROOT, reason="network namespaces need root")
async def test_two_nodes_cut_apart_go_on_and_end_with_equal_records(tmp_path: Path) -> None:
    async with wired_hosts() as (left, right), LocalSwarm(tmp_path) as swarm:
        (tmp_path / "corpus.txt").write_text("To be, or not to be, that is the question. " * 4000)
        run_file = tmp_path / "run.toml"
        run_file.write_text(RUN.format(rounds=60, members=2))
        one = await swarm.start(
            "left", "run", "create", str(run_file), listen=f"/ip4/{left.ip}/tcp/4001",
            prefix=left.enter,
        )  # fmt: skip
        other = await swarm.start(
            "right", "join", await ticket_of(swarm, one), listen=f"/ip4/{right.ip}/tcp/4001",
            prefix=right.enter,
        )  # fmt: skip
        both = (one, other)
        await until(swarm, lambda: all(c.status and c.status["round"] >= 3 for c in both))
        await ip("-n", left.namespace, "link", "set", "wire", "down")
        made = [said(child)["exchanges"]["made"] for child in both]
        missed = [said(child)["exchanges"]["missed"] for child in both]
        await until(
            swarm,
            lambda: all(
                said(child)["exchanges"]["missed"] >= before + 5
                for child, before in zip(both, missed, strict=True)
            ),
        )
        await ip("-n", left.namespace, "link", "set", "wire", "up")
        await until(swarm, lambda: have_finished(*both))
        await until(swarm, lambda: said(one)["records"] == said(other)["records"])
        after = [said(child)["exchanges"]["made"] for child in both]
    assert all(now > before for now, before in zip(after, made, strict=True))


async def test_the_demo_says_in_json_what_came_of_it(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli", "demo", "--nodes", "2", "--steps", "40",
        "--json", str(result), cwd=ROOT,
    )  # fmt: skip
    assert await process.wait() == 0
    found = json.loads(result.read_text())
    assert found["ok"]
    assert found["val_end"] < found["val_start"] - 0.3
    assert len(found["val_end_nodes"]) == 2
    assert found["half_exchanges"] == 0
    assert found["exchanges_made"] > 0
    assert found["bytes_sent"] == pytest.approx(found["bytes_closed_form"], rel=0.03)
