"""The LAN: what is said and heard by multicast, and that none of it does harm."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import lan
from node.lan import Lan, on_lan, peer_on_lan, txt_record
from protocol.envelope import Signer
from protocol.ids import PeerId
from protocol.limits import MAX_ADDRS

ALICE, BOB = Signer(b"a" * 32).peer, Signer(b"b" * 32).peer
DEADLINE_S = 15.0
"""Of what takes one second: three probes of the name, then the announcement."""

Heard = asyncio.Queue[tuple[PeerId, tuple[str, ...]]]


def addr_of(peer: PeerId, host: str = "192.168.1.5") -> str:
    return f"/ip4/{host}/tcp/4001/p2p/{peer}"


def strings(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts)


def said(*addrs: str) -> list[bytes]:
    return [b"dnsaddr=" + addr.encode() for addr in addrs]


def multicast_works() -> bool:
    """Whether a datagram to the group of mDNS comes back on loopback."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        loopback = socket.inet_aton("127.0.0.1")
        try:
            listener.bind(("", 0))
            group = struct.pack("4s4s", socket.inet_aton("224.0.0.251"), loopback)
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sender.sendto(b"x", ("224.0.0.251", listener.getsockname()[1]))
            listener.settimeout(1.0)
            return listener.recv(1) == b"x"
        except OSError:
            return False


@asynccontextmanager
async def on_loopback(peer: PeerId, *addrs: str) -> AsyncIterator[Heard]:
    """A node that speaks and hears on this machine's loopback; what it hears."""
    heard: Heard = asyncio.Queue()
    node = Lan(
        me=peer,
        addrs=lambda: addrs,
        found=lambda *one: heard.put_nowait(one),
        interfaces=["127.0.0.1"],
    )
    running = asyncio.ensure_future(node.run())
    try:
        yield heard
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.libp2p
@pytest.mark.skipif(not multicast_works(), reason="this machine has no multicast on loopback")
async def test_two_nodes_on_one_wire_hear_each_other_and_not_themselves() -> None:
    async with (
        on_loopback(ALICE, addr_of(ALICE), "/ip4/127.0.0.1/tcp/1/p2p/" + ALICE) as by_alice,
        on_loopback(BOB, addr_of(BOB), addr_of(BOB, "10.0.0.7")) as by_bob,
    ):
        async with asyncio.timeout(DEADLINE_S):
            assert await by_alice.get() == (BOB, (addr_of(BOB), addr_of(BOB, "10.0.0.7")))
            assert await by_bob.get() == (ALICE, (addr_of(ALICE),))


async def test_without_multicast_there_is_one_line_and_no_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_device(**options: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(lan, "AsyncZeroconf", no_device)
    with caplog.at_level(logging.INFO):
        await Lan(me=ALICE, addrs=lambda: (addr_of(ALICE),), found=fail).run()
    (line,) = caplog.messages
    assert line == "LAN not searched: reason=no multicast here: [Errno 19] No such device"


async def test_a_node_that_only_this_machine_can_dial_keeps_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lan, "AsyncZeroconf", fail)
    await Lan(me=ALICE, addrs=lambda: (addr_of(ALICE, "127.0.0.1"),), found=fail).run()


def fail(*args: object, **options: object) -> None:
    pytest.fail("nothing was to be opened or found")


# --- the TXT record --------------------------------------------------------------------------


def test_what_is_said_is_as_the_spec_of_libp2p_has_it() -> None:
    assert txt_record([addr_of(ALICE)]) == strings(
        b"dnsaddr=" + addr_of(ALICE).encode(), b"shoal=1"
    )


def test_what_is_said_is_heard() -> None:
    addrs = (addr_of(ALICE), f"/ip6/fd00::1/tcp/4001/p2p/{ALICE}")
    assert peer_on_lan(txt_record(addrs)) == (ALICE, addrs)


@pytest.mark.parametrize(
    "txt",
    [
        strings(*said(addr_of(ALICE))),  # another libp2p program
        strings(b"shoal=1"),
        strings(b"shoal=1", *said(addr_of(ALICE), addr_of(BOB))),
        strings(b"shoal=1", *said("/ip4/192.168.1.5/tcp/4001/p2p/nobody")),
        strings(b"shoal=1", *said(addr_of(ALICE, "127.0.0.1"))),
        strings(b"shoal=1", *said(addr_of(ALICE, "example.org"))),
        strings(b"shoal=1", b"dnsaddr=\xff\xff"),
        txt_record([addr_of(ALICE)])[:-1],
        b"",
    ],
)
def test_skips(txt: bytes) -> None:
    assert peer_on_lan(txt) is None


@given(st.binary(max_size=300), st.booleans())
def test_noise_on_the_wire_is_skipped(noise: bytes, is_marked: bool) -> None:
    assert peer_on_lan(strings(b"shoal=1") + noise if is_marked else noise) is None


def test_only_what_another_machine_can_dial_is_said() -> None:
    good = (addr_of(ALICE), f"/ip6/fe80::1/tcp/1/p2p/{ALICE}")
    relayed = f"{addr_of(BOB)}/p2p-circuit/p2p/{ALICE}"
    bad = (addr_of(ALICE, "127.0.0.1"), addr_of(ALICE, "0.0.0.0"), relayed, "nonsense", "")
    assert on_lan((*bad, *good)) == good
    assert len(on_lan(good * 20)) == MAX_ADDRS
