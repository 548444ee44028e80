"""A thread for writes that must not overtake each other.

It is a daemon: a disk that hangs keeps no process from ending, as a thread of
`concurrent.futures.ThreadPoolExecutor` would, which is waited for at the exit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DiskThread(Executor):
    """Carries out calls one after the other; its thread starts with the first one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """At most one per caller, who waits for it; None ends the thread."""
        self._thread: threading.Thread | None = None
        self._is_over = False

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """What will come of the call, after those before it; not made if cancelled by then.

        Raises:
            RuntimeError: `shutdown` was called.
        """
        if self._is_over:
            raise RuntimeError(f"the thread {self._name} takes no more calls")
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  goes to who waits
                future.set_exception(error)

        self._calls.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return future

    def shutdown(self, wait: bool = False, **_: Any) -> None:
        """End after what was asked for; nobody waits for that."""
        self._is_over = True
        self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            call()
