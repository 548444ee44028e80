"""asyncio on virtual time: what a simulated node's own tasks run on."""

from __future__ import annotations

import asyncio

import pytest

from node.sim.clock import Clock, world_time
from node.sim.loop import Loop


def loop_on(clock: Clock, skew_s: float = 0.0) -> Loop:
    return Loop(clock, skew_s)  # type: ignore[abstract]  # as in `node.sim.records`


@pytest.mark.parametrize("skew_s", [0.0, 3600.0, -3600.0])
def test_tasks_sleep_wait_and_give_up_at_their_virtual_time_whatever_the_clock_shows(
    skew_s: float,
) -> None:
    clock, seen = Clock(), []
    loop = loop_on(clock, skew_s)

    async def story() -> None:
        due = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(2.0)).add_done_callback(lambda _: due.set())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await due.wait()
            seen.append(("gave up", clock.now))
            await due.wait()
            seen.append(("due", clock.now))

    loop.spawn(story(), "story")
    clock.run_until(10.0)
    assert seen == [("gave up", 1.0), ("due", 2.0)]
    assert loop.time() == 10.0 + skew_s


def test_a_stopped_process_does_late_and_in_order_what_was_due() -> None:
    clock, seen = Clock(), []
    loop = loop_on(clock)

    async def tick(name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        seen.append((name, clock.now))

    for name, after_s in (("second", 3.0), ("first", 2.0), ("later", 7.0)):
        loop.spawn(tick(name, after_s), name)
    clock.at(1.0, loop.pause)
    clock.at(5.0, loop.resume)
    clock.run_until(10.0)
    assert seen == [("first", 5.0), ("second", 5.0), ("later", 7.0)]


def test_a_task_that_fails_ends_the_simulation() -> None:
    clock = Clock()

    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise ValueError("a bug")

    loop_on(clock).spawn(fails(), "fails")
    with pytest.raises(ValueError, match="a bug"):
        clock.run_until(10.0)


@pytest.mark.parametrize("when", [0.1, 1 / 3, 2.5, 1234.567])
@pytest.mark.parametrize("skew_s", [3600.0, -3600.0, 0.7])
def test_no_clock_rings_early(when: float, skew_s: float) -> None:
    """A machine that is woken before its own deadline would wait for ever."""
    shown = when + skew_s
    at = world_time(shown, skew_s)
    assert at + skew_s >= shown
    assert abs(at - when) < 1e-9
