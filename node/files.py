"""Files that survive a crash: whole, or as they were before."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from protocol.errors import ConfigError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file, mode 0600.

    Raises:
        ConfigError: the disk does not take it.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        settle(partial, path)
    except OSError as error:
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


def _flush(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
