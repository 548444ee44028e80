from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.payload import CODECS, HEADER_BYTES, header, payload_bytes
from trainers.compress import decode, encode, from_bf16, stochastic_bf16

FLOATS = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100
)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def payload(vector: Tensor, codec: str) -> bytearray:
    out = bytearray(payload_bytes(codec, len(vector)))
    encode(vector, codec, rng(), out)
    return out


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_fp32_comes_back_to_the_bit(values: list[float]) -> None:
    vector = torch.tensor(values)
    assert torch.equal(decode(payload(vector, "fp32"), "fp32", len(vector)), vector)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_bf16_comes_back_as_one_of_its_two_neighbours(values: list[float]) -> None:
    vector = torch.tensor(values)
    found = decode(payload(vector, "bf16"), "bf16", len(vector))
    down = from_bf16((vector.view(torch.int32) >> 16).to(torch.int16))
    up = from_bf16(((vector.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16))
    assert bool(((found == down) | (found == up)).all())


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_what_bf16_can_hold_is_not_touched(values: list[float]) -> None:
    vector = torch.tensor(values).bfloat16().float()
    assert torch.equal(decode(payload(vector, "bf16"), "bf16", len(vector)), vector)


@pytest.mark.parametrize("value", [1.001, -1.001, 0.02, -3e-5])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    vector = torch.full((200_000,), value)
    mean = from_bf16(stochastic_bf16(vector, rng(1))).double().mean().item()
    step = abs(value) * 2**-7
    assert mean == pytest.approx(vector[0].item(), abs=0.01 * step)


def test_equal_generators_give_equal_bytes_and_others_do_not() -> None:
    vector = torch.randn(100, generator=rng(2))
    one, same, other = (stochastic_bf16(vector, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_sent(codec: str, bad: float) -> None:
    with pytest.raises(ValueError, match="diverged"):
        payload(torch.tensor([1.0, bad]), codec)


def test_a_weight_that_rounds_to_infinity_is_not_sent() -> None:
    with pytest.raises(ValueError, match="too large for bf16"):
        payload(torch.full((1000,), torch.finfo(torch.float32).max), "bf16")


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_the_length_is_the_closed_form(codec: str) -> None:
    width = {"fp32": 4, "bf16": 2}[codec]
    assert payload_bytes(codec, 940_800) == HEADER_BYTES + 940_800 * width


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_payload_of_the_wrong_length_or_header_is_refused(codec: str) -> None:
    good = payload(torch.ones(8), codec)
    other = "fp32" if codec == "bf16" else "bf16"
    bad = (
        b"",
        good[:-1],
        good + b"\0",
        b"SHP2" + good[4:],
        header(other, 8) + good[HEADER_BYTES:],
        header(codec, 9) + good[HEADER_BYTES:],
        good[:5] + b"\1" + good[6:],
    )
    for data in bad:
        with pytest.raises(Malformed):
            decode(data, codec, 8)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_payload_with_infinity_in_it_is_refused(codec: str) -> None:
    data = payload(torch.ones(8), codec)
    data[-2:] = b"\x80\x7f"  # the upper half of +inf
    if codec == "fp32":
        data[-4:-2] = b"\0\0"
    with pytest.raises(Malformed, match="not finite"):
        decode(data, codec, 8)


@given(st.binary(max_size=80), st.sampled_from(sorted(CODECS)), st.integers(0, 40))
def test_the_decoder_is_total(data: bytes, codec: str, count: int) -> None:
    try:
        decode(data, codec, count)
    except Malformed:
        pass
    else:
        assert len(data) == payload_bytes(codec, count)
