"""Multiaddrs: texts from outside into addresses to dial and to listen on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from node.addr_text import CIRCUIT, ip_of, port_of
from node.p2p import library
from protocol import check
from protocol.errors import ConfigError
from protocol.ids import PeerId
from protocol.limits import MAX_ADDR_BYTES


def peer_of(addr: str) -> PeerId:
    """The peer that a multiaddr with /p2p/ID leads to.

    Raises:
        ValueError: it is no such address.
    """
    if len(addr) > MAX_ADDR_BYTES:
        raise ValueError(f"an address of {len(addr)} characters, at most {MAX_ADDR_BYTES}")
    try:
        Multiaddr(addr)
        _, found, id = addr.rpartition("/p2p/")
        if not found:
            raise ValueError("no peer")
        peer = PeerId(id)
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"{addr!r} is no address that ends in /p2p/ID") from error
    if not is_shoal_id(peer):
        raise ValueError(f"{addr!r} is the address of a peer without an Ed25519 key")
    return peer


def is_shoal_id(peer: PeerId) -> bool:
    """Whether it is the id of an Ed25519 key: others cannot take part."""
    try:
        check.peer("peer", peer)
    except ValueError:
        return False
    return True


def advertised(listening: list[Multiaddr]) -> list[Multiaddr]:
    """Where others may dial: of a wildcard the addresses of this machine, loopback not among
    them, for others would dial themselves."""
    return [addr for one in listening for addr in expand_wildcard_address(one)]


def readable(addrs: Iterable[Multiaddr]) -> list[str]:
    """Their texts.  Peers send them as bytes, which the library parses when they are printed, and
    not before: those that cannot be are left out."""
    found = []
    for addr in addrs:
        with suppress(MultiaddrError, ValueError):
            found.append(str(addr))
    return found


def circuit(addr: Multiaddr) -> Multiaddr | None:
    """The relay's address, with its id, of an address through a relay; None: it is direct."""
    relay, found, _ = str(addr).partition(f"/{CIRCUIT}")
    return Multiaddr(relay) if found else None


def dial_addr(text: str, peer: PeerId) -> Multiaddr | None:
    """`text` with /p2p/ID at its end, or None if it leads to nobody or somebody else."""
    try:
        if len(text) > MAX_ADDR_BYTES:
            return None
        is_whole = text.rpartition("/")[0].endswith("/p2p")
        addr = Multiaddr(text if is_whole else f"{text}/p2p/{peer}")
        return addr if peer_of(str(addr)) == peer else None
    except (MultiaddrError, ValueError):
        return None


def listen_addr(text: str) -> Multiaddr:
    try:
        addr = Multiaddr(text)
        addr.value_for_protocol("tcp")
    except (MultiaddrError, ValueError) as error:
        raise ConfigError(
            f"listen: found {text!r}, expected an address such as /ip4/0.0.0.0/tcp/4001; "
            "correct it in the configuration"
        ) from error
    return addr


def check_port(addr: Multiaddr) -> None:
    ip, port = ip_of(str(addr)), port_of(str(addr))
    try:
        if ip is not None and port and library.port_is_taken(str(ip), port):
            raise ConfigError(
                f"listen: found port {port} of {ip} in use by another program, expected it "
                "free; stop that program or choose another port"
            )
    except OSError as error:
        raise ConfigError(cannot_listen([addr])) from error


def cannot_listen(addrs: Sequence[Multiaddr]) -> str:
    return (
        f"listen: {', '.join(map(str, addrs))} cannot be listened on, expected addresses of "
        "this machine and free ports; choose other ones"
    )
