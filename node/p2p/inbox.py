"""Bytes that have come on a stream and are not read yet.

They are kept as the pieces in which they came, so that a large body is copied once, to where it
is wanted.  What a peer sends in dribs is put together here: a piece costs memory beyond its
bytes, and only those are counted.
"""

from __future__ import annotations

from collections import deque

SMALL_BYTES = 4096
"""Pieces below this are put together: a hundredth of it would be what Python takes for one."""
TOGETHER_BYTES = 16 * 1024
"""How far small pieces are put together before another is begun."""


class Inbox:
    """One per stream; its length is the bytes that are in it."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, piece: memoryview) -> None:
        """Take in what has come; a piece that is most of its message is not copied."""
        size = len(piece)
        if not size:
            return
        self._size += size
        if size < SMALL_BYTES:
            last = self._pieces[-1] if self._pieces else b""
            if isinstance(last, bytearray) and len(last) < TOGETHER_BYTES:
                last += piece
            else:
                self._pieces.append(bytearray(piece))
        elif size * 2 < len(piece.obj):  # type: ignore[arg-type]  # of a bytes object
            self._pieces.append(bytes(piece))
        else:
            self._pieces.append(piece)

    def take(self, most_bytes: int) -> bytes | bytearray | memoryview:
        """The next piece, or its beginning; it must be there."""
        piece = self._pieces.popleft()
        if len(piece) > most_bytes:
            self._pieces.appendleft(memoryview(piece)[most_bytes:])
            piece = memoryview(piece)[:most_bytes]
        self._size -= len(piece)
        return piece

    def take_all(self) -> bytes:
        """Everything in it."""
        data = b"".join(self._pieces)
        self.clear()
        return data

    def clear(self) -> None:
        """Forget what is in it."""
        self._pieces.clear()
        self._size = 0
