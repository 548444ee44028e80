"""Files that survive a crash: whole, or as they were before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from protocol.errors import ConfigError

SET_ASIDE = ".unusable-"
MAX_SET_ASIDE = 9
"""Files of a directory: so many bad ones are a bad disk; one more stays under its name, where a
newer one may be written over it."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file, mode 0600; nobody else may be writing it.

    What a process leaves that is killed meanwhile is written over the next time.

    Raises:
        ConfigError: the disk does not take it.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        settle(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ConfigError(
            f"disk: {error.strerror} at {path}, expected to write {len(data)} bytes; "
            "free some space or choose another data directory"
        ) from error


def settle(partial: Path, path: Path) -> None:
    """Flush the file `partial` to disk, then give it the name `path`, for good."""
    _flush(partial, os.O_RDONLY)
    partial.rename(path)
    _flush(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def set_aside(path: Path) -> str:
    """Give a file a name under which nobody reads, overwrites or removes it; what was done."""
    for count in range(1, MAX_SET_ASIDE + 1):
        if not any(path.parent.glob(f"*{SET_ASIDE}{count}")):
            aside = path.with_name(f"{path.name}{SET_ASIDE}{count}")
            try:
                path.rename(aside)
            except OSError as error:
                return f"left as it is, for it cannot be renamed: {error.strerror}"
            return f"kept as {aside.name}"
    return f"left as it is, for {MAX_SET_ASIDE} others are kept already: remove those"


def _flush(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
