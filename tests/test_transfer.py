"""The machine of a transfer by hand and under virtual time: it ends, and wastes next to nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_world import PEERS, Donor, World

from protocol.donors import BUSY_S, FIRST_BYTES, MAX_DIRECT_BYTES, MAX_RELAYED_BYTES
from protocol.limits import KIB, MIB
from protocol.transfer import STALL_S
from protocol.transfer_steps import Ask, DonorLost

A, B, C, D = PEERS[:4]
SIZE = 20 * MIB + 12_345


def test_one_donor_gives_each_byte_once() -> None:
    world = World(SIZE, {A: Donor()})
    assert world.run()
    assert world.on_disk == set(range(21))
    assert sum(length for _, _, length in world.donors[A].asked) == SIZE


@pytest.mark.parametrize("count", [2, 4])
def test_so_many_equal_donors_are_as_many_times_as_fast(count: int) -> None:
    one = World(64 * MIB, {A: Donor(rate=20e6)})
    many = World(64 * MIB, {peer: Donor(rate=20e6) for peer in PEERS[:count]})
    assert one.run()
    assert many.run()
    assert one.now / many.now > 0.9 * count


def test_a_donor_is_asked_for_more_at_once_the_faster_and_the_further_it_is() -> None:
    kinds = {
        "slow": Donor(rate=100e3),
        "far": Donor(rate=1e6, round_trip_s=0.5),
        "fast": Donor(rate=20e6),
    }
    found = {}
    for name, donor in kinds.items():
        world = World(8 * MIB, {A: donor})
        assert world.run()
        later = World(8 * MIB, {A: donor})
        found[name] = world.most_in_flight[A]
        del later
    assert found == {"slow": FIRST_BYTES, "far": 3 * 256 * KIB, "fast": MAX_DIRECT_BYTES}


def test_a_relayed_donor_gets_fewer_and_smaller_pieces() -> None:
    world = World(SIZE, {A: Donor(is_relayed=True)})
    assert world.run()
    assert world.most_in_flight[A] == MAX_RELAYED_BYTES
    assert {length for _, _, length in world.donors[A].asked} == {128 * KIB, 12_345}


def test_who_is_direct_and_fast_gives_most() -> None:
    world = World(
        64 * MIB,
        {A: Donor(rate=20e6), B: Donor(rate=2e6), C: Donor(rate=20e6, is_relayed=True)},
    )
    assert world.run()
    gave = {peer: sum(length for *_, length in d.asked) for peer, d in world.donors.items()}
    assert gave[A] > 4 * gave[B]
    assert gave[A] > gave[C]


def test_the_rarest_chunks_come_first() -> None:
    """Two have all, and a third only the upper half: the lower half is rarer."""
    upper = frozenset(range(10, 20))
    donors = {A: Donor(found_at=0.1), B: Donor(held=upper), C: Donor(held=upper)}
    world = World(20 * MIB, donors)
    assert world.run()
    chunks = [offset // MIB for _, offset, _ in donors[A].asked]
    assert set(chunks[: 4 * 10]) == set(range(10))


def test_in_which_order_equally_rare_chunks_come_depends_on_the_seed() -> None:
    orders = set()
    for seed in (1, 1, 2):
        world = World(8 * MIB, {A: Donor()}, seed)
        assert world.run()
        orders.add(tuple(dict.fromkeys(offset // MIB for _, offset, _ in world.donors[A].asked)))
    assert len(orders) == 2


def test_a_dead_donor_costs_a_chunk_at_most() -> None:
    donors = {A: Donor(rate=20e6, dies_at=0.4), B: Donor(rate=20e6)}
    world = World(64 * MIB, donors)
    assert world.run()
    asked = sum(length for d in donors.values() for *_, length in d.asked)
    assert 0 < world.lost_bytes[A] <= 4 * MIB  # asked for once and again, until it was given up
    assert world.fetched_bytes == 64 * MIB
    assert asked - world.fetched_bytes <= world.lost_bytes[A] + 2 * MIB  # the end game


def test_a_frozen_donor_does_not_hold_up_the_end() -> None:
    donors = {A: Donor(rate=20e6, freezes_at=0.4), B: Donor(rate=20e6)}
    world = World(64 * MIB, donors)
    assert world.run()
    assert world.now < 64 * MIB / 20e6 + 2.0


def test_a_slow_donor_does_not_hold_up_the_end() -> None:
    donors = {A: Donor(rate=20e3), B: Donor(rate=20e6)}
    world = World(64 * MIB, donors)
    assert world.run()
    assert world.now < 64 * MIB / 20e6 + 1.0


def test_wrong_bytes_are_blamed_once_and_the_donor_is_asked_no_more() -> None:
    donors = {A: Donor(lies=frozenset(range(64))), B: Donor()}
    world = World(64 * MIB, donors)
    assert world.run()
    assert world.blamed == [A]
    assert max(at for at, *_ in donors[A].asked) < 0.6


def test_of_several_who_gave_a_wrong_chunk_nobody_is_blamed_for_anothers_bytes() -> None:
    """B dies in the middle of chunks that A lies about, and C gives what it has to."""
    for seed in range(30):
        donors = {A: Donor(lies=frozenset(range(8))), B: Donor(dies_at=0.05), C: Donor(rate=1e6)}
        world = World(8 * MIB, donors, seed)
        assert world.run()
        assert world.blamed in ([], [A])


def test_a_chunk_that_a_donor_refuses_comes_from_another() -> None:
    donors = {A: Donor(refuses=frozenset({3})), B: Donor(rate=1e6)}
    world = World(8 * MIB, donors)
    assert world.run()
    assert world.blamed == []
    assert 3 not in {offset // MIB for at, offset, _ in donors[A].asked if at > 3.0}


def test_a_busy_donor_is_waited_for_and_then_given_up() -> None:
    world = World(SIZE, {A: Donor(busy_until=10.0)})
    assert world.run()
    assert len([at for at, *_ in world.donors[A].asked if at < 10.0]) < 20
    world = World(SIZE, {A: Donor(busy_until=1000.0)})
    assert not world.run()
    assert world.now < STALL_S + 5.0
    world = World(8 * MIB, {A: Donor(busy_until=1000.0), B: Donor(rate=50e3)})
    assert world.run()
    assert BUSY_S - 5.0 < max(at for at, *_ in world.donors[A].asked) < BUSY_S + 5.0


def test_late_joiners_help_each_other() -> None:
    """Nobody has all of it, and together they do."""
    odd, even = frozenset(range(1, 20, 2)), frozenset(range(0, 20, 2))
    world = World(20 * MIB, {A: Donor(held=odd), B: Donor(held=even)})
    assert world.run()


def test_who_comes_later_helps() -> None:
    donors = {A: Donor(rate=1e6), B: Donor(rate=20e6, found_at=1.0)}
    world = World(64 * MIB, donors)
    assert world.run()
    assert world.now < 6.0


def test_without_donors_it_fails_at_once_and_with_too_little_after_a_while() -> None:
    nobody = World(SIZE, {})
    assert not nobody.run()
    assert nobody.now == 0.0
    half = World(20 * MIB, {A: Donor(held=frozenset(range(10)))})
    assert not half.run()
    assert (half.on_disk, half.now < STALL_S + 5.0) == (set(range(10)), True)
    assert half.machine.failure == f"nothing came for {STALL_S:g} s"


def test_every_donors_reason_is_told() -> None:
    world = World(SIZE, {A: Donor(dies_at=0.1), B: Donor(lies=frozenset(range(21)))})
    assert not world.run()
    assert world.machine.failure is not None
    assert "gone" in world.machine.failure
    assert "sent bytes that are not chunk" in world.machine.failure


def test_a_donor_that_was_given_up_is_not_taken_back() -> None:
    world = World(SIZE, {A: Donor()})
    machine = world.machine
    machine.start(0.0)
    assert [type(effect) for effect in machine.handle(world._found(A), 0.0)][:1] == [Ask]
    machine.handle(DonorLost(A, "has it no more"), 0.1)
    assert not any(isinstance(effect, Ask) for effect in machine.handle(world._found(A), 0.2))


def test_nothing_is_asked_for_once_it_is_over() -> None:
    world = World(MIB, {A: Donor()})
    assert world.run()
    effects = world.machine.handle(world._found(A), world.now)
    assert [effect for effect in effects if isinstance(effect, Ask)] == []


# --- any donors at all ------------------------------------------------------------------------

times = st.one_of(st.just(float("inf")), st.floats(0.0, 3.0))
chunks = st.frozensets(st.integers(0, 11), max_size=12)
honest = st.builds(
    Donor,
    rate=st.sampled_from([20e3, 1e6, 20e6]),
    round_trip_s=st.sampled_from([0.001, 0.1, 0.4]),
    held=st.none() | chunks,
    is_relayed=st.booleans(),
    found_at=st.floats(0.0, 2.0),
    dies_at=times,
    freezes_at=times,
    refuses=st.just(frozenset()) | chunks,
    busy_until=st.sampled_from([0.0, 0.0, 1.0, 100.0]),
)
liars = st.builds(Donor, rate=st.sampled_from([1e6, 20e6]), lies=chunks, dies_at=times)


def sizes(count: int) -> st.SearchStrategy[int]:
    return st.integers(1, count * MIB)


@settings(max_examples=150, deadline=None)
@given(sizes(12), st.lists(honest | liars, max_size=6), st.integers(0, 99))
def test_it_always_ends_and_blames_only_liars(size: int, donors: list[Donor], seed: int) -> None:
    named = dict(zip(PEERS, donors, strict=False))
    world = World(size, named, seed)
    is_done = world.run()
    assert is_done == (world.on_disk == set(range(world.manifest.num_chunks)))
    assert all(named[peer].lies for peer in world.blamed)
    assert len(world.blamed) == len(set(world.blamed))


@settings(max_examples=150, deadline=None)
@given(sizes(12), st.lists(honest | liars, max_size=5), st.integers(0, 99))
def test_one_good_donor_is_enough(size: int, donors: list[Donor], seed: int) -> None:
    named = dict(zip(PEERS, [Donor(), *donors], strict=False))
    world = World(size, named, seed)
    assert world.run()


deaths = st.builds(Donor, rate=st.sampled_from([1e6, 20e6]), dies_at=st.floats(0.0, 3.0))


@settings(max_examples=150, deadline=None)
@given(sizes(12), st.lists(deaths, max_size=5), st.integers(0, 99))
def test_what_came_is_never_fetched_again_however_donors_die(
    size: int, donors: list[Donor], seed: int
) -> None:
    named = dict(zip(PEERS, [Donor(), *donors], strict=False))
    world = World(size, named, seed)
    assert world.run()
    assert world.fetched_bytes == size
    assert all(most <= MIB for most in world.most_in_flight.values())
