"""An asyncio event loop on virtual time, so that a simulated peer can run the node's own tasks.

It has what tasks, events, sleeps and timeouts need, and nothing that touches a socket, a thread
or a real clock.  Each peer has a loop of its own: it can be stopped dead (SIGSTOP) and goes on
later, and its clock may show another time than everybody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from node.sim.clock import Clock, world_time

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Loop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process."""

    def __init__(self, clock: Clock, skew_s: float = 0.0) -> None:
        """Args: skew_s: how far this machine's clock is ahead of the world's."""
        self._clock = clock
        self._skew_s = skew_s
        self._held: list[asyncio.Handle] | None = None
        """What is due while the process is stopped."""

    def pause(self) -> None:
        """Nothing is done until `resume`."""
        self._held = []

    def resume(self) -> None:
        """Do all that was due meanwhile, in its order."""
        held, self._held = self._held or [], None
        for handle in held:
            self._clock.after(0.0, self._do, handle)

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """A task of its own; if it fails, the simulation does."""
        task = self.create_task(work, name=name)
        task.add_done_callback(_raise_failure)
        return task

    # --- what asyncio asks of a loop --------------------------------------------------------

    def time(self) -> float:
        return self._clock.now + self._skew_s

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._clock.after(0.0, self._do, handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._clock.at(world_time(when, self._skew_s), self._do, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback failed: that is a bug, and ends the simulation."""
        if error := context.get("exception"):
            raise error

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Its entry in the clock comes up and does nothing."""

    def _do(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        if self._held is not None:
            self._held.append(handle)
            return
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(before)


def _raise_failure(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()):
        raise error
