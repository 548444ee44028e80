from __future__ import annotations

import pytest
import torch
from torch import Tensor

import trainers.perturb
from protocol.scalar import Draw
from trainers.perturb import BLOCK_SIGNS, philox, sign_chunks, signs

ONES = 0xFFFFFFFF
RANDOM123 = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
"""Known answers published with the paper: counter, key, output."""


def draw(*, key: int = 7, step: int = 3, sample: int = 1) -> Draw:
    return Draw(key=key, step=step, sample=sample)


def by_hand(counter: list[int], keys: list[int]) -> list[int]:
    """The generator for four words, as the paper prints it."""
    a, b, c, d = counter
    for round in range(10):
        key0 = (keys[0] + round * 0x9E3779B9) % 2**32
        key1 = (keys[1] + round * 0xBB67AE85) % 2**32
        high0, low0 = divmod(a * 0xD2511F53, 2**32)
        high1, low1 = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
    return [a, b, c, d]


def signs_by_hand(draw: Draw, count: int) -> list[int]:
    words: list[int] = []
    for block in range(-(-count // 128)):
        counter = [block, draw.sample, draw.step % 2**32, draw.step // 2**32]
        words += by_hand(counter, [draw.key % 2**32, draw.key // 2**32])
    return [1 - 2 * (word >> bit & 1) for word in words for bit in range(32)][:count]


@pytest.mark.parametrize(("counter", "keys", "output"), RANDOM123)
def test_the_generator_gives_the_published_answers(
    counter: list[int], keys: list[int], output: list[int]
) -> None:
    words = [torch.tensor([[word]]) for word in counter]
    assert philox(words, torch.tensor(keys)[:, None, None]).flatten().tolist() == output
    assert by_hand(counter, keys) == output


def test_signs_are_the_bits_of_author_step_sample_and_block() -> None:
    draws = [
        draw(),
        draw(key=2**63 + 5),
        draw(key=2**40),
        draw(step=2**35 + 9),
        draw(sample=2**32 - 1),
    ]
    for count in (1, 127, 128, 129, 770):
        found = signs(draws, count)
        assert found.dtype == torch.int8
        assert found.tolist() == [signs_by_hand(one, count) for one in draws]


def test_draws_that_differ_anywhere_are_unlike() -> None:
    keys = (0, 1, 1 << 32, 1 << 63)
    draws = [Draw(key=k, step=s, sample=i) for k in keys for s in (0, 1) for i in (0, 1)]
    z = signs(draws, 4096).float()
    products = z @ z.T / 4096
    assert torch.allclose(products, torch.eye(len(draws)), atol=5 / 64)  # five deviations


def test_chunks_are_the_whole_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, count = [draw(), draw(step=4), draw(step=5)], 10 * BLOCK_SIGNS + 17
    whole = signs(draws, count)
    monkeypatch.setattr(trainers.perturb, "CHUNK_BLOCKS", 6)
    found: list[tuple[int, Tensor]] = list(sign_chunks(draws, count))
    assert [start for start, _ in found] == [start * 2 * BLOCK_SIGNS for start in range(6)]
    assert torch.equal(torch.cat([chunk for _, chunk in found], dim=1), whole)
    assert torch.equal(signs(draws, count), whole)


def test_no_draws_are_no_signs() -> None:
    assert signs([], 300).shape == (0, 300)
