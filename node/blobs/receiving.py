"""A blob on its way into the store, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.blobs.files import BlobFile, on_disk


class Receiving:
    """A blob that this one alone writes; `close` it."""

    def __init__(
        self, blob: BlobFile, finish: Callable[[BlobFile], Awaitable[None]], turn: asyncio.Lock
    ) -> None:
        """Args: turn: to write this blob; ours until the end."""
        self._blob = blob
        self._finish = finish
        self._turn = turn

    @property
    def held(self) -> frozenset[int]:
        """Chunks that are here and right."""
        return frozenset(self._blob.right)

    async def write(self, chunk: int, data: bytearray | memoryview) -> bool:
        """Write a chunk, if its bytes are right; whether they are.

        Raises:
            NoSpace: the disk does not take it.
        """
        is_right = await on_disk(self._blob.write, chunk, data)
        if is_right:
            self._blob.held.add(chunk)
            self._blob.right.add(chunk)
        return is_right

    async def finish(self) -> Path:
        """All of it is here.

        Raises:
            NoSpace: the disk does not say so.
        """
        await self._finish(self._blob)
        return self._blob.path

    def close(self) -> None:
        """No more is written.  What is here stays, for whoever goes on with it."""
        self._blob.is_receiving = False
        self._turn.release()
