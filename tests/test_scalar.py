from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.scalar import (
    MAX_FRAME_SCALARS,
    TABLE,
    Draw,
    LinearSchedule,
    check_scalars,
    scalar_of,
    shift,
    to_byte,
    weight,
)

LARGEST, SMALLEST = math.exp(63 / 8), math.exp(-63 / 8)
FLAT = LinearSchedule(lr=0.25, min_lr_ratio=1.0, warmup_steps=0, steps=100)


def weight_of(
    schedule: LinearSchedule = FLAT, *, step: int = 0, authors: int = 1, frame_scalars: int = 1
) -> int:
    return weight(schedule, step=step, authors=authors, frame_scalars=frame_scalars, in_flight=32.0)


def test_the_table_is_the_exponential_in_integers() -> None:
    with localcontext() as context:
        context.prec = 60
        magnitudes = [round(2**24 * (Decimal(code - 64) / 8).exp()) for code in range(1, 128)]
    assert list(TABLE) == [0, *magnitudes, 0, *(-value for value in magnitudes)]


def test_every_byte_but_negative_zero_comes_back() -> None:
    assert [to_byte(scalar_of(byte)) for byte in range(256)] == [
        byte if byte != 128 else 0 for byte in range(256)
    ]


@given(st.floats(SMALLEST, LARGEST), st.sampled_from([1.0, -1.0]))
def test_a_scalar_comes_back_within_six_and_a_half_percent(magnitude: float, sign: float) -> None:
    found = scalar_of(to_byte(sign * magnitude)) / (sign * magnitude)
    assert found == pytest.approx(1.0, rel=0.0645)  # e^(1/16) - 1


@given(st.floats(-3 * LARGEST, 3 * LARGEST))
def test_no_other_byte_is_nearer_in_the_log_domain(c: float) -> None:
    def distance(byte: int) -> float:
        found = scalar_of(byte)
        return abs(math.log(found / c)) if found * c > 0 else math.inf

    byte = to_byte(c)
    if abs(c) > 0.51 * SMALLEST:
        assert distance(byte) <= min(map(distance, range(256))) + 1e-3  # the table's own rounding
    elif abs(c) < 0.49 * SMALLEST:
        assert byte == 0


def test_the_border_between_two_bytes_is_their_geometric_mean() -> None:
    border = math.exp(1 / 16)  # of the codes 64, which is 1, and 65; their mean is 0.2 % above
    assert [to_byte(border * part) for part in (0.9995, 1.0005)] == [64, 65]


def test_zero_is_exact_and_what_is_out_of_range_is_the_nearest_end() -> None:
    found = [to_byte(c) for c in (0.0, -0.0, 1e-300, -1e-300, 1e300, -1e300, 1e-4, 3e-4, -3e-4)]
    assert found == [0, 0, 0, 0, 127, 255, 0, 1, 129]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_scalar_that_is_not_finite_is_not_sent(bad: float) -> None:
    with pytest.raises(ValueError, match="diverged"):
        to_byte(bad)


def test_a_frame_holds_one_to_64_scalars_and_no_negative_zero() -> None:
    check_scalars("scalars", bytes([0, 127, 129, 255]))
    check_scalars("scalars", bytes(MAX_FRAME_SCALARS))
    with pytest.raises(ValueError, match="scalars has a byte of 128, expected 0 for zero"):
        check_scalars("scalars", bytes([1, 128]))
    for bad in (b"", bytes(MAX_FRAME_SCALARS + 1), [1], None):
        with pytest.raises(ValueError, match=r"scalars has .*, expected 1 to 64"):
            check_scalars("scalars", bad)


def test_a_weight_is_relative_to_the_power_of_two_at_or_above_lr() -> None:
    full = {lr: (weight_of(LinearSchedule(lr=lr, min_lr_ratio=1.0, warmup_steps=0, steps=1)),
                 shift(lr))
            for lr in (0.25, 3e-3, 0.2500001, 1.0, 1e-8)}  # fmt: skip
    assert full == {
        0.25: (65536, 42),
        3e-3: (50332, 48),
        0.2500001: (32768, 41),
        1.0: (65536, 40),
        1e-8: (43980, 66),
    }


@given(st.floats(1e-8, 1.0))
def test_weight_and_shift_give_lr_to_one_part_in_65000(lr: float) -> None:
    schedule = LinearSchedule(lr=lr, min_lr_ratio=1.0, warmup_steps=0, steps=1)
    moved = Fraction(weight_of(schedule) * TABLE[to_byte(1.0)], 2 ** shift(lr))
    assert float(moved) == pytest.approx(lr, rel=2**-16)


def test_lr_rises_in_a_line_falls_in_a_line_and_stays() -> None:
    schedule = LinearSchedule(lr=0.25, min_lr_ratio=0.25, warmup_steps=4, steps=12)
    parts = [schedule.part(step) for step in range(15)]
    up, down = (1, 2, 3), (128, 116, 104, 92, 80, 68, 56, 44, 32, 32, 32)
    assert parts == [*(Fraction(k, 4) for k in up), 1, *(Fraction(k, 128) for k in down)]
    assert [weight_of(schedule, step=step) for step in (0, 3, 12)] == [16384, 65536, 16384]


def test_scalars_in_flight_count_in_full_up_to_a_number_and_share_beyond_it() -> None:
    found = [weight_of(authors=n, frame_scalars=k) for n, k in ((1, 32), (2, 32), (4, 64), (32, 1))]
    assert found == [65536, 32768, 8192, 65536]


def test_a_thousand_peers_at_the_end_of_a_schedule_still_move_the_weights() -> None:
    schedule = LinearSchedule(lr=3e-3, min_lr_ratio=0.1, warmup_steps=0, steps=10)
    assert weight_of(schedule, step=10, authors=1000, frame_scalars=64) == 3


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(
        ValueError, match="warmup_steps is 11, expected a whole number from 0 to 10"
    ):
        LinearSchedule(lr=0.1, min_lr_ratio=0.1, warmup_steps=11, steps=10)
    with pytest.raises(ValueError, match="authors is 0"):
        weight_of(authors=0)
    with pytest.raises(ValueError, match="frame_scalars is 65"):
        weight_of(frame_scalars=65)
    with pytest.raises(ValueError, match="sample is -1"):
        Draw(key=0, step=0, sample=-1)
