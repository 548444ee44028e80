"""Files by which processes hand each other a ticket or addresses.

A container or a script starts several nodes at once; one of them knows what the others
need.  It writes a file, atomically, and they wait for it, with a deadline and by name.  Whoever
locks `PATH.lock` first makes the run; the kernel frees the lock of one that dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from node.telemetry import Waits
from protocol.errors import ConfigError

HANDOVER_DEADLINE_S = 180.0
"""The first node may still be fetching the corpus: some 5 MB, a minute on a slow line."""
POLL_S = 0.2
MAX_FILE_BYTES = 16 * 1024
"""A ticket is at most 4096 characters, an address 256."""


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Put the lines into `path`; a reader sees all of them or what was there before.

    Raises:
        ConfigError: the file cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    with _blamed(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(path)


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of `path`; none if there is no such file yet."""
    with _blamed(path, "read"):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def wait_for_lines(
    path: Path, what: str, waits: Waits, *, for_s: float = HANDOVER_DEADLINE_S
) -> tuple[str, ...]:
    """The lines of `path`, once another process has written them.

    Raises:
        ConfigError: not within `for_s` seconds.
    """
    if lines := read_lines(path):
        return lines
    end = time.monotonic() + for_s
    with waits.on(what, str(path), for_s):
        while time.monotonic() < end:
            if lines := read_lines(path):
                return lines
            time.sleep(POLL_S)
    raise _late(path, what, for_s)


def ticket_or_claim(
    path: Path, waits: Waits, *, for_s: float = HANDOVER_DEADLINE_S
) -> str | IO[bytes]:
    """The ticket in `path`, or, as the first one here, the claim to write it.

    The claim is an open, locked file: keep it until the ticket is written, then close it.

    Raises:
        ConfigError: somebody else holds the claim and writes no ticket within `for_s` seconds.
    """
    end = time.monotonic() + for_s
    with waits.on("the ticket", str(path), for_s):
        while time.monotonic() < end:
            claim = _claim(path)
            if lines := read_lines(path):  # after the claim: it may just have been written
                if claim:
                    claim.close()
                return lines[0]
            if claim:
                return claim
            time.sleep(POLL_S)
    raise _late(path, "the ticket", for_s)


def _claim(path: Path) -> IO[bytes] | None:
    with _blamed(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _blamed(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}, expected a file that this user can {verb}; "
            "correct the path or its permissions"
        ) from None


def _late(path: Path, what: str, for_s: float) -> ConfigError:
    return ConfigError(
        f"{path}: waited {for_s:g} s for {what}, but nobody wrote it; look at the log of the "
        "node that should, or correct the path"
    )
