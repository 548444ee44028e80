"""Records on disk: one file for each author, replaced atomically.

A kill at any instant leaves the old file or the new one.  What is in a file is signed, so it
is read as warily as what a peer sends; a file that does not read is set aside under another
name, for a person to look at, and its author's record comes back from the other peers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from crdt.record import MAX_PROOF_BYTES, MAX_RECORD_BYTES, Record
from crdt.replica import Replica
from crdt.sync import Parcel, merge_parcel
from node.disk_thread import DiskThread
from node.files import set_aside
from node.uncancelled import is_done_within
from protocol import codec
from protocol.errors import ConfigError, Malformed
from protocol.ids import short

log = logging.getLogger(__name__)

MAX_FILE_BYTES = max(MAX_RECORD_BYTES, MAX_PROOF_BYTES) + 64
"""A record or a proof, and the frame of the parcel around it."""
RETRY_S = 5.0
"""Until a disk that refused is asked again."""
CLOSE_S = 0.8
"""For the last records to be on disk, a few milliseconds in fact, while the worker is waited for
(`worker_life.TERM_S`); they can be fetched again."""


class RecordFiles:
    """The directory of one run's records; nobody else writes there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._refuses = False
        self._thread = DiskThread("records")

    def load(self, replica: Replica) -> None:
        """Merge all files into `replica`; never raises for what is in them.

        Raises:
            ConfigError: the directory cannot be made, read or written to.
        """
        try:
            self._load(replica)
        except OSError as error:
            raise ConfigError(
                f"records: {error.strerror} at {error.filename or self._directory}, expected a "
                "folder of records that can be read and written; correct its rights, free some "
                "space, or choose another data directory"
            ) from error

    def _load(self, replica: Replica) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob("*.new"):
            left.unlink()  # from a kill between writing and renaming
        for path, error in merge_files(self._directory, replica):
            log.warning(
                "record set aside: the record of %s on disk is broken (%s); the file is %s, "
                "and the record will be fetched from the other peers",
                *(short(path.stem), error, set_aside(path)),
            )

    async def saved(self, records: Sequence[Record], *, durable: bool) -> bool:
        """Save in a thread; False, and one sentence in the log, if the disk refuses.

        No deadline: a write that we gave up on could still overtake the next one.
        """
        try:
            await self._write(records, durable=durable)
        except OSError as error:
            if not self._refuses:
                log.error(
                    "records not saved: %s; they are kept in memory and nothing of ours is "
                    "published until the disk takes it, tried again every %g s; free some space",
                    error,
                    RETRY_S,
                )
            self._refuses = True
            return False
        if self._refuses:
            log.info("records saved again: the disk takes writes")
        self._refuses = False
        return True

    async def close(self, last: Sequence[Record]) -> None:
        """Save these, after all that is being saved, and no more; never raises, nor waits long."""
        why = f"the disk has not answered within {CLOSE_S:g} s"
        try:
            is_saved = await is_done_within(self._write(last, durable=False), CLOSE_S)
        except OSError as error:
            is_saved, why = False, str(error)
        if not is_saved:
            log.warning("records of others not saved: %s; they will be fetched again", why)
        self._thread.shutdown()

    async def _write(self, records: Sequence[Record], *, durable: bool) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._save_all, records, durable)

    def save(self, record: Record, *, durable: bool) -> None:
        """Replace the record's file.

        Args:
            durable: also survive a loss of power; costs a wait for the disk.

        Raises:
            OSError: disk full, or the like; the old file is still there.
        """
        proofs = (record.proof,) if record.proof else ()
        new = self._directory / f"{record.author}.new"
        with new.open("wb") as file:
            file.write(codec.encode(Parcel(record.chain, proofs)))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        new.replace(self._directory / f"{record.author}.record")
        if durable:
            self._sync_directory()

    def _save_all(self, records: Sequence[Record], durable: bool) -> None:
        for record in records:
            self.save(record, durable=durable)

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def merge_files(directory: Path, replica: Replica) -> list[tuple[Path, Exception]]:
    """Merge the records in a directory, changing nothing there; those that do not read, and why."""
    broken: list[tuple[Path, Exception]] = []
    for path in sorted(directory.glob("*.record")):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            merge_parcel(replica, codec.decode(Parcel, data, max_bytes=MAX_FILE_BYTES))
        except (Malformed, OSError) as error:
            broken.append((path, error))
    return broken
