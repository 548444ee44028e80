"""What anybody may do to the port of a node: nobody else notices, and the log says what it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from node.bridge import Bridge
from node.p2p import library, stack
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable

pytestmark = pytest.mark.libp2p

ALICE, BOB = (Signer(bytes([n]) * 32) for n in (1, 2))
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
ELSEWHERE = "127.0.0.5"
"""Where the strangers come from; Bob comes from 127.0.0.1."""
GREETING = b"\x13/multistream/1.0.0\n"


@asynccontextmanager
async def node(signer: Signer) -> AsyncIterator[Bridge]:
    async with Bridge(signer, listen=LOOPBACK) as bridge:
        yield bridge


async def stranger(bridge: Bridge) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(bridge.addrs()[0].split("/")[4])
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(ELSEWHERE, 0))


class Watching(logging.Handler):
    """Sets an event when something is logged, in whatever thread."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    def emit(self, _: logging.LogRecord) -> None:
        self._loop.call_soon_threadsafe(self.news.set)


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the log has it; the test's own deadline ends that."""
    watching = Watching()
    logging.getLogger().addHandler(watching)  # after caplog's: what is news is in its text
    try:
        while text not in caplog.text:
            await watching.news.wait()
            watching.news.clear()
    finally:
        logging.getLogger().removeHandler(watching)


async def test_garbage_is_cut_off_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "node.p2p.library")
    garbage = random.Random(1).randbytes(1 << 20)
    async with node(ALICE) as alice, node(BOB) as bob:
        config = alice._host._network.connection_config
        patience_s, config.inbound_upgrade_timeout = config.inbound_upgrade_timeout, 0.05
        reader, writer = await stranger(alice)
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until it is closed
        await logged(caplog, f"from={ELSEWHERE} reason=it did not say who it is")
        config.inbound_upgrade_timeout = patience_s  # Bob takes his time
        assert await bob.connect(alice.addrs()[0], 5) == ALICE.peer
        writer.close()


async def test_half_a_handshake_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "node.p2p.library")
    async with node(ALICE) as alice:
        alice._host._network.connection_config.inbound_upgrade_timeout = 0.05
        reader, writer = await stranger(alice)
        writer.write(GREETING + b"\x07/noise\n")
        await reader.read()  # until it is closed
        await logged(caplog, f"from={ELSEWHERE} reason=it did not say who it is")
        writer.close()


async def test_silent_strangers_have_so_many_places_and_take_none_from_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "node.p2p.library")
    async with node(ALICE) as alice, node(BOB) as bob:
        silent = [await stranger(alice) for _ in range(library.MAX_STRANGERS_AN_IP)]
        for _, writer in silent:
            writer.write(GREETING)
        for reader, _ in silent:
            assert await reader.readexactly(len(GREETING)) == GREETING
        reader, writer = await stranger(alice)
        assert await reader.read() == b""
        assert f"from={ELSEWHERE} reason=16 without a name" in caplog.text
        assert await bob.connect(alice.addrs()[0], 5) == ALICE.peer
        for _, other in (*silent, (reader, writer)):
            other.close()


async def test_a_node_takes_connections_for_as_long_as_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library alone takes so many in its life and no more."""
    monkeypatch.setattr(stack, "MAX_CONNECTIONS", 3)
    told: asyncio.Queue[bool] = asyncio.Queue()
    async with Bridge(
        ALICE, listen=LOOPBACK, on_peer=lambda _, is_here: told.put_nowait(is_here)
    ) as alice:
        for n in range(8):
            async with node(Signer(bytes([n + 10]) * 32)) as other:
                await other.connect(alice.addrs()[0], 5)
                assert await told.get()
            assert not await told.get()


async def test_a_full_node_refuses_and_says_so_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack, "MAX_CONNECTIONS", 1)
    async with node(ALICE) as alice, node(BOB) as bob, node(Signer(bytes(32))) as carol:
        await bob.connect(alice.addrs()[0], 5)
        with pytest.raises(PeerUnavailable):
            await carol.connect(alice.addrs()[0], 5)
        assert alice.connected() == (BOB.peer,)


def test_loopback_has_other_addresses() -> None:
    """What these tests rely on."""
    with socket.socket() as sock:
        sock.bind((ELSEWHERE, 0))
