"""A thread for writes: one after the other, and none keeps a process from ending."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from node.disk_thread import DiskThread


def test_calls_are_made_in_their_order_and_one_cancelled_before_its_turn_is_not() -> None:
    thread, go_on, made = DiskThread("writes"), threading.Event(), list[int]()
    first = thread.submit(go_on.wait, 10.0)
    second, third, fourth = (thread.submit(made.append, n) for n in (2, 3, 4))
    assert third.cancel()
    thread.shutdown()
    go_on.set()
    assert (first.result(10.0), second.result(10.0), fourth.result(10.0)) == (True, None, None)
    assert made == [2, 4]
    with pytest.raises(RuntimeError, match="takes no more calls"):
        thread.submit(made.append, 5)


def test_an_error_goes_to_who_asked_and_the_next_call_is_made() -> None:
    thread = DiskThread("writes")
    failed, made = thread.submit(int, "no number"), thread.submit(int, "7")
    with pytest.raises(ValueError, match="no number"):
        failed.result(10.0)
    assert made.result(10.0) == 7
    thread.shutdown()


def test_a_process_ends_while_a_call_hangs() -> None:
    code = (
        "import threading; from node.disk_thread import DiskThread; "
        "DiskThread('writes').submit(threading.Event().wait)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=15.0)
