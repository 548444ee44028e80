from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from protocol.fragments import num_parameters
from protocol.model import GptConfig
from trainers.model import Gpt, initial_weights, model_on, num_decayed, views

SMALL = GptConfig(layers=2, heads=2, width=16, context=8, vocab=300)


def weights(config: GptConfig = SMALL, seed: int = 0) -> torch.Tensor:
    return initial_weights(config, Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [GptConfig(), SMALL, GptConfig(layers=3, width=24, vocab=999)])
def test_the_number_of_parameters_is_the_closed_form(config: GptConfig) -> None:
    assert sum(p.numel() for p in Gpt(config).parameters()) == num_parameters(config)


def test_the_default_model_has_under_a_million_parameters() -> None:
    assert num_parameters(GptConfig()) == 940_800


def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(weights(seed=1), weights(seed=1))
    assert not torch.equal(weights(seed=1), weights(seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_a_view_of_its_vector() -> None:
    vector = weights()
    model = model_on(SMALL, vector)
    vector.zero_()
    assert all(not p.any() for p in model.parameters())


def test_the_vector_holds_matrices_first_and_each_parameter_once() -> None:
    count = num_parameters(SMALL)
    parts = views(SMALL, torch.arange(count))
    assert torch.cat([part.flatten() for part in parts.values()]).tolist() == list(range(count))
    dims = [part.dim() > 1 for part in parts.values()]
    assert dims == sorted(dims, reverse=True)
    assert sum(part.numel() for part in parts.values() if part.dim() > 1) == num_decayed(SMALL)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters"):
        views(SMALL, torch.zeros(num_parameters(SMALL) + 1))


def test_a_fresh_model_guesses_evenly() -> None:
    tokens = torch.randint(0, 300, (4, 8), generator=Generator().manual_seed(1))
    logits = model_on(SMALL, weights())(tokens)
    targets = (tokens + 1) % 300  # the tied head would know the input again
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(300), abs=0.1)


def test_a_prediction_does_not_see_what_comes_after() -> None:
    model = model_on(SMALL, weights())
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 5:] = 99
    first, second = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(first[:5], second[:5])
    assert not torch.allclose(first[5:], second[5:])
