"""What a lab consists of: machines, their addresses and their rules, worked out from the kinds.

    relay ---+                                   public net: 11.22.33.0/24, 2a0f:ff00::/64
             |
      h1 ----+  (none, fw: the host itself has the public address)
             |
      r2 ----+---- h2  (a router; 192.168.2.1 on its LAN, the host 192.168.2.2)

Every machine is a network namespace, and so is `wires`, which holds the switches: one that is the
internet, and one for each LAN.  Everybody's gateway there is a provider that drops what is for
private or unknown addresses without a word, as real ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.natlab import rules
from node.natlab.rules import Kind
from protocol.errors import ConfigError

WIRES = "wires"
INTERNET = "internet"
RELAY = "relay"
PUBLIC_NET = "11.22.33"
"""Not one of the documentation's: Python, go and rust say of those that they are not global."""
PUBLIC_NET_6 = "2a0f:ff00::"
PROVIDER = f"{PUBLIC_NET}.1"
RELAY_NUMBER = 10
FIRST_SITE_NUMBER = 101
"""The last part of the public address of the first host or router."""
MAX_SITES = 100
"""So many addresses are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A network device of a machine, and the switch that its cable leads to."""

    device: str
    switch: str
    ip: str
    """With the length of its net, as the next one."""
    ip6: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One namespace."""

    name: str
    ports: tuple[Port, ...]
    """The first is the one by which others know it."""
    rules: str
    gateway: str = PROVIDER
    """Where it sends what is not for its own net."""
    is_router: bool = False


def kind_of(text: str) -> Kind:
    """The kind that a person named.

    Raises:
        ConfigError: there is no such kind.
    """
    try:
        return Kind(text)
    except ValueError:
        known = ", ".join(kind.value for kind in Kind)
        raise ConfigError(f"natlab: found the kind {text!r:.40}, expected one of {known}") from None


def machines(kinds: Sequence[Kind]) -> list[Machine]:
    """The relay, then site by site a router, if it has one, and its hosts, numbered from h1."""
    if len(kinds) > MAX_SITES:
        raise ConfigError(f"natlab: found {len(kinds)} kinds, expected at most {MAX_SITES}")
    made = [_public(RELAY, RELAY_NUMBER, rules.ACCOUNT)]
    num_hosts = 0
    for site, kind in enumerate(kinds, 1):
        number = FIRST_SITE_NUMBER + site - 1
        names = [f"h{num_hosts + count + 1}" for count in range(kind.num_hosts)]
        num_hosts += kind.num_hosts
        if kind.is_public:
            filtering = rules.FIREWALL if kind is Kind.FW else ""
            made.append(_public(names[0], number, rules.ACCOUNT + filtering))
        else:
            made += _behind_router(kind, site, number, names)
    return made


def _public(name: str, number: int, text: str) -> Machine:
    return Machine(name=name, ports=(_uplink("eth0", number, with_ip6=True),), rules=text)


def _uplink(device: str, number: int, *, with_ip6: bool) -> Port:
    return Port(
        device=device,
        switch=INTERNET,
        ip=f"{PUBLIC_NET}.{number}/24",
        ip6=f"{PUBLIC_NET_6}{number}/64" if with_ip6 else None,
    )


def _behind_router(kind: Kind, site: int, number: int, names: Sequence[str]) -> list[Machine]:
    lan, net = f"lan{site}", f"192.168.{site}"
    router = Machine(
        name=f"r{site}",
        ports=(
            _uplink("wan", number, with_ip6=False),
            Port(device="lan", switch=lan, ip=f"{net}.1/24"),
        ),
        rules=rules.router(kind, f"{net}.2"),
        is_router=True,
    )
    hosts = [
        Machine(
            name=name,
            ports=(Port(device="eth0", switch=lan, ip=f"{net}.{count}/24"),),
            rules=rules.ACCOUNT,
            gateway=f"{net}.1",
        )
        for count, name in enumerate(names, 2)
    ]
    return [router, *hosts]
