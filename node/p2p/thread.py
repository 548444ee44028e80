"""A trio run in a background thread, and the way to it from one event loop and back.

`call` runs a function on the trio side and waits for its value, `post` runs one and does not
wait; what the other side has to tell goes to `to_loop`, in order.  Many posts, either way, cost
one wake-up.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, ParamSpec, TypeVar

import trio

from node.uncancelled import uncancelled
from protocol.errors import LocalProtocolError

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)


class TrioThread:
    """One per bridge.  What is not said to be the trio side's is for the event loop."""

    def __init__(
        self, running: Callable[[], AbstractAsyncContextManager[None]], stop_s: float
    ) -> None:
        """
        Args:
            running: what runs on the trio side, from `start` to `stop`.
            stop_s: how long `stop` waits for its end.
        """
        self._running = running
        self._stop_s = stop_s
        self._deliveries: deque[Callable[[], object]] = deque()
        self._delivering = False
        self._posts: deque[Callable[[], object]] = deque()
        self._posting = False

    async def start(self) -> None:
        """Begin; raises what kept it from that."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="libp2p", daemon=True)
        self._thread.start()
        is_cancelled = await uncancelled({self._ready, self._ended})
        if is_cancelled or self._ended.done():
            await self.stop()
        if is_cancelled:
            raise asyncio.CancelledError

    async def stop(self) -> None:
        """End it; raises what ended it before, if it was an error."""
        if not self._ended.done():
            self._token.run_sync_soon(self._stopping.set)
        is_cancelled = await uncancelled({self._ended}, self._stop_s)
        if self._ended.done():
            self._thread.join()
            self._ended.result()
        else:  # it ends with the process
            log.warning("network left behind: it did not end within %g s", self._stop_s)
        if is_cancelled:
            raise asyncio.CancelledError

    async def wait_ended(self) -> None:
        """Wait until it has ended; raises what ended it unless it was `stop`."""
        await asyncio.shield(self._ended)

    async def call(self, run: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The value of `run(*args)` on the trio side.

        Cancelling it cancels that, and returns when that has ended.
        """
        crossing: _Crossing[T] = _Crossing(
            functools.partial(run, *args, **kwargs), self._loop.create_future()
        )
        self.post(self._begin, crossing)
        try:
            await asyncio.wait({crossing.future})
        except asyncio.CancelledError:
            self.post(crossing.scope.cancel)
            await uncancelled({crossing.future})
            crossing.future.exception()  # nobody wants it
            raise
        return crossing.future.result()

    def post(self, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `run(*args)` on the trio side, after everything posted before."""
        self._posts.append(functools.partial(run, *args, **kwargs))
        if self._posting:
            return
        self._posting = True
        try:
            self._token.run_sync_soon(self._run_posts)
        except trio.RunFinishedError:
            self._posting = False
            raise LocalProtocolError("the network has ended") from None

    def to_loop(self, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run `run(*args)` on the event loop; for the trio side."""
        self._deliveries.append(functools.partial(run, *args, **kwargs))
        if not self._delivering:
            self._delivering = True
            self._loop.call_soon_threadsafe(self._deliver)

    # --- the trio side ---------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as end:  # noqa: BLE001  # raised where the bridge is used
            error = end
        self._run_posts()  # those that came too late: their callers wait
        self._loop.call_soon_threadsafe(self._set_ended, error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stopping = trio.Event()
        async with self._running(), trio.open_nursery() as nursery:
            self._nursery = nursery
            self.to_loop(self._ready.set_result, None)
            try:
                await self._stopping.wait()
            finally:
                self._stopping.set()  # no more calls, whatever ended us
                nursery.cancel_scope.cancel()

    def _run_posts(self) -> None:
        self._posting = False
        while self._posts:
            self._posts.popleft()()

    def _begin(self, crossing: _Crossing[T]) -> None:
        if self._stopping.is_set():
            self.to_loop(crossing.fail, LocalProtocolError("the network has ended"))
        else:
            self._nursery.start_soon(self._carry_out, crossing)

    async def _carry_out(self, crossing: _Crossing[T]) -> None:
        failure: Exception = LocalProtocolError("the network has ended")
        try:
            with crossing.scope:
                value = await crossing.run()
                self.to_loop(crossing.future.set_result, value)
                return
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller gets it
            failure = error
        finally:
            self.to_loop(crossing.fail, failure)

    # --- the event loop's side -------------------------------------------------------------

    def _deliver(self) -> None:
        self._delivering = False
        while self._deliveries:
            self._deliveries.popleft()()

    def _set_ended(self, error: BaseException | None) -> None:
        self._deliver()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(_single(error))


class _Crossing(Generic[T]):
    """One `call` under way."""

    def __init__(self, run: Callable[[], Awaitable[T]], future: asyncio.Future[T]) -> None:
        self.run = run
        self.future = future
        self.scope = trio.CancelScope()

    def fail(self, error: Exception) -> None:
        """End it with `error` unless it has a value already."""
        if not self.future.done():
            self.future.set_exception(error)


def _single(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
