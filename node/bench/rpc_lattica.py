"""`scripts/bench rpc`: Lattica, RPC for Python on rust-libp2p.

    python -m node.bench.rpc_lattica [HOST]

Its calls are made as its README says: a service, a stub, pickled arguments; bytes in bulk come
from a method that is marked as a stream.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from lattica import ConnectionHandler, Lattica, rpc_method, rpc_stream

from node.bench.rpc_peer import obey
from protocol.limits import MIB

LARGEST_BYTES = 64 * MIB
CONNECT_S = 10.0


class Service(ConnectionHandler):  # type: ignore[misc]  # it has no types
    """What either process offers to the other."""

    memory = bytes(LARGEST_BYTES)

    @rpc_method  # type: ignore[untyped-decorator]
    def echo(self, body: bytes) -> bytes:
        return body

    @rpc_stream  # type: ignore[untyped-decorator]
    def bulk(self, size_bytes: int) -> bytes:
        return self.memory if size_bytes == LARGEST_BYTES else self.memory[:size_bytes]


class Other:
    """The other process, as Lattica sees it."""

    def __init__(self, host: str) -> None:
        self._listen = f"/ip4/{host}/tcp/{free_port(host)}"
        self._start([])
        self.addr = f"{self._listen}/p2p/{self._lattica.peer_id()}"

    def _start(self, bootstraps: list[str]) -> None:
        made = Lattica.builder().with_listen_addrs([self._listen]).with_mdns(False)
        self._lattica = made.with_upnp(False).with_bootstraps(bootstraps).build()
        self._service = Service(self._lattica)

    async def connect(self, addr: str) -> None:
        peer = addr.rpartition("/")[2]
        if peer not in self._lattica.get_all_peers():  # only who starts can dial
            self._lattica.close()
            self._start([addr])
            self.addr = f"{self._listen}/p2p/{self._lattica.peer_id()}"
        async with asyncio.timeout(CONNECT_S):
            while peer not in self._lattica.get_all_peers():  # noqa: ASYNC110  # has no event
                await asyncio.sleep(0.1)
        self._stub: Any = self._service.get_stub(peer)

    async def call(self, body: bytes) -> bytes:
        return bytes(await self._stub.echo(body))

    async def fetch(self, size_bytes: int, into: bytearray) -> None:
        into[:] = await self._stub.bulk(size_bytes)


def free_port(host: str) -> int:
    """A port that nobody listens on now: Lattica does not tell which one it was given."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    asyncio.run(obey(Other(*(sys.argv[1:] or ["127.0.0.1"]))))
