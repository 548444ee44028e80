"""`scripts/bench rpc`: shoal itself, from `Rpc` over the bridge down to the socket.

python -m node.bench.rpc_shoal [HOST]
"""

from __future__ import annotations

import asyncio
import os
import sys

from node.bench.rpc_peer import obey
from node.bridge import Bridge
from node.pieces import fetch_pieces
from node.rpc import Rpc
from protocol.envelope import Signer
from protocol.ids import Digest, PeerId, RunId
from protocol.limits import KIB, MIB
from protocol.rpc import FETCH, FetchCall, Kind, Lane, Method, RecordCall

RUN = RunId(bytes(32))
DIGEST = Digest(bytes(32))
CONNECT_S = 10.0
FETCH_S = 120.0
LARGEST_BYTES = 64 * MIB

ECHO = Method(
    name="echo/1",
    lane=Lane.CONTROL,
    kind=Kind.ROUND,
    request=RecordCall,
    answer=RecordCall,
    deadline_s=10,
    max_request_bytes=4 * KIB,
    max_answer_bytes=4 * KIB,
    per_peer=64,
    in_all=64,
)


class Shoal:
    """A node without anything but its network."""

    def __init__(self, bridge: Bridge, rpc: Rpc) -> None:
        self.addr = bridge.addrs()[0]
        self._bridge = bridge
        self._rpc = rpc
        self._other: PeerId
        self._memory = memoryview(bytes(LARGEST_BYTES))
        rpc.serve(ECHO, self._echo)
        rpc.serve(FETCH, self._fetch)

    async def connect(self, addr: str) -> None:
        self._other = await self._bridge.connect(addr, CONNECT_S)

    async def call(self, body: bytes) -> bytes:
        return (await self._rpc.call(self._other, ECHO, RecordCall(RUN, body))).body

    async def fetch(self, size_bytes: int, into: bytearray) -> None:
        async def ask(offset: int, part: memoryview, deadline_s: float) -> None:
            call = FetchCall(RUN, DIGEST, offset, len(part))
            await self._rpc.call(self._other, FETCH, call, deadline_s=deadline_s, into=part)

        await fetch_pieces(
            self._other,
            memoryview(into),
            ask,
            deadline_s=FETCH_S,
            is_relayed=lambda peer: False,
        )

    async def _echo(self, peer: PeerId, call: RecordCall) -> RecordCall:
        self._other = peer
        return call

    async def _fetch(self, peer: PeerId, call: FetchCall) -> bytes:
        return self._memory[call.offset : call.offset + call.length]  # type: ignore[return-value]


async def main(host: str) -> None:
    async with (
        Bridge(Signer(os.urandom(32)), listen=[f"/ip4/{host}/tcp/0"]) as bridge,
        Rpc(bridge) as rpc,
    ):
        await obey(Shoal(bridge, rpc))


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["127.0.0.1"])))
