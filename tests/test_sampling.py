"""Token by token: the cache against the whole model, the rules against their definitions."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from torch import Generator, Tensor

from protocol.model import GptConfig
from trainers.model import Gpt, initial_weights, model_on
from trainers.sampling import Reader, SamplingConfig, continuation, pick

CONFIG = GptConfig(layers=2, heads=2, width=16, context=16, vocab=300)
GREEDY = SamplingConfig(temperature=0.0)
LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
"""Of tokens 0 to 3, as probabilities."""


def model() -> Gpt:
    """Every parameter moved away from its start, biases and norms too."""
    rng = Generator().manual_seed(1)
    weights_P = initial_weights(CONFIG, rng)
    return model_on(CONFIG, weights_P + 0.2 * torch.randn(weights_P.shape, generator=rng))


def tokens(count: int) -> list[int]:
    return torch.randint(0, 300, (count,), generator=Generator().manual_seed(2)).tolist()


def taken(count: int, sampling: SamplingConfig, seed: int = 1, vocab: int = 300) -> list[int]:
    rng = Generator().manual_seed(seed)
    return list(islice(continuation(model(), CONFIG, [5], sampling, rng, vocab=vocab), count))


@torch.no_grad()
def without_cache(gpt: Gpt, window: list[int]) -> Tensor:
    logits_TV: Tensor = gpt(torch.tensor([window]))[0]
    return logits_TV[-1]


@pytest.mark.parametrize("first", [1, 7, 16])
def test_logits_are_equal_with_and_without_the_cache(first: int) -> None:
    gpt, text = model(), tokens(16)
    reader = Reader(gpt, CONFIG)
    found = [reader.logits(text[:first])] + [reader.logits([t]) for t in text[first:]]
    expected = [without_cache(gpt, text[:end]) for end in range(first, 17)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [[], [1] * 17])
def test_no_tokens_and_more_than_the_context_are_refused(given: list[int]) -> None:
    with pytest.raises(ValueError, match="expected one, or the first ones, and at most 16"):
        Reader(model(), CONFIG).logits(given)


def test_several_tokens_after_the_first_are_refused() -> None:
    reader = Reader(model(), CONFIG)
    reader.logits([1, 2])
    with pytest.raises(ValueError, match="2 tokens after 2, expected one"):
        reader.logits([3, 4])


@pytest.mark.parametrize("prompt", [1, 16, 40])
def test_beyond_the_context_the_window_begins_anew_with_its_newer_half(prompt: int) -> None:
    gpt, text = model(), tokens(prompt)
    rng = Generator()
    found = list(islice(continuation(gpt, CONFIG, text, GREEDY, rng, vocab=300), 50))
    window, expected = text[-16:], []
    for _ in range(50):
        window = window if len(window) <= 16 else window[-8:]
        expected.append(int(without_cache(gpt, window).argmax()))
        window = [*window, expected[-1]]
    assert found == expected


def test_equal_seeds_draw_equal_texts_and_other_seeds_others() -> None:
    assert taken(40, SamplingConfig(), seed=1) == taken(40, SamplingConfig(), seed=1)
    assert taken(40, SamplingConfig(), seed=1) != taken(40, SamplingConfig(), seed=2)


def test_a_token_that_the_tokenizer_has_not_is_never_drawn() -> None:
    hot = SamplingConfig(temperature=100.0)
    assert max(taken(200, hot)) >= 20
    assert max(taken(200, hot, vocab=20)) < 20


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(temperature=1.0), {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}),
        (SamplingConfig(temperature=0.5), {0: 0.685, 1: 0.247, 2: 0.062, 3: 0.007}),
        (SamplingConfig(temperature=1.0, top_k=2), {0: 0.625, 1: 0.375}),
        (SamplingConfig(temperature=1.0, top_k=9), {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}),
        (SamplingConfig(temperature=1.0, top_p=0.7), {0: 0.625, 1: 0.375}),
        (SamplingConfig(temperature=1.0, top_p=0.9), {0: 0.526, 1: 0.316, 2: 0.158}),
        (SamplingConfig(temperature=1.0, top_p=0.0), {0: 1.0}),
        (SamplingConfig(temperature=1e-30), {0: 1.0}),
        (GREEDY, {0: 1.0}),
    ],
)
def test_tokens_come_as_often_as_the_rule_says(
    sampling: SamplingConfig, expected: dict[int, float]
) -> None:
    """4,000 draws: a share is off by 0.032 once in 15,000 times."""
    rng = Generator().manual_seed(3)
    counts = Counter(pick(LOGITS, sampling, rng) for _ in range(4000))
    assert set(counts) == set(expected)
    assert {t: n / 4000 for t, n in counts.items()} == pytest.approx(expected, abs=0.032)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 1.1)],
)
def test_a_rule_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*, expected a"):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]
