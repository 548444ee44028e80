"""The bounds of the lossy codecs: S7, E2, E5, K1 to K3 of docs/algorithms.md, and each refusal.

Blocks are 256 numbers and chunks 4096, so most tests write one by hand.
"""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from protocol.errors import Malformed
from protocol.payload import BLOCK, CHUNK, HEADER_BYTES, Label, section_bytes
from trainers.compress import decode, encode, encode_with_feedback
from trainers.quantize import FAINTEST, LARGEST, to_int8
from trainers.topk import largest

LOSSY = ("int8", "e3m0", "sign", "topk")
EACH_LOSSY = pytest.mark.parametrize("codec", LOSSY)
SUBNORMAL = 2.0**-140


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def normal(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, generator=rng(seed))


def label(codec: str, count: int, content: str = "gradient") -> Label:
    return Label(codec=codec, content=content, fragment=0, round=0, count=count)


def sections(vector: Tensor, codec: str, content: str = "gradient") -> list[bytes]:
    """The payload of a vector without its header, cut into its sections."""
    named = label(codec, len(vector), content)
    out = bytearray(named.payload_bytes)
    encode(vector, named, rng(), out)
    found, start = [], HEADER_BYTES
    for length in section_bytes(codec, len(vector)):
        found.append(bytes(out[start : start + length]))
        start += length
    return found


def read(codec: str, count: int, *written: bytes, content: str = "gradient") -> Tensor:
    named = label(codec, count, content)
    return decode(named.header() + b"".join(written), named)


def there_and_back(vector: Tensor, codec: str, content: str = "gradient") -> Tensor:
    return read(codec, len(vector), *sections(vector, codec, content), content=content)


def filled(*values: float) -> Tensor:
    """A block with these numbers first, then zeros."""
    return torch.tensor([*values, *[0.0] * (BLOCK - len(values))])


def bf16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


ADVERSARIAL = {
    "zero": filled(),
    "negative zero": filled(-0.0),
    "one spike": filled(3.7),
    "a spike at the end": filled(1e-3).flip(0),
    "spike and dust": filled(1e6, 1e-6, -1e-6),
    "one number": torch.tensor([-0.3]),
    "subnormals": filled(SUBNORMAL, -SUBNORMAL, 2.0**-149),
    "the faintest": filled(FAINTEST, 0.999 * FAINTEST, -FAINTEST / 64),
    "the largest": filled(LARGEST, -LARGEST, 1.0),
    "every border": torch.cat([s * 2.0**e * torch.tensor([1.0, 1.4999, 1.5, 1.5001])
        for e in range(-9, 1) for s in (1, -1)]),
    "equal": torch.full((BLOCK,), -0.7),
    "normal": normal(1000),
    "long tails": normal(1000) ** 5,
}  # fmt: skip
EACH_BLOCK = pytest.mark.parametrize("vector", ADVERSARIAL.values(), ids=list(ADVERSARIAL))


def per_block(vector: Tensor) -> list[Tensor]:
    return list(torch.split(vector.double(), BLOCK))


@EACH_BLOCK
def test_s7_e3m0_keeps_its_bounds(vector: Tensor) -> None:
    for x, found in zip(per_block(vector), per_block(there_and_back(vector, "e3m0")), strict=True):
        peak = x.abs().max().item()
        scale = 2.0 ** math.ceil(math.log2(peak)) if peak else 0.0
        faint = FAINTEST if scale < FAINTEST else 0.0
        bound = torch.where(x.abs() >= scale / 64, x.abs() / 3, scale / 128).clamp(min=faint)
        assert ((found - x).abs() <= bound * (1 + 1e-12)).all()


@EACH_BLOCK
@pytest.mark.parametrize("content", ["gradient", "vector"])
def test_int8_keeps_its_bounds(vector: Tensor, content: str) -> None:
    found = there_and_back(vector, "int8", content)
    for x, y in zip(per_block(vector), per_block(found), strict=True):
        scale = x.abs().max().item() / 127 * (1 + 2**-7)
        step = scale / 2 if content == "gradient" else scale
        assert ((y - x).abs() <= max(step, 127 * FAINTEST if scale < FAINTEST else 0)).all()


@EACH_BLOCK
@EACH_LOSSY
def test_e2_what_is_lost_is_never_more_than_what_was_there(vector: Tensor, codec: str) -> None:
    size = CHUNK if codec == "topk" else BLOCK
    found = there_and_back(vector, codec)
    for x, y in zip(
        torch.split(vector.double(), size), torch.split(found.double(), size), strict=True
    ):
        assert ((y - x).norm() <= x.norm()).item()


def test_e2_the_mean_is_a_contraction_on_one_hot_and_the_root_mean_square_is_not() -> None:
    one_hot = filled(1.0)[:16]
    lost = (there_and_back(one_hot, "sign") - one_hot).square().sum().item()
    assert lost == pytest.approx(1 - 1 / 16)
    rms = torch.where(one_hot < 0, -1.0, 1.0) * one_hot.norm() / 4
    assert (rms - one_hot).square().sum().item() == pytest.approx(1.5)


@EACH_BLOCK
@pytest.mark.parametrize("codec", ["e3m0", "sign", "topk"])
def test_s7_what_came_back_goes_and_comes_back_as_it_is(vector: Tensor, codec: str) -> None:
    once = there_and_back(vector, codec)
    assert torch.equal(there_and_back(once, codec), once)


@EACH_LOSSY
def test_zeros_come_back_as_zeros_with_the_scale_0(codec: str) -> None:
    vector = torch.cat([torch.zeros(CHUNK), normal(CHUNK), -torch.zeros(300)])
    found = there_and_back(vector, codec)
    assert torch.equal(found[:CHUNK].view(torch.int32), torch.zeros(CHUNK, dtype=torch.int32))
    assert torch.equal(found[-300:].view(torch.int32), torch.zeros(300, dtype=torch.int32))
    if codec != "topk":
        assert not any(b"".join(sections(torch.zeros(300), codec)))


def test_e3m0_has_the_codes_of_the_page() -> None:
    # s = 1; half of the lowest level and 1.5 times each level go up, what is below goes down.
    levels = [2.0**e for e in range(-6, 1)]
    vector = filled(1.0, 2.0**-7, -(2.0**-7), 0.99 * 2.0**-7, *levels[:4], *(-x for x in levels))
    scales, codes = sections(vector, "e3m0")
    nibbles = [nibble for byte in codes for nibble in (byte & 15, byte >> 4)]
    assert scales == bytes([127])
    assert nibbles[:15] == [7, 1, 9, 0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14, 15]
    borders = torch.tensor([1.0, *(1.5 * x for x in levels[:6]), *(1.49 * x for x in levels[:6])])
    expected = [1.0, *levels[1:], *levels[:6]]
    assert there_and_back(borders, "e3m0").tolist() == expected
    assert there_and_back(-borders, "e3m0").tolist() == [-x for x in expected]


def test_e3m0_takes_the_next_power_of_two() -> None:
    for peak, exponent in ((1.0, 0), (1.0001, 1), (1.9, 1), (2.0, 1), (0.5, -1)):
        assert sections(filled(peak), "e3m0")[0] == bytes([127 + exponent])


def test_measured_errors_are_those_of_the_page() -> None:
    # ALGORITHMS 4.3 and 6.3: e3m0 .0379 and gain .961, int8 4.8e-5, sign .363 for normal numbers.
    vector = normal(1 << 18).double()
    found = {codec: there_and_back(vector.float(), codec).double() for codec in LOSSY}
    lost = {
        c: ((y - vector).square().sum() / vector.square().sum()).item() for c, y in found.items()
    }
    gain = ((found["e3m0"] @ vector) / (vector @ vector)).item()
    assert lost["e3m0"] == pytest.approx(0.0379, rel=0.02)
    assert gain == pytest.approx(0.961, abs=0.002)
    assert lost["int8"] == pytest.approx(4.8e-5, rel=0.05)
    assert lost["sign"] == pytest.approx(0.363, rel=0.01)


def test_int8_takes_the_next_bf16_so_that_127_steps_reach_the_largest_number() -> None:
    # Each of the 128 scales from 1 to 2: 127 times it, and the float32 just above and below that.
    scales = (torch.arange(0x3F80, 0x4000)).to(torch.int16)
    peaks = (scales.view(torch.bfloat16).float() * 127).view(torch.int32)
    for away, expected in ((-1, scales), (0, scales), (1, scales + 1)):
        blocks = torch.zeros(128, BLOCK)
        blocks[:, 9] = -(peaks + away).view(torch.float32)
        found, codes = to_int8(blocks.view(-1), None, torch.empty(128 * BLOCK))
        assert torch.equal(found, expected)
        steps = set(codes.view(128, BLOCK)[:, 9].tolist())
        assert steps == ({-127} if away < 1 else {-126, -127})


@pytest.mark.parametrize("value", [0.3, -0.3, 0.004, -0.51])
def test_n10_int8_for_weights_is_right_on_average(value: float) -> None:
    vector = torch.full((1 << 17,), value)
    vector[::BLOCK] = 1.0
    found = there_and_back(vector, "int8", "vector").double()
    step = 1 / 127
    others = found.view(-1, BLOCK)[:, 1:]
    assert others.mean().item() == pytest.approx(value, abs=0.01 * step)
    assert there_and_back(vector, "int8").double()[1].item() != pytest.approx(
        value, abs=0.05 * step
    )


def test_n10_int8_weights_drift_as_in_float32() -> None:
    # Rounded to nearest they would not move at all: the drift is a tenth of a step.
    start = normal(1024)
    drift = 1e-3 * start.abs()
    held, exact = start, start.clone()
    for step in range(200):
        named = label("int8", 1024, "vector")
        out = bytearray(named.payload_bytes)
        encode(held + drift, named, rng(step), out)
        held, exact = decode(out, named), exact + drift
    moved = (held - start).sum() / (exact - start).sum()
    assert moved.item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("content", ["vector", "slow"])
def test_whole_steps_of_int8_stay_when_rounded_at_random(content: str) -> None:
    vector = torch.arange(-127, 128).float().repeat(40) * 2.0**-9
    assert torch.equal(there_and_back(vector, "int8", content), vector)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_e5_signs_take_one_bit_each_the_first_one_lowest(negative: list[bool]) -> None:
    vector = torch.tensor([-1.0 if sign else 1.0 for sign in negative])
    bits = sum(sign << place for place, sign in enumerate(negative))
    assert sections(vector, "sign") == [bf16(1.0), bits.to_bytes(-(-len(negative) // 8), "little")]
    assert torch.equal(there_and_back(vector, "sign"), vector)


def test_the_last_block_of_sign_has_its_own_mean() -> None:
    vector = torch.cat([torch.ones(BLOCK), torch.tensor([3.0, -5.0])])
    assert there_and_back(vector, "sign")[-3:].tolist() == [1.0, 4.0, -4.0]


def test_k2_the_ends_of_a_chunk_are_packed_in_twelve_bits() -> None:
    first, second = [0, 1, *range(1000, 1061), 4095], [0, *range(4033, 4096)]
    vector = torch.zeros(2, CHUNK)
    vector[0, first] = 2.0
    vector[1, second] = -3.0
    assert torch.equal(there_and_back(vector.view(-1), "topk"), vector.view(-1))
    packed = sections(vector.view(-1), "topk")[1]
    assert packed[:3] == bytes([0, 0x10, 0])  # 0 and 1
    assert packed[93:96] == bytes([0x24, 0xF4, 0xFF])  # 1060 and 4095
    assert packed[96:99] == bytes([0, 0x10, 0xFC])  # 0 and 4033


@given(st.sets(st.integers(0, 299), min_size=5, max_size=5))
def test_an_odd_number_of_indices_is_packed(places: set[int]) -> None:
    vector = torch.zeros(300)
    vector[sorted(places)] = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert torch.equal(there_and_back(vector, "topk"), vector)


def test_topk_sends_the_means_of_the_larger_and_the_smaller_half() -> None:
    vector = torch.zeros(256)  # four are kept
    vector[[3, 50, 51, 200, 255]] = torch.tensor([1.0, -7.0, 0.5, 5.0, -2.0])
    found = there_and_back(vector, "topk")
    assert found[[3, 50, 51, 200, 255]].tolist() == [1.5, -6.0, 0.0, 6.0, -1.5]
    assert found.count_nonzero().item() == 4


def test_topk_takes_the_first_of_equal_numbers() -> None:
    vector = torch.full((2, 4096), 0.5)
    vector[0, 4000:4050] = -1.0
    vector[1, 7] = 0.25
    first, second = largest(vector, 64)
    assert first.tolist() == [*range(14), *range(4000, 4050)]
    assert second.tolist() == [*range(7), *range(8, 65)]


def test_k1_what_topk_does_not_send_stays_to_the_bit() -> None:
    vector, residual = normal(5000, 1), normal(5000, 2)
    named = label("topk", 5000)
    out = bytearray(named.payload_bytes)
    whole = torch.add(vector, residual, alpha=0.95)
    decoded, left = encode_with_feedback(vector, residual, named, rng(), out, decay=0.95)
    kept = decoded != 0
    assert kept.sum().item() == 64 + 15
    assert torch.equal(left[~kept], whole[~kept])
    assert whole[kept].abs().min() > 2
    assert torch.equal(kept[:CHUNK].nonzero().view(-1), largest(whole[None, :CHUNK], 64)[0])


def test_k3_all_of_a_chunk_is_the_chunk() -> None:
    vector = normal(4096).view(1, -1)
    assert torch.equal(vector.gather(1, largest(vector, 4096)), vector)
    single = torch.tensor([-0.75])  # one of one is kept, and bf16 can hold it
    assert torch.equal(there_and_back(single, "topk"), single)


TOPK_OF_300 = sections(normal(300), "topk")
"""Five indices, so half a byte is left over; five values, so six bits are."""


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def topk_of_256(indices: tuple[int, ...], codes: int, low: float, high: float) -> list[bytes]:
    packed = sum(index << 12 * place for place, index in enumerate(indices))
    return [bf16(low) + bf16(high), packed.to_bytes(6, "little"), bytes([codes])]


REFUSED: dict[str, tuple[str, int, list[bytes], str]] = {
    "int8 scale nan": ("int8", 2, [bf16(math.nan), b"\x7f\0"], "a scale of nan, expected 0 or"),
    "int8 scale inf": ("int8", 2, [bf16(math.inf), b"\x7f\0"], "a scale of inf"),
    "int8 scale negative": ("int8", 2, [bf16(-1.0), b"\x7f\0"], "a scale with a minus sign"),
    "int8 scale negative zero": ("int8", 2, [bf16(-0.0), b"\0\0"], "a scale with a minus sign"),
    "int8 scale too large": ("int8", 2, [bf16(2.0**42), b"\x7f\0"], "a scale of 4.39805e"),
    "int8 scale faint": ("int8", 2, [bf16(FAINTEST / 2), b"\x7f\0"], "a scale of 3.76158e-37"),
    "int8 code -128": ("int8", 2, [bf16(1.0), b"\x7f\x80"], "an int8 code of -128"),
    "int8 scale unused": ("int8", 2, [bf16(1.0), b"\x7d\x83"], "do not fit its scale"),
    "int8 code without scale": ("int8", 2, [bf16(0.0), b"\0\1"], "do not fit its scale"),
    "e3m0 scale inf": ("e3m0", 2, [b"\xff", b"\7"], "a scale of inf"),
    "e3m0 scale too large": ("e3m0", 2, [bytes([176]), b"\7"], "a scale of 5.6295e"),
    "e3m0 scale faint": ("e3m0", 2, [bytes([6]), b"\7"], "a scale of 3.76158e-37"),
    "e3m0 negative zero": ("e3m0", 2, [bytes([127]), b"\x87"], "do not fit its scale"),
    "e3m0 negative zero without scale": ("e3m0", 2, [b"\0", b"\x80"], "do not fit its scale"),
    "e3m0 scale unused": ("e3m0", 2, [bytes([127]), b"\x5d"], "do not fit its scale"),
    "e3m0 code without scale": ("e3m0", 2, [b"\0", b"\1"], "do not fit its scale"),
    "e3m0 rest bits": ("e3m0", 3, [bytes([127]), b"\7\x17"], "bits after the last number"),
    "sign scale nan": ("sign", 2, [bf16(math.nan), b"\0"], "a scale of nan"),
    "sign scale too large": ("sign", 2, [bf16(2.0**49), b"\0"], "a scale of 5.6295e"),
    "sign scale negative": ("sign", 2, [bf16(-1.0), b"\0"], "a scale with a minus sign"),
    "sign of nothing": ("sign", 2, [bf16(0.0), b"\1"], "the scale 0 has signs"),
    "sign rest bits": ("sign", 2, [bf16(1.0), b"\4"], "bits after the last number"),
    "topk equal indices": ("topk", 256, topk_of_256((1, 2, 2, 3), 0b1010, 1, 2), "not increase"),
    "topk falling indices": ("topk", 256, topk_of_256((1, 3, 2, 4), 0b1010, 1, 2), "not increase"),
    "topk index outside": ("topk", 256, topk_of_256((1, 2, 3, 256), 0b1010, 1, 2), "or reach 256"),
    "topk three large": ("topk", 256, topk_of_256((1, 2, 3, 4), 0b101010, 1, 2), "exactly 2 large"),
    "topk one large": ("topk", 256, topk_of_256((1, 2, 3, 4), 0b10, 1, 2), "exactly 2 large"),
    "topk scales in disorder": ("topk", 256, topk_of_256((1, 2, 3, 4), 0b1010, 2, 1), "is above"),
    "topk scale inf": ("topk", 256, topk_of_256((1, 2, 3, 4), 0b1010, 1, math.inf), "of inf"),
    "topk negative zero": ("topk", 256, topk_of_256((1, 2, 3, 4), 0b11010, 0, 1), "negative zero"),
    "topk lower scale of one": ("topk", 1, [bf16(1.0) * 2, b"\0\0", b"\2"], "lower scale"),
    "topk rest bits of indices": (
        "topk", 300, [TOPK_OF_300[0], changed(TOPK_OF_300[1], 7, 0x10), TOPK_OF_300[2]],
        "bits after the last number",
    ),
    "topk rest bits of values": (
        "topk", 300, [*TOPK_OF_300[:2], changed(TOPK_OF_300[2], 1, 0x40 | TOPK_OF_300[2][1])],
        "bits after the last number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_encoder_writes_is_refused(case: str) -> None:
    codec, count, written, told = REFUSED[case]
    with pytest.raises(Malformed) as caught:
        read(codec, count, *written)
    assert told in str(caught.value)


@EACH_LOSSY
def test_numbers_of_any_size_are_read_by_what_wrote_them(codec: str) -> None:
    for exponent in (-150, -125, -118, -60, 0, 30):
        vector = normal(CHUNK + 300) ** 9 * 2.0**exponent
        for content in ("gradient", "vector"):
            found = there_and_back(vector.clamp(-LARGEST, LARGEST), codec, content)
            assert torch.isfinite(found).all()
