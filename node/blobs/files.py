"""One blob on disk: a file, its manifest beside it, and what is known of its chunks.

    HEX             the blob, once all of it is here; HEX is its name
    HEX.partial     while some of it is missing
    HEX.manifest    of a blob that stays; of one that is given back sooner or later, HEX.passing
    *.unusable-N    what is broken past mending, kept for a person to look at; in no quota

A chunk counts as right once its hash was compared in this process.  What is marked so runs in
threads and changes nothing in memory: `node.blobs.store` notes what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from node.disk_thread import DiskThread
from node.files import SET_ASIDE, set_aside, settle
from node.uncancelled import uncancelled
from protocol import codec
from protocol.errors import ConfigError, Malformed
from protocol.ids import Digest, digest_of, short
from protocol.manifest import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    manifest_of_chunks,
    open_manifest,
)
from protocol.spec import BlobRef

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

PARTIAL = ".partial"
LASTING = ".manifest"
PASSING = ".passing"
BESIDE = ".new"
"""Of a manifest that is being written."""
OURS = re.compile(r"([0-9a-f]{64})(\.partial|\.manifest|\.passing|\.new)?")
"""Names that a store gives; other files are somebody else's."""
LOST = (errno.ENOENT, errno.EIO)
"""Errors after which bytes are as good as wrong: no such file, or a bad block.  Others pass, as
when this process has too many files open."""

HANGS_S = 1.0
"""For the disk to end what it was doing when we are cancelled: a chunk takes milliseconds.  Past it
the disk hangs, and its thread is left behind, so that the node stops all the same."""


class NoSpace(ConfigError):
    """The quota or the disk is full, or the disk does not work: the operator must act."""


@dataclass(slots=True, eq=False)
class BlobFile:
    """One blob in a folder."""

    folder: Path
    name: Digest
    manifest: Manifest
    is_lasting: bool
    is_whole: bool = False
    held: set[int] = field(default_factory=set)
    """Chunks on disk; those of a file of an earlier process, before they are checked, too."""
    right: set[int] = field(default_factory=set)
    """Of those, the ones whose hash was compared."""
    holders: int = 0
    """Of a passing blob: it goes when the last one gives it back."""
    is_receiving: bool = False

    @property
    def ref(self) -> BlobRef:
        return BlobRef(digest=self.name, size_bytes=self.manifest.size_bytes)

    @property
    def path(self) -> Path:
        """Where its bytes are now."""
        hex = self.name.hex()
        return self.folder / (hex if self.is_whole else hex + PARTIAL)

    @property
    def is_all_right(self) -> bool:
        return len(self.right) == self.manifest.num_chunks

    @property
    def is_idle(self) -> bool:
        """Kept for nobody."""
        return not (self.is_lasting or self.holders or self.is_receiving)

    # --- in threads -----------------------------------------------------------------------

    def create(self) -> None:
        """Write the manifest, and take the room for all of it; OSError: there is none.

        What was named whole for somebody who was cancelled meanwhile is gone on with.
        """
        self.write_manifest()
        if not self.path.exists():
            with contextlib.suppress(FileNotFoundError):
                self.path.with_suffix("").rename(self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.manifest.size_bytes)
        finally:
            os.close(fd)

    def write_manifest(self) -> None:
        """Write the manifest, whole or not at all; OSError: the disk does not take it."""
        beside = self.folder / (self.name.hex() + BESIDE)
        beside.write_bytes(codec.encode(self.manifest))
        settle(beside, self._manifest_path())

    def write(self, chunk: int, data: bytes | bytearray | memoryview) -> bool:
        """Write a chunk if its bytes are right; whether they are."""
        if digest_of(data) != self.manifest.digest(chunk):
            return False
        view, offset = memoryview(data), chunk * CHUNK_BYTES
        fd = os.open(self.path, os.O_WRONLY)
        try:
            while view:
                count = os.pwrite(fd, view, offset)
                view, offset = view[count:], offset + count
        finally:
            os.close(fd)
        return True

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer where the file ends."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def checked(self, chunk: int) -> bytes | None:
        """The bytes of a chunk; None: they are wrong, gone, or on a bad block.

        Raises:
            OSError: they cannot be read now, which says nothing about them.
        """
        try:
            data = self.read(chunk * CHUNK_BYTES, self.manifest.length(chunk))
        except OSError as error:
            if error.errno in LOST:
                return None
            raise
        return data if digest_of(data) == self.manifest.digest(chunk) else None

    def right_of(self, chunks: Iterable[int]) -> set[int]:
        """Of these chunks those that are right on disk."""
        return {chunk for chunk in chunks if self.checked(chunk) is not None}

    def rename(self, *, is_whole: bool) -> None:
        """Give it the name of a whole blob, for good, or of one that is not whole any more."""
        whole = self.folder / self.name.hex()
        partial = whole.with_name(whole.name + PARTIAL)
        if is_whole:
            settle(partial, whole)
        else:
            with contextlib.suppress(FileNotFoundError):
                whole.rename(partial)

    def delete(self) -> None:
        """Remove it, whatever its name is by now."""
        hex = self.name.hex()
        for path in (self.folder / hex, self.folder / (hex + PARTIAL), self._manifest_path()):
            path.unlink(missing_ok=True)

    def _manifest_path(self) -> Path:
        return self.folder / (self.name.hex() + (LASTING if self.is_lasting else PASSING))


def files_in(folder: Path) -> Iterator[BlobFile]:
    """The blobs of an earlier process; what may be the only good copy of one is never removed.

    A whole passing blob is of no use any more; a partial one is gone on with, should it be wanted
    again.  The manifest of a lasting blob that is broken or gone is made anew if the bytes are
    right, so each of them is hashed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    matches = [OURS.fullmatch(name) for name in os.listdir(folder)]
    for hex in sorted({match[1] for match in matches if match}):
        try:
            found = _found(folder, Digest(bytes.fromhex(hex)))
        except OSError as error:  # it may be readable the next time
            log.warning("blob passed over: digest=%.8s reason=%s", hex, error.strerror)
        else:
            if found:
                yield found


def _found(folder: Path, name: Digest) -> BlobFile | None:
    """The blob of this name; None: there is none any more.  Raises OSError: it cannot be read."""
    whole = folder / name.hex()
    partial, lasting, passing, beside = (
        whole.with_name(whole.name + suffix) for suffix in (PARTIAL, LASTING, PASSING, BESIDE)
    )
    beside.unlink(missing_ok=True)
    is_lasting = os.path.lexists(lasting) or not os.path.lexists(passing)
    manifest = _read(name, lasting if is_lasting else passing)
    if manifest is None and is_lasting:
        manifest = _mended(name, whole, partial, lasting)
    elif manifest is None or (not is_lasting and whole.is_file()):
        for path in (whole, partial, passing):  # of a checkpoint that nobody holds any more
            path.unlink(missing_ok=True)
        return None
    if manifest is None:
        return None
    found = BlobFile(folder, name, manifest, is_lasting, is_whole=whole.is_file())
    if found.path.is_file():
        found.held = set(range(manifest.num_chunks))
    return found


def _read(name: Digest, path: Path) -> Manifest | None:
    """A blob's manifest on disk; None: it is broken or gone.  Raises OSError: not readable now."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise Malformed("not the size of a manifest")
        return open_manifest(name, path.read_bytes())
    except OSError as error:
        if error.errno not in LOST:
            raise
        log.warning("blob manifest gone: file=%s reason=%s", path.name, error.strerror)
    except ValueError as error:
        log.warning("blob manifest broken on disk: file=%s reason=%s", path.name, error)
    return None


def _mended(name: Digest, whole: Path, partial: Path, lasting: Path) -> Manifest | None:
    """The manifest made from the bytes, and written; None: they are not the blob's, and kept aside.

    Raises:
        OSError: the bytes cannot be read now.
    """
    wrong = []
    for path in (whole, partial):
        manifest = _manifest_of_file(path) if path.is_file() else None
        if manifest and manifest.name == name:
            blob = BlobFile(path.parent, name, manifest, is_lasting=True)
            try:
                blob.write_manifest()
            except OSError as error:  # it is made again the next time
                log.warning("blob manifest not written: reason=%s", error.strerror)
            log.warning("blob manifest made anew from the blob's bytes: %s", described(blob))
            return manifest
        wrong += [path] if os.path.lexists(path) else []
    if not wrong:
        lasting.unlink(missing_ok=True)  # broken, and nothing is here that it tells of
        return None
    wrong += [lasting] if os.path.lexists(lasting) else []
    log.warning(
        "blob broken on disk: its manifest does not read, and its bytes are not those of its name; "
        "%s; it is fetched again if a member has it, else put a good copy at %s and start again",
        *(", ".join(set_aside(path) for path in wrong), whole),
    )
    return None


def _manifest_of_file(path: Path) -> Manifest | None:
    """What the manifest of this file is; None: no blob is so short or so long."""
    try:
        with path.open("rb") as file:
            return manifest_of_chunks(iter(lambda: file.read(CHUNK_BYTES), b""))
    except ValueError:
        return None


def what_is_here(folder: Path, name: Digest, blob: BlobFile | None) -> str:
    """Of a blob that is not all here, for the operator."""
    if blob is not None:
        return (
            f"our own copy is broken or was never complete, {len(blob.right)} of "
            f"{blob.manifest.num_chunks} chunks are right in {blob.path}"
        )
    if aside := sorted(folder.glob(f"{name.hex()}*{SET_ASIDE}*")):
        return f"our own copy is broken and kept as {aside[0]}"
    return "it is not here"


async def on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread; being cancelled waits for its end, so nothing writes afterwards.

    Raises:
        NoSpace: the disk does not do it.
    """
    thread = DiskThread("blobs")
    doing = asyncio.get_running_loop().run_in_executor(
        thread, functools.partial(work, *args, **kwargs)
    )
    thread.shutdown()
    try:
        return await asyncio.shield(doing)
    except OSError as error:
        raise NoSpace(
            f"disk: {error.strerror} in {error.filename or 'the data directory'}, expected to read "
            "and write there; free some space or choose another data directory"
        ) from error
    except asyncio.CancelledError:
        await uncancelled({doing}, HANGS_S)
        if not doing.done():
            log.warning("the disk hangs, its thread is left behind: after_s=%g", HANGS_S)
        raise


def described(blob: BlobFile) -> str:
    """For a log."""
    return f"digest={short(blob.name)} bytes={blob.manifest.size_bytes}"
