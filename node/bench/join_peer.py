"""One of the processes of `scripts/bench join`: a donor, a joiner, or either end of a bare socket.

    python -m node.bench.join_peer FOLDER MIB [UP_MBIT]

It prints where it can be reached, then obeys one order a line, as JSON on its standard input, and
prints what came of each.  Blobs lie in FOLDER, in the store of a node; UP_MBIT is what it may send
(0: no limit).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from node.blobs.store import BlobStore
from node.blobs.transfers import Transfers
from node.bridge import Bridge
from node.rpc import Refused, Rpc
from protocol import rpc
from protocol.envelope import Signer
from protocol.ids import PeerId, RunId
from protocol.limits import MIB
from protocol.manifest import manifest_of
from protocol.spec import BlobRef

RUN = RunId(bytes(32))
CONNECT_S = 30.0
READ_BYTES = 1 << 18
QUOTA_BYTES = 1 << 33


def blob(mib: int) -> bytes:
    """Bytes that are equal in all processes and cannot be packed."""
    rng = random.Random(7)
    return b"".join(rng.randbytes(MIB) for _ in range(mib))


class Peer:
    """A node with nothing but its network, its store and its fetches."""

    def __init__(self, bridge: Bridge, calls: Rpc, folder: Path, data: bytes) -> None:
        self._bridge = bridge
        self._calls = calls
        self._folder = folder
        self._data = data
        self._addr = ""
        self._store: BlobStore
        self.ref = BlobRef(digest=manifest_of(data).name, size_bytes=len(data))

    async def start(self) -> None:
        """Open the store, serve from it, and listen with a bare socket, too."""
        self._store = BlobStore(self._folder, QUOTA_BYTES)
        await self._store.open()
        self._calls.serve(rpc.BLOB_INFO, self._info)
        self._calls.serve(rpc.BLOB, self._blob)
        server = await asyncio.start_server(self._send, "127.0.0.1", 0)
        self._addr = "{}:{}".format(*server.sockets[0].getsockname())

    def tell(self) -> None:
        say({"addr": self._bridge.addrs()[0], "socket": self._addr})

    async def hold(self) -> dict[str, float]:
        """Have the blob on disk."""
        await self._store.put(self._data)
        return {}

    async def fetch(self, addrs: Sequence[str]) -> dict[str, float]:
        """The blob from donors at these addresses, into an empty store."""
        await self._store.remove(self.ref.digest)
        donors = [await self._bridge.connect(addr, CONNECT_S) for addr in addrs]
        blamed: list[str] = []
        transfers = Transfers(
            run=RUN,
            caller=self._calls,
            store=self._store,
            blame=lambda peer, reason: blamed.append(f"{peer}: {reason}"),
            is_relayed=self._bridge.is_relayed,
            rng=random.Random(7),
        )
        cpu, began = time.process_time(), time.perf_counter()
        path = await transfers.fetch(self.ref, lambda: donors)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        if blamed or path.stat().st_size != self.ref.size_bytes:
            raise ValueError(f"not the whole blob, or a donor is to blame: {blamed}")
        return {"seconds": seconds, "cpu_s": cpu_s}

    async def receive(self, addr: str) -> dict[str, float]:
        """As many bytes over one bare socket, into memory."""
        host, _, port = addr.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=READ_BYTES)
        into = bytearray(self.ref.size_bytes)
        cpu, began, got = time.process_time(), time.perf_counter(), 0
        while data := await reader.read(READ_BYTES):
            into[got : got + len(data)] = data
            got += len(data)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        writer.close()
        if got != self.ref.size_bytes:
            raise ValueError(f"{got} bytes over the bare socket")
        return {"seconds": seconds, "cpu_s": cpu_s}

    async def hash(self) -> dict[str, float]:
        """What hashing and writing the blob takes, without any network."""
        began = time.perf_counter()
        hashlib.blake2b(self._data, digest_size=32)
        hashed = time.perf_counter()
        file = self._folder / "write"
        with file.open("wb") as out:
            out.write(self._data)
            out.flush()
            os.fsync(out.fileno())
        written = time.perf_counter()
        file.unlink()
        return {"hash_s": hashed - began, "write_s": written - hashed}

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._data)
        await writer.drain()
        writer.close()

    async def _info(self, peer: PeerId, call: rpc.BlobInfoCall) -> rpc.BlobInfo:
        held = self._store.held(call.digest)
        if held is None:
            raise Refused("not-here", "that blob is not here")
        return rpc.BlobInfo(held.manifest if call.is_manifest_wanted else b"", held.chunks)

    async def _blob(self, peer: PeerId, call: rpc.BlobCall) -> bytes:
        part = await self._store.read(call.digest, call.offset, call.length)
        if part is None:
            raise Refused("not-here", "that chunk is not here")
        return part


async def obey(me: Peer) -> None:
    """Carry out orders until there are none."""
    loop = asyncio.get_running_loop()
    me.tell()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match json.loads(line):
            case {"do": "hold"}:
                say(await me.hold())
            case {"do": "fetch", "addrs": list(addrs)}:
                say(await me.fetch(addrs))
            case {"do": "receive", "addr": str(addr)}:
                say(await me.receive(addr))
            case {"do": "hash"}:
                say(await me.hash())
            case order:
                raise ValueError(f"no order: {order}")


def say(said: object) -> None:
    """One line to who started this process."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def main(folder: Path, mib: int, up_mbit: float) -> None:
    try:
        async with (
            Bridge(
                Signer(os.urandom(32)), listen=["/ip4/127.0.0.1/tcp/0"], up_mbit=up_mbit
            ) as bridge,
            Rpc(bridge) as calls,
        ):
            me = Peer(bridge, calls, folder, blob(mib))
            await me.start()
            await obey(me)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float((sys.argv[3:] or ["0"])[0])))
