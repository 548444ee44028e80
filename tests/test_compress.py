from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.limits import MAX_FRAGMENT, MAX_PARAMETERS, MAX_ROUND
from protocol.payload import (
    CHUNK,
    CODECS,
    CONTENTS,
    HEADER_BYTES,
    Label,
    check_payload,
    num_kept,
    parts,
    payload_bytes,
    section_bytes,
)
from trainers import compress
from trainers.compress import decode, encode, encode_with_feedback
from trainers.quantize import LARGEST, from_bf16, to_bf16

FLOATS = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-LARGEST, max_value=LARGEST
)
EACH_CODEC = pytest.mark.parametrize("codec", CODECS)
COUNTS = (1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 8192, 9001)
"""Not divisible by 2, 4, 8 and 256; a tail alone, chunks alone, and both."""


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def normal(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, generator=rng(seed))


def label(codec: str, count: int, content: str = "gradient") -> Label:
    return Label(codec=codec, content=content, fragment=3, round=41, count=count)


def payload(vector: Tensor, codec: str, content: str = "gradient", seed: int = 0) -> bytearray:
    named = label(codec, len(vector), content)
    out = bytearray(named.payload_bytes)
    encode(vector, named, rng(seed), out)
    return out


def there_and_back(vector: Tensor, codec: str, content: str = "gradient") -> Tensor:
    return decode(payload(vector, codec, content), label(codec, len(vector), content))


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_fp32_comes_back_to_the_bit(values: list[float]) -> None:
    vector = torch.tensor(values)
    assert torch.equal(there_and_back(vector, "fp32"), vector)


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_bf16_comes_back_as_one_of_its_two_neighbours(values: list[float]) -> None:
    vector = torch.tensor(values)
    found = there_and_back(vector, "bf16")
    down = from_bf16((vector.view(torch.int32) >> 16).to(torch.int16))
    up = from_bf16(((vector.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16))
    assert bool(((found == down) | (found == up)).all())


@given(st.lists(FLOATS, min_size=1, max_size=50))
def test_what_bf16_can_hold_is_not_touched(values: list[float]) -> None:
    vector = torch.tensor(values).bfloat16().float()
    assert torch.equal(there_and_back(vector, "bf16"), vector)


@pytest.mark.parametrize("value", [1.001, -1.001, 0.02, -3e-5])
def test_stochastic_rounding_is_right_on_average(value: float) -> None:
    vector = torch.full((200_000,), value)
    mean = from_bf16(to_bf16(vector, rng(1))).double().mean().item()
    step = abs(value) * 2**-7
    assert mean == pytest.approx(vector[0].item(), abs=0.01 * step)


def test_weights_are_rounded_at_random_and_others_draw_nothing() -> None:
    vector = normal(300)
    random = set()
    for codec in CODECS:
        for content in CONTENTS:
            one, same, other = (payload(vector, codec, content, seed) for seed in (3, 3, 4))
            assert one == same
            if one != other:
                random.add((codec, content))
    weights = {(codec, content) for codec in ("bf16", "int8") for content in ("vector", "slow")}
    assert random == weights | {("bf16", "gradient")}


@EACH_CODEC
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1.1 * LARGEST])
def test_a_vector_that_diverged_is_not_sent(codec: str, bad: float) -> None:
    for place in (0, 4095, 5000):
        vector = normal(5001)
        vector[place] = bad
        with pytest.raises(
            ValueError, match=r"^the vector to send has numbers .* of at most 2.81475e.14: training"
        ):
            payload(vector, codec)


@EACH_CODEC
def test_the_largest_numbers_come_back_finite_and_their_squares_too(codec: str) -> None:
    found = there_and_back(torch.tensor([LARGEST, -LARGEST]).repeat(3000), codec, "vector")
    assert found.abs().max().item() <= 1.01 * LARGEST
    assert torch.isfinite(found.square() * (1 << 31)).all()


def test_the_length_is_the_closed_form() -> None:
    # The default model: 3675 blocks, 229 chunks and 2816 numbers, of which 44 are kept.
    expected = {
        "fp32": 20 + 4 * 940_800,
        "bf16": 20 + 2 * 940_800,
        "int8": 20 + 2 * 3675 + 940_800,
        "e3m0": 20 + 3675 + 470_400,
        "sign": 20 + 2 * 3675 + 117_600,
        "topk": 20 + 4 * 230 + (229 * 64 + 44) * 14 // 8,
    }
    assert {codec: payload_bytes(codec, 940_800) for codec in CODECS} == expected
    assert num_kept(940_800) == 229 * 64 + 44


def test_lengths_of_a_small_odd_vector() -> None:
    found = {codec: section_bytes(codec, 257) for codec in CODECS}
    assert found == {
        "fp32": (1028,),
        "bf16": (514,),
        "int8": (4, 257),
        "e3m0": (2, 129),
        "sign": (4, 33),
        "topk": (4, 8, 2),
    }


@EACH_CODEC
def test_every_length_travels_and_what_comes_back_is_near(codec: str) -> None:
    most = {"fp32": 0.0, "bf16": 1e-4, "int8": 1e-4, "e3m0": 0.08, "sign": 0.6, "topk": 0.95}
    for count in COUNTS:
        vector = normal(count)
        lost = (there_and_back(vector, codec) - vector).square().sum() / vector.square().sum()
        assert lost.item() <= most[codec], count


@EACH_CODEC
def test_pieces_do_not_show(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = normal(3 * CHUNK + 77)
    for content in ("gradient", "vector"):
        whole = payload(vector, codec, content)
        with monkeypatch.context() as patch:
            patch.setattr(compress, "CACHED_NUMBERS", CHUNK)
            pieces = decode(whole, label(codec, len(vector), content))
            draws = codec == "bf16" or (codec == "int8" and content == "vector")
            assert draws or payload(vector, codec, content) == whole
        assert torch.equal(pieces, decode(whole, label(codec, len(vector), content)))


@EACH_CODEC
def test_a_payload_of_another_label_length_or_layout_is_refused(codec: str) -> None:
    named, good = label(codec, 300), payload(normal(300), codec)
    other = (
        dataclasses.replace(named, codec="fp32" if codec == "bf16" else "bf16"),
        dataclasses.replace(named, content="slow"),
        dataclasses.replace(named, fragment=4),
        dataclasses.replace(named, round=42),
        dataclasses.replace(named, count=299),
    )
    bad = [bytearray(wrong.header() + good[HEADER_BYTES:]) for wrong in other]
    bad += [bytearray(), good[:19], good[:-1], good + b"\0", bytearray(b"SHP2") + good[4:]]
    for data in bad:
        with pytest.raises(Malformed):
            decode(data, named)


def test_a_refusal_says_what_was_found_and_what_was_expected() -> None:
    named = label("e3m0", 8)
    good = payload(torch.ones(8), "e3m0")
    bad = (
        (b"SHP2" + good[4:], "layout 53485032"),
        (
            good[:4] + b"\7\4" + good[6:],
            "unknown codec 7 unknown content 4, fragment 3, round 41, 8 numbers",
        ),
        (
            dataclasses.replace(named, round=9, codec="topk").header(),
            "topk gradient, fragment 3, round 9, 8 numbers",
        ),
    )
    for data, told in bad:
        with pytest.raises(Malformed) as caught:
            check_payload(data, named)
        assert str(caught.value) == (
            f"a payload of {told}, expected e3m0 gradient, fragment 3, round 41, 8 numbers"
        )
    with pytest.raises(Malformed) as caught:
        check_payload(good + b"\0", named)
    assert str(caught.value) == "a payload of 26 bytes, expected 25"


def test_a_label_has_bytes_that_never_change() -> None:
    found = Label(codec="topk", content="slow", fragment=258, round=66051, count=1 << 31).header()
    assert found.hex() == "53485031" + "06" + "02" + "0201" + "03020100" + "0000008000000000"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codec", "int4"), ("content", "weights"), ("fragment", -1),
        ("fragment", MAX_FRAGMENT + 1), ("round", -1), ("round", MAX_ROUND + 1), ("count", 0),
        ("count", MAX_PARAMETERS + 1),
    ],
)  # fmt: skip
def test_a_label_out_of_range_names_its_field(field: str, value: object) -> None:
    good = {"codec": "fp32", "content": "slow", "fragment": 0, "round": 0, "count": 1}
    with pytest.raises(ValueError, match=f"^{field} is .?{value}.?, expected "):
        Label(**{**good, field: value})  # type: ignore[arg-type]


def test_two_parts_stand_one_after_the_other() -> None:
    slow, gradient = label("bf16", 7, "slow"), label("e3m0", 9)
    first, second = payload(normal(7), "bf16", "slow"), payload(normal(9), "e3m0")
    found = parts(first + second, (slow, gradient))
    assert [bytes(part) for part in found] == [bytes(first), bytes(second)]
    assert torch.equal(decode(found[1], gradient), decode(second, gradient))
    for bad in (first, first + second + b"\0", second + first, first + second[:-1]):
        with pytest.raises(Malformed):
            parts(bad, (slow, gradient))


def test_a_total_of_parts_that_is_wrong_is_told() -> None:
    with pytest.raises(Malformed) as caught:
        parts(bytes(5), (label("bf16", 7, "slow"), label("e3m0", 9)))
    assert str(caught.value) == "5 bytes, expected 60 for a payload of 2 parts"


@EACH_CODEC
def test_a_payload_may_be_read_only_and_stand_at_an_odd_place(codec: str) -> None:
    good = bytes(payload(normal(300), codec))
    shifted = memoryview(b"\0" + good)[1:]
    assert torch.equal(decode(shifted, label(codec, 300)), decode(good, label(codec, 300)))


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
@pytest.mark.parametrize("upper", [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f", b"\xff\x7e"])
def test_a_number_that_is_not_finite_or_too_large_is_refused(codec: str, upper: bytes) -> None:
    data = payload(torch.ones(8), codec)
    data[-2:] = upper  # the upper half of inf, -inf, NaN and 1.7e38
    with pytest.raises(Malformed, match=r"^a payload with numbers from .*, expected finite ones"):
        decode(data, label(codec, 8))


@given(st.sampled_from(CODECS), st.binary(max_size=900), st.integers(1, 600))
def test_the_decoder_is_total(codec: str, data: bytes, count: int) -> None:
    body = (data * (payload_bytes("fp32", count) // max(len(data), 1) + 1))[: 4 * count]
    named = label(codec, count)
    for tried in (data, named.header() + body[: named.payload_bytes - HEADER_BYTES]):
        try:
            found = decode(tried, named)
        except Malformed:
            continue
        assert found.shape == (count,)
        assert found.abs().max().item() <= 1.01 * LARGEST


@given(
    st.sampled_from(CODECS), st.integers(HEADER_BYTES, 2000), st.integers(1, 255),
    st.integers(1, 600),
)  # fmt: skip
def test_a_payload_with_a_changed_byte_is_refused_or_other_numbers(
    codec: str, at: int, flip: int, count: int
) -> None:
    named, good = label(codec, count), payload(normal(count), codec)
    bad = bytearray(good)
    bad[HEADER_BYTES + (at - HEADER_BYTES) % (len(good) - HEADER_BYTES)] ^= flip
    try:
        found = decode(bad, named)
    except Malformed:
        return
    assert not torch.equal(found.view(torch.int32), decode(good, named).view(torch.int32))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("content", CONTENTS)
def test_e1_what_was_sent_and_the_last_residual_are_all_that_was_to_be_sent(
    codec: str, content: str
) -> None:
    named = label(codec, 5000, content)
    out = bytearray(named.payload_bytes)
    residual = torch.zeros(5000)
    given_in, sent = torch.zeros(5000, dtype=torch.float64), torch.zeros(5000, dtype=torch.float64)
    for step in range(10):
        vector = normal(5000, seed=step)
        decoded, residual = encode_with_feedback(vector, residual, named, rng(step), out)
        assert torch.equal(decode(out, named), decoded)
        given_in += vector
        sent += decoded
    error = (given_in - sent - residual).norm() / given_in.norm()
    assert error.item() < 1e-6


@pytest.mark.parametrize("codec", CODECS)
def test_e3_the_average_of_what_is_sent_of_a_constant_comes_nearer_as_1_over_t(codec: str) -> None:
    # Numbers of many sizes: of equal ones e3m0 and sign would send the exact average at once.
    count = 512
    vector = normal(count) + 2
    named = label(codec, count)
    out = bytearray(named.payload_bytes)
    residual, sent = torch.zeros(count), torch.zeros(count, dtype=torch.float64)
    distance = {}
    for step in range(1, 257):
        decoded, residual = encode_with_feedback(vector, residual, named, rng(step), out)
        sent += decoded
        distance[step] = (sent / step - vector).norm().item()
    assert distance[256] <= 0.68 * distance[128]  # 1 over the root of T would be 0.707
    assert distance[256] <= 0.15 * distance[1]


def test_the_residual_of_topk_decays_and_is_left_alone() -> None:
    # SparseLoCo: s = beta e + delta.  Exact numbers, and one that is kept.
    vector, residual = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([8.0, -4.0, 2.0])
    named = label("topk", 3)
    out = bytearray(named.payload_bytes)
    decoded, left = encode_with_feedback(vector, residual, named, rng(), out, decay=0.5)
    assert decoded.tolist() == [8.0, 0.0, 0.0]
    assert left.tolist() == [0.0, -1.0, 1.0]
    assert (vector.tolist(), residual.tolist()) == ([4.0, 1.0, 0.0], [8.0, -4.0, 2.0])
