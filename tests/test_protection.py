"""A snapshot in the memory of others: who holds it, for how long, and who gets it."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from samples import PRESENCE
from shard_peers import (
    Peer,
    World,
    holders,
    kept,
    kept_world,
    others_in,
    protected,
    rounds_held,
)

from node.protection.holder import AWAY_S as FORGOTTEN_FIRST_S
from node.protection.holder import FORGET_S
from node.protection.owner import AWAY_S, REFUSED_S, RENEW_S
from node.protection.places import new_holders
from node.rpc import Refused
from node.snapshots import SnapshotPlace, snapshot_name
from protocol.errors import Malformed
from protocol.ids import RunId, digest_of, peer_id
from protocol.messages import Presence
from protocol.shards import (
    Offers,
    ProtectCall,
    ProtectionConfig,
    ShardCall,
    ShardsCall,
    sign_stamp,
)


async def test_an_owner_is_not_given_what_is_held_of_another_owner(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, other, *_):
        for number, peer in enumerate((owner, other)):
            peer.save(number, round=3, inner_step=60)
            await peer.protect()
        both = set(kept(owner).holders.values()) & set(kept(other).holders.values())
        index, holder = next((i, p) for i, p in kept(owner).holders.items() if p in both)
        call = ShardCall(world.swarm.spec.run, kept(owner).stamp.shards[index], 0, 10)
        asked = world.swarm.peers[holder].protection
        assert len(await asked.shard(owner.id, call)) == 10
        with pytest.raises(Refused, match="here for you"):
            await asked.shard(other.id, call)


async def test_shards_are_given_to_nobody_but_their_owner_and_their_holder(tmp_path: Path) -> None:
    async with kept_world(tmp_path, 5) as (world, owner, _):
        others = others_in(world)
        stamp, run = kept(owner).stamp, world.swarm.spec.run
        outsider = next(p for p in others if p.id not in kept(owner).holders.values())
        first, second = holders(owner, world)[:2]
        call = ShardCall(run, stamp.shards[0], 0, 10)
        assert await outsider.protection.shards(first.id, ShardsCall(run)) == Offers(())
        assert await first.protection.shards(second.id, ShardsCall(run)) == Offers(())
        for asked, asking in ((first, outsider), (first, second), (owner, second)):
            with pytest.raises(Refused, match="not, or no longer, here for you"):
                await asked.protection.shard(asking.id, call)
        given = bytes(await first.protection.shard(owner.id, call))
        assert given == bytes(await owner.protection.shard(first.id, call))
        beyond = ShardCall(run, stamp.shards[0], stamp.shard_bytes, 1)
        with pytest.raises(Refused, match="which has 0 there"):
            await first.protection.shard(owner.id, beyond)


async def test_a_snapshot_that_the_disk_does_not_give_keeps_no_process_from_ending(
    tmp_path: Path,
) -> None:
    """A pipe that nobody writes to reads like a file on a disk that hangs."""
    async with World(tmp_path, 2) as (owner, _):
        pipe = owner.directory / snapshot_name(SnapshotPlace(3, 60))
        os.mkfifo(pipe)
        before = set(threading.enumerate())
        protecting = asyncio.create_task(owner.tick())
        await asyncio.sleep(0)
        begun = set(threading.enumerate()) - before
        protecting.cancel()
        await asyncio.wait([protecting])
        assert protecting.cancelled()
        os.close(os.open(pipe, os.O_WRONLY))
        assert [thread.daemon for thread in begun] == [True]  # nobody waits for it at the exit


async def test_a_holder_that_is_gone_is_replaced_from_memory(tmp_path: Path) -> None:
    async with kept_world(tmp_path, 5) as (world, owner, _):
        others = others_in(world)
        gone = holders(owner, world)[1]
        spare = next(p for p in others if p.id not in kept(owner).holders.values())
        await world.lose(gone)
        world.swarm.now += AWAY_S
        await owner.tick()
        assert kept(owner).holders[1] == gone.id  # it may come back any moment
        world.swarm.now += 1
        await owner.tick()
        await owner.tick()
        assert (kept(owner).holders[1], kept(owner).held) == (spare.id, {0, 1, 2})
        assert await rounds_held(spare, owner) == [3]


async def test_a_holder_that_is_gone_is_replaced_while_the_run_is_paused_too(
    tmp_path: Path,
) -> None:
    async with kept_world(tmp_path, 5) as (world, owner, _):
        for peer in others_in(world):
            peer.presence = replace(peer.presence, state="paused")
        await world.lose(holders(owner, world)[1])
        world.swarm.now += AWAY_S + 1
        await owner.tick()
        await owner.tick()
        assert kept(owner).held == {0, 1, 2}


async def test_nothing_is_remembered_of_members_that_hold_nothing(tmp_path: Path) -> None:
    """Those that come and go would be more and more."""
    async with kept_world(tmp_path, 6) as (world, owner, _):
        assert owner.protection.owner
        seen = owner.protection.owner._last_seen
        assert len(world.swarm.live(owner.id)) == 5
        assert set(seen) <= set(kept(owner).holders.values())
        for gone in holders(owner, world)[:2]:
            await world.lose(gone)
        for _ in range(3):
            world.swarm.now += AWAY_S
            await owner.tick()
        assert kept(owner).held == {0, 1, 2}
        seen = owner.protection.owner._last_seen
        assert set(seen) == set(kept(owner).holders.values())


async def test_a_holder_that_goes_right_after_it_was_asked_is_replaced(tmp_path: Path) -> None:
    """It may never be seen again after the look at which it was chosen."""
    world = World(tmp_path, 5)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        assert owner.protection.owner
        await owner.protection.owner.tick()
        assert owner.protection.owner.coming
        gone = owner.protection.owner.coming.holders[1]
        await world.lose(world.swarm.peers[gone])
        world.swarm.now += 1
        await owner.tick()
        world.swarm.now += AWAY_S + 1
        await owner.protect()
        assert gone not in kept(owner).holders.values()
        assert kept(owner).held == {0, 1, 2}


async def test_a_holder_that_started_again_fetches_its_shard_anew(tmp_path: Path) -> None:
    async with kept_world(tmp_path) as (world, owner, _):
        number = int(holders(owner, world)[1].directory.name.removeprefix("node"))
        again = await world.comes_back(number)
        world.swarm.now += RENEW_S
        await owner.tick()
        assert await rounds_held(again, owner) == [3]
        await owner.tick()
        assert kept(owner).held == {0, 1, 2}


async def test_a_holder_that_started_again_takes_the_new_snapshot_and_not_the_old_one_in_turns(
    tmp_path: Path,
) -> None:
    """It has room for one that comes in: asked for both, it would never hold either."""
    async with kept_world(tmp_path) as (world, owner, _):
        number = int(holders(owner, world)[1].directory.name.removeprefix("node"))
        again = await world.comes_back(number)
        owner.save(2, round=4, inner_step=80)
        world.swarm.now += RENEW_S
        await owner.protect()
        assert kept(owner).stamp.round == 4
        assert await rounds_held(again, owner) == [4]


async def test_a_member_without_room_is_passed_over_and_asked_again_later(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, full, *_):
        full = await world.comes_back(1, memory_bytes=1000)
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
        assert len(kept(owner).held) == 2  # of three: the best there is
        assert full.id not in kept(owner).holders.values()
        with pytest.raises(Refused, match="raise protection_mib"):
            await full.protection.protect(owner.id, call_of(owner, 0))
        roomy = await world.comes_back(1)
        world.swarm.now += REFUSED_S
        for _ in range(3):
            await owner.tick()
        assert roomy.id in kept(owner).holders.values()
        assert len(kept(owner).held) == 3


def call_of(owner: Peer, index: int) -> ProtectCall:
    return ProtectCall(owner.swarm.spec.run, kept(owner).signed, index, False)


async def test_an_owner_without_room_says_so_and_nothing_else_happens(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner = await world.comes_back(0, memory_bytes=1000)
        owner.save(1, round=3, inner_step=60)
        await owner.tick()
        trouble = owner.protection.trouble
        assert trouble
        assert trouble.endswith("raise protection_mib in node.toml")
        assert owner.protection._memory.size_bytes == 0


async def test_a_snapshot_that_is_stuck_gives_way_to_a_newer_one(tmp_path: Path) -> None:
    world = World(tmp_path, 2)  # one other member, and two are needed
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.tick()
        owner.save(2, round=4, inner_step=80)
        await owner.tick()
        assert owner.protection.owner
        assert owner.protection.owner.coming
        assert owner.protection.owner.coming.stamp.round == 3
        world.swarm.now += 1000
        await owner.tick()
        assert owner.protection.owner.coming is None
        assert owner.protection._memory.size_bytes == 0
        await owner.tick()
        assert owner.protection.owner.coming
        assert owner.protection.owner.coming.stamp.round == 4


async def test_snapshots_are_taken_every_so_many_rounds_and_never_before_training(
    tmp_path: Path,
) -> None:
    run = protected(ProtectionConfig(data=2, parity=1, every_rounds=3))
    world = World(tmp_path, 4, run)
    async with world as (owner, *_):
        taken = []
        for round in range(9):
            owner.save(round, round=round, inner_step=20 * round)
            await owner.protect()
            if owner.protection.owner and owner.protection.owner.kept:
                taken.append(kept(owner).stamp.round)
        assert taken == [1, 1, 1, 4, 4, 4, 7, 7]


async def test_memory_is_given_back_and_bounded_by_two_snapshots_of_an_owner(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, holder, *_):
        for round in range(1, 6):
            owner.save(round, round=round, inner_step=20 * round)
            await owner.protect()
        shard_bytes = kept(owner).stamp.shard_bytes
        assert owner.protection._memory.size_bytes == 3 * shard_bytes
        assert holder.protection._memory.size_bytes == shard_bytes
        assert holder.protection.status() == {
            "holds": 1, "holds_bytes": shard_bytes, "cut_bytes": 0, "used_bytes": shard_bytes,
            "shards": 0, "of": 3,
        }  # fmt: skip


@pytest.mark.parametrize("wrong", ["layout", "index", "size", "shards", "signer", "run", "owner"])
async def test_a_request_that_no_honest_owner_makes_is_refused(tmp_path: Path, wrong: str) -> None:
    async with kept_world(tmp_path) as (world, owner, _):
        holder = others_in(world)[0]
        stamp, index, run, signer = kept(owner).stamp, 1, world.swarm.spec.run, owner.signer
        facts = {name: getattr(stamp, name) for name in stamp.__slots__}
        match wrong:
            case "layout":
                facts |= {"data": 1, "parity": 2}
            case "index":
                index = 3
            case "size":
                facts |= {"size_bytes": 1 << 30}
            case "shards":
                facts |= {"shard_bytes": 1 << 20}
            case "signer":
                signer = holder.signer
            case "owner":
                facts |= {"owner": holder.id}
            case "run":
                run = protected(ProtectionConfig()).run
        signed = sign_stamp(type(stamp)(**facts), run, signer)
        held = holder.protection._memory.size_bytes
        with pytest.raises(Malformed):
            await holder.protection.protect(
                owner.id, ProtectCall(world.swarm.spec.run, signed, index, False)
            )
        assert holder.protection._memory.size_bytes == held


async def test_an_owner_that_is_away_is_forgotten_after_a_day_and_not_before(
    tmp_path: Path,
) -> None:
    async with kept_world(tmp_path) as (world, owner, _):
        holder = holders(owner, world)[0]
        real = holder.protection.holder
        assert real
        await world.lose(owner)
        await holder.protection.shards(owner.id, ShardsCall(world.swarm.spec.run))  # heard of now
        world.swarm.now += FORGET_S - 1
        real._forget(FORGET_S)
        assert real.held == (1, kept(owner).stamp.shard_bytes)
        world.swarm.now += 1
        real._forget(FORGET_S)
        assert real.held == (0, 0)
        assert holder.protection._memory.size_bytes == 0


async def test_an_owner_that_is_long_away_makes_room_for_one_that_is_there(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (gone, other, *_):
        gone.save(1, round=3, inner_step=60)
        await gone.protect()
        room = kept(gone).stamp.shard_bytes * 3 // 2
        tight = await world.comes_back(3, memory_bytes=room)
        world.swarm.now += RENEW_S
        await gone.tick()
        assert await rounds_held(tight, gone) == [3]
        await world.lose(gone)
        other.save(2, round=3, inner_step=60)
        for away_s, expected in ((FORGOTTEN_FIRST_S - 2 * RENEW_S, False), (RENEW_S * 3, True)):
            world.swarm.now += away_s
            for _ in range(3):
                await other.tick()
            assert (await rounds_held(tight, other) == [3]) is expected
        assert await rounds_held(tight, gone) == []


async def test_a_run_without_protection_holds_and_asks_for_nothing(tmp_path: Path) -> None:
    from_samples = protected().run
    world = World(tmp_path, 2, protected(None))  # type: ignore[arg-type]
    async with world as (one, other):
        assert one.protection.status() is None
        assert not await one.recover()
        await one.protection.run()
        with pytest.raises(Refused, match="not protected"):
            await one.protection.shards(other.id, ShardsCall(from_samples))


def member(number: int, host: str, state: str = "training") -> Presence:
    peer = peer_id(bytes([number]) * 32)
    return replace(PRESENCE, peer=peer, addrs=(f"/ip4/{host}/tcp/1/p2p/{peer}",), state=state)


def test_shards_go_to_distinct_hosts_first_and_then_to_those_reached_directly() -> None:
    hosts = ("1.1.1.1", "1.1.1.1", "2.2.2.2", "3.3.3.3")
    members = [member(number, host) for number, host in enumerate(hosts)]
    relayed = members[3].peer
    chosen = new_holders(
        range(4),
        [*members, member(9, "4.4.4.4", state="serving")],
        taken=(),
        owner=peer_id(bytes([8]) * 32),
        owner_host="/ip4/2.2.2.2",
        run=RunId(digest_of(b"run")),
        is_relayed=lambda peer: peer == relayed,
    )
    by_peer = {m.peer: host for m, host in zip(members, hosts, strict=True)}
    assert [by_peer[chosen[index]] for index in range(2)] == ["1.1.1.1", "3.3.3.3"]
    assert sorted(by_peer[chosen[index]] for index in (2, 3)) == ["1.1.1.1", "2.2.2.2"]
    assert set(chosen.values()) == set(by_peer)
