"""Waiting in a task that tidies up."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import in_virtual_time

from node.uncancelled import is_done_within


def test_a_cancelled_task_gives_up_at_its_deadline_and_goes_on() -> None:
    said: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            said.append("given up")
            raise

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            said.append(f"done: {await is_done_within(hangs(), 5.0)}")
            said.append("goes on")

    async def run() -> None:
        task = asyncio.ensure_future(works())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        assert task.cancelled()

    in_virtual_time(run())
    assert sorted(said) == ["done: False", "given up", "goes on"]


def test_what_ends_in_time_is_done_and_its_error_is_told() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    async def run() -> None:
        assert await is_done_within(asyncio.sleep(1), 5.0)
        with pytest.raises(ValueError, match="broken"):
            await is_done_within(fails(), 5.0)

    in_virtual_time(run())
