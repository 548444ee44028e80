"""The data directory of a node: what lies where, its key, its lock, and its one run.

One node at a time uses a directory (a lock on a file, so a killed node leaves nothing
behind), with one key for ever and one run for ever.  Everything wrong with it is a
`ConfigError` in one sentence: what was found, what was expected, what to do.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.files import write_atomically
from protocol.envelope import Signer
from protocol.errors import ConfigError
from protocol.ids import DIGEST_BYTES, RunId, short

SEED_BYTES = 32
OWNER_ONLY = 0o077
"""Mode bits that the key file must not have."""
MAX_FILE_BYTES = 4096
"""Of key, lock and run files: each is one short line."""


@dataclass(frozen=True, slots=True)
class DataDir:
    """Where a node keeps what it owns."""

    root: Path

    @property
    def key(self) -> Path:
        """The Ed25519 seed, hex, and in a second line the id of its peer; mode 0600."""
        return self.root / "key"

    @property
    def lock(self) -> Path:
        """Locked while a node runs; holds its process id."""
        return self.root / "lock"

    @property
    def run(self) -> Path:
        """Id of the run, hex."""
        return self.root / "run"

    @property
    def spec(self) -> Path:
        """The canonical bytes of the run's spec: their hash is the run's id."""
        return self.root / "spec"

    @property
    def signature(self) -> Path:
        """The creator's signature of the spec, 64 bytes."""
        return self.root / "spec.sig"

    @property
    def ticket(self) -> Path:
        """With which the node joined; mode 0600, for it may hold a secret."""
        return self.root / "ticket"

    @property
    def records(self) -> Path:
        """The authors' records."""
        return self.root / "records"

    @property
    def tally(self) -> Path:
        """What the rounds that are being closed will count."""
        return self.root / "tally"

    @property
    def peers(self) -> Path:
        """The members last heard of."""
        return self.root / "peers"

    @property
    def blobs(self) -> Path:
        """Blobs and checkpoints by digest."""
        return self.root / "blobs"

    @property
    def worker(self) -> Path:
        """Snapshot of the training, the worker's own."""
        return self.root / "worker"

    def create(self) -> None:
        """Make what is missing, for this user only.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            for folder in (self.root, self.records, self.blobs, self.worker):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.scandir(folder).close()
        except OSError as error:
            raise ConfigError(
                f"data directory: {error.strerror} at {error.filename}, expected a directory to "
                "read and write; choose another one or correct its rights"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other node uses the directory meanwhile.

        Raises:
            ConfigError: one does, or the disk takes no lock file.
        """
        try:
            file = open(self.lock, "a+", encoding="ascii", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(
                f"lock file {self.lock}: {error.strerror}, expected to write to it; correct its "
                "rights or choose another data directory"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                found = file.read(MAX_FILE_BYTES).strip() or "unknown"
                raise ConfigError(
                    f"data directory {self.root}: in use by the node with process id {found}, "
                    "expected no other node; stop that one or choose another data directory"
                ) from None
            self._write_pid(file.fileno())
            yield

    def _write_pid(self, lock_fd: int) -> None:
        """Past the file's buffer, which would try again, and fail again, when it is closed."""
        try:
            os.ftruncate(lock_fd, 0)
            os.write(lock_fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise ConfigError(
                f"lock file {self.lock}: {error.strerror}, expected to write to it; free some "
                "space or choose another data directory"
            ) from error

    def claim_run(self, run: RunId) -> None:
        """Make the directory one of `run`.

        Raises:
            ConfigError: it belongs to another run.
        """
        self.check_run(run)
        write_atomically(self.run, f"{run.hex()}\n".encode())

    def check_run(self, run: RunId) -> None:
        """The directory may be used for `run`.

        Raises:
            ConfigError: it belongs to another run.
        """
        found = self.claimed_run()
        if found is not None and found != run:
            raise ConfigError(
                f"data directory {self.root}: found run {apart(found, run)}, expected run "
                f"{apart(run, found)}; a directory holds one run, so choose another data directory"
            )

    def claimed_run(self) -> RunId | None:
        """The run of the directory; None: a new one.

        Raises:
            ConfigError: its file is broken.
        """
        if not self.run.exists():
            return None
        what = "the id of a run"
        return RunId(_from_hex(self.run, _content(self.run, what), DIGEST_BYTES, what))

    def load_key(self) -> Signer:
        """The node's key, made at the first start.

        Raises:
            ConfigError: the file is gone or broken, or others may read it.
        """
        if not self.key.exists():
            if self.run.exists():
                raise ConfigError(
                    f"key file {self.key}: is gone, expected the key with which this node joined "
                    "its run; restore the file from a backup, or choose another data directory "
                    "and be a new peer"
                )
            seed = secrets.token_bytes(SEED_BYTES)
            write_atomically(self.key, f"{seed.hex()}\n{Signer(seed).peer}\n".encode())
        mode = self.key.stat().st_mode
        if mode & OWNER_ONLY:
            raise ConfigError(
                f"key file {self.key}: found mode {stat.S_IMODE(mode):04o}, expected 0600, for "
                f"whoever reads it can pass for this node; run chmod 600 {self.key}"
            )
        line, _, named = _content(self.key, "an Ed25519 key").partition(b"\n")
        signer = Signer(_from_hex(self.key, line, SEED_BYTES, "an Ed25519 key"))
        if named != signer.peer.encode():
            raise ConfigError(
                f"key file {self.key}: found the key of {signer.peer}, expected that of the peer "
                f"in its second line, {named.decode(errors='replace')!r:.60}; restore the file "
                "from a backup, or choose another data directory and be a new peer"
            )
        return signer


def apart(run: RunId, other: RunId) -> str:
    """The id of a run, as much of it as tells it from another one."""
    return run.hex() if short(run) == short(other) else short(run)


def _content(path: Path, what: str) -> bytes:
    """What a small file holds, without white space at its ends."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}, expected {what}; correct its rights"
        ) from error


def _from_hex(path: Path, line: bytes, size_bytes: int, what: str) -> bytes:
    """The bytes in a line of hex."""
    try:
        raw = bytes.fromhex(line.decode("ascii"))
    except ValueError:
        raw = b""
    if len(raw) != size_bytes:
        raise ConfigError(
            f"{path}: found {len(line)} characters that are not {what}, expected "
            f"{2 * size_bytes} hex digits; restore the file from a backup, or choose another "
            "data directory"
        )
    return raw
