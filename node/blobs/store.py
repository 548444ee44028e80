"""Blobs on disk by name, within a quota: tokenizer and texts of a run, and checkpoints.

A blob is a file with its manifest beside it (`node.blobs.files`).  Every chunk is hashed whenever
it is read for others, and before its first use here, so a disk that lies or a hand that edits
costs the fetch of that chunk and nothing else, and wrong bytes are never served.  What is only
partly here survives a restart, and the chunks that are here are served to others, too.

Blobs of the spec stay; a checkpoint is counted by its holders, like a payload in the arena, and
goes with the last of them.  The store never grows over its quota.  Disk work happens in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from node.arena import map_read_only
from node.blobs.files import BlobFile, NoSpace, described, files_in, on_disk, what_is_here
from node.blobs.receiving import Receiving
from protocol import codec
from protocol.ids import Digest
from protocol.limits import MIB
from protocol.manifest import CHUNK_BYTES, Manifest, bitfield_of, manifest_of_chunks
from protocol.spec import BlobRef

Turns = WeakValueDictionary[Digest, asyncio.Lock]
"""Whose turn it is with a blob; one goes with the last who has it or waits for it."""

log = logging.getLogger(__name__)

RECENT_CHUNKS = 8
"""Kept in memory, for a chunk is asked for in four pieces or more; 8 MiB."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the store has of a blob."""

    manifest: bytes
    """Its canonical bytes."""
    chunks: bytes
    """A bit for each, the first one the lowest of the first byte; empty: all of them."""


class BlobStore:
    """The one owner of its folder.  For the event loop; `open` it first."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._blobs: dict[Digest, BlobFile] = {}
        self._turns = Turns()
        """To rename, delete or make its files, or to read a chunk: short."""
        self._receiving_turns = Turns()
        """To write it: as long as that takes."""
        self._recent: dict[tuple[Digest, int], bytes] = {}

    async def open(self) -> None:
        """Look at what is there, and mend what can be; see `files_in`."""
        found = await on_disk(lambda: list(files_in(self._folder)))
        self._blobs = {blob.name: blob for blob in found}

    @property
    def used_bytes(self) -> int:
        """On disk, and promised to blobs on their way in."""
        return sum(blob.manifest.size_bytes for blob in self._blobs.values())

    def whole(self) -> tuple[Digest, ...]:
        """The names of the blobs that are all here."""
        return tuple(name for name, blob in self._blobs.items() if blob.is_whole)

    # --- blobs of our own ---------------------------------------------------------------------

    async def put(self, data: bytes) -> BlobRef:
        """Keep `data` for good.

        Raises:
            NoSpace: it does not fit.
        """
        return await self._put(data, is_lasting=True)

    async def put_memory(self, fd: int, size_bytes: int) -> BlobRef:
        """Hold what is in this memfd, which stays the caller's, until it is given back.

        Raises:
            NoSpace: it does not fit.
        """
        memory = map_read_only(fd, size_bytes)  # goes with its last view, an error's traceback too
        return await self._put(memoryview(memory), is_lasting=False)

    async def _put(self, data: bytes | memoryview, *, is_lasting: bool) -> BlobRef:
        manifest = await on_disk(lambda: manifest_of_chunks(_chunks(data)))
        is_new = manifest.name not in self._blobs
        receiving = await self.receive(manifest, is_lasting=is_lasting)
        try:
            for number, chunk in enumerate(_chunks(data)):
                if number not in receiving.held:
                    await receiving.write(number, chunk)
                chunk.release()
            await receiving.finish()
        except BaseException:
            if is_new:
                await self.remove(manifest.name)
            raise
        finally:
            receiving.close()
        return BlobRef(digest=manifest.name, size_bytes=manifest.size_bytes)

    # --- reading ------------------------------------------------------------------------------

    async def path(self, digest: Digest) -> Path | None:
        """The file of a whole blob whose bytes were checked; None if it is not here.

        What is right of a partial one is known afterwards; it may be all by now.

        Raises:
            NoSpace: the disk does not say.
        """
        blob = self._blobs.get(digest)
        if blob is None or (blob.is_receiving and not blob.is_whole):
            return None
        await self._check(blob)
        async with self._turn(digest):
            if blob.is_all_right and not blob.is_receiving:
                await self._name_whole(blob)
        return blob.path if blob.is_whole else None

    @asynccontextmanager
    async def opened(self, digest: Digest | None) -> AsyncIterator[tuple[int, ...]]:
        """The descriptor of a whole blob, for reading in the block; none if it is not here."""
        path = await self.path(digest) if digest else None
        fds = (os.open(path, os.O_RDONLY | os.O_CLOEXEC),) if path else ()
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    async def bytes_of(self, digest: Digest) -> bytes:
        """All of a whole blob that fits in memory; empty if it is not here."""
        path = await self.path(digest)
        return b"" if path is None else await on_disk(path.read_bytes)

    def held(self, digest: Digest) -> Held | None:
        """What is here of a blob, whole or not; None: nothing is known of it."""
        blob = self._blobs.get(digest)
        if blob is None or not (blob.is_whole or blob.right or blob.is_receiving):
            return None
        chunks = b"" if blob.is_whole else bitfield_of(blob.right, blob.manifest.num_chunks)
        return Held(codec.encode(blob.manifest), chunks)

    def what_is_here(self, digest: Digest) -> str:
        """Of a blob that is not all here, for the operator."""
        return what_is_here(self._folder, digest, self._blobs.get(digest))

    async def read(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """These bytes of one chunk, fewer at its end; None if it is not here, or not readable."""
        blob = self._blobs.get(digest)
        chunk = offset // CHUNK_BYTES
        if blob is None or chunk not in blob.held:
            return None
        length = min(length, blob.manifest.length(chunk) - offset % CHUNK_BYTES)
        try:
            data = await self._checked(blob, chunk)
            return data and data[offset % CHUNK_BYTES :][: max(length, 0)]
        except NoSpace as error:
            log.warning("blob not readable now: %s reason=%s", described(blob), error)
            return None

    async def _check(self, blob: BlobFile) -> None:
        """Hash what was not hashed yet in this process; what is wrong is not here any more."""
        unknown = blob.held - blob.right
        right = await on_disk(blob.right_of, unknown) if unknown else set()
        async with self._turn(blob.name):
            blob.right |= right & blob.held
            await self._spoil(blob, unknown - blob.right)  # some came meanwhile, maybe

    async def _checked(self, blob: BlobFile, chunk: int) -> bytes | None:
        """A chunk, hashed whenever it comes from disk; its pieces are asked for one by one."""
        async with self._turn(blob.name):
            if chunk not in blob.held:
                return None
            data = self._recent.pop((blob.name, chunk), None)
            if data is None:
                data = await on_disk(blob.checked, chunk)
                await self._spoil(blob, {chunk} if data is None else set())
            if data is not None:
                blob.right.add(chunk)
                self._recent[blob.name, chunk] = data
                self._recent = dict(list(self._recent.items())[-RECENT_CHUNKS:])
        return data

    async def _spoil(self, blob: BlobFile, chunks: set[int]) -> None:
        """These chunks are not what they were: the blob is partly here from now on."""
        if not chunks:
            return
        if not await on_disk(blob.path.exists):  # somebody deleted it
            chunks = chunks | blob.held
        blob.held -= chunks
        blob.right -= chunks
        if blob.is_whole:
            lost = f"{len(chunks)} of {blob.manifest.num_chunks}"
            log.warning("blob broken on disk: %s chunks=%s", described(blob), lost)
            await on_disk(blob.rename, is_whole=False)
            blob.is_whole = False

    # --- giving back --------------------------------------------------------------------------

    async def release(self, digest: Digest) -> None:
        """One holder of a passing blob fewer; what is not held is passed over."""
        blob = self._blobs.get(digest)
        if blob and not blob.is_lasting and blob.holders:
            blob.holders -= 1
            await self._forget(blob)

    async def remove(self, digest: Digest) -> None:
        """Forget a blob, if it is here."""
        async with self._turn(digest):
            if blob := self._blobs.get(digest):
                await self._delete(blob)

    async def forget_partials(self) -> None:
        """Remove what is left of checkpoints that were given up."""
        for blob in self._idle():
            await self._forget(blob)

    def _idle(self) -> list[BlobFile]:
        return [blob for blob in self._blobs.values() if blob.is_idle]

    async def _forget(self, blob: BlobFile) -> None:
        """Delete it, if it is still ours and nobody wants it when its turn comes."""
        async with self._turn(blob.name):
            if blob.is_idle and self._blobs.get(blob.name) is blob:
                await self._delete(blob)

    async def _delete(self, blob: BlobFile) -> None:
        """Nothing of it is here any more; what the disk does not let go of takes its room on."""
        blob.is_whole = False
        blob.held.clear()
        blob.right.clear()
        try:
            await on_disk(blob.delete)
        except NoSpace as error:  # tried again when the room is wanted, and at the next start
            log.warning("blob not removed: %s reason=%s", described(blob), error)
        else:
            del self._blobs[blob.name]

    # --- on its way in ------------------------------------------------------------------------

    async def receive(self, manifest: Manifest, *, is_lasting: bool) -> Receiving:
        """Take a blob in, going on with what is here of it; waits for who does so already.

        Raises:
            NoSpace: it does not fit.
        """
        turn = self._receiving_turns.setdefault(manifest.name, asyncio.Lock())
        await turn.acquire()
        try:
            async with self._turn(manifest.name):
                blob = await self._begin(manifest, is_lasting=is_lasting)
        except BaseException:
            turn.release()
            raise
        receiving = Receiving(blob, self._finish, turn)
        try:
            await self._check(blob)
        except BaseException:
            receiving.close()
            raise
        return receiving

    async def hold(self, digest: Digest) -> Path | None:
        """`path`, with one holder more if it is a passing blob."""
        path = await self.path(digest)
        if path is not None and not (blob := self._blobs[digest]).is_lasting:
            blob.holders += 1
        return path

    async def _begin(self, manifest: Manifest, *, is_lasting: bool) -> BlobFile:
        """A blob that is known by now, and has its room on disk."""
        blob = self._blobs.get(manifest.name)
        if blob is None:
            await self._make_room(manifest.size_bytes)
            blob = BlobFile(self._folder, manifest.name, manifest, is_lasting)
            self._blobs[blob.name] = blob
        blob.is_receiving = True
        if not blob.is_whole:
            try:
                await on_disk(blob.create)
            except BaseException:
                blob.is_receiving = False
                if not blob.held:
                    await self._delete(blob)
                raise
        return blob

    async def _make_room(self, size_bytes: int) -> None:
        for idle in self._idle():
            if self.used_bytes + size_bytes > self._quota_bytes:
                await self._forget(idle)
        if self.used_bytes + size_bytes > self._quota_bytes:
            raise NoSpace(
                f"disk quota: {self.used_bytes / MIB:.1f} of {self._quota_bytes / MIB:.1f} MiB are "
                f"used in {self._folder}, expected room for {size_bytes / MIB:.1f} MiB more; "
                "raise disk_mib or remove old blobs"
            )

    async def _name_whole(self, blob: BlobFile) -> None:
        if not blob.is_whole:
            await on_disk(blob.rename, is_whole=True)
            blob.is_whole = True

    async def _finish(self, blob: BlobFile) -> None:
        async with self._turn(blob.name):
            await self._name_whole(blob)
        if not blob.is_lasting:
            blob.holders += 1

    def _turn(self, digest: Digest) -> asyncio.Lock:
        return self._turns.setdefault(digest, asyncio.Lock())


def _chunks(data: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
