"""Saves while training goes on: a thread that writes, and one place for a state to wait in.

Training pays for a copy at a step boundary, into memory that is there already; everything else
(digests, the file, the disk) is done here.  A disk that is slower than the rounds gets fewer of
them: of the states that wait the newest stays.  Writing holds Python's lock nowhere for long:
hashlib, `save_file` and fsync all let go of it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from node.worker import wire
from node.worker.files import NotFinite
from node.worker.link import Link
from node.worker.wire_save import Saved, SaveFailed
from trainers.inner import Moments
from trainers.state import Fast

T = TypeVar("T")

MOST_PAUSE = 0.01
"""Of the training time that copies may take: with many short rounds not every one is saved."""
SHORT_S = 0.001
"""Of a copy that nobody counts: so small a model has no rounds that are shorter than a tenth."""


class Saver(threading.Thread, Generic[T]):
    """Writes one state after the other; public methods may be called from any thread."""

    def __init__(self, write: Callable[[T], None]) -> None:
        """Args: write: is called in the thread, and deals with a disk that refuses."""
        super().__init__(name="saver", daemon=True)
        self._write = write
        self._changed = threading.Condition()
        self._waiting: T | None = None
        self._writing: T | None = None
        self._then: list[Callable[[], None]] = []
        """Short: the node asks for one save and one loss at a time."""
        self._is_over = False
        self.start()

    def save(self, state: T) -> None:
        """Write it once the one that is being written is done; one that waited is dropped."""
        with self._changed:
            self._waiting = state
            self._changed.notify()

    def once_saved(self, call: Callable[[], None]) -> None:
        """Call it, in the thread, once what is to be saved by now, or a newer state, is written."""
        with self._changed:
            self._then.append(call)
            self._changed.notify()

    def recall(self) -> T | None:
        """Drop the state that waits; the one that is being written."""
        with self._changed:
            self._waiting = None
            return self._writing

    def finish(self) -> None:
        """Wait until all of it is written: as long as the disk takes, or the node lets us live."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        while True:
            with self._changed:
                self._writing = None
                self._changed.wait_for(
                    lambda: self._waiting is not None or self._then or self._is_over
                )
                self._writing, self._waiting = self._waiting, None
                then, self._then = self._then, []
            if self._writing is not None:
                self._write(self._writing)
            elif not then:
                return
            for call in then:
                call()


def save_and_tell(link: Link, saved: Saved, what: str, write: Callable[[], object]) -> None:
    """Write a state and tell the node so; a disk that refuses is told, too, and ends nothing.

    Args:
        what: of its round is being written.
        write: raises OSError, NotFinite.
    """
    try:
        write()
        link.report(saved)
    except (OSError, NotFinite) as error:
        reason = f"the {what} of round {saved.round} could not be written: {error}"
        print(reason, file=sys.stderr, flush=True)  # noqa: T201  the node may be gone
        link.answer(wire.NO_ID, SaveFailed(reason))


class Rooms:
    """Memory for copies of the fast weights and the optimizer: two at most.

    One is written from, the other copied to.  New memory would cost six times as much as the copy:
    the system hands it out page by page.
    """

    def __init__(self, count: int) -> None:
        """Args: count: parameters of the model."""
        self._count = count
        self._rooms = [self._new()]
        self._copied_at = time.monotonic()
        self._pause_s = 0.0

    def other_than(self, busy: Fast | None) -> Fast:
        """A copy may be made here, for nobody reads it but who has `busy`."""
        for room in self._rooms:
            if busy is None or room.theta_P is not busy.theta_P:
                return room
        self._rooms.append(self._new())
        return self._rooms[-1]

    @property
    def is_due(self) -> bool:
        """Whether one more copy leaves training its time."""
        is_short = self._pause_s < SHORT_S
        return is_short or time.monotonic() - self._copied_at >= self._pause_s / MOST_PAUSE

    def copied(self, pause_s: float) -> None:
        """A copy was made, and training stood still for so long."""
        self._copied_at, self._pause_s = time.monotonic(), pause_s

    def _new(self) -> Fast:
        theta_P, first_P, second_P = (torch.empty(self._count).zero_() for _ in range(3))
        return Fast(theta_P, Moments(first_P, second_P, 0), 0, 0)
