from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.ids import PeerId
from protocol.model import GptConfig
from trainers.data import Validation, batch
from trainers.model import initial_weights, model_on
from trainers.tokenizer import encode, load_tokenizer, token_bytes, train_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog\nand the dog does not mind\n" * 40
JSON = train_tokenizer(TEXT, 300)
TOKENS = torch.arange(1000)
ALICE, BOB = PeerId("alice"), PeerId("bob")
CONFIG = GptConfig(layers=1, heads=1, width=8, context=8, vocab=300)


def inputs(step: int, peer: PeerId = ALICE, seed: int = 1) -> list[list[int]]:
    drawn, _ = batch(TOKENS, seed=seed, peer=peer, step=step, batch=4, context=8)
    found: list[list[int]] = drawn.tolist()
    return found


def test_a_batch_depends_on_run_peer_and_step_and_on_nothing_else() -> None:
    assert inputs(7) == inputs(7)
    others = [inputs(8), inputs(7, BOB), inputs(7, seed=2)]
    assert inputs(7) not in others


def test_targets_are_the_tokens_one_later() -> None:
    drawn, targets = batch(TOKENS, seed=1, peer=ALICE, step=0, batch=4, context=8)
    assert torch.equal(targets, drawn + 1)
    assert drawn.shape == (4, 8)


def test_every_token_but_the_last_can_be_drawn_as_input() -> None:
    short = torch.arange(10)
    drawn = {
        token
        for step in range(50)
        for token in batch(short, seed=1, peer=ALICE, step=step, batch=4, context=8)[0]
        .flatten()
        .tolist()
    }
    assert drawn == set(range(9))


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="8 tokens of training text"):
        batch(torch.arange(8), seed=1, peer=ALICE, step=0, batch=4, context=8)


def flat_model() -> Tensor:
    """Weights with which every token is equally likely."""
    return torch.zeros(num_parameters(CONFIG))


@pytest.mark.parametrize("count", [2, 8, 9, 10, 300])
def test_validation_counts_each_token_but_the_first_once(count: int) -> None:
    tokens = torch.arange(count) % 300
    lengths = [1 + token % 3 for token in range(300)]
    num_bytes = sum(lengths[token] for token in tokens[1:].tolist())
    found = Validation(tokens, lengths, 8).loss(model_on(CONFIG, flat_model()))
    assert found == pytest.approx((count - 1) * math.log(300) / num_bytes, rel=1e-5)


def test_validation_is_the_same_twice() -> None:
    tokens = torch.tensor(encode(load_tokenizer(JSON, 300), TEXT))
    weights = initial_weights(CONFIG, Generator().manual_seed(0))
    yardstick = Validation(tokens, token_bytes(load_tokenizer(JSON, 300)), 8)
    assert yardstick.loss(model_on(CONFIG, weights)) == yardstick.loss(model_on(CONFIG, weights))


def test_a_validation_text_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="validation text"):
        Validation(torch.tensor([1]), [1], 8)


def test_the_same_text_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXT, 300) == JSON


@given(st.text(max_size=300))
def test_the_tokenizer_loses_nothing_and_counts_bytes(text: str) -> None:
    tokenizer = load_tokenizer(JSON, 300)
    lengths = token_bytes(tokenizer)
    ids = list(encode(tokenizer, text))
    assert tokenizer.decode(ids) == text
    assert sum(lengths[id] for id in ids) == len(text.encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]"])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        load_tokenizer(data, 300)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    size = load_tokenizer(JSON, 300).get_vocab_size()
    with pytest.raises(Malformed, match=f"{size} tokens, the model has {size - 1}"):
        load_tokenizer(JSON, size - 1)
