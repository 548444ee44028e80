"""The node's unix sockets, of its API and its worker: where they are, and who may connect."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from protocol.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path on Linux, 108 with its zero."""


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A bound socket that only this user may connect to; a dead node's is replaced.

    Raises:
        ConfigError: the path is too long for one.
    """
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{path}: {size} bytes are too long for the path of a unix socket, expected at most "
            f"{MAX_SOCKET_PATH_BYTES}; choose a shorter data directory with --data-dir"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    path.chmod(0o600)  # nobody can connect before listen(), so there is no gap
    return listener


def close(path: Path, listener: socket.socket) -> None:
    """Stop listening, and take the socket away."""
    listener.close()
    path.unlink(missing_ok=True)
