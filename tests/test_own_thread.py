"""Work in a thread of its own, which is left behind when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from node.own_thread import in_thread


async def test_work_of_which_nobody_wants_the_value_any_more_is_not_waited_for() -> None:
    begun, let_go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        let_go.wait()

    task = asyncio.ensure_future(in_thread(work, name="work"))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        let_go.set()


async def test_who_is_cancelled_as_the_thread_starts_ends_like_anybody_else() -> None:
    """The thread then finds its work cancelled, or is at it already; neither is an error."""
    errors: list[threading.ExceptHookArgs] = []
    hook, threading.excepthook = threading.excepthook, errors.append
    before = set(threading.enumerate())
    try:
        for _ in range(100):
            task = asyncio.ensure_future(in_thread(int, name="work"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for thread in set(threading.enumerate()) - before:
            thread.join(10.0)
    finally:
        threading.excepthook = hook
    assert errors == []


async def test_what_goes_wrong_in_the_thread_is_raised_here() -> None:
    with pytest.raises(ValueError, match="no number"):
        await in_thread(lambda: int("no number"), name="work")


async def test_a_thread_that_does_not_come_back_is_left_behind_at_its_deadline() -> None:
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        await in_thread(over.wait, name="work", deadline_s=0.01)
    over.set()


def test_a_process_ends_while_work_hangs() -> None:
    code = (
        "import asyncio, threading; from node.own_thread import in_thread; "
        "asyncio.run(in_thread(threading.Event().wait, name='work', deadline_s=0.01))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=15.0)
    assert b"TimeoutError: no answer within 0.01 s" in ended.stderr
