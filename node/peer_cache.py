"""The members last heard of, on disk: a restart finds them although every bootstrap is gone.

A small file in the data directory, replaced atomically and rarely.  It is a memory, not a
truth: who is in it is a candidate like any other, and a file that is damaged is an empty one
with a warning.  A disk that takes no file costs the memory, not the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.disk_thread import DiskThread
from node.files import write_atomically
from node.uncancelled import is_done_within
from protocol import check, codec
from protocol.errors import ConfigError, Malformed
from protocol.ids import PeerId
from protocol.limits import MAX_ADDR_BYTES, MAX_ADDRS, MAX_UNIX_S

log = logging.getLogger(__name__)

MAX_PEERS = 64
"""As many as a presence view holds; who answered longest ago makes room."""
SAVE_S = 300.0
"""Between two writes that only say when who answered."""
NEWS_S = 5.0
"""Between two writes that say who or where: 20 KB at most.  A swarm that dies a minute after it
began must find itself again."""
WRITE_S = 2.0
"""For the file to be written, milliseconds in fact: a disk that hangs holds up nobody longer."""
CLOSE_S = 0.8
"""The same at the end, while the worker is waited for (`worker_life.TERM_S`)."""
FORMAT = 1
MAX_FILE_BYTES = 64 + MAX_PEERS * (64 + 16 + MAX_ADDRS * (MAX_ADDR_BYTES + 4))


@dataclass(frozen=True, slots=True)
class CachedPeer:
    """A member that proved to be one, and where it was."""

    peer: PeerId
    addrs: tuple[str, ...]
    answered_unix_s: int

    def __post_init__(self) -> None:
        check.peer("peer", self.peer)
        check.addrs("addrs", self.addrs)
        check.integer("answered_unix_s", self.answered_unix_s, 0, MAX_UNIX_S)


@dataclass(frozen=True, slots=True)
class CacheFile:
    """What the file holds, as the codec writes it."""

    format: int
    peers: tuple[CachedPeer, ...]

    def __post_init__(self) -> None:
        check.integer("format", self.format, FORMAT, FORMAT)
        check.items("peers", self.peers, MAX_PEERS)


class PeerCache:
    """One per node.  Everything happens in the one event loop."""

    def __init__(self, path: Path) -> None:
        """Read the file; what cannot be read is an empty cache and a warning."""
        self._path = path
        self._peers = {entry.peer: entry for entry in _read(path)}
        self._saved = tuple(self._peers.values())
        self._saved_at = float("-inf")
        self._refused = False
        self._thread = DiskThread("peers")
        self._is_writing = False

    def peers(self) -> list[CachedPeer]:
        """Who answered last comes first."""
        return sorted(self._peers.values(), key=lambda entry: -entry.answered_unix_s)

    def answered(self, peer: PeerId, addrs: tuple[str, ...], now_unix_s: int) -> None:
        """`peer` is alive and can be dialled at `addrs`; with none of them it is not kept."""
        fit = tuple(addr for addr in addrs if 0 < len(addr.encode()) <= MAX_ADDR_BYTES)[:MAX_ADDRS]
        if not fit:
            return
        self._peers[peer] = CachedPeer(peer, fit, max(0, now_unix_s))
        if len(self._peers) > MAX_PEERS:
            oldest = min(self._peers.values(), key=lambda entry: entry.answered_unix_s)
            del self._peers[oldest.peer]

    async def save_sometimes(self, now: float) -> None:
        """Write the file, in a thread, if that is due."""
        has_news = _places(self._peers.values()) != _places(self._saved)
        is_due = now >= self._saved_at + (NEWS_S if has_news else SAVE_S)
        if self._peers and is_due and not self._is_writing:
            self._saved_at, self._is_writing = now, True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_S):
                    await self._written()

    async def save(self) -> None:
        """Write the file unless nothing has changed; never raises, nor waits long."""
        await is_done_within(self._written(), CLOSE_S)

    async def _written(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._write, tuple(self.peers()))

    def _write(self, entries: tuple[CachedPeer, ...]) -> None:
        """In the thread, which alone touches what is known of the file."""
        try:
            if entries != self._saved:
                write_atomically(self._path, codec.encode(CacheFile(FORMAT, entries)))
                self._saved, self._refused = entries, False
        except ConfigError as error:
            if not self._refused:
                log.warning("peers not remembered: reason=%s", error)
            self._refused = True
        finally:
            self._is_writing = False


def _places(entries: Iterable[CachedPeer]) -> dict[PeerId, tuple[str, ...]]:
    """Who is where."""
    return {entry.peer: entry.addrs for entry in entries}


def _read(path: Path) -> tuple[CachedPeer, ...]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        return codec.decode(CacheFile, data, max_bytes=MAX_FILE_BYTES).peers
    except FileNotFoundError:
        return ()
    except (OSError, Malformed) as error:
        log.warning(
            "peers forgotten: found a file that cannot be read (%s), expected the peers last "
            "heard of; it will be written anew: file=%s",
            error,
            path,
        )
        return ()
