"""What each kind of router or firewall does, as nftables rules: texts, nothing else.

The words follow RFC 4787, section 5: a filter that is *address and port dependent* lets in only
answers, and a mapping is *endpoint-independent* when one inner port has one outer port whatever
the destination.
"""

from __future__ import annotations

from enum import Enum

MAPPED_PORT = 4001
"""The inner port, shoal's own, that an `eim` router maps to another one,"""
MAPPED_TO = 45001
"""which is this, for every destination."""
SHIFT_PORTS = "40000-49999"
"""Where a `shift` router takes its ports from."""


class Kind(Enum):
    """Where a host lives, and what stands between it and the others."""

    NONE = "none"
    """A public address, no filter."""
    FW = "fw"
    """A public address behind a firewall that drops new inbound connections."""
    FULLCONE = "fullcone"
    """NAT; whatever comes from outside goes to the host."""
    CONE = "cone"
    """NAT that keeps ports; new inbound is dropped."""
    CONE_RST = "cone-rst"
    """The same, but new inbound is answered with a reset, as home routers do."""
    EIM = "eim"
    """NAT that maps port 4001 to 45001 for every destination; new inbound is dropped."""
    SYM = "sym"
    """NAT with a random port for every destination; new inbound is dropped."""
    SHIFT = "shift"
    """The same, with ports out of a small range."""
    LAN2 = "lan2"
    """Two hosts on one LAN behind one `cone` router."""

    @property
    def is_public(self) -> bool:
        """Whether the host has a public address of its own."""
        return self in (Kind.NONE, Kind.FW)

    @property
    def num_hosts(self) -> int:
        return 2 if self is Kind.LAN2 else 1


FIREWALL = """
table inet firewall {
    chain input {
        type filter hook input priority 0;
        iif lo accept
        meta l4proto icmpv6 accept
        ct state established,related accept
        ct state new drop
    }
}
"""
"""ICMPv6 is how neighbours find each other: without it nothing would arrive, wanted or not."""

ACCOUNT = """
table inet account {
    counter received { }
    counter sent { }
    chain input {
        type filter hook input priority -400;
        iif != lo counter name received
    }
    chain output {
        type filter hook output priority -400;
        oif != lo counter name sent
    }
}
"""
"""Bytes of IP packets that a machine of the lab takes and sends itself, not those it forwards."""

ROUTER = """
table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority -100;
        {forwarding}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100;
        {mapping}
    }}
}}
table ip filter {{
    chain input {{
        type filter hook input priority 0;
        {filtering}
    }}
    chain forward {{
        type filter hook forward priority 0;
        {filtering}
    }}
}}
"""
DROP = "iifname wan ct state new drop"
RESET = """iifname wan ct state new meta l4proto tcp reject with tcp reset
        iifname wan ct state new reject"""
MAPPINGS = {
    Kind.EIM: f"""oifname wan meta l4proto tcp tcp sport {MAPPED_PORT} masquerade to :{MAPPED_TO}
        oifname wan meta l4proto udp udp sport {MAPPED_PORT} masquerade to :{MAPPED_TO}
        oifname wan masquerade""",
    Kind.SYM: "oifname wan masquerade random,fully-random",
    Kind.SHIFT: f"oifname wan meta l4proto {{ tcp, udp }} masquerade to :{SHIFT_PORTS} random",
}
"""Of the other kinds: plain masquerading, which keeps the port where it can."""


def router(kind: Kind, host_ip: str) -> str:
    """The rules of a router with devices `wan` and `lan`, and one host behind it."""
    return ROUTER.format(
        forwarding=f"iifname wan dnat to {host_ip}" if kind is Kind.FULLCONE else "",
        mapping=MAPPINGS.get(kind, "oifname wan masquerade"),
        filtering={Kind.FULLCONE: "", Kind.CONE_RST: RESET}.get(kind, DROP),
    )
