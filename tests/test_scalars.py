from __future__ import annotations

import random
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from protocol.ids import PeerId, seed_of
from protocol.scalar import (
    TABLE,
    Draw,
    LinearSchedule,
    scalar_of,
    shift,
    to_byte,
    weight,
)
from trainers.perturb import signs
from trainers.scalars import Term, add_terms, slope, sum_digest, weights_of

SIZE = 300
"""Trainable parameters: three blocks, the last one not full."""
PEERS = [PeerId(name) for name in ("a", "b", "c", "d")]
LR = 0.25
SCHEDULE = LinearSchedule(lr=LR, min_lr_ratio=0.1, warmup_steps=2, steps=40)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def term(peer: PeerId, step: int, byte: int, *, weight: int = 40_000) -> Term:
    return Term(draw=Draw(key=seed_of("spsa", peer), step=step, sample=0), byte=byte, weight=weight)


def log(seed: int = 0, *, steps: int = 40) -> list[Term]:
    """What four peers have published, by author, with W as in a frame of ten steps."""
    return [
        term(
            peer,
            step,
            seed_of(seed, peer, step) % 127 + 1 + 128 * (step % 2),  # all but zeros
            weight=weight(SCHEDULE, step=step, authors=4, frame_scalars=10, in_flight=32.0),
        )
        for peer in PEERS
        for step in range(steps)
    ]


def total(*batches: list[Term]) -> Tensor:
    """The sum of all terms, taken in batch after batch."""
    sum_Q = torch.zeros(SIZE, dtype=torch.int64)
    for batch in batches:
        add_terms(sum_Q, batch)
    return sum_Q


def negated(terms: list[Term]) -> list[Term]:
    return [replace(term, weight=-term.weight) for term in terms]


def test_the_sum_is_weight_times_table_times_sign() -> None:
    terms = log(steps=3)
    expected = [0] * SIZE
    for one in terms:
        z = signs([one.draw], SIZE)[0].tolist()
        for i in range(SIZE):
            expected[i] += one.weight * TABLE[one.byte] * z[i]
    assert total(terms).tolist() == expected


def test_j1_replaying_the_log_gives_the_same_bits_on_any_process_and_platform() -> None:
    assert sum_digest(total(log())).hex() == (
        "16ed47d47848cdbd5f727ed3effb4e81148ee6d251c79c85173584153bf2f6e8"
    )


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(5, 60))
def test_j2_permuted_split_and_deduplicated_logs_give_the_same_bits(
    chance: random.Random, size: int
) -> None:
    terms = log(steps=15)
    received = terms + chance.choices(terms, k=50)
    chance.shuffle(received)
    once = list(dict.fromkeys(received))
    batches = [once[start : start + size] for start in range(0, len(once), size)]
    start = torch.randn(SIZE, generator=rng())
    found = weights_of(start, total(*batches), shift(LR))
    assert torch.equal(found, weights_of(start, total(terms), shift(LR)))
    assert sum_digest(total(*batches)) == sum_digest(total(terms))


def test_a_scalar_that_is_missing_or_doubled_shows_in_the_digest() -> None:
    terms = log()
    digests = {sum_digest(total(some)) for some in (terms, terms[1:], [*terms, terms[5]])}
    assert len(digests) == 3


def test_what_is_taken_out_again_leaves_nothing_behind() -> None:
    terms = log()
    assert torch.equal(total(terms, negated(terms[60:])), total(terms[:60]))


def test_a_sum_that_overflows_wraps_and_comes_back() -> None:
    far = [term(PEERS[0], step, 127, weight=65536) for step in range(3)]
    sum_Q = torch.full((SIZE,), 2**63 - 1, dtype=torch.int64)
    add_terms(sum_Q, far)
    exact = sum(one.weight * TABLE[127] * signs([one.draw], SIZE)[0].long() for one in far)
    assert isinstance(exact, Tensor)
    expected = [(2**63 - 1 + moved + 2**63) % 2**64 - 2**63 for moved in exact.tolist()]
    assert sum_Q.tolist() == expected
    add_terms(sum_Q, negated(far))
    assert torch.equal(sum_Q, torch.full((SIZE,), 2**63 - 1, dtype=torch.int64))


def test_weights_are_the_start_minus_the_sum_rounded_once_to_even() -> None:
    tie = (2**24 + 1) << 20  # between two floats: the even one is below
    above = tie + 1
    wide = (1 << 60) + (1 << 36)  # a tie as well; by way of float64 too
    sums = torch.tensor([0, 3, -3, tie, above, -tie, wide, wide + 1] * 5)
    found = weights_of(torch.zeros(40), sums, 42)
    exact = [0, 3, -3, 2**44, (2**24 + 2) << 20, -(2**44), 1 << 60, (1 << 60) + (1 << 37)] * 5
    assert found.double().tolist() == [-value / 2**42 for value in exact]
    start = torch.randn(40, generator=rng())
    assert torch.equal(weights_of(start, sums, 42), start + found)


def quadratic(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where we are, the loss's curvatures, and its gradient there."""
    theta = torch.randn(size, generator=rng(seed), dtype=torch.float64)
    curvature = torch.rand(size, generator=rng(seed + 1), dtype=torch.float64)
    return theta, curvature, curvature * theta


def test_j4_the_mean_of_c_z_is_the_gradient() -> None:
    theta, curvature, gradient = quadratic(50, 1)
    z = signs([Draw(key=5, step=step, sample=0) for step in range(8000)], 50)
    mean = torch.zeros(50, dtype=torch.float64)
    for z_Q in z:
        mean += slope(theta, z_Q, 1e-2, lambda t: 0.5 * (curvature * t * t).sum().item()) * z_Q
    error = ((mean / len(z) - gradient).norm() / gradient.norm()).item()
    assert error < 0.1  # sqrt(49 / 8000) = 0.078 expected


def test_a_slope_leaves_the_weights_alone_and_is_that_of_the_loss_along_z() -> None:
    theta, curvature, gradient = quadratic(SIZE, 2)
    theta = theta.float()
    before = theta.clone()
    z_Q = signs([Draw(key=5, step=0, sample=0)], SIZE)[0]
    found = slope(theta, z_Q, 1e-2, lambda t: 0.5 * (curvature * t * t).sum().item())
    assert abs(found - (gradient @ z_Q.double()).item()) < 1e-4
    assert torch.equal(theta, before)


def measured(theta: Tensor, curvature: Tensor, draws: list[Draw]) -> list[int]:
    """The bytes that a peer with these weights makes of these draws."""
    return [
        to_byte(slope(theta, z_Q, 1e-2, lambda t: 0.5 * (curvature * t * t).sum().item()))
        for z_Q in signs(draws, len(theta))
    ]


def test_j5_one_peer_with_one_sample_is_mezo_to_the_bit() -> None:
    start, curvature, _ = quadratic(SIZE, 3)
    start = start.float()
    steps = [Draw(key=9, step=step, sample=0) for step in range(100)]
    lr = 2.0**-10  # so that lr c z is exact in float64, and the plain loop rounds nothing

    theta, moved = start, torch.zeros(SIZE, dtype=torch.float64)
    for draw in steps:
        z_Q = signs([draw], SIZE)[0]
        up, down = theta + 0.01 * z_Q, theta - 0.01 * z_Q
        losses = [0.5 * (curvature * t * t).sum().item() for t in (up, down)]
        moved -= lr * scalar_of(to_byte((losses[0] - losses[1]) / 0.02)) * z_Q.double()
        theta = start + moved.float()

    schedule = LinearSchedule(lr=lr, min_lr_ratio=1.0, warmup_steps=0, steps=100)
    ours, sum_Q = start, torch.zeros(SIZE, dtype=torch.int64)
    for draw in steps:
        (byte,) = measured(ours, curvature, [draw])
        w = weight(schedule, step=draw.step, authors=1, frame_scalars=1, in_flight=1.0)
        add_terms(sum_Q, [Term(draw=draw, byte=byte, weight=w)])
        ours = weights_of(start, sum_Q, shift(lr))
    assert torch.equal(ours, theta)
    losses = [0.5 * (curvature * t * t).sum().item() for t in (start, ours)]
    assert losses[1] < 0.9 * losses[0]


def test_j6_the_same_scalars_move_the_weights_alike_whoever_made_them() -> None:
    start, curvature, _ = quadratic(SIZE, 4)
    start = start.float()
    draws = [term(peer, step, 0).draw for peer in PEERS for step in range(5)]

    alone = measured(start, curvature, draws)
    together = [byte for i in range(4) for byte in measured(start, curvature, draws[5 * i :][:5])]
    terms = [Term(draw=d, byte=b, weight=9) for d, b in zip(draws, together, strict=True)]
    assert together == alone
    by_peer = [terms[5 * i :][:5] for i in range(4)]
    assert torch.equal(sum((total(some) for some in by_peer), total()), total(terms))


def test_j7_who_joins_with_a_base_and_the_log_behind_it_has_the_same_hash() -> None:
    terms = log()
    horizon = dict(zip(PEERS, (12, 0, 40, 7), strict=True))
    before = [one for one in terms if any(one in of_peer(terms, p)[:n] for p, n in horizon.items())]
    behind = [one for one in terms if one not in before]
    base = total(before)
    add_terms(base, behind)
    assert sum_digest(base) == sum_digest(total(terms))


def of_peer(terms: list[Term], peer: PeerId) -> list[Term]:
    return [one for one in terms if one.draw.key == seed_of("spsa", peer)]
