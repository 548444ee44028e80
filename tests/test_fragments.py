"""Fragments: every parameter is in exactly one, and each has its turn once in H steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.fragments import (
    fragment_counts,
    layers_of,
    num_fragments,
    num_parameters,
    round_steps,
)
from protocol.ids import Round
from protocol.model import GptConfig
from trainers.fragments import fragments
from trainers.model import views


def model(layers: int) -> GptConfig:
    return GptConfig(layers=layers, heads=2, width=8, context=8, vocab=300)


def names_of(layers: int, fragment_layers: int, fragment: int) -> set[str]:
    """The parameters whose every number is in the fragment."""
    config = model(layers)
    hit = torch.zeros(num_parameters(config))
    part = fragments(config, fragment_layers)[fragment]
    part.scatter(torch.ones(part.size), hit)
    found = views(config, hit)
    assert all(view.min() == view.max() for view in found.values()), "a parameter was cut"
    return {name for name, view in found.items() if view.max() == 1}


@pytest.mark.parametrize(
    ("layers", "fragment_layers"), [(1, 0), (4, 0), (1, 1), (4, 1), (4, 2), (5, 2), (5, 3), (3, 9)]
)
def test_s5_every_number_is_in_exactly_one_fragment(layers: int, fragment_layers: int) -> None:
    config = model(layers)
    count = num_parameters(config)
    times_P = torch.zeros(count)
    parts = fragments(config, fragment_layers)
    for part in parts:
        part.scatter(part.gather(times_P) + 1, times_P)
    assert torch.equal(times_P, torch.ones(count))
    assert tuple(part.size for part in parts) == fragment_counts(config, fragment_layers)
    assert len(parts) == num_fragments(config, fragment_layers)


def test_layers_are_strided_and_the_embeddings_are_a_fragment_of_their_own() -> None:
    layers_in = [{name.split(".")[1] for name in names_of(5, 2, j)} for j in range(3)]
    assert layers_in == [{"0", "3"}, {"1", "4"}, {"2"}]
    assert names_of(5, 2, 3) == {"tokens.weight", "positions.weight", "norm.weight", "norm.bias"}
    assert [list(layers_of(model(5), 2, j)) for j in range(4)] == [[0, 3], [1, 4], [2], []]


def test_one_fragment_is_the_whole_model() -> None:
    assert names_of(3, 0, 0) == set(views(model(3), torch.zeros(num_parameters(model(3)))))


def test_what_is_gathered_and_scattered_again_is_where_it_was() -> None:
    config = model(4)
    vector_P = torch.randn(num_parameters(config), generator=torch.Generator().manual_seed(1))
    for part in fragments(config, 2):
        empty_P = torch.zeros_like(vector_P)
        part.scatter(part.gather(vector_P), empty_P)
        inside = empty_P != 0
        assert torch.equal(empty_P[inside], vector_P[inside])
        assert int(inside.sum()) == part.size


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 10_000))
def test_s6_each_fragment_has_its_turn_once_in_h_steps(
    inner_steps: int, parts: int, cycle: int
) -> None:
    """H steps lie between two turns of a fragment, whichever it is and whenever."""
    steps = [round_steps(inner_steps, parts, Round(cycle + turn)) for turn in range(parts)]
    assert sum(steps) == inner_steps
    assert max(steps) - min(steps) <= 1
