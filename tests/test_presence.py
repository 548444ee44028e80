"""The view by hand, the view among many, and the service over calls of a dictionary."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from wire import carried

from node.presence import TTL_MS, Boot, Facts, PresenceService
from node.presence_view import ACTIVE_PEERS, GONE_PEERS, VIEW_PEERS, PresenceView
from protocol import codec, rpc
from protocol.envelope import Domain, Signer
from protocol.errors import Malformed, PeerUnavailable
from protocol.ids import PeerId, Round, RunId, digest_of
from protocol.messages import Decision, Presence, PresenceEntry

RUN = RunId(b"r" * 32)
OTHER_RUN = RunId(b"o" * 32)
ME, ALICE, BOB = (Signer(bytes([n]) * 32) for n in (1, 2, 3))
NOW = 1000.0


def words(signer: Signer, seq: int = 1, **changes: Any) -> Presence:
    """What `signer` says of itself."""
    facts: dict[str, Any] = {
        "boot": b"boot 1..",
        "started_unix_s": 100,
        "unix_s": 200,
        "ttl_ms": 10_000,
        "addrs": ("/ip4/127.0.0.1/tcp/1",),
        "state": "training",
        "round": Round(3),
        "inner_step": 7,
        "tokens_per_s": 5.0,
        "loss": 2.5,
        "decisions": (),
    }
    return Presence(peer=signer.peer, seq=seq, **(facts | changes))


def entry(
    signer: Signer, seq: int = 1, remaining_ms: int = 10_000, **changes: Any
) -> PresenceEntry:
    body = codec.encode(words(signer, seq, **changes))
    return PresenceEntry(body, signer.sign(Domain.PRESENCE, RUN, body), remaining_ms)


def view(seed: int = 0) -> PresenceView:
    return PresenceView(RUN, ME.peer, random.Random(seed))


def strangers(count: int) -> list[Signer]:
    return [Signer(number.to_bytes(32, "big")) for number in range(1000, 1000 + count)]


def test_a_peer_is_live_until_its_time_is_over_on_our_clock() -> None:
    seen = view()
    assert seen.take(entry(ALICE, remaining_ms=2_001), ALICE.peer, NOW) == words(ALICE)
    assert seen.live(NOW + 1.999) == (words(ALICE),)
    assert seen.live(NOW + 2.0) == ()


def test_only_a_higher_seq_of_the_same_boot_refreshes() -> None:
    seen = view()
    seen.take(entry(ALICE, seq=5), ALICE.peer, NOW)
    assert seen.take(entry(ALICE, seq=5), BOB.peer, NOW + 5) is None
    assert seen.take(entry(ALICE, seq=4), BOB.peer, NOW + 5) is None
    assert seen.live(NOW + 10) == ()
    assert seen.take(entry(ALICE, seq=6), BOB.peer, NOW + 5) == words(ALICE, 6)
    assert seen.live(NOW + 14) == (words(ALICE, 6),)


@pytest.mark.parametrize(("started", "taken"), [(99, False), (100, False), (101, True)])
def test_another_boot_refreshes_only_if_it_started_later(started: int, taken: bool) -> None:
    seen = view()
    seen.take(entry(ALICE, seq=50), ALICE.peer, NOW)
    reboot = entry(ALICE, seq=1, boot=b"boot 2..", started_unix_s=started)
    assert (seen.take(reboot, ALICE.peer, NOW) is not None) == taken


def test_what_has_gone_does_not_come_back_by_old_words() -> None:
    seen = view()
    seen.take(entry(ALICE, seq=5), ALICE.peer, NOW)
    seen.expire(NOW + 10)
    assert seen.take(entry(ALICE, seq=5), BOB.peer, NOW + 11) is None
    assert seen.take(entry(ALICE, seq=6), BOB.peer, NOW + 11) == words(ALICE, 6)


def test_a_peer_that_restarts_within_the_second_gets_back_in_once_its_old_self_has_expired() -> (
    None
):
    seen = view()
    seen.take(entry(ALICE, seq=5), ALICE.peer, NOW)
    seen.expire(NOW + 10)
    reboot = entry(ALICE, seq=1, boot=b"boot 2..")
    assert seen.take(reboot, ALICE.peer, NOW + 11) == words(ALICE, boot=b"boot 2..")


def test_a_leaving_peer_is_dropped_at_once_and_its_word_is_passed_on() -> None:
    seen = view()
    seen.take(entry(ALICE, seq=1), ALICE.peer, NOW)
    seen.targets(NOW)
    leaving = entry(ALICE, seq=2, state="leaving")
    seen.take(leaving, ALICE.peer, NOW)
    assert seen.live(NOW) == ()
    assert seen.targets(NOW) == ()
    assert [passed.body for passed in seen.sample(BOB.peer, NOW)] == [leaving.body]
    assert seen.take(entry(ALICE, seq=1), BOB.peer, NOW + 1) is None


def test_each_hop_lowers_the_remaining_time_by_the_time_it_was_held_and_by_1_ms() -> None:
    seen = view()
    seen.take(entry(ALICE, remaining_ms=5_000), ALICE.peer, NOW)
    assert [passed.remaining_ms for passed in seen.sample(BOB.peer, NOW)] == [4_999]
    assert [passed.remaining_ms for passed in seen.sample(BOB.peer, NOW + 2)] == [2_999]
    assert seen.sample(BOB.peer, NOW + 4.9985) == ()


def test_nobody_is_sent_its_own_entry_nor_one_that_it_is_known_to_have() -> None:
    seen = view()
    for signer in (ALICE, BOB):
        seen.take(entry(signer), signer.peer, NOW)
    assert [passed.body for passed in seen.sample(ALICE.peer, NOW)] == [entry(BOB).body]
    assert seen.sample(ALICE.peer, NOW, known=frozenset({entry(BOB).body})) == ()


def test_an_entry_dies_among_peers_that_pass_it_on_at_once() -> None:
    passed, hops = entry(ALICE, remaining_ms=20), 0
    while True:
        next_view = view()
        next_view.take(passed, BOB.peer, NOW)
        sample = next_view.sample(BOB.peer, NOW)
        if not sample:
            break
        (passed,), hops = sample, hops + 1
    assert hops <= 19


def test_our_own_entry_is_never_taken_from_others() -> None:
    seen = view()
    assert seen.take(entry(ME, seq=99), ALICE.peer, NOW) is None
    assert seen.live(NOW) == ()


def test_forged_stretched_and_broken_entries_are_malformed() -> None:
    signed = entry(ALICE)
    forged = codec.encode(words(ALICE, state="leaving"))
    for bad in (
        PresenceEntry(forged, signed.signature, 10_000),
        PresenceEntry(signed.body, BOB.sign(Domain.PRESENCE, RUN, signed.body), 10_000),
        PresenceEntry(signed.body, ALICE.sign(Domain.PRESENCE, OTHER_RUN, signed.body), 10_000),
        PresenceEntry(signed.body, ALICE.sign(Domain.HELLO, RUN, signed.body), 10_000),
        PresenceEntry(signed.body, signed.signature, 10_001),
        PresenceEntry(b"\x93", signed.signature, 10_000),
    ):
        seen = view()
        with pytest.raises(Malformed):
            seen.take(bad, BOB.peer, NOW)
        assert seen.live(NOW) == ()


def test_the_view_stays_bounded_and_never_drops_an_active_peer_for_a_stranger() -> None:
    seen = view()
    first, later = strangers(ACTIVE_PEERS), strangers(400)[ACTIVE_PEERS:]
    for signer in first:
        seen.take(entry(signer), signer.peer, NOW)
    seen.targets(NOW)
    for signer in later:
        seen.take(entry(signer), signer.peer, NOW)
    live = {presence.peer for presence in seen.live(NOW)}
    assert len(live) == VIEW_PEERS
    assert live >= {signer.peer for signer in first}
    assert len(seen._gone) == GONE_PEERS


def test_equal_inputs_and_seeds_give_equal_views() -> None:
    views = (view(seed=4), view(seed=4))
    for signer in strangers(200):
        for seen in views:
            seen.take(entry(signer), signer.peer, NOW)
    one, two = views
    assert one.live(NOW) == two.live(NOW)
    assert one.targets(NOW) == two.targets(NOW)
    assert one.sample(BOB.peer, NOW) == two.sample(BOB.peer, NOW)


def test_a_peer_that_failed_is_replaced_and_tried_again_later() -> None:
    seen = view()
    seen.take(entry(ALICE), ALICE.peer, NOW)
    assert seen.targets(NOW) == (ALICE.peer,)
    seen.failed(ALICE.peer, NOW)
    seen.take(entry(BOB), BOB.peer, NOW)
    seen.take(entry(ALICE, seq=2, remaining_ms=10_000), BOB.peer, NOW + 5)
    assert seen.targets(NOW) == (BOB.peer,)
    seen.take(entry(BOB, seq=2), BOB.peer, NOW + 10)
    assert sorted(seen.targets(NOW + 10)) == sorted((ALICE.peer, BOB.peer))


def test_rotation_lets_a_passive_peer_become_active() -> None:
    seen = view()
    for signer in strangers(ACTIVE_PEERS + 1):
        seen.take(entry(signer), signer.peer, NOW)
    seen.targets(NOW)
    before = set(seen._active)
    seen.rotate(NOW)
    assert len(set(seen._active) - before) == 1
    assert len(seen._active) == ACTIVE_PEERS


# --- the service ------------------------------------------------------------------------


class Wire:
    """Calls between services by dictionary; whoever is not in it is unavailable."""

    def __init__(self) -> None:
        self.services: dict[PeerId, PresenceService] = {}
        self.calls: list[tuple[PeerId, PeerId]] = []

    def rpc_of(self, caller: PeerId) -> Any:
        wire = self

        class Caller:
            async def call(self, peer: PeerId, method: Any, request: Any, **terms: Any) -> Any:
                wire.calls.append((caller, peer))
                assert method is rpc.PRESENCE
                if peer not in wire.services:
                    raise PeerUnavailable(peer, "gone")
                handler = wire.services[peer].handle
                return await carried(caller, peer, method, request, handler, **terms)

        return Caller()


class Peer:
    """A service and what it told."""

    def __init__(self, signer: Signer, wire: Wire, clock: Callable[[], float]) -> None:
        self.signer = signer
        self.facts = Facts(
            addrs=(f"/ip4/127.0.0.1/tcp/1/p2p/{signer.peer}",),
            state="training",
            round=Round(0),
            inner_step=0,
            tokens_per_s=0.0,
            loss=0.0,
            decisions=(),
        )
        self.changes: list[tuple[PeerId, ...]] = []
        self.live: tuple[Presence, ...] = ()
        self.blamed: list[PeerId] = []
        self.addrs: dict[PeerId, list[str]] = {}
        self.service = PresenceService(
            run=RUN,
            signer=signer,
            boot=Boot(nonce=b"boot 1..", started_unix_s=100),
            view=PresenceView(RUN, signer.peer, random.Random(signer.seed[0])),
            rpc=wire.rpc_of(signer.peer),
            facts=lambda: self.facts,
            add_addrs=self.addrs.__setitem__,
            changed=self._changed,
            blame=lambda peer, _: self.blamed.append(peer),
            clock=clock,
            unix_s=lambda: 1_700_000_000.0,
        )
        wire.services[signer.peer] = self.service

    def _changed(self, live: tuple[Presence, ...]) -> None:
        self.live = live
        self.changes.append(tuple(presence.peer for presence in live))


def swarm(*signers: Signer) -> tuple[Wire, list[Peer], list[float]]:
    """Services that share a wire and a clock, which is the one number in the list."""
    wire, clock = Wire(), [NOW]
    return wire, [Peer(signer, wire, lambda: clock[0]) for signer in signers], clock


async def tick(peers: list[Peer], clock: list[float]) -> None:
    """One second of everybody's `run`, step by step."""
    clock[0] += 1.0
    for peer in peers:
        task = asyncio.create_task(peer.service.run())
        for _ in range(5):
            await asyncio.sleep(0)  # lets the pushes of this tick through, no time passes
        task.cancel()
        await asyncio.wait([task])


async def test_two_peers_that_met_see_each_other_and_their_addresses() -> None:
    _, (me, alice), _ = swarm(ME, ALICE)
    await me.service.meet(ALICE.peer)
    assert me.changes == [(ALICE.peer,)]
    assert alice.changes == [(ME.peer,)]
    assert me.addrs == {ALICE.peer: [f"/ip4/127.0.0.1/tcp/1/p2p/{ALICE.peer}"]}


async def test_a_third_peer_is_heard_of_through_the_second() -> None:
    _, (me, alice, bob), _ = swarm(ME, ALICE, BOB)
    await bob.service.meet(ALICE.peer)
    await me.service.meet(ALICE.peer)
    assert me.changes == [tuple(sorted((ALICE.peer, BOB.peer)))]
    assert alice.changes[-1] == tuple(sorted((ME.peer, BOB.peer)))


async def test_an_answer_does_not_send_back_what_the_push_brought() -> None:
    _, (me, alice, bob), _ = swarm(ME, ALICE, BOB)
    await bob.service.meet(ALICE.peer)
    await bob.service.meet(ME.peer)
    pushed = rpc.PresenceCall(RUN, (me.service._own, bob.service._own))
    answer = await alice.service.handle(ME.peer, pushed)
    assert answer.entries == (alice.service._own,)


async def test_changed_is_told_of_decisions_and_state_but_not_of_progress() -> None:
    _, (me, alice), clock = swarm(ME, ALICE)
    await me.service.meet(ALICE.peer)
    decision = Decision(digest_of(b"payload"), None)
    for changes, told in (
        ({"inner_step": 9, "loss": 1.5}, 1),
        ({"decisions": (decision,)}, 2),
        ({"state": "finished"}, 3),
    ):
        values = {name: getattr(alice.facts, name) for name in Facts.__slots__}
        alice.facts = Facts(**(values | changes))
        await tick([alice], clock)
        assert len(me.changes) == told
    (presence,) = me.live
    assert (presence.decisions, presence.state) == ((decision,), "finished")


async def test_a_silent_peer_is_gone_after_its_time_to_live() -> None:
    wire, (me, alice), clock = swarm(ME, ALICE)
    await me.service.meet(ALICE.peer)
    del wire.services[ALICE.peer]
    clock[0] += TTL_MS / 1000 - 1
    await tick([me], clock)
    assert me.changes == [(ALICE.peer,), ()]
    assert alice.changes == [(ME.peer,)]


async def test_a_peer_that_leaves_is_gone_at_once_and_stays_gone() -> None:
    _, (me, alice, bob), clock = swarm(ME, ALICE, BOB)
    await me.service.meet(ALICE.peer)
    await me.service.meet(BOB.peer)
    await tick([me, alice, bob], clock)
    await alice.service.leave()
    assert me.changes[-1] == (BOB.peer,)
    await tick([me, bob], clock)
    assert me.changes[-1] == (BOB.peer,)
    assert bob.changes[-1] == (ME.peer,)


async def test_who_passes_on_a_forged_entry_is_blamed_not_the_named_author() -> None:
    _, (me,), _ = swarm(ME)
    good = entry(ALICE)
    forged = PresenceEntry(codec.encode(words(ALICE, state="leaving")), good.signature, 10_000)
    await me.service.handle(BOB.peer, rpc.PresenceCall(RUN, (forged, good)))
    assert me.blamed == [BOB.peer]
    assert me.changes == []


async def test_a_loss_that_is_no_number_does_not_silence_a_node() -> None:
    _, (me, alice), clock = swarm(ME, ALICE)
    values = {name: getattr(me.facts, name) for name in Facts.__slots__}
    me.facts = Facts(**(values | {"loss": float("nan"), "tokens_per_s": float("inf")}))
    await tick([me], clock)
    await me.service.meet(ALICE.peer)
    ((presence),) = alice.live
    assert (presence.loss, presence.tokens_per_s) == (1e6, 1e12)


async def test_thirty_peers_that_know_one_know_all_within_ten_seconds() -> None:
    wire, peers, clock = swarm(*strangers(30))
    for peer in peers[1:]:
        await peer.service.meet(peers[0].signer.peer)
    for _ in range(10):
        before = len(wire.calls)
        await tick(peers, clock)
        assert len(wire.calls) - before <= 4 * len(peers)
    assert {len(peer.service.live()) for peer in peers} == {29}
