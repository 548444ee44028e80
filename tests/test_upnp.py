"""The router's port: opened, renewed, given back; and nothing hangs where there is no router."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from fake_igd import LOOPBACK, FakeRouter, search_socket

from node import upnp
from node.upnp import LEASE_S, NoRouter, PortMapping, is_outer

DEADLINE_S = 15.0
"""Of what takes two seconds: the search waits for all routers."""


def multicast_works() -> bool:
    try:
        search_socket().close()
    except OSError:
        return False
    return True


needs_multicast = [
    pytest.mark.libp2p,
    pytest.mark.skipif(not multicast_works(), reason="this machine has no multicast on loopback"),
]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    monkeypatch.setattr(upnp, "ANSWER_MS", 300)
    made = FakeRouter()
    with made.running():
        yield made


Told = asyncio.Queue[str | None]


@asynccontextmanager
async def mapping(port: int) -> AsyncIterator[Told]:
    """A mapping that runs; what it tells."""
    told: Told = asyncio.Queue()
    made = PortMapping(port, changed=told.put_nowait, interface=LOOPBACK)
    running = asyncio.ensure_future(made.run())
    try:
        yield told
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


class TestWithARouter:
    pytestmark = needs_multicast

    async def test_the_port_is_leased_and_given_back_at_the_end(self, router: FakeRouter) -> None:
        async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
            assert await told.get() == "/ip4/203.0.113.9/tcp/4001"
            assert router.open == {4001: (LOOPBACK, 4001, LEASE_S)}
        assert (router.open, router.closed) == ({}, [4001])

    async def test_a_port_that_another_node_has_is_passed_over(self, router: FakeRouter) -> None:
        router.taken = {4001, 4002}
        async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
            assert await told.get() == "/ip4/203.0.113.9/tcp/4003"
            assert router.open == {4003: (LOOPBACK, 4001, LEASE_S)}
        assert router.closed == [4003]

    async def test_a_router_without_leases_gets_a_mapping_that_is_removed(
        self, router: FakeRouter
    ) -> None:
        router.knows_leases = False
        async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
            assert await told.get() == "/ip4/203.0.113.9/tcp/4001"
            assert router.open == {4001: (LOOPBACK, 4001, 0)}
        assert router.open == {}

    async def test_it_is_renewed_and_a_new_address_of_the_line_is_told(
        self, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upnp, "RENEW_S", 0.05)
        async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
            assert await told.get() == "/ip4/203.0.113.9/tcp/4001"
            router.open.clear()  # it restarted, and has another address
            router.host = "203.0.113.10"
            assert await told.get() == "/ip4/203.0.113.10/tcp/4001"
            assert router.open == {4001: (LOOPBACK, 4001, LEASE_S)}

    async def test_a_router_behind_a_router_is_of_no_use_and_is_left_as_it_was(
        self, router: FakeRouter
    ) -> None:
        router.host = "100.64.3.2"
        async with asyncio.timeout(DEADLINE_S):
            made = PortMapping(4001, changed=never, interface=LOOPBACK)
            with pytest.raises(NoRouter, match=r"its own address is 100\.64\.3\.2, behind"):
                await made._map()
        assert (router.open, router.closed) == ({}, [4001])

    async def test_a_router_that_hangs_is_given_up_at_the_end_too(
        self, router: FakeRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(upnp, "REMOVE_S", 0.05)
        with caplog.at_level(logging.INFO):
            async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
                await told.get()
                router.hangs = True
        (line,) = [text for text in caplog.messages if text.startswith("port left to its lease")]
        assert line.endswith("external=/ip4/203.0.113.9/tcp/4001 reason=no answer within 0.05 s")


async def test_without_a_router_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    class Nobody(upnp.Router):
        def find(self) -> None:
            loop.call_soon_threadsafe(looked.put_nowait, None)
            raise NoRouter("none answers")

    monkeypatch.setattr(upnp, "Router", Nobody)
    monkeypatch.setattr(upnp, "AGAIN_S", 0.0)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(DEADLINE_S), mapping(4001) as told:
            for _ in range(3):
                await looked.get()
            assert told.empty()
    assert caplog.messages == ["no port of a router: reason=none answers"]


async def test_a_thread_that_does_not_come_back_is_left_behind() -> None:
    over = threading.Event()
    with pytest.raises(NoRouter, match=r"no answer within 0\.01 s"):
        await upnp._asked(over.wait, 0.01)
    over.set()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("203.0.113.9", True),
        ("100.63.0.1", True),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("172.31.0.1", False),
        ("0.0.0.0", False),
        ("", False),
        ("router.local", False),
        ("fe80::1", False),
    ],
)
def test_which_addresses_of_a_router_others_can_dial(host: str, expected: bool) -> None:
    assert is_outer(host) == expected


def never(external: str | None) -> None:
    pytest.fail(f"told {external}")
