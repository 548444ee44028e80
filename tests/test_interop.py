"""libp2p of other languages on loopback, over TCP, Noise and Yamux: ping, identify, the DHT.

Go is the daemon of hivemind's wheel (tests/p2pd.py says how to get it), Rust is inside the package
lattica.  js-libp2p would need Node 22, so it is not here.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import p2pd
import pytest
from libp2p.identity.identify import identify
from multiaddr import Multiaddr

from node.bridge import Bridge
from protocol.envelope import Signer
from protocol.ids import PeerId

T = TypeVar("T")

ME = Signer(b"i" * 32)
DEADLINE_S = 15.0
"""Of what takes a second."""
PING, IDENTIFY, KAD = "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/kad/1.0.0"
MAX_BYTES = 1 << 16

pytestmark = pytest.mark.libp2p
needs_go = pytest.mark.skipif(
    not p2pd.BINARY.exists(),
    reason="go-libp2p is not here; .venv/bin/python tests/p2pd.py fetches it (9.5 MB)",
)
needs_rust = pytest.mark.skipif(
    importlib.util.find_spec("lattica") is None,
    reason="rust-libp2p is not here; .venv/bin/pip install lattica==1.0.21 gets it (17 MB)",
)


class Node:
    """Our side, and who came."""

    def __init__(self, bridge: Bridge, told: asyncio.Queue[tuple[PeerId, bool]]) -> None:
        self.bridge = bridge
        self.told = told


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    told: asyncio.Queue[tuple[PeerId, bool]] = asyncio.Queue()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with (
        asyncio.timeout(DEADLINE_S),
        Bridge(ME, listen=listen, on_peer=lambda *change: told.put_nowait(change)) as bridge,
    ):
        yield Node(bridge, told)


async def until_provided(bridge: Bridge, key: bytes) -> None:
    """Provide `key` once the other side is in our routing table."""
    while not await bridge.provide(key):
        pass


def binary(addr: str) -> bytes:
    """Without /p2p/ID, as the daemon wants it."""
    return bytes(Multiaddr(addr.rpartition("/p2p/")[0]).to_bytes())


def multihash(name: bytes) -> bytes:
    return b"\x12\x20" + hashlib.sha256(name).digest()


def cid(name: bytes) -> bytes:
    """The daemon names what is provided by a CID; in the DHT only the multihash is left."""
    return b"\x01\x55" + multihash(name)


# --- go --------------------------------------------------------------------------------------


@needs_go
async def test_go_dials_us_pings_us_and_learns_what_we_speak(tmp_path: Path) -> None:
    async with node() as we, p2pd.daemon(tmp_path, "-dhtServer") as go:
        await go.connect(ME.peer, [binary(we.bridge.addrs()[0])])
        assert await go.peers() == {ME.peer}
        assert await we.told.get() == (go.peer, True)
        async with go.stream(ME.peer, PING) as (reader, writer):
            writer.write(b"p" * 32)
            assert await reader.readexactly(32) == b"p" * 32
        async with go.stream(ME.peer, IDENTIFY) as (reader, _):
            said = await reader.read(MAX_BYTES)
        spoken = ["/shoal/control/1", "/shoal/bulk/1", KAD, PING]
        assert [name for name in spoken if name.encode() in said] == spoken


@needs_go
async def test_we_dial_go_by_its_multiaddr(tmp_path: Path) -> None:
    async with node() as we, p2pd.daemon(tmp_path, "-dhtServer") as go:
        addr = f"{Multiaddr(go.addrs[0])}/p2p/{go.peer}"
        assert await we.bridge.connect(addr, 5) == go.peer
        while await go.peers() != {ME.peer}:  # noqa: ASYNC110  it learns of us a moment later
            await asyncio.sleep(0.01)


@needs_go
async def test_we_and_go_find_each_others_provider_records(tmp_path: Path) -> None:
    async with node() as we, p2pd.daemon(tmp_path, "-dhtServer") as go:
        await go.connect(ME.peer, [binary(we.bridge.addrs()[0])])
        await until_provided(we.bridge, multihash(b"ours"))
        assert await go.providers(cid(b"ours")) == {ME.peer}
        await go.provide(cid(b"theirs"))
        found = await we.bridge.find_providers(multihash(b"theirs"))
        assert [(peer, addrs) for peer, addrs in found if addrs] == [
            (go.peer, [str(Multiaddr(go.addrs[0]))])
        ]
        assert await go.finds(ME.peer)


@needs_go
async def test_two_of_us_find_each_other_through_a_dht_of_go(tmp_path: Path) -> None:
    other = Signer(b"o" * 32)
    key = hashlib.blake2b(b"run", digest_size=32).digest()
    async with (
        node() as we,
        Bridge(other, listen=["/ip4/127.0.0.1/tcp/0"]) as theirs,
        p2pd.daemon(tmp_path, "-dhtServer") as go,
    ):
        addr = f"{Multiaddr(go.addrs[0])}/p2p/{go.peer}"
        await we.bridge.connect(addr, 5)
        await theirs.connect(addr, 5)
        await until_provided(theirs, key)
        found: list[tuple[PeerId, list[str]]] = []
        while not found:
            found = await we.bridge.find_providers(key)
        assert [peer for peer, _ in found] == [other.peer]


# --- rust ------------------------------------------------------------------------------------


@pytest.fixture
def same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lattica hangs up on whoever's identify names another version than its own DHT's protocol,
    a habit of that program: libp2p asks nobody to."""
    monkeypatch.setattr(identify, "PROTOCOL_VERSION", KAD)


async def apart(work: Callable[[], T]) -> T:
    """Lattica's calls wait: each in a thread."""
    return await asyncio.to_thread(work)


@asynccontextmanager
async def rust(we: Node) -> AsyncIterator[Any]:
    """A rust-libp2p node that is connected to us."""
    with socket.socket() as probe:  # it does not tell which port it was given
        probe.bind(("127.0.0.1", 0))
        listen = [f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"]
    builder = importlib.import_module("lattica").Lattica.builder()
    builder = builder.with_listen_addrs(listen).with_external_addrs(listen)
    builder = builder.with_mdns(False).with_upnp(False).with_protocol(KAD)
    made = await apart(builder.with_bootstraps([we.bridge.addrs()[0]]).build)
    try:
        yield made
    finally:
        await apart(made.close)


@needs_rust
@pytest.mark.usefixtures("same_version")
async def test_rust_dials_us_and_pings_us() -> None:
    async with node() as we, rust(we) as other:
        assert await we.told.get() == (other.peer_id(), True)
        while await apart(other.get_all_peers) != [ME.peer]:  # until it has identified us
            pass
        while await apart(lambda: other.get_peer_rtt(ME.peer)) is None:  # until it has pinged us
            pass


@needs_rust
@pytest.mark.usefixtures("same_version")
async def test_we_and_rust_find_each_others_provider_records() -> None:
    async with node() as we, rust(we) as other:
        assert await we.told.get() == (other.peer_id(), True)
        await until_provided(we.bridge, b"ours")
        assert await apart(lambda: other.get_providers("ours")) == [ME.peer]
        await apart(lambda: other.start_providing("theirs"))
        found: list[tuple[PeerId, list[str]]] = []
        while not found:
            found = await we.bridge.find_providers(b"theirs")
        assert [peer for peer, _ in found] == [other.peer_id()]
