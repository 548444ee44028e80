"""Virtual time: everything is done once, in the order of its instants, however it was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.sim.clock import SLOT_S, Clock

INSTANT = st.integers(0, 12).map(lambda n: n * SLOT_S / 2) | st.floats(0.0, 2.0)
"""Many of them equal, on the edge of a slot, or in the same one."""
END = 3.0


@given(st.lists(INSTANT, max_size=40), st.lists(INSTANT, max_size=5))
def test_actions_are_done_by_instant_and_then_as_they_were_asked_for(
    instants: list[float], stops: list[float]
) -> None:
    clock = Clock()
    done: list[tuple[float, int]] = []
    for n, when in enumerate(instants):
        clock.at(when, lambda n=n: done.append((clock.now, n)))
    expected = sorted((when, n) for n, when in enumerate(instants))
    for stop in [*sorted(stops), END]:
        clock.run_until(stop)
        assert clock.now == stop
        assert done == [each for each in expected if each[0] <= stop]


@given(st.lists(st.tuples(INSTANT, INSTANT), max_size=40))
def test_what_an_action_asks_for_falls_into_line(pairs: list[tuple[float, float]]) -> None:
    """At the first instant of a pair something is asked for: for the second, or at once."""
    clock = Clock()
    asked: list[float] = []
    done: list[tuple[float, int]] = []

    def ask(when: float, then: float | None) -> None:
        n = len(asked)
        asked.append(max(when, clock.now))

        def act() -> None:
            done.append((clock.now, n))
            if then is not None:
                ask(then, None)

        clock.at(when, act)

    for first, second in pairs:
        ask(first, second)
    clock.run_until(END)
    assert done == sorted((when, n) for n, when in enumerate(asked))
