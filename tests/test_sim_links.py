"""Lines between simulated peers: how long transfers take, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sim import Script, carry_out, digest, name

from node.sim.line import Line, Link
from node.sim.peer import Conditions
from node.sim.toy import ToyLearner
from node.sim.worker import Speed
from node.sim.world import World
from protocol.algorithms import NolocoConfig
from protocol.messages import Abort
from protocol.spsa import Frames, SignedFrame
from trainers.effects import Fetch, Release, Send
from trainers.events import Event, Fetched, FetchFailed, Received, SendFailed

QUICK = Conditions(latency_s=(0.0, 0.0), gone_s=(3.0, 3.0), fetch_deadline_s=60.0)
MB = 1_000_000
PAYLOAD = digest("payload")


def swarm(*lines: Line, conditions: Conditions = QUICK) -> tuple[World, list[Script]]:
    """Peers that ask for nothing by themselves; each holds a payload of its own."""
    world, scripts = World(1, conditions), []
    for n, line in enumerate(lines):
        script = Script()
        learner = ToyLearner(name(n), np.ones(2), NolocoConfig())
        world.add(name(n), script, learner, Speed(), line=line)
        world.peers[name(n)].worker.held[digest(f"of {n}")] = f"of {n}"
        scripts.append(script)
    return world, scripts


def fetch(world: World, at: float, to: int, source: int, *, size_bytes: int = 10 * MB) -> None:
    effect = Fetch(digest(f"of {source}"), size_bytes, name(source))
    world.clock.at(at, carry_out, world, name(to), effect)


def ends(script: Script) -> list[tuple[float, Event]]:
    """Of its transfers."""
    return [(at, event) for at, event in script.told if isinstance(event, Fetched | FetchFailed)]


def line(up: float, down: float, *, relayed: bool = False) -> Line:
    """Megabytes a second."""
    return Line(up_bytes_per_s=up * MB, down_bytes_per_s=down * MB, relayed=relayed)


def test_a_transfer_goes_at_the_speed_of_the_slower_end() -> None:
    world, scripts = swarm(line(1, 5), line(2, 1), line(1, 1))
    fetch(world, 0.0, 0, 1)
    fetch(world, 20.0, 2, 1)
    world.run_until(60.0)
    assert ends(scripts[0]) == [(5.0, Fetched(digest("of 1")))]
    assert ends(scripts[2]) == [(30.0, Fetched(digest("of 1")))]


def test_transfers_share_a_line_for_as_long_as_they_overlap() -> None:
    world, scripts = swarm(line(2, 1), line(1, 9), line(1, 9))
    fetch(world, 0.0, 1, 0)
    fetch(world, 2.0, 2, 0)
    world.run_until(60.0)
    assert ends(scripts[1]) == [(8.0, Fetched(digest("of 0")))]
    assert ends(scripts[2]) == [(10.0, Fetched(digest("of 0")))]


def test_a_fetch_that_is_given_up_frees_the_line() -> None:
    world, scripts = swarm(line(2, 1), line(1, 9), line(1, 9))
    fetch(world, 0.0, 1, 0)
    fetch(world, 0.0, 2, 0)
    world.clock.at(2.0, carry_out, world, name(1), Release(digest("of 0")))
    world.run_until(60.0)
    assert (ends(scripts[1]), ends(scripts[2])) == ([], [(6.0, Fetched(digest("of 0")))])


def test_a_relay_is_narrow_and_far() -> None:
    relayed = Conditions(latency_s=(0.0, 0.0), relay_latency_s=0.5, relay_bytes_per_s=0.5 * MB)
    world, scripts = swarm(line(9, 9, relayed=True), line(9, 9), line(9, 9), conditions=relayed)
    fetch(world, 0.0, 1, 0)
    fetch(world, 2.0, 1, 2, size_bytes=9 * MB)
    world.run_until(60.0)
    assert ends(scripts[1]) == [(4.0, Fetched(digest("of 2"))), (21.0, Fetched(digest("of 0")))]


def test_a_frozen_source_lets_it_stand_and_goes_on_when_thawed() -> None:
    world, scripts = swarm(line(1, 1), line(1, 1))
    fetch(world, 0.0, 1, 0)
    world.clock.at(4.0, world.freeze, name(0))
    world.clock.at(30.0, world.thaw, name(0))
    world.run_until(60.0)
    assert ends(scripts[1]) == [(36.0, Fetched(digest("of 0")))]


def test_what_is_not_here_by_the_deadline_has_failed() -> None:
    world, scripts = swarm(line(0.1, 1), line(1, 1))
    fetch(world, 0.0, 1, 0)
    world.run_until(99.0)
    assert ends(scripts[1]) == [(60.0, FetchFailed(digest("of 0"), "not here by the deadline"))]


@pytest.mark.parametrize("how", ["kill", "leave", "cut"])
def test_a_source_that_is_gone_is_noticed_after_a_while(how: str) -> None:
    world, scripts = swarm(line(1, 1), line(1, 1))
    fetch(world, 0.0, 1, 0)
    if how == "cut":
        world.clock.at(4.0, world.cut, {name(0): 1})
    else:
        world.clock.at(4.0, getattr(world, how), name(0))
    fetch(world, 20.0, 1, 0)
    world.run_until(60.0)
    gone = FetchFailed(digest("of 0"), "its source is gone")
    assert ends(scripts[1]) == [(7.0, gone), (23.0, gone)]


def test_what_the_source_does_not_hold_is_refused_at_once() -> None:
    world, scripts = swarm(line(1, 1), line(1, 1))
    world.clock.at(0.0, carry_out, world, name(1), Fetch(PAYLOAD, MB, name(0)))
    world.run_until(60.0)
    assert ends(scripts[1]) == [(0.0, FetchFailed(PAYLOAD, "its source does not hold it"))]


def test_what_is_released_while_it_is_sent_arrives_all_the_same() -> None:
    world, scripts = swarm(line(1, 1), line(1, 1))
    fetch(world, 0.0, 1, 0)
    world.clock.at(4.0, carry_out, world, name(0), Release(digest("of 0")))
    world.run_until(60.0)
    assert ends(scripts[1]) == [(10.0, Fetched(digest("of 0")))]
    assert world.peers[name(1)].worker.held[digest("of 0")] == "of 0"


def test_a_transfer_that_breaks_is_told_and_costs_the_bytes_so_far() -> None:
    world, scripts = swarm(
        line(1, 1), line(1, 1), conditions=Conditions(latency_s=(0.0, 0.0), broken=1.0)
    )
    fetch(world, 0.0, 1, 0)
    world.run_until(60.0)
    ((at, failed),) = ends(scripts[1])
    assert failed == FetchFailed(digest("of 0"), "the connection broke")
    assert 0 < at < 10
    assert world.peers[name(1)].down.bytes == pytest.approx(at * MB, rel=1e-3)


def test_bytes_and_peaks_are_what_has_passed() -> None:
    world, _ = swarm(line(4, 9), line(1, 9), line(1, 9))
    fetch(world, 0.5, 1, 0)
    fetch(world, 0.5, 2, 0)
    world.run_until(60.0)
    up, down = world.peers[name(0)].up, world.peers[name(1)].down
    assert (round(up.peak(60.0)), round(up.bytes)) == (4 * MB, 20 * MB)
    assert (round(down.peak(60.0)), round(down.bytes)) == (2 * MB, 10 * MB)
    assert world.peers[name(1)].stats.payload_bytes == 10 * MB


def test_messages_are_counted_at_both_ends_and_those_lost_at_one() -> None:
    message = Send(name(1), Abort(PAYLOAD))
    for loss, down in ((0.0, 1), (1.0, 0)):
        world, scripts = swarm(line(1, 1), line(1, 1), conditions=Conditions(loss=loss, told=1.0))
        carry_out(world, name(0), message)
        world.run_until(60.0)
        sent = world.peers[name(0)].up.bytes
        assert 200 < sent < 300
        assert world.peers[name(1)].down.bytes == down * sent
        assert len(scripts[1].heard(Received)) == down
        assert len(scripts[0].heard(SendFailed)) == 1 - down


def test_scalars_are_messages_and_count_as_payload() -> None:
    world, _ = swarm(line(1, 1), line(1, 1))
    for message in (Frames((SignedFrame(b"body", b"s" * 64),), False), Abort(PAYLOAD)):
        carry_out(world, name(0), Send(name(1), message))
    world.run_until(60.0)
    stats = [world.peers[name(n)].stats for n in (0, 1)]
    assert [(s.messages, s.payload_bytes) for s in stats] == [(2, 0), (0, 4 + 69 + 180)]


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1e6)), max_size=30))
def test_a_link_counts_every_byte_and_no_window_has_more_than_its_peak(
    steps: list[tuple[float, float]],
) -> None:
    link, now, rate, expected = Link(1.0), 0.0, 0.0, 0.0
    windows: dict[int, float] = {}

    def pass_by(start: float, end: float) -> None:
        while start < end:
            upto = min(end, float(int(start) + 1))
            windows[int(start)] = windows.get(int(start), 0.0) + rate * (upto - start)
            start = upto

    for wait, to in steps:
        pass_by(now, now + wait)
        expected += rate * wait
        now += wait
        link.change(now, to - rate)
        rate = to
        link.add(now, 5.0)
        windows[int(now)] = windows.get(int(now), 0.0) + 5.0
        expected += 5.0
    assert link.peak(now) == pytest.approx(max(windows.values(), default=0.0), abs=1e-3)
    assert link.bytes == pytest.approx(expected, abs=1e-3)
