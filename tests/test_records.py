"""The owner of records: nodes on a network of dictionaries, real files, virtual time."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from record_network import SETTLED_S, Network, Node, Port, swarm
from record_samples import (
    ALICE,
    BOB,
    CAROL,
    JOINED,
    MALLORY,
    OTHER_RUN,
    RUN,
    after,
    forged,
    history,
    holdings,
    signed,
)
from virtual_time import in_virtual_time

from crdt.record import Record
from crdt.replica import Replica
from crdt.schema import BlamedPeer, Content, Control, Member, NoView
from crdt.sync import Parcel, push_request
from node.records.files import RETRY_S
from node.records.records import ASK_PEERS, ASK_S, ASK_TICK_S, MAX_EARLY, Records
from node.records.sync import SYNC_S
from node.telemetry import Waiting
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError, Malformed, PeerUnavailable
from protocol.ids import PeerId, Round
from protocol.rpc import CheckpointCall, RecordCall


def test_what_one_node_writes_all_see_within_a_second(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB, CAROL) as (_, nodes):
            nodes[0].write(after(JOINED, 1))
            await asyncio.sleep(1.0)
            for node in nodes:
                assert node.records.views()[ALICE.peer] == after(JOINED, 1)
                assert node.blamed == []
            assert ALICE.peer in nodes[2].changes

    in_virtual_time(story())


def test_two_halves_go_on_and_are_equal_after_they_meet(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (network, (alice, bob)):
            network.cut.add(frozenset((ALICE.peer, BOB.peer)))
            for round in range(40):
                for node in (alice, bob):
                    node.records.write(partial(after, round=round))
                await asyncio.sleep(0.5)
            assert holdings(alice.replica) != holdings(bob.replica)
            network.cut.clear()
            await asyncio.sleep(3 * SYNC_S)
            assert holdings(alice.replica) == holdings(bob.replica)
            assert alice.records.views() == bob.records.views()
            (view,) = {view.totals.rounds for view in alice.records.views().values()}  # type: ignore[union-attr]
            assert view == 40

    in_virtual_time(story())


def test_no_peer_sees_an_entry_of_ours_before_it_is_on_disk(tmp_path: Path) -> None:
    """Else a kill in between makes us sign the same place twice."""

    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (network, (alice, _)):

            def check(me: PeerId, body: bytes) -> None:
                if me == ALICE.peer:
                    disk = Replica(RUN)
                    alice.files.load(disk)
                    assert disk.record(me) == alice.replica.record(me)

            network.before_call = check
            for round in range(5):
                alice.write(after(JOINED, round))
                await asyncio.sleep(SYNC_S)
            assert alice.records.views()[ALICE.peer] == after(JOINED, 4)

    in_virtual_time(story())


async def alice_until_killed(network: Network, directory: Path, killed: Path) -> None:
    """Alice runs for a while and writes; `killed` is what a kill -9 would leave of her disk."""
    alice = Node(network, directory, ALICE)
    async with alice.running():
        alice.write(after(JOINED, 1))
        await asyncio.sleep(SETTLED_S)
        shutil.copytree(directory / ALICE.peer, killed / ALICE.peer)
    del network.nodes[ALICE.peer]


def test_a_killed_node_goes_on_in_its_chain_from_disk(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, BOB) as (network, (bob,)):
            killed = tmp_path / "killed"
            await alice_until_killed(network, tmp_path, killed)
            (killed / ALICE.peer / "half.new").write_bytes(b"half of a record")
            alice = Node(network, killed, ALICE, boot=2)
            before = alice.replica.record(ALICE.peer).chain
            assert alice.records.views()[ALICE.peer] == after(JOINED, 1)
            async with alice.running():
                alice.records.write(lambda old: after(old, 2))
                await asyncio.sleep(SETTLED_S)
            chain = bob.replica.record(ALICE.peer).chain
            assert (chain[:-1], len(chain)) == (before, len(before) + 1)
            assert bob.records.views()[ALICE.peer] == after(after(JOINED, 1), 2)

    in_virtual_time(story())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "junk": lambda path: path.write_bytes(b"junk"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_node_that_lost_its_record_gets_it_from_peers_and_opens_an_epoch(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with swarm(tmp_path, BOB) as (network, (bob,)):
            killed = tmp_path / "killed"
            await alice_until_killed(network, tmp_path, killed)
            path = killed / ALICE.peer / f"{ALICE.peer}.record"
            DAMAGES[damage](path)
            alice = Node(network, killed, ALICE, boot=2)
            assert alice.replica.record(ALICE.peer) == Record(ALICE.peer)
            assert path.with_name(f"{path.name}.unusable-1").exists() == (damage != "deleted")
            async with alice.running():
                alice.records.write(lambda old: after(old, 2))
                await asyncio.sleep(SETTLED_S)
            assert bob.records.views()[ALICE.peer] == after(after(JOINED, 1), 2)
            (entry,) = bob.replica.record(ALICE.peer).chain
            assert (entry.epoch, entry.seq) == (1000 + 2000, 0)

    with caplog.at_level(logging.WARNING):
        in_virtual_time(story())
    told = [record for record in caplog.records if "record set aside" in record.message]
    assert len(told) == (damage != "deleted")


def test_a_full_disk_loses_nothing_and_publishes_nothing_until_it_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (_, (alice, bob)):
            alice.files.is_full = True
            alice.records.write(lambda old: after(old, 1))
            assert not await alice.records.flush(2 * RETRY_S)
            alice.records.write(lambda old: after(old, 2))
            bob.write(after(JOINED, 7))
            await asyncio.sleep(20 * SYNC_S)
            assert bob.records.views()[ALICE.peer] == JOINED
            assert alice.records.views()[BOB.peer] == after(JOINED, 7)
            alice.files.is_full = False
            assert await alice.records.flush(2 * RETRY_S)
            await asyncio.sleep(SYNC_S)
            assert bob.records.views()[ALICE.peer] == after(after(JOINED, 1), 2)
            assert not bob.replica.record(ALICE.peer).proof

    with caplog.at_level(logging.INFO):
        in_virtual_time(story())
    (error,) = (record.message for record in caplog.records if record.levelno == logging.ERROR)
    assert "No space left on device" in error
    assert "kept in memory" in error


def test_records_of_others_are_on_disk_after_a_stop(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (_, (alice, _)):
            pass
        disk = Replica(RUN)
        alice.files.load(disk)
        assert holdings(disk) == holdings(alice.replica)
        assert len(disk.authors()) == 2

    in_virtual_time(story())


def test_what_matters_of_others_is_on_disk_before_the_next_kill(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (_, (alice, bob)):
            bob.write(after(JOINED, 7))
            assert await bob.records.flush(SYNC_S)
            await asyncio.sleep(SYNC_S)
            alice.records.save_soon()
            await asyncio.sleep(0.01)
            disk = Replica(RUN)
            alice.files.load(disk)
            assert disk.views()[BOB.peer] == after(JOINED, 7)

    in_virtual_time(story())


def test_a_node_alone_writes_its_record_after_asking_in_vain(tmp_path: Path) -> None:
    async def story() -> None:
        node = Node(Network(), tmp_path, ALICE)
        async with node.running():
            node.write(JOINED)
            assert not await node.records.flush(ASK_S / 2)
            assert await node.records.flush(ASK_S)
            assert node.records.views() == {ALICE.peer: JOINED}
            assert await node.records.flush(0.1)

    in_virtual_time(story())


def test_writes_come_together_in_one_entry(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (_, (alice,)):
            for round in range(1, 5):
                alice.records.write(partial(after, round=round))
            assert await alice.records.flush(1.0)
            (_, entry) = alice.replica.record(ALICE.peer).chain
            assert entry.seq == 1

    in_virtual_time(story())


def test_a_change_that_is_not_valid_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (_, (alice,)):
            with pytest.raises(ValueError, match=r"member\.status is 'gone'"):
                alice.records.write(
                    lambda old: replace(old, member=Member(since=Round(0), status="gone"))
                )
            assert await alice.records.flush(0.1)
            assert alice.records.views() == {ALICE.peer: JOINED}

    in_virtual_time(story())


def test_too_many_changes_before_the_record_is_known_are_refused(tmp_path: Path) -> None:
    async def story() -> None:
        node = Node(Network(), tmp_path, ALICE)
        for _ in range(MAX_EARLY):
            node.write(JOINED)
        with pytest.raises(LocalProtocolError, match="more than 32 changes"):
            node.write(JOINED)

    in_virtual_time(story())


def test_no_blame_is_too_much_or_takes_the_room_of_our_own_changes(tmp_path: Path) -> None:
    """Peers choose how often they are blamed, and what they call themselves."""

    async def story() -> None:
        async with swarm(tmp_path, BOB) as (network, (bob,)):
            alice = Node(network, tmp_path, ALICE)
            async with alice.running():
                for number in range(1, 70):
                    alice.records.write_blame(CAROL.peer, f"malformed {number}")
                    alice.records.write_blame(PeerId("QmNoEd25519"), "malformed")
                alice.records.write(lambda old: replace(old, member=JOINED.member))
                await asyncio.sleep(SETTLED_S)
                blamed = BlamedPeer(peer=CAROL.peer, count=69, reason="malformed 69")
                assert bob.records.views()[ALICE.peer] == replace(JOINED, blamed=(blamed,))
                alice.records.write_blame(PeerId("QmNoEd25519"), "malformed")
                alice.records.write_blame(CAROL.peer, "malformed again")
                assert await alice.records.flush(1.0)
                (blamed,) = bob.records.views()[ALICE.peer].blamed  # type: ignore[union-attr]
                assert (blamed.count, blamed.reason) == (70, "malformed again")

    in_virtual_time(story())


def test_last_words_are_with_the_peers_before_the_pauses_are_over(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB) as (network, (alice, bob)):
            left = replace(JOINED, member=Member(since=Round(0), status="left"))
            alice.write(after(JOINED, 1))
            await asyncio.sleep(0)
            alice.write(left)
            assert await alice.records.flush(0.05)
            assert bob.records.views()[ALICE.peer] == left
            network.cut.add(frozenset((ALICE.peer, BOB.peer)))
            alice.write(JOINED)
            assert await alice.records.flush(0.05)
            alice.files.is_full = True
            alice.write(left)
            assert not await alice.records.flush(0.05)

    in_virtual_time(story())


def test_whoever_needs_our_own_record_waits_until_it_is_known_and_no_longer(tmp_path: Path) -> None:
    async def known_after_s(node: Node) -> float:
        clock = asyncio.get_running_loop().time
        async with node.running():
            began = clock()
            await node.records.until_known()
            assert not node.records._early
            return clock() - began

    def nobody_answers(me: PeerId, body: bytes) -> None:
        raise PeerUnavailable(me, "timeout")

    async def story() -> None:
        network = Network()
        assert await known_after_s(Node(network, tmp_path / "new", ALICE, is_new=True)) == 0.0
        alone_s = await known_after_s(Node(network, tmp_path / "alone", ALICE))
        assert ASK_S <= alone_s < ASK_S + ASK_TICK_S
        async with swarm(tmp_path, BOB) as (network, _):
            killed = tmp_path / "killed"
            await alice_until_killed(network, tmp_path, killed)
            assert await known_after_s(Node(network, killed, ALICE, boot=2)) < ASK_TICK_S * 2
            strangers = [Node(network, tmp_path, one) for one in (CAROL, MALLORY)]
            assert len(strangers) + 1 == ASK_PEERS
            unheard_of = Node(network, tmp_path / "none", Signer(b"n" * 32))
            assert await known_after_s(unheard_of) < ASK_TICK_S
            network.before_call = nobody_answers
            gone_s = await known_after_s(Node(network, tmp_path / "gone", ALICE, boot=3))
            assert ASK_S <= gone_s < ASK_S + ASK_TICK_S

    in_virtual_time(story())


async def alice_comes_back(directory: Path, *, jump: int, meets_first: Signer | None) -> Content:
    """What Bob reads at last of Alice, who stopped the run, lost her disk, and comes back.

    Bob is out of her reach at first: for half a second, in which she meets another one who knows
    nothing, or, with nobody to meet, for as long as she looks for her record.
    """
    async with swarm(directory, BOB) as (network, (bob,)):
        stopping = replace(after(JOINED, 1), control=Control(paused=True, stopped=True))
        alice = Node(network, directory, ALICE)
        async with alice.running():
            alice.write(stopping)
            await asyncio.sleep(SETTLED_S)
        del network.nodes[ALICE.peer]
        if meets_first:
            Node(network, directory, meets_first)
            network.cut.add(frozenset((meets_first.peer, BOB.peer)))
        network.cut.add(frozenset((ALICE.peer, BOB.peer)))
        alice = Node(network, directory / "new disk", ALICE, boot=2, jump=jump)
        async with alice.running():
            alice.records.write(lambda old: after(replace(old, member=JOINED.member), 2))
            await asyncio.sleep(0.5 if meets_first else SETTLED_S)
            network.cut.clear()
            await asyncio.sleep(2 * SETTLED_S)
            assert bob.records.views() == alice.records.views()
        view = bob.records.views()[ALICE.peer]
        assert isinstance(view, Content)
        return view


@pytest.mark.parametrize("jump", [500, 5000], ids=["below", "beyond"])
def test_a_peer_that_knows_nothing_does_not_end_the_search_for_our_own_record(
    tmp_path: Path, jump: int
) -> None:
    """Whether the epoch that we would open were below or beyond the lost one, 1000."""

    async def story() -> None:
        view = await alice_comes_back(tmp_path, jump=jump, meets_first=CAROL)
        expected = after(after(JOINED, 1), 2)
        assert view == replace(expected, control=Control(paused=True, stopped=True))

    in_virtual_time(story())


def test_a_creator_whose_record_is_found_late_takes_nothing_back_of_what_it_said(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        view = await alice_comes_back(tmp_path, jump=500, meets_first=None)
        expected = after(after(JOINED, 1), 2)
        assert view == replace(expected, control=Control(paused=True, stopped=True))

    in_virtual_time(story())


def test_the_wait_for_our_own_record_has_a_name(tmp_path: Path) -> None:
    async def story() -> None:
        node = Node(Network(), tmp_path, ALICE)
        async with node.running():
            await asyncio.sleep(1.0)
            assert node.waits.current == Waiting("our own record", "any member", ASK_S)
            await asyncio.sleep(ASK_S)
            assert node.waits.current is None

    in_virtual_time(story())


def test_a_peer_that_the_call_blamed_is_not_blamed_again(tmp_path: Path) -> None:
    class Breaking(Records):
        async def handle(self, _peer: PeerId, call: RecordCall) -> Any:
            return CheckpointCall(
                RUN
            )  # what no honest peer answers: the call itself finds that out

    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (network, (alice,)):
            Node(network, tmp_path, BOB).records.__class__ = Breaking
            await asyncio.sleep(2 * SYNC_S)
            assert alice.blamed == []

    in_virtual_time(story())


def test_two_nodes_with_one_key_are_found_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both began at the same epoch: a copied data directory."""

    async def story() -> None:
        network, elsewhere = Network(), Network()
        async with Node(elsewhere, tmp_path / "copy", ALICE).running():
            elsewhere.nodes[ALICE.peer].write(after(JOINED, 1))
            await asyncio.sleep(SETTLED_S)
            copied = elsewhere.nodes[ALICE.peer].replica.record(ALICE.peer).chain
        async with Node(network, tmp_path, ALICE).running():
            alice = network.nodes[ALICE.peer]
            alice.write(JOINED)
            await asyncio.sleep(SETTLED_S)
            call = RecordCall(RUN, push_request(Parcel(copied)))
            await alice.records.handle(BOB.peer, call)
            await asyncio.sleep(SYNC_S)
            assert isinstance(alice.records.views()[ALICE.peer], NoView)
            alice.write(after(JOINED, 3))
            assert await alice.records.flush(1.0)

    with caplog.at_level(logging.ERROR):
        in_virtual_time(story())
    assert ["own record frozen" in record.message for record in caplog.records] == [True]


def test_a_peer_that_breaks_the_protocol_is_blamed_and_harms_nothing(tmp_path: Path) -> None:
    class Liar(Records):
        async def handle(self, peer: PeerId, call: RecordCall) -> RecordCall:
            return RecordCall(call.run, b"nonsense")

    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (network, (alice,)):
            liar = Node(network, tmp_path, BOB)
            liar.records.__class__ = Liar
            await asyncio.sleep(2 * SYNC_S)
            assert {peer for peer, _ in alice.blamed} == {BOB.peer}
            assert "answered records/1 with" in alice.blamed[0][1]
            assert alice.records.views() == {ALICE.peer: JOINED}

    in_virtual_time(story())


def test_a_call_of_another_run_or_with_a_forged_entry_is_malformed(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (_, (alice,)):
            entries, _ = history(1, BOB)
            body = push_request(Parcel((entries[0], forged(entries[1]))))
            with pytest.raises(Malformed, match="records of the run 6f6f6f6f"):
                await alice.records.handle(BOB.peer, RecordCall(OTHER_RUN, body))
            with pytest.raises(Malformed, match="not signed by"):
                await alice.records.handle(BOB.peer, RecordCall(RUN, body))
            assert alice.replica.record(BOB.peer).chain == (entries[0],)
            assert alice.changes[-1] == BOB.peer

    in_virtual_time(story())


def test_a_push_dies_out(tmp_path: Path) -> None:
    """Who heard the news before does not pass it on again."""

    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB, CAROL) as (network, nodes):
            pushes: list[PeerId] = []
            network.before_call = lambda me, body: (
                pushes.append(me) if body[1:2] == b"\x06" else None
            )
            nodes[0].write(after(JOINED, 1))
            await asyncio.sleep(SYNC_S)
            assert set(pushes) <= {node.peer for node in nodes}
            pushes.clear()
            await asyncio.sleep(10 * SYNC_S)
            assert pushes == []

    in_virtual_time(story())


def test_a_hostile_authors_record_comes_back_from_disk_as_it_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE) as (network, (alice,)):
            call = RecordCall(RUN, push_request(Parcel((signed(b"\x01\x00\x09\0\0", BOB),))))
            await alice.records.handle(BOB.peer, call)
        again = Node(network, tmp_path, ALICE, boot=2)
        assert again.records.views() == {
            ALICE.peer: JOINED,
            BOB.peer: NoView("unreadable: found 0, at least 1"),
        }

    in_virtual_time(story())


def test_an_own_record_that_is_found_late_keeps_its_totals_and_ours_come_on_top(
    tmp_path: Path,
) -> None:
    """Who knew it was out of reach while we asked, and our new epoch is below the lost one."""

    async def story() -> None:
        async with swarm(tmp_path, BOB) as (network, (bob,)):
            killed = tmp_path / "killed"
            await alice_until_killed(network, tmp_path, killed)
            (killed / ALICE.peer / f"{ALICE.peer}.record").unlink()
            network.cut = {frozenset((ALICE.peer, BOB.peer))}
            alice = Node(network, killed, ALICE, boot=2, jump=500)
            async with alice.running():
                alice.records.write(lambda old: after(replace(old, member=JOINED.member), 2))
                await asyncio.sleep(SETTLED_S)
                assert alice.records.views()[ALICE.peer] == after(JOINED, 2)
                network.cut = set()
                await asyncio.sleep(SETTLED_S)
                expected = after(after(JOINED, 1), 2)
                assert alice.records.views()[ALICE.peer] == expected
                alice.records.write(lambda old: after(old, 3))
                await asyncio.sleep(SETTLED_S)
            assert bob.records.views()[ALICE.peer] == after(expected, 3)

    in_virtual_time(story())


def test_peers_that_do_not_answer_hold_up_no_comparison_with_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with swarm(tmp_path, ALICE, BOB, CAROL) as (_, (alice, bob, _)):
            answered = Port.call

            async def call(port: Port, peer: PeerId, *args: Any, **rest: Any) -> Any:
                if CAROL.peer in (peer, port.me):
                    await asyncio.sleep(1000)
                return await answered(port, peer, *args, **rest)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Port, "call", call)
                patch.setattr(alice.records._sync, "forward", lambda news: None)
                for round in range(1, 4):
                    alice.records.write(partial(after, round=round))
                    await asyncio.sleep(10 * SYNC_S)
                    assert bob.records.root() == alice.records.root()

    in_virtual_time(story())
