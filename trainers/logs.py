"""The scalars of a run as one peer holds them: logs that have no gaps.

Frames that both of the newest two bases have are dropped; what they did is in the sum.  Whoever
lacks one of those takes over a whole sum instead: that of the longer history, so that two peers
that have both dropped what the other lacks do not swap sums for ever.

The worker is told the frames in the order in which they came; `told` is what its sum has then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from protocol.ids import RunId
from protocol.spsa import (
    MAX_FRAMES,
    MAX_LOGS,
    Frame,
    Frames,
    Horizon,
    LogId,
    SignedFrame,
    log_id,
    packed,
)


@dataclass(slots=True)
class _Log:
    """One author's scalars since a start of its node."""

    start: int
    """Scalars before the first frame that is kept."""
    count: int
    told: int
    """Of these, the ones that the worker was told."""
    frames: dict[int, tuple[Frame, SignedFrame]] = field(default_factory=dict)
    """By the scalars before each; in order."""


class Logs:
    """What is held; `horizon` says it in short."""

    def __init__(self, run: RunId) -> None:
        self._run = run
        self._logs: dict[LogId, _Log] = {}
        """At most `MAX_LOGS`."""
        self._waiting: deque[tuple[LogId, Frame]] = deque()
        """Frames that the worker was not told."""
        self.scalars = 0
        """Of all logs together."""
        self.scalars_told = 0

    @property
    def horizon(self) -> dict[LogId, int]:
        return {id: log.count for id, log in self._logs.items() if log.count}

    @property
    def told(self) -> dict[LogId, int]:
        """The horizon of the worker's sum, once it has added what it was told."""
        return {id: log.told for id, log in self._logs.items() if log.told}

    @property
    def waiting(self) -> int:
        """Frames that the worker was not told."""
        return len(self._waiting)

    def tell(self, most: int) -> tuple[Frame, ...]:
        """The next frames for the worker."""
        frames = []
        for _ in range(min(most, len(self._waiting))):
            id, frame = self._waiting.popleft()
            self._logs[id].told += len(frame.scalars)
            self.scalars_told += len(frame.scalars)
            frames.append(frame)
        return tuple(frames)

    def name(self, frame: Frame) -> LogId:
        """The log that a frame belongs to."""
        return log_id(self._run, frame.author, frame.boot)

    def count(self, id: LogId) -> int:
        """Scalars of a log."""
        return self._logs[id].count if id in self._logs else 0

    def has_place(self, id: LogId) -> bool:
        """Whether the log is here, or can be begun."""
        return id in self._logs or len(self._logs) < MAX_LOGS

    def kept(self, id: LogId, first: int) -> SignedFrame | None:
        """The frame at this place of a log, if it is here."""
        frames = self._logs[id].frames if id in self._logs else {}
        return frames[first][1] if first in frames else None

    def add(self, id: LogId, frame: Frame, signed: SignedFrame) -> None:
        """Take in the next frame of its log, which has a place."""
        assert self.has_place(id), "one log too many"
        log = self._logs.setdefault(id, _Log(0, 0, 0))
        assert frame.first == log.count, "a frame that is not the next one of its log"
        log.frames[frame.first] = (frame, signed)
        log.count += len(frame.scalars)
        self.scalars += len(frame.scalars)
        self._waiting.append((id, frame))

    def resume(self, horizon: Horizon, *, forget: bool) -> None:
        """The worker's sum is that of the horizon: of each log keep what continues it.

        A log whose frames begin later, for the worker lost more than was kept, or whose sum has
        more than is here, goes on from the horizon.

        Args:
            forget: the sum is somebody else's, so its frames may not be ours: keep none of them.
        """
        others = [id for id in sorted(self._logs) if id not in horizon]
        for id in others[max(0, MAX_LOGS - len(horizon)) :]:
            del self._logs[id]
        for id in others:
            if id in self._logs and self._logs[id].start:
                del self._logs[id]
        for id, count in horizon.items():
            log = self._logs.get(id)
            if log is None or not log.start <= count <= log.count:
                self._logs[id] = _Log(count, count, count)
        if forget:
            self.cut(horizon)
        for id, log in self._logs.items():
            log.told = horizon.get(id, 0)
        self._waiting = deque((self.name(frame), frame) for frame, _ in self.beyond(horizon))
        self.scalars = sum(log.count for log in self._logs.values())
        self.scalars_told = sum(horizon.values())

    def reaches_back_to(self, horizon: Horizon) -> bool:
        """Whether every frame beyond the horizon is here."""
        return all(log.start <= horizon.get(id, 0) for id, log in self._logs.items())

    def has_told(self, horizon: Horizon) -> bool:
        """Whether the worker has everything up to the horizon, or was told it."""
        return all(id in self._logs and self._logs[id].told >= n for id, n in horizon.items())

    def told_beyond(self, horizon: Horizon) -> tuple[Frame, ...]:
        """The frames that the worker's sum has and the horizon has not."""
        return tuple(
            frame for frame, _ in self.beyond(horizon) if frame.first < self._told_of(frame)
        )

    def _told_of(self, frame: Frame) -> int:
        return self._logs[self.name(frame)].told

    def leaves_behind(self, horizon: Horizon) -> bool:
        """Whether who has this lacks what was dropped here, and has less altogether."""
        if self.reaches_back_to(horizon):
            return False
        theirs = (sum(horizon.values()), packed(horizon))
        return theirs < (self.scalars, packed(self.horizon))

    def beyond(self, horizon: Horizon) -> Iterator[tuple[Frame, SignedFrame]]:
        """The frames that are here and not in the horizon, log by log, without gaps."""
        for id, log in sorted(self._logs.items()):
            have = horizon.get(id, 0)
            if log.start <= have < log.count:
                for first, pair in log.frames.items():
                    if first >= have:
                        yield pair

    def answer(self, horizon: Horizon, after: int = 0) -> Frames:
        """What somebody with this horizon lacks and can be given, but for so many frames."""
        lacking = islice(self.beyond(horizon), after, after + MAX_FRAMES + 1)
        signed = [signed for _, signed in lacking]
        return Frames(tuple(signed[:MAX_FRAMES]), len(signed) > MAX_FRAMES)

    def cut(self, horizon: Horizon) -> None:
        """Drop the frames of the horizon."""
        for id, count in horizon.items():
            log = self._logs.get(id)
            if log is None:
                continue
            for first in [first for first in log.frames if first < count]:
                frame, _ = log.frames.pop(first)
                log.start = first + len(frame.scalars)
