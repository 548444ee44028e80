"""`scripts/bench rpc`: a bare TCP connection of asyncio, neither encrypted nor shared.

    python -m node.bench.rpc_tcp [HOST]

What a loop and a socket cost, so what nothing written in Python goes below.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import deque

from node.bench.rpc_peer import obey

HEADER = struct.Struct("!II")
"""Length of the body, and of the answer that is wanted: 0 for an echo."""
READ_BYTES = 1 << 18


class Tcp:
    """One connection to the other; answers come in the order of the questions."""

    def __init__(self) -> None:
        self.addr = ""
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._reading: asyncio.Task[None]

    async def listen(self, host: str) -> None:
        server = await asyncio.start_server(self._serve, host, 0, limit=READ_BYTES)
        self.addr = "{}:{}".format(*server.sockets[0].getsockname())

    async def connect(self, addr: str) -> None:
        host, _, port = addr.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._lock = asyncio.Lock()

    async def call(self, body: bytes) -> bytes:
        async with self._lock:
            self._writer.write(HEADER.pack(len(body), 0) + body)
            return await self._reader.readexactly(len(body))

    async def fetch(self, size_bytes: int, into: bytearray) -> None:
        async with self._lock:
            self._writer.write(HEADER.pack(0, size_bytes))
            got = 0
            while got < size_bytes:
                data = await self._reader.read(min(READ_BYTES, size_bytes - got))
                into[got : got + len(data)] = data
                got += len(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(HEADER.size):
            length, wanted = HEADER.unpack(head)
            if wanted:
                writer.write(bytes(wanted))
                await writer.drain()
            else:
                writer.write(await reader.readexactly(length))


async def main(host: str) -> None:
    me = Tcp()
    await me.listen(host)
    await obey(me)


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["127.0.0.1"])))
