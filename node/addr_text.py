"""Multiaddrs as text: which peer, host and port one names, and who can dial it.

For addresses that were checked where they came in (node.settings, protocol.check, node.p2p.addrs)
or that the network itself gave; of any other text the answer is empty, never an error.
"""

from __future__ import annotations

import ipaddress

from protocol.ids import PeerId

CIRCUIT = "p2p-circuit"
"""In an address that goes through a relay."""


def peer_in(addr: str) -> PeerId:
    """The peer that the address leads to: the last one in it."""
    return PeerId(addr.rpartition("/p2p/")[2])


def without_peer(addr: str) -> str:
    """The address up to its first peer: of a relayed one, where the relay is."""
    return addr.partition("/p2p/")[0]


def with_peer(addr: str, peer: PeerId) -> str:
    """The address with /p2p/PEER at its end."""
    return addr if addr.endswith(f"/p2p/{peer}") else f"{addr}/p2p/{peer}"


def host_of(addr: str) -> str:
    """`/ip4/HOST`, or the same of another family."""
    return "/".join(addr.split("/")[:3])


def ip_of(addr: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address at the beginning; None: there is a name, or nothing that can be read."""
    _, family, ip, *_ = [*addr.split("/"), "", "", ""]
    if family not in ("ip4", "ip6"):
        return None
    try:
        return ipaddress.ip_address(ip)
    except ValueError:
        return None


def port_of(addr: str) -> int:
    """The TCP port; 0: there is none."""
    port = addr.partition("/tcp/")[2].partition("/")[0]
    return int(port) if port.isdecimal() else 0


def is_relayed(addr: str) -> bool:
    """Whether it goes through a relay."""
    return CIRCUIT in addr.split("/")


def is_loopback(addr: str) -> bool:
    """Whether it leads to this machine only."""
    ip = ip_of(addr)
    return ip is not None and ip.is_loopback


def is_global(addr: str) -> bool:
    """Whether it is a direct address that means the same everywhere."""
    ip = ip_of(addr)
    return ip is not None and ip.is_global and bool(port_of(addr)) and not is_relayed(addr)
