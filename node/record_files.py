"""Records on disk: one file for each author, replaced atomically.

A kill at any instant leaves the old file or the new one.  What is in a file is signed, so it
is read as warily as what a peer sends; a file that does not read is set aside under another
name, for a person to look at, and its author's record comes back from the other peers.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from crdt.record import MAX_PROOF_BYTES, MAX_RECORD_BYTES, Record
from crdt.replica import Replica
from crdt.sync import Parcel, merge_parcel
from protocol import codec
from protocol.errors import Malformed
from protocol.ids import short

log = logging.getLogger(__name__)

MAX_FILE_BYTES = max(MAX_RECORD_BYTES, MAX_PROOF_BYTES) + 64
"""A record or a proof, and the frame of the parcel around it."""


class RecordFiles:
    """The directory of one run's records; nobody else writes there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, replica: Replica) -> None:
        """Merge all files into `replica`; never raises for what is in them.

        Raises:
            OSError: the directory cannot be made or read.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for left in self._directory.glob("*.new"):
            left.unlink()  # from a kill between writing and renaming
        for path in sorted(self._directory.glob("*.record")):
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_FILE_BYTES + 1)
                merge_parcel(replica, codec.decode(Parcel, data, max_bytes=MAX_FILE_BYTES))
            except (Malformed, OSError) as error:
                log.warning(
                    "record set aside: the record of %s on disk is broken (%s); the file is kept "
                    "as %s and the record will be fetched from the other peers",
                    short(path.stem),
                    error,
                    path.with_suffix(".broken").name,
                )
                path.replace(path.with_suffix(".broken"))

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

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
