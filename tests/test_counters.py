"""Counts of each peer, and what is kept of those that are forgotten."""

from __future__ import annotations

import pytest

from node.p2p import counters
from node.p2p.counters import RATE_S, Counters
from protocol.ids import PeerId
from protocol.rpc import Kind

ALICE, BOB = PeerId("alice"), PeerId("bob")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_each_peer_has_its_own_counts_and_all_are_in_the_sum() -> None:
    counted = Counters(Clock())
    counted.of(ALICE).frame_up(Kind.BLOB, 5)
    counted.of(BOB).frame_up(Kind.BLOB, 7)
    counted.of(BOB).frame_down(Kind.ROUND, 11)
    bob = counted.traffic_of(BOB)
    assert bob is not None
    assert (bob.up["blob"], bob.down["round"], bob.down["blob"]) == (7, 11, 0)
    assert (counted.snapshot().up["blob"], counted.snapshot().down["round"]) == (12, 11)


def test_the_peer_used_longest_ago_is_forgotten_and_stays_in_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counters, "MAX_PEERS", 2)
    counted = Counters(Clock())
    open_stream = counted.of(ALICE)
    counted.of(BOB)
    counted.of(ALICE)
    counted.of(PeerId("carol"))
    assert counted.traffic_of(BOB) is None
    assert counted.traffic_of(ALICE) is not None
    counted.of(PeerId("dave"))
    open_stream.frame_up(Kind.BLOB, 3)  # its stream is still open
    assert counted.traffic_of(ALICE) is None
    assert counted.snapshot().up["blob"] == 3


def test_a_rate_is_that_of_late() -> None:
    clock = Clock()
    counted = Counters(clock)
    for _ in range(300):
        counted.of(ALICE).frame_down(Kind.PAYLOAD, 1000)
        clock.now_s += 0.1
    busy = counted.traffic_of(ALICE)
    assert busy is not None
    assert busy.down_per_s == pytest.approx(10_000, rel=0.03)
    clock.now_s += 10 * RATE_S
    idle = counted.traffic_of(ALICE)
    assert idle is not None
    assert idle.down_per_s < 10


def test_round_trips_are_smoothed_and_the_first_counts_in_full() -> None:
    counted = Counters(Clock())
    assert counted.of(ALICE).snapshot().rtt_s is None
    counted.of(ALICE).round_trip(0.1)
    assert counted.of(ALICE).snapshot().rtt_s == pytest.approx(0.1)
    counted.of(ALICE).round_trip(0.9)
    assert counted.of(ALICE).snapshot().rtt_s == pytest.approx(0.2)
