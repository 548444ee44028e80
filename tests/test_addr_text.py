"""Multiaddrs as text."""

from __future__ import annotations

import pytest

from node import addr_text
from protocol.envelope import Signer

ALICE, RELAY = (Signer(bytes([n]) * 32).peer for n in (1, 2))
DIRECT = f"/ip4/11.22.33.44/tcp/4001/p2p/{ALICE}"
THROUGH = f"/ip6/2a0f:ff00::1/tcp/4002/p2p/{RELAY}/p2p-circuit/p2p/{ALICE}"
NAMED = "/dns4/example.org/tcp/4003"


def test_the_parts_of_a_direct_a_relayed_and_a_named_address() -> None:
    every = (DIRECT, THROUGH, NAMED)
    assert [addr_text.peer_in(addr) for addr in every[:2]] == [ALICE, ALICE]
    assert [addr_text.without_peer(addr) for addr in every] == [
        "/ip4/11.22.33.44/tcp/4001", "/ip6/2a0f:ff00::1/tcp/4002", NAMED,
    ]  # fmt: skip
    assert [addr_text.host_of(addr) for addr in every] == [
        "/ip4/11.22.33.44", "/ip6/2a0f:ff00::1", "/dns4/example.org",
    ]  # fmt: skip
    assert [str(addr_text.ip_of(addr)) for addr in every] == [
        "11.22.33.44", "2a0f:ff00::1", "None",
    ]  # fmt: skip
    assert [addr_text.port_of(addr) for addr in every] == [4001, 4002, 4003]
    assert [addr_text.is_relayed(addr) for addr in every] == [False, True, False]


def test_a_peer_is_named_once_at_the_end() -> None:
    assert addr_text.with_peer(NAMED, ALICE) == f"{NAMED}/p2p/{ALICE}"
    for addr in (DIRECT, THROUGH):
        assert addr_text.with_peer(addr, ALICE) == addr


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        (DIRECT, True),
        (THROUGH, False),
        (addr_text.without_peer(THROUGH), True),
        (NAMED, False),
        ("/ip4/192.168.1.7/tcp/4001", False),
        ("/ip4/100.64.0.1/tcp/4001", False),
        ("/ip4/127.0.0.1/tcp/4001", False),
        ("/ip6/fe80::1/tcp/4001", False),
        ("/ip4/11.22.33.44", False),
        ("/ip4/11.22.33/tcp/4001", False),
        ("/ip4", False),
        ("11.22.33.44:4001", False),
        ("", False),
    ],
)
def test_which_addresses_mean_the_same_everywhere(addr: str, expected: bool) -> None:
    assert addr_text.is_global(addr) is expected


def test_which_addresses_lead_to_this_machine_only() -> None:
    assert addr_text.is_loopback("/ip4/127.0.0.9/tcp/1")
    assert addr_text.is_loopback("/ip6/::1/tcp/1")
    assert not addr_text.is_loopback(DIRECT)
    assert not addr_text.is_loopback(NAMED)
