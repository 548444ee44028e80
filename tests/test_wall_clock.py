"""A wrong wall clock is noticed by what members say theirs shows."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from samples import PRESENCE

from node.wall_clock import WRONG_S, WallClock, ahead_s
from protocol.messages import Presence

NOW = 1_700_000_000


def members(*unix_s: int) -> list[Presence]:
    return [replace(PRESENCE, unix_s=at) for at in unix_s]


def test_of_the_members_clocks_the_one_in_the_middle_counts() -> None:
    assert ahead_s(members(NOW, NOW - 5, NOW + 86_400), NOW + 3600.0) == 3600.0
    assert ahead_s([], NOW) is None


@pytest.mark.parametrize(("off_s", "words"), [(3600.0, "3600 s ahead"), (-3600.0, "3600 s behind")])
def test_a_wrong_clock_is_said_once_and_again_when_it_is_right(
    off_s: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = WallClock()
    with caplog.at_level(logging.INFO):
        for off in (off_s, off_s, 0.0, 0.0):
            clock.compare(members(NOW, NOW - 9, NOW), NOW + off)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert words in said[0]
    assert "set the clock" in said[0]
    assert "again" in said[1]


def test_as_old_as_a_presence_may_be_is_not_wrong(caplog: pytest.LogCaptureFixture) -> None:
    WallClock().compare(members(NOW - 10), NOW + WRONG_S - 11)
    assert caplog.records == []
