"""A snapshot comes back from the memory of others whole, or not at all."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shard_peers import (
    TWO_AND_ONE,
    World,
    found,
    holders,
    kept,
    kept_world,
    others_in,
    protected,
    rounds_held,
)

from node import snapshots as snapshots_on_disk
from node.protection import protection, recovery
from node.snapshots import remove_unfinished, snapshot_files
from protocol.errors import ConfigError
from protocol.ids import PeerId, digest_of
from protocol.shards import Holding, Offer, Offers, ProtectCall, ProtectionConfig, sign_stamp


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at who is there follow each other; the clock of the tests moves by itself."""
    monkeypatch.setattr(recovery, "AGAIN_S", 0.0)


async def test_a_node_that_lost_its_disk_gets_back_its_snapshot_to_the_bit(tmp_path: Path) -> None:
    async with kept_world(tmp_path) as (world, owner, saved):
        others = others_in(world)
        stamp = kept(owner).stamp
        assert (stamp.round, stamp.inner_step, stamp.size_bytes) == (3, 60, len(saved))
        assert {peer.id for peer in holders(owner, world)} == {peer.id for peer in others}
        back = await world.comes_back(0)
        assert await back.recover()
        assert snapshot_files(back.directory)[0].name == (
            "snapshot-00000003-0000000000060.safetensors"
        )
        assert found(back) == saved
        assert [peer.blamed for peer in (back, *others)] == [[]] * 4


async def test_a_disk_that_hangs_while_a_snapshot_comes_back_keeps_no_process_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = asyncio.Event(), threading.Event()
    loop, threads = asyncio.get_running_loop(), []

    def hangs(*_: object) -> None:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(10)

    monkeypatch.setattr(protection, "_write", hangs)
    async with kept_world(tmp_path) as (world, _, _):
        back = await world.comes_back(0)
        recovering = asyncio.create_task(back.recover())
        await begun.wait()
        assert [thread.daemon for thread in threads] == [True]  # nobody waits for it at the exit
        recovering.cancel()
        await asyncio.wait([recovering])
        assert recovering.cancelled()
        may_end.set()


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 3), (1, 4), (2, 5), (4, 5)])
async def test_any_m_holders_may_be_lost_with_the_owner(
    tmp_path: Path, lost: tuple[int, ...]
) -> None:
    """4 + 2 among seven; the indices are those of the shards."""
    config = ProtectionConfig(data=4, parity=2, every_rounds=1)
    async with kept_world(tmp_path, 7, protected(config)) as (world, owner, saved):
        for index in lost:
            await world.lose(holders(owner, world)[index])
        back = await world.comes_back(0)
        world.swarm.step_s = 0.5
        assert await back.recover()
        assert found(back) == saved


async def test_with_fewer_than_k_shards_there_is_no_snapshot_and_no_garbage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with kept_world(tmp_path) as (world, owner, _):
        for holder in holders(owner, world)[:2]:
            await world.lose(holder)
        back = await world.comes_back(0)
        world.swarm.step_s = 0.5
        assert not await back.recover()
        assert snapshot_files(back.directory) == []
        assert "shards=1 of=3 needed=2" in caplog.text


async def test_a_holder_that_gives_another_byte_is_blamed_and_its_shard_is_as_good_as_lost(
    tmp_path: Path,
) -> None:
    """REFT R3, with each of the holders as the liar."""
    for liar in range(3):
        async with kept_world(tmp_path / str(liar)) as (world, owner, saved):
            false = holders(owner, world)[liar].id

            def flipped(peer: PeerId, answer: Any, false: PeerId = false) -> Any:
                if peer != false or not isinstance(answer, memoryview):
                    return answer
                data = bytearray(answer)
                data[len(data) // 2] ^= 1
                return bytes(data)

            world.swarm.mangled = flipped
            back = await world.comes_back(0)
            assert await back.recover()
            assert found(back) == saved
            asked = liar < TWO_AND_ONE.data  # the first k are asked first
            assert back.blamed == ([false] if asked else [])


async def test_the_old_snapshot_is_kept_until_every_shard_of_the_new_one_is_held(
    tmp_path: Path,
) -> None:
    async with kept_world(tmp_path) as (world, owner, saved):
        others = others_in(world)
        new = owner.save(2, round=4, inner_step=80)
        late = holders(owner, world)[2]
        assert late.holding
        real = late.protection.holder
        assert real

        async def slow(peer: PeerId, call: ProtectCall) -> Holding:
            return Holding("coming")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(real, "protect", slow)
            for _ in range(4):
                await owner.tick()
            assert [await rounds_held(peer, owner) for peer in holders(owner, world)] == [
                [3, 4], [3, 4], [3],
            ]  # fmt: skip
            assert kept(owner).stamp.round == 3
        await owner.protect()
        assert [await rounds_held(peer, owner) for peer in others] == [[4], [4], [4]]
        back = await world.comes_back(0)
        assert await back.recover()
        assert found(back) == new != saved


@pytest.mark.parametrize(("held", "expected"), [(1, 3), (2, 4)])
async def test_shards_of_two_snapshots_are_never_mixed(
    tmp_path: Path, held: int, expected: int
) -> None:
    """REFT R6: the owner dies while the new snapshot is under way, held by one or by two."""
    async with kept_world(tmp_path) as (world, owner, third):
        saved = {3: third, 4: owner.save(2, round=4, inner_step=80)}
        before = holders(owner, world)
        world.swarm.down |= {peer.id for peer in before[held:]}
        await owner.tick()
        await owner.tick()
        world.swarm.down.clear()
        world.swarm.down.add(owner.id)
        back = await world.comes_back(0)
        world.swarm.step_s = 0.5
        assert await back.recover()
        assert found(back) == saved[expected]


async def test_an_offer_with_the_stamp_of_one_snapshot_and_the_bytes_of_another_is_found_out(
    tmp_path: Path,
) -> None:
    """R6, by a liar: both snapshots are ours, and both stamps are signed by us."""
    async with kept_world(tmp_path) as (world, owner, _):
        old = kept(owner)
        liar = holders(owner, world)[0]
        assert liar.protection.holder
        stale = bytes(liar.protection._memory.view(old.stamp.shards[0]))
        saved = owner.save(2, round=4, inner_step=80)
        await owner.protect()
        assert kept(owner).holders == old.holders
        world.swarm.mangled = lambda peer, answer: (
            stale if peer == liar.id and isinstance(answer, memoryview) else answer
        )
        back = await world.comes_back(0)
        assert await back.recover()
        assert (found(back), back.blamed) == (saved, [liar.id])


async def test_a_stamp_that_is_not_ours_is_no_offer(tmp_path: Path) -> None:
    async with kept_world(tmp_path) as (world, owner, saved):
        others = others_in(world)
        forged = sign_stamp(kept(owner).stamp, world.swarm.spec.run, others[0].signer)
        liar = holders(owner, world)[0]
        world.swarm.mangled = lambda peer, answer: (
            Offers((Offer(forged, 0),))
            if peer == liar.id and isinstance(answer, Offers)
            else answer
        )
        back = await world.comes_back(0)
        world.swarm.step_s = 0.5
        assert await back.recover()
        assert (found(back), back.blamed) == (saved, [liar.id])


async def test_content_that_is_not_what_was_stamped_is_no_snapshot(tmp_path: Path) -> None:
    """Every shard has its hash, and yet the whole has not: the owner's memory was bad, say."""
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        real = owner.protection.owner
        assert real
        stamped = real._stamp
        real._stamp = lambda *args: replace(  # type: ignore[method-assign]
            stamped(*args), digest=digest_of(b"another")
        )
        await owner.protect()
        back = await world.comes_back(0)
        assert not await back.recover()
        assert snapshot_files(back.directory) == []


async def test_snapshots_after_a_recovery_are_newer_whatever_the_clock_says(tmp_path: Path) -> None:
    """The serial is the wall clock's, which here stands still."""
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        for round in (3, 4, 5):
            owner.save(round, round=round, inner_step=20 * round)
            await owner.protect()
        before = kept(owner).stamp.serial
        back = await world.comes_back(0)
        assert await back.recover()
        await back.protect()
        assert kept(back).stamp.serial == before + 1


async def test_what_cannot_be_written_stays_with_its_holders_and_the_operator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept_world(tmp_path) as (world, _, saved):
        back = await world.comes_back(0)
        with monkeypatch.context() as full:
            full.setattr(snapshots_on_disk, "SPARE_BYTES", 1 << 60)
            with pytest.raises(ConfigError, match=r"round 3 .* MiB are free in .* start this node"):
                await back.recover()
        assert list(back.directory.iterdir()) == []
        assert await back.recover()
        assert found(back) == saved


KILLED = """
import os, signal, sys
from pathlib import Path
from node import snapshots
from node.protection import protection
snapshots.settle = lambda partial, path: os.kill(os.getpid(), signal.SIGKILL)
protection._write(Path(sys.argv[1]), snapshots.SnapshotPlace(3, 60), b"a snapshot")
"""


def test_what_a_killed_node_was_writing_is_removed_by_the_next_worker(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [b"a snapshot"]  # it was on its way
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []
