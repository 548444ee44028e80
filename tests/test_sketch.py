"""Sketches of slow weights tell distances."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from protocol.witness import BUCKETS, SKETCH_BYTES, distance
from trainers.sketch import sketch


def numbers(weights_P: torch.Tensor, nonce: int) -> bytes:
    return sketch(weights_P, nonce).numpy().astype("<f4").tobytes()


@pytest.mark.parametrize("count", [1, BUCKETS, 5_000, (1 << 20) + 77])
def test_the_distance_of_sketches_is_that_of_the_vectors(count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    one_P = torch.randn(count, generator=rng) * 0.02 + 1.0
    other_P = one_P + 1e-3 * torch.randn(count, generator=rng)
    expected = (one_P - other_P).norm().item()
    squares = [distance(numbers(one_P, n), numbers(other_P, n)) ** 2 for n in range(16)]
    found = math.sqrt(sum(squares) / len(squares))
    assert 0.85 * expected < found < 1.15 * expected


def test_equal_vectors_have_equal_sketches_and_nonces_make_others() -> None:
    weights_P = torch.linspace(-1, 1, 3000)
    assert numbers(weights_P, 7) == numbers(weights_P.clone(), 7)
    assert numbers(weights_P, 7) != numbers(weights_P, 8)


def test_weights_made_for_one_nonce_are_found_with_another() -> None:
    """Moved only where the sums of the first nonce do not see it: two signs that cancel."""
    weights_P = torch.zeros(2 * BUCKETS)
    moved_P = weights_P.clone()
    signs_P = torch.cat([sketch(torch.eye(2 * BUCKETS)[i], 1).sum()[None] for i in (0, BUCKETS)])
    moved_P[0], moved_P[BUCKETS] = signs_P[0], -signs_P[1]
    assert distance(numbers(weights_P, 1), numbers(moved_P, 1)) == 0.0
    seen = [distance(numbers(weights_P, n), numbers(moved_P, n)) for n in range(2, 34)]
    assert max(seen) == 2.0


def test_what_is_not_finite_is_infinitely_far() -> None:
    fine, broken = bytes(SKETCH_BYTES), struct.pack("<f", math.nan) * BUCKETS
    assert distance(fine, broken) == math.inf
