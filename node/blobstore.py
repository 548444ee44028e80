"""Blobs on disk by digest: tokenizer and texts of a run.

A blob is one file named by the hex of its digest.  It is written beside, flushed to disk and
renamed, so a file of that name was once whole; and it is hashed again before its first use
in this process, so a disk that lies or a hand that edits costs a fetch and nothing else.
The store never grows over its quota.  All disk work happens in threads.

`fetch` takes a blob chunk by chunk from one peer after another: where one fails the next goes
on.  The hash is checked at the end; then whoever sent wrong bytes is blamed, and if there were
several donors each is tried alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from node.files import settle
from node.ports import Rpc
from protocol import rpc
from protocol.errors import ConfigError, PeerUnavailable, RemoteProtocolError, ShoalError
from protocol.ids import DIGEST_BYTES, Digest, PeerId, RunId, digest_of, short
from protocol.spec import BlobRef

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

MIB = 1024 * 1024
FETCH_S = 3600.0
"""Deadline of a whole fetch: 64 MiB at 20 KB/s.  A guess at the slowest line worth joining."""
CHUNK_S = 20.0
"""Deadline of one chunk, 50 KB/s: a frozen donor must not cost the method's whole minute."""
HASH_BYTES = 4 * MIB
"""Read at once while hashing."""
PARTIAL = ".partial"
"""Ending of files being written; what is left of a killed process is removed at start."""

Progress = Callable[[int, int], None]
"""Told bytes held and bytes in all."""


class NoSpace(ConfigError):
    """The quota or the disk is full, or the disk does not work: the operator must act."""


class NotFetched(ShoalError):
    """Nobody gave the blob: nobody's fault, try again later."""


class BlobStore:
    """The one owner of its folder.  For the event loop; `open` it first."""

    def __init__(
        self, folder: Path, quota_bytes: int, *, blame: Callable[[PeerId, str], None]
    ) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._blame = blame
        self._sizes: dict[Digest, int] = {}
        self._verified: set[Digest] = set()
        self._reserved_bytes = 0

    async def open(self) -> None:
        """Look at what is there; removes what a killed process left half-written."""
        self._sizes = await _on_disk(_look_around, self._folder)

    @property
    def used_bytes(self) -> int:
        """On disk, and promised to blobs on their way in."""
        return sum(self._sizes.values()) + self._reserved_bytes

    async def put(self, data: bytes) -> BlobRef:
        """Keep `data`.

        Raises:
            NoSpace: it does not fit.
        """
        ref = BlobRef(digest=digest_of(data), size_bytes=len(data))
        if await self.path(ref.digest) is None:
            partial = self._begin(ref)
            try:
                await partial.append(data)
                await self._finish(partial, ref)
            finally:
                await self._end(partial, ref)
        return ref

    async def path(self, digest: Digest) -> Path | None:
        """The file of a blob whose bytes were verified; None if it is not here."""
        if digest not in self._sizes:
            return None
        path = self._path(digest)
        if digest not in self._verified:
            if await _on_disk(_hash_of, path) != digest:
                log.warning("blob broken on disk, removed: digest=%s", short(digest))
                await self.remove(digest)
                return None
            self._verified.add(digest)
        return path

    async def read(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """These bytes of a verified blob, fewer at its end; None if it is not here."""
        try:
            path = await self.path(digest)
            return None if path is None else await _on_disk(_read, path, offset, length)
        except NoSpace as error:
            log.warning("blob not readable, forgotten: digest=%s reason=%s", short(digest), error)
            self._verified.discard(digest)
            self._sizes.pop(digest, None)
            return None

    async def remove(self, digest: Digest) -> None:
        """Forget a blob, if it is here."""
        self._verified.discard(digest)
        if self._sizes.pop(digest, None) is not None:
            await _on_disk(_unlink, self._path(digest))

    async def fetch(
        self,
        caller: Rpc,
        run: RunId,
        ref: BlobRef,
        peers: Sequence[PeerId],
        *,
        deadline_s: float = FETCH_S,
        progress: Progress | None = None,
    ) -> Path:
        """The file of the blob, fetched from `peers` in this order unless it is here.

        Raises:
            NotFetched: no peer gave it, or not within the deadline.
            NoSpace: it does not fit.
        """
        if path := await self.path(ref.digest):
            return path
        partial = self._begin(ref)
        fetch = _Fetch(caller, run, ref, partial, self._blame, progress)
        try:
            async with asyncio.timeout(deadline_s):
                await fetch.from_any(peers)
            await self._finish(partial, ref)
        except TimeoutError:
            raise NotFetched(
                f"blob {short(ref.digest)}: {partial.offset} of {ref.size_bytes} bytes from "
                f"{len(peers)} peers within {deadline_s:g} s"
            ) from None
        finally:
            await self._end(partial, ref)
        return self._path(ref.digest)

    def _begin(self, ref: BlobRef) -> _Partial:
        """Reserve room within the quota."""
        if self.used_bytes + ref.size_bytes > self._quota_bytes:
            raise NoSpace(
                f"disk quota: {self.used_bytes / MIB:.1f} of {self._quota_bytes / MIB:.1f} MiB are "
                f"used in {self._folder}, expected room for {ref.size_bytes / MIB:.1f} MiB more; "
                "raise disk_mib or remove old blobs"
            )
        self._reserved_bytes += ref.size_bytes
        name = f"{ref.digest.hex()}-{secrets.token_hex(4)}{PARTIAL}"
        return _Partial(self._folder / name)

    async def _finish(self, partial: _Partial, ref: BlobRef) -> None:
        await _on_disk(settle, partial.path, self._path(ref.digest))
        self._sizes[ref.digest] = ref.size_bytes
        self._verified.add(ref.digest)

    async def _end(self, partial: _Partial, ref: BlobRef) -> None:
        self._reserved_bytes -= ref.size_bytes
        await _on_disk(_unlink, partial.path)

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.hex()


class _Partial:
    """A blob on its way in: a file that grows, and the hash of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    @property
    def digest(self) -> Digest:
        return Digest(self._hash.digest())

    async def append(self, data: bytes) -> None:
        await _on_disk(self._append, data)
        self.offset += len(data)

    async def restart(self) -> None:
        """Forget what came in so far."""
        await _on_disk(_unlink, self.path)
        self.offset = 0
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def _append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        self._hash.update(data)


class _Fetch:
    """One fetch of one blob."""

    def __init__(
        self,
        caller: Rpc,
        run: RunId,
        ref: BlobRef,
        partial: _Partial,
        blame: Callable[[PeerId, str], None],
        progress: Progress | None,
    ) -> None:
        self._caller = caller
        self._run = run
        self._ref = ref
        self._partial = partial
        self._blame = blame
        self._progress = progress
        self._donors: set[PeerId] = set()
        """Of what is in the partial file."""
        self._wrong: set[PeerId] = set()
        self._reasons: list[str] = []

    async def from_any(self, peers: Sequence[PeerId]) -> None:
        """The whole blob into the partial file; each peer goes on where the last one failed.

        Raises:
            NotFetched: what each of them answered.
        """
        mixed = False
        for peer in peers:
            if await self._from_one(peer):
                return
            if self._partial.offset == self._ref.size_bytes:
                mixed = mixed or len(self._donors) > 1
                await self._restart()
        # Several donors gave wrong bytes together: alone, the wrong one shows itself.
        for peer in peers if mixed else ():
            await self._restart()
            if peer not in self._wrong and await self._from_one(peer):
                return
        raise NotFetched(
            f"blob {short(self._ref.digest)} of {self._ref.size_bytes} bytes: "
            + ("; ".join(self._reasons) or "there is no peer to ask")
        )

    async def _from_one(self, peer: PeerId) -> bool:
        """Go on with `peer`; whether the blob is there, and right."""
        partial, size_bytes = self._partial, self._ref.size_bytes
        while partial.offset < size_bytes:
            length = min(rpc.CHUNK_BYTES, size_bytes - partial.offset)
            call = rpc.BlobCall(self._run, self._ref.digest, partial.offset, length)
            try:
                data = await self._caller.call(peer, rpc.BLOB, call, deadline_s=CHUNK_S)
            except (PeerUnavailable, RemoteProtocolError) as error:
                self._reasons.append(str(error))
                return False
            if len(data) != length:
                self._accuse(peer, f"sent {len(data)} bytes of a chunk of {length}")
                return False
            await partial.append(data)
            self._donors.add(peer)
            if self._progress:
                self._progress(partial.offset, size_bytes)
        if partial.digest == self._ref.digest:
            return True
        if self._donors == {peer}:
            self._accuse(peer, f"sent bytes that are not blob {short(self._ref.digest)}")
        return False

    async def _restart(self) -> None:
        self._donors.clear()
        await self._partial.restart()

    def _accuse(self, peer: PeerId, reason: str) -> None:
        self._wrong.add(peer)
        self._reasons.append(f"{short(peer)}: {reason}")
        self._blame(peer, reason)


# --- in threads -------------------------------------------------------------------------


async def _on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread; being cancelled waits for its end, so nothing writes afterwards.

    Raises:
        NoSpace: the disk does not do it.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    except OSError as error:
        raise NoSpace(
            f"disk: {error.strerror} in {error.filename or 'the data directory'}, expected to read "
            "and write there; free some space or choose another data directory"
        ) from error


def _look_around(folder: Path) -> dict[Digest, int]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sizes: dict[Digest, int] = {}
    for path in folder.iterdir():
        if path.suffix == PARTIAL:
            path.unlink()
        elif len(path.name) == 2 * DIGEST_BYTES:
            sizes[Digest(bytes.fromhex(path.name))] = path.stat().st_size
    return sizes


def _hash_of(path: Path) -> Digest | None:
    """None: there is no such file any more."""
    if not path.exists():
        return None
    hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while data := file.read(HASH_BYTES):
            hash.update(data)
    return Digest(hash.digest())


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
