"""One blob on disk: a file, its manifest beside it, and what is known of its chunks.

    HEX             the blob, once all of it is here; HEX is its name
    HEX.partial     while some of it is missing
    HEX.manifest    of a blob that stays; of one that is given back sooner or later, HEX.passing

A chunk counts as right once its hash was compared in this process.  Functions here run in
threads and change nothing in memory: `node.blobstore` notes what came of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from node.files import settle
from protocol import codec
from protocol.errors import Malformed
from protocol.ids import DIGEST_BYTES, Digest, digest_of, short
from protocol.manifest import CHUNK_BYTES, MAX_MANIFEST_BYTES, Manifest, open_manifest
from protocol.spec import BlobRef

log = logging.getLogger(__name__)

PARTIAL = ".partial"
LASTING = ".manifest"
PASSING = ".passing"
BESIDE = ".new"
"""Of a manifest that is being written."""


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

    # --- in threads -----------------------------------------------------------------------

    def create(self) -> None:
        """Write the manifest, and take the room for all of it; OSError: there is none."""
        beside = self.path.with_name(self.name.hex() + BESIDE)
        beside.write_bytes(codec.encode(self.manifest))
        settle(beside, self._manifest_path())
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.manifest.size_bytes)
        finally:
            os.close(fd)

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
        """The bytes of a chunk; None: they are wrong."""
        data = self.read(chunk * CHUNK_BYTES, self.manifest.length(chunk))
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
        """Remove it."""
        for path in (self.path, self._manifest_path()):
            path.unlink(missing_ok=True)

    def _manifest_path(self) -> Path:
        return self.folder / (self.name.hex() + (LASTING if self.is_lasting else PASSING))


def files_in(folder: Path) -> Iterator[BlobFile]:
    """The blobs of an earlier process; what belongs to none is removed.

    A whole passing blob is of no use any more; a partial one is gone on with, should it be wanted
    again.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept: set[Path] = set()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (LASTING, PASSING) or (found := _read(path)) is None:
            continue
        hex = path.name.removesuffix(path.suffix)
        found.is_whole = (folder / hex).is_file()
        if found.is_lasting or not found.is_whole:
            if found.path.is_file():
                found.held = set(range(found.manifest.num_chunks))
            kept |= {path, found.path}
            yield found
    for path in folder.iterdir():
        if path not in kept and path.is_file():
            path.unlink()


def _read(path: Path) -> BlobFile | None:
    hex = path.name.removesuffix(path.suffix)
    try:
        name = Digest(bytes.fromhex(hex))
        if path.stat().st_size > MAX_MANIFEST_BYTES or len(name) != DIGEST_BYTES:
            raise Malformed("not the size of a manifest")
        manifest = open_manifest(name, path.read_bytes())
    except ValueError as error:
        log.warning("blob broken on disk, removed: file=%s reason=%s", path.name, error)
        return None
    return BlobFile(path.parent, name, manifest, path.suffix == LASTING)


def described(blob: BlobFile) -> str:
    """For a log."""
    return f"digest={short(blob.name)} bytes={blob.manifest.size_bytes}"
