"""`scripts/bench rpc`: one bare stream of py-libp2p as it is installed, over Noise and Yamux.

    python -m node.bench.rpc_libp2p [HOST]

Nothing of shoal is loaded, so what shoal does better or worse than the library shows.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import time
from typing import Any

import libp2p
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from node.bench.rpc_peer import CALL_BYTES, quantiles, tell

PROTOCOL = TProtocol("/bench/1")
HEADER = struct.Struct("!II")
"""Length of the body, and of the answer that is wanted: 0 for an echo."""
READ_BYTES = 1 << 18


async def exactly(stream: INetStream, size_bytes: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size_bytes:
        data += await stream.read(size_bytes - len(data))
    return data


async def serve(stream: INetStream) -> None:
    """Answer until the stream ends."""
    try:
        while True:
            length, wanted = HEADER.unpack(await exactly(stream, HEADER.size))
            body = await exactly(stream, length)
            await stream.write(bytes(wanted) if wanted else body)
    except BaseLibp2pError:
        return


async def one_call(stream: INetStream) -> float:
    """The seconds that one small call takes."""
    body = bytes(CALL_BYTES)
    began = time.perf_counter()
    await stream.write(HEADER.pack(len(body), 0) + body)
    await exactly(stream, len(body))
    return time.perf_counter() - began


async def fetch(stream: INetStream, size_bytes: int) -> float:
    """The seconds that one fetch takes."""
    into = bytearray(size_bytes)
    got = 0
    began = time.perf_counter()
    await stream.write(HEADER.pack(0, size_bytes))
    while got < size_bytes:
        data = await stream.read(READ_BYTES)
        into[got : got + len(data)] = data
        got += len(data)
    return time.perf_counter() - began


async def obey(host: Any) -> None:
    """Carry out orders until there are none; as `node.bench.rpc_peer`, on trio."""
    addr = str(host.get_addrs()[0])
    tell({"addr": addr})
    stream: INetStream
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        match json.loads(line):
            case {"do": "connect", "addr": str(other)}:
                info = info_from_p2p_addr(Multiaddr(other))
                await host.connect(info)
                stream = await host.new_stream(info.peer_id, [PROTOCOL])
                tell({"addr": addr})
            case {"do": "calls", "in_flight": 1, "count": int(count)}:
                began = time.perf_counter()
                taken = [await one_call(stream) for _ in range(count)]
                tell({"seconds": time.perf_counter() - began, **quantiles(taken)})
            case {"do": "fetch", "size_bytes": int(size)}:
                tell({"seconds": await fetch(stream, size)})
            case order:
                raise ValueError(f"no order: {order}")


async def main(host: str) -> None:
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    node = libp2p.new_host(key_pair=create_new_key_pair(os.urandom(32)))
    node.set_stream_handler(PROTOCOL, serve)
    async with node.run(listen_addrs=[Multiaddr(f"/ip4/{host}/tcp/0")]):
        await obey(node)


if __name__ == "__main__":
    trio.run(main, *(sys.argv[1:] or ["127.0.0.1"]))
