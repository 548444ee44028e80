"""What an operator sees: log set-up, the waits of this node by name, and round counters.

A log line has fixed first words, then `key=value`.  Every wait prints one machine-readable
line when it begins and stands in the status until it is over:

    waiting: what="the tokenizer" from=Q8kNsVmE until_unix_s=1767225600.250

The clock comes in as an argument; nothing here waits.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from protocol.ids import PeerId, short
from trainers.effects import Closed

log = logging.getLogger(__name__)

MAX_WAITS = 64
"""Waits at one time that status can choose from; further ones are only logged."""
QUIET_LIBRARIES = ("libp2p", "aiohttp", "asyncio", "multiaddr", "trio")
"""Their warnings are ours to judge: only errors pass, unless debug is asked for."""
_PEER_ID = re.compile(r"(?<!/p2p/)\b12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\b(?!\.\w)")


def set_up_logs(level: str, *, as_json: bool, stream: TextIO | None = None) -> None:
    """One handler on the root logger; peer ids are shortened, but not in addresses or file names.

    Args:
        level: debug, info, warning or error.
        stream: None: standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if as_json else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel("DEBUG" if level == "debug" else "ERROR")


class Text(logging.Formatter):
    """`12:00:00 info node.driver: round closed: round=3 ...`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = harmless(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return short_peers(harmless(super().format(record), but="\n\t"))  # a traceback has lines


class JsonLines(logging.Formatter):
    """One object a line: unix_s, level, source, text, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "unix_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "source": record.name,
            "text": short_peers(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def short_peers(text: str) -> str:
    """`text` with each peer id as eight characters; people copy addresses and names of files."""
    return _PEER_ID.sub(lambda found: short(found[0]), text)


def harmless(text: str, *, but: str = "") -> str:
    """`text` for a terminal: what strangers wrote may hold characters that do things there.

    Args:
        but: characters that may stay although they do not print.
    """
    return "".join(c if c.isprintable() or c in but else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that this node waits for, until a deadline."""

    what: str
    source: str
    """From whom: a peer id, or words such as "any member"."""
    until_unix_s: float

    def __str__(self) -> str:
        source = _word(short_peers(self.source))
        return f"what={_word(self.what)} from={source} until_unix_s={self.until_unix_s:.3f}"

    def as_status(self) -> dict[str, str | float]:
        return {"what": self.what, "from": self.source, "until_unix_s": self.until_unix_s}


class Waits:
    """The waits of one node, by slot: one part of the node waits for one thing at a time."""

    def __init__(self, wall: Callable[[], float]) -> None:
        """Args: wall: the wall clock, unix seconds; only for what a person reads."""
        self._wall = wall
        self._open: dict[Hashable, Waiting] = {}

    def begin(
        self, slot: Hashable, what: str, source: PeerId | str, for_s: float, *, aside: bool = False
    ) -> None:
        """`slot` waits for `what` from `source`, `for_s` seconds at most; ends its last wait.

        Args:
            aside: the node goes on meanwhile, so it is shown only if there is no other wait.
        """
        waiting = Waiting(what, source, self._wall() + for_s)
        self._open.pop(slot, None)
        if len(self._open) < MAX_WAITS:
            before = {} if aside else self._open
            after = self._open if aside else {}
            self._open = {**before, slot: waiting, **after}
        log.info("waiting: %s", waiting)

    def end(self, slot: Hashable) -> None:
        """`slot` waits for nothing."""
        self._open.pop(slot, None)

    @contextmanager
    def on(
        self, what: str, source: PeerId | str, for_s: float, *, aside: bool = False
    ) -> Iterator[None]:
        """The block waits for `what`.  The caller sets the deadline itself."""
        slot = object()  # others may wait for the same
        self.begin(slot, what, source, for_s, aside=aside)
        try:
            yield
        finally:
            self.end(slot)

    @property
    def current(self) -> Waiting | None:
        """The newest wait that is not over, of those that the node cannot go on without."""
        return next(reversed(self._open.values()), None)


@dataclass(slots=True)
class Rounds:
    """What became of the rounds that this node closed."""

    closed: int = 0
    made: int = 0
    """Closed with an exchange."""
    missed: int = 0
    """Closed alone, and so for the partner, if there was one."""
    half: int = 0
    """Closed alone while the partner may have taken the exchange; expected 0."""

    def count(self, effect: Closed) -> None:
        self.closed += 1
        if effect.receipt is not None:
            self.made += 1
        elif effect.half:
            self.half += 1
        else:
            self.missed += 1


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w./:@-]+", text) else json.dumps(text)
