"""A snapshot in the memory of others: it comes back whole, or not at all, and only to its owner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import PRESENCE
from shard_peers import TWO_AND_ONE, Peer, World, protected

from node import recovery
from node.protection_holder import AWAY_S as FORGOTTEN_FIRST_S
from node.protection_holder import FORGET_S
from node.protection_owner import AWAY_S, REFUSED_S, RENEW_S, Placing
from node.protection_places import new_holders
from node.rpc import Refused
from node.snapshots import snapshot_files
from protocol.errors import Malformed
from protocol.ids import PeerId, RunId, digest_of, peer_id
from protocol.messages import Presence
from protocol.shards import (
    Holding,
    Offer,
    Offers,
    ProtectCall,
    ProtectionConfig,
    ShardCall,
    ShardsCall,
    sign_stamp,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at who is there follow each other; the clock of the tests moves by itself."""
    monkeypatch.setattr(recovery, "AGAIN_S", 0.0)


def kept(peer: Peer) -> Placing:
    assert peer.protection.owner
    assert peer.protection.owner.kept
    return peer.protection.owner.kept


def holders(peer: Peer, world: World) -> list[Peer]:
    """By the index of the shard."""
    return [world.swarm.peers[id] for _, id in sorted(kept(peer).holders.items())]


def found(peer: Peer) -> bytes:
    return snapshot_files(peer.directory)[0].read_bytes()


async def rounds_held(holder: Peer, owner: Peer) -> list[int]:
    offers = await holder.protection.shards(owner.id, ShardsCall(owner.swarm.spec.run))
    return [offer.stamp.open(owner.swarm.spec.run, owner.id).round for offer in offers.offers]


async def test_a_node_that_lost_its_disk_gets_back_its_snapshot_to_the_bit(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, *others):
        saved = owner.save(1, round=3, inner_step=60)
        await owner.protect()
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


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 3), (1, 4), (2, 5), (4, 5)])
async def test_any_m_holders_may_be_lost_with_the_owner(
    tmp_path: Path, lost: tuple[int, ...]
) -> None:
    """4 + 2 among seven; the indices are those of the shards."""
    config = ProtectionConfig(data=4, parity=2, every_rounds=1)
    world = World(tmp_path, 7, protected(config))
    async with world as (owner, *_):
        saved = owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
        world = World(tmp_path / str(liar), 4)
        async with world as (owner, *_):
            saved = owner.save(1, round=3, inner_step=60)
            await owner.protect()
            false = holders(owner, world)[liar].id

            def flipped(peer: PeerId, answer: Any, false: PeerId = false) -> Any:
                if peer != false or not isinstance(answer, memoryview):
                    return answer
                data = bytearray(answer)
                data[len(data) // 2] ^= 1
                return data

            world.swarm.mangled = flipped
            back = await world.comes_back(0)
            assert await back.recover()
            assert found(back) == saved
            asked = liar < TWO_AND_ONE.data  # the first k are asked first
            assert back.blamed == ([false] if asked else [])


async def test_the_old_snapshot_is_kept_until_every_shard_of_the_new_one_is_held(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, *others):
        old = owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
        assert found(back) == new != old


@pytest.mark.parametrize(("held", "expected"), [(1, 3), (2, 4)])
async def test_shards_of_two_snapshots_are_never_mixed(
    tmp_path: Path, held: int, expected: int
) -> None:
    """REFT R6: the owner dies while the new snapshot is under way, held by one or by two."""
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        saved = {3: owner.save(1, round=3, inner_step=60)}
        await owner.protect()
        saved[4] = owner.save(2, round=4, inner_step=80)
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
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 4)
    async with world as (owner, *others):
        saved = owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 5)
    async with world as (owner, *others):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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


async def test_a_holder_that_is_gone_is_replaced_from_memory(tmp_path: Path) -> None:
    world = World(tmp_path, 5)
    async with world as (owner, *others):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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


async def test_a_holder_that_started_again_fetches_its_shard_anew(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 4)
    async with world as (owner, holder, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
    world = World(tmp_path, 4)
    async with world as (owner, *_):
        owner.save(1, round=3, inner_step=60)
        await owner.protect()
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
