"""Real node processes that die, lose their disks, are cut off or away, and come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from real_nodes import (
    POLL_S,
    RUN,
    WITHOUT_ROOT,
    Host,
    ip,
    said,
    swarm_of,
    ticket_of,
    until,
    until_of,
)

from node.local_swarm import Child, LocalSwarm
from node.peer_cache import PeerCache
from protocol.algorithms import NolocoConfig
from trainers.reanchor import AWAY_ROUNDS

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

LONG = 4000
"""Rounds that no test here waits for the end of."""
LONG_AWAY = NolocoConfig().reanchor_rounds + AWAY_ROUNDS
"""Rounds after which weights are taken over however the return was noticed."""


def lose_disk(node: Child) -> None:
    """All but the key is gone."""
    for path in node.directory.iterdir():
        if path.name != "key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def log_of(node: Child) -> str:
    return node.log.read_text()


async def killed(swarm: LocalSwarm, *nodes: Child) -> None:
    for node in nodes:
        swarm.kill(node)
    for node in nodes:
        await node.process.wait()


async def test_eight_nodes_die_and_the_run_goes_on_with_the_two_whose_disks_are_left(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 6, rounds=LONG) as swarm:
        ticket = said(swarm.children[0])["ticket"]
        ports = [f"/ip4/127.0.0.{number}/tcp/4001" for number in (7, 8)]
        for number, listen in enumerate(ports, 7):
            await swarm.start(f"node{number}", "join", ticket, listen=listen)
        everyone = list(swarm.children)
        await until(swarm, lambda: all(c.status and c.status["round"] >= 3 for c in everyone))
        await until(swarm, lambda: all(said(c)["members"] == 8 for c in everyone[-2:]))
        await until(swarm, lambda: all(len(PeerCache(c.directory / "peers").peers()) == 7
                                       for c in everyone[-2:]))  # fmt: skip
        await killed(swarm, *everyone)
        before = [said(child)["round"] for child in everyone[-2:]]
        for child in everyone[:-2]:
            shutil.rmtree(child.directory)
        two = [
            await swarm.start(f"node{number}", "up", listen=listen)
            for number, listen in enumerate(ports, 7)
        ]
        await until(swarm, lambda: all(c.status and c.status["members"] == 2 for c in two))
        await until(
            swarm, lambda: all(said(c)["round"] >= b + 3 for c, b in zip(two, before, strict=True))
        )
        await until(swarm, lambda: all(said(c)["exchanges"]["made"] >= 1 for c in two))
        late = await swarm.start("node9", "join", said(two[0])["ticket"])
        await until(swarm, lambda: bool(late.status and late.status["round"] > min(before) + 3))
    lives = [log_of(child).split("node up")[-1] for child in (*two, late)]
    taken = ["weights taken" in life for life in lives]
    assert taken[2]
    assert not all(taken[:2])  # whoever starts later may find the other four rounds ahead
    assert not any("begins afresh" in life for life in lives)


async def test_a_node_that_lost_its_disk_comes_back_under_its_key_and_its_tokens_still_count(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 3, rounds=LONG) as swarm:
        others, victim = swarm.children[:2], swarm.children[2]
        ticket = said(swarm.children[0])["ticket"]
        await until(swarm, lambda: bool(victim.status and victim.status["round"] >= 5))
        await killed(swarm, victim)
        peer = said(victim)["peer"]
        before = await tokens_of(others[0], peer)
        lose_disk(victim)
        again = await swarm.start("node3", "join", ticket)
        await until(swarm, lambda: bool(again.status and again.status["rounds_closed"] >= 2))
        assert said(again)["peer"] == peer
        assert "weights taken" in log_of(again)
        async with asyncio.timeout(30):
            while await tokens_of(others[0], peer) <= before:  # noqa: ASYNC110  asked by HTTP
                await asyncio.sleep(POLL_S)


async def tokens_of(node: Child, peer: str) -> int:
    """What `node` believes that `peer` has trained."""
    found = [member for member in await node.client.peers() if member["peer"] == peer]
    return found[0]["tokens"]


async def test_who_stood_still_for_many_rounds_takes_over_weights_instead_of_giving_old_ones(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 3, rounds=LONG) as swarm:
        frozen, *others = swarm.children[2], *swarm.children[:2]
        await until(swarm, lambda: bool(frozen.status and frozen.status["round"] >= 3))
        os.killpg(frozen.process.pid, signal.SIGSTOP)
        away = said(frozen)["round"]
        await until_of(
            swarm,
            others,
            lambda: (
                min(said(c)["round"] for c in others) > away + LONG_AWAY
                and all(said(c)["members"] == 2 for c in others)
            ),
        )
        os.killpg(frozen.process.pid, signal.SIGCONT)
        back = max(said(c)["round"] for c in others)
        await until(swarm, lambda: said(frozen)["round"] > back)
    assert "left behind" in log_of(frozen)
    assert "weights taken" in log_of(frozen)


async def test_who_was_away_for_many_rounds_takes_over_weights_when_it_starts_again(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 3, rounds=LONG) as swarm:
        gone, *others = swarm.children[2], *swarm.children[:2]
        await until(swarm, lambda: bool(gone.status and gone.status["round"] >= 3))
        await killed(swarm, gone)
        away = said(gone)["round"]
        await until(swarm, lambda: min(said(c)["round"] for c in others) > away + 2 * AWAY_ROUNDS)
        again = await swarm.start("node3", "up")
        await until(swarm, lambda: bool(again.status and again.status["rounds_closed"] >= 1))
        assert said(again)["round"] > away + AWAY_ROUNDS
    assert "weights taken" in log_of(again)


@asynccontextmanager
async def two_bridges() -> AsyncIterator[tuple[tuple[Host, ...], str]]:
    """Four hosts, two on each of two bridges; `ip link set wire down` in the switch cuts them."""
    switch = f"shoal-{os.getpid()}-switch"
    hosts = tuple(Host(f"shoal-{os.getpid()}-h{n}", f"198.18.1.{n}") for n in range(1, 5))
    try:
        await ip("netns", "add", switch)
        for bridge in ("left", "right"):
            await ip("-n", switch, "link", "add", bridge, "type", "bridge")
            await ip("-n", switch, "link", "set", bridge, "up")
        await ip("-n", switch, "link", "add", "wire", "type", "veth", "peer", "eriw")
        for end, bridge in (("wire", "left"), ("eriw", "right")):
            await ip("-n", switch, "link", "set", end, "master", bridge)
            await ip("-n", switch, "link", "set", end, "up")
        for number, host in enumerate(hosts):
            await ip("netns", "add", host.namespace)
            await ip("-n", host.namespace, "link", "set", "lo", "up")
            await ip("-n", host.namespace, "link", "add", "eth", "type", "veth", "peer",
                     f"to{number}", "netns", switch)  # fmt: skip
            await ip("-n", host.namespace, "addr", "add", f"{host.ip}/24", "dev", "eth")
            await ip("-n", host.namespace, "link", "set", "eth", "up")
            bridge = "left" if number < 2 else "right"
            await ip("-n", switch, "link", "set", f"to{number}", "master", bridge)
            await ip("-n", switch, "link", "set", f"to{number}", "up")
        yield hosts, switch
    finally:
        for namespace in (*(host.namespace for host in hosts), switch):
            await ip("netns", "del", namespace)


@pytest.mark.skipif(WITHOUT_ROOT, reason="network namespaces need root")
async def test_two_and_two_cut_apart_train_on_and_soon_after_the_heal_know_the_same(
    tmp_path: Path,
) -> None:
    async with two_bridges() as (hosts, switch), LocalSwarm(tmp_path) as swarm:
        (tmp_path / "corpus.txt").write_text("To be, or not to be, that is the question. " * 4000)
        run_file = tmp_path / "run.toml"
        run_file.write_text(RUN.format(rounds=LONG, members=4))
        command = ["run", "create", str(run_file)]
        for number, host in enumerate(hosts):
            listen = f"/ip4/{host.ip}/tcp/4001"
            await swarm.start(f"node{number}", *command, listen=listen, prefix=host.enter)
            if not number:
                command = ["join", await ticket_of(swarm, swarm.children[0])]
        four = swarm.children
        await until(swarm, lambda: all(c.status and c.status["round"] >= 3 for c in four))
        await ip("-n", switch, "link", "set", "wire", "down")
        await until(swarm, lambda: all(said(c)["members"] == 2 for c in four))
        began = [(said(c)["round"], said(c)["exchanges"]["made"]) for c in four]
        await until(
            swarm,
            lambda: all(said(c)["round"] >= r + 5 for c, (r, _) in zip(four, began, strict=True)),
        )
        made = [said(c)["exchanges"]["made"] for c in four]
        assert all(now > before for now, (_, before) in zip(made, began, strict=True))
        for node in four:  # nothing is written any more, so that what they hold can be compared
            os.kill(said(node)["worker_pid"] or 0, signal.SIGSTOP)
        assert len({said(c)["records"] for c in four}) > 1
        await ip("-n", switch, "link", "set", "wire", "up")
        healed = time.monotonic()
        await until(swarm, lambda: len({said(c)["records"] for c in four}) == 1)
        log.info("equal records %.1f s after the heal", time.monotonic() - healed)
        closed = {said(c)["peer"]: said(c)["rounds_closed"] for c in four}
        # A record is written once a second.
        while [await counted(c) for c in four] != [closed] * 4:  # noqa: ASYNC110  other processes
            await asyncio.sleep(POLL_S)
        log.info("all counted %.1f s after the heal", time.monotonic() - healed)
        ledgers = [await c.client.contributions() for c in four]
        assert all(ledger == ledgers[0] for ledger in ledgers)
        for node in four:
            os.kill(said(node)["worker_pid"] or 0, signal.SIGCONT)
        rounds = max(said(c)["round"] for c in four)
        await until(swarm, lambda: all(said(c)["members"] == 4 for c in four))
        await until(swarm, lambda: min(said(c)["round"] for c in four) > rounds + 2)


async def counted(child: Child) -> dict[str | int, str | int]:
    """Rounds of each author, as this node's ledger has them."""
    ledger = await child.client.contributions()
    return {row["peer"]: row["rounds"] for row in ledger["authors"]}


@asynccontextmanager
async def small_disk(directory: Path, mib: int) -> AsyncIterator[None]:
    """A disk of its own for a directory."""
    await run("mkdir", str(directory))
    await run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(directory))
    try:
        yield
    finally:
        await run("umount", "-l", str(directory))


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0, command


def corpus_of(node: Child) -> Path:
    """Where the corpus lies on the disk of a node."""
    files = [path for path in (node.directory / "blobs").iterdir() if path.is_file()]
    texts = [path for path in files if path.read_bytes().startswith(b"To be, or")]
    return max(texts, key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """One bit in the middle of it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_who_holds_the_only_copies_mends_their_manifests_and_says_when_one_is_broken(
    tmp_path: Path,
) -> None:
    async with swarm_of(tmp_path, 1, rounds=LONG) as swarm:
        only = swarm.children[0]
        await until(swarm, lambda: bool(only.status and only.status["round"] >= 1))
        await killed(swarm, only)
        manifests = sorted((only.directory / "blobs").glob("*.manifest"))
        before = [path.read_bytes() for path in manifests]
        for path in manifests:
            flip(path)
        only = await swarm.start("node1", "up")
        await until(swarm, lambda: bool(only.status and only.status["rounds_closed"] >= 1))
        assert [path.read_bytes() for path in manifests] == before

        await killed(swarm, only)
        corpus = corpus_of(only)
        flip(corpus)
        only = await swarm.start("node1", "up")
        await until(swarm, lambda: bool(only.status and only.status["trouble"]))
        trouble = said(only)["trouble"] or ""
        assert trouble.startswith("the corpus: our own copy is broken or was never complete, ")
        assert "nobody has it" in trouble

        await killed(swarm, only)
        flip(corpus.with_name(f"{corpus.name}.partial"))
        only = await swarm.start("node1", "up")
        await until(swarm, lambda: bool(only.status and only.status["rounds_closed"] >= 1))
        assert said(only)["trouble"] is None


@pytest.mark.skipif(WITHOUT_ROOT, reason="mounting a disk needs root")
async def test_a_full_disk_and_a_corrupted_blob_stop_nobody_and_are_over_when_they_are_mended(
    tmp_path: Path,
) -> None:
    async with small_disk(tmp_path / "node3", 64), swarm_of(tmp_path, 3, rounds=LONG) as swarm:
        one, other, small = swarm.children
        await until(swarm, lambda: all(c.status and c.status["round"] >= 3 for c in swarm.children))
        ticket = said(other)["ticket"]

        filler = small.directory / "filler"
        free = shutil.disk_usage(small.directory).free
        with filler.open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(free))
        await until(swarm, lambda: said(small)["trouble"] is not None)
        assert "free some space, older snapshots are kept" in str(said(small)["trouble"])
        full = said(small)["round"]
        await until(swarm, lambda: said(small)["round"] > full + 3)
        filler.unlink()
        await until(swarm, lambda: said(small)["trouble"] is None)

        for donor in (one, other):
            flip(corpus_of(donor))
        await killed(swarm, one)  # what it had checked it may believe; a new process may not
        again = await swarm.start("node1", "up")
        late = await swarm.start("node4", "join", ticket)
        await until(swarm, lambda: bool(late.status and late.status["rounds_closed"] >= 2))
        await until(swarm, lambda: bool(again.status and again.status["rounds_closed"] >= 2))
        assert "blob broken on disk: " in log_of(again)
        blamed = [line for line in log_of(late).splitlines() if "peer blamed" in line]
    assert blamed == []


@pytest.mark.skipif(WITHOUT_ROOT, reason="mounting a disk needs root")
async def test_who_has_no_room_for_its_last_round_is_not_finished_until_there_is(
    tmp_path: Path,
) -> None:
    async with small_disk(tmp_path / "node1", 64), swarm_of(tmp_path, 1, rounds=12) as swarm:
        only = swarm.children[0]
        await until(swarm, lambda: bool(only.status and only.status["round"] >= 1))
        filler = only.directory / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(shutil.disk_usage(only.directory).free))
        await until(swarm, lambda: "try to save" in str(said(only)["waiting"]))
        assert (said(only)["state"], said(only)["round"]) == ("training", 12)
        assert "free some space" in str(said(only)["trouble"])
        filler.unlink()
        await until(swarm, lambda: said(only)["state"] == "finished")
        assert said(only)["trouble"] is None
        newest = max(only.directory.rglob("snapshot-*.safetensors"))
        assert newest.name.startswith("snapshot-00000012-")
