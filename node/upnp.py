"""A port of the router: it passes connections on to this node while the node runs.

Most home routers open a port when a program on the LAN asks (UPnP, Internet Gateway Device).
The mapping is a lease, asked for again long before it ends and given back at the end, so a
killed node leaves nothing open for long.  miniupnpc waits without asking us, so it has a thread
of its own and every call a deadline; a thread that does not come back is left behind.

Where there is no such router (most clouds, and careful homes) there is one line in the log.

Source: UPnP Forum, WANIPConnection:2, http://upnp.org/specs/gw/UPnP-gw-WANIPConnection-v2-Service.pdf
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import miniupnpc

from node.own_thread import in_thread

T = TypeVar("T")

log = logging.getLogger(__name__)

LEASE_S = 3600
"""Long enough to survive a laptop's nap, short enough that a killed node's port closes."""
RENEW_S = 600.0
"""Between two renewals; also how late a new address of the line is noticed."""
AGAIN_S = 1800.0
"""Until a router is looked for again where there was none, or it refused."""
ANSWER_MS = 1000
"""How long each of the search's questions waits for routers.  They must answer within the MX
that the library asks with, 2 s at most, and do so at once."""
FIND_S = 20.0
"""Deadline of finding a router: 4 to 6 s measured where there is none."""
CALL_S = 10.0
"""Deadline of asking it for something: two or three calls of HTTP on the LAN."""
REMOVE_S = 0.8
"""Deadline of giving the port back at the end: the node has three seconds for everything."""
TRIES = 4
"""Outer ports tried: ours, and the next ones, for another node on this LAN may have it."""
PERMANENT_ONLY = "OnlyPermanentLeasesSupported"
"""Error 725: the router knows no leases.  Then it gets a mapping for ever, removed at the end."""
INNER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8",
        "169.254.0.0/16", "0.0.0.0/8",
    )
)  # fmt: skip
"""Addresses that nobody outside can dial: a router with one of them is behind another."""


class NoRouter(Exception):
    """There is none that opens a port for us, and why."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the router gave."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"/ip4/{self.host}/tcp/{self.port}"


class PortMapping:
    """The mapping of one TCP port.  Everything happens in the one event loop."""

    def __init__(
        self,
        port: int,
        *,
        changed: Callable[[str | None], None] = lambda external: None,
        interface: str | None = None,
    ) -> None:
        """
        Args:
            port: on which this node listens.
            changed: told `external` each time that it is another one; must not raise.
            interface: address of this machine towards the router; None: the system chooses.
        """
        self.external: str | None = None
        """/ip4/HOST/tcp/PORT under which the router can be dialled, while it passes that on."""
        self._port = port
        self._changed = changed
        self._interface = interface
        self._router: Router | None = None
        self._mapped: Mapped | None = None
        self._reason = ""

    async def run(self) -> None:
        """Find a router and keep the port open until cancelled, then close it."""
        try:
            while True:
                try:
                    await self._map()
                    pause_s = RENEW_S
                except NoRouter as error:
                    self._lose(str(error))
                    pause_s = AGAIN_S
                await asyncio.sleep(pause_s)
        finally:
            await self._unmap()

    async def _map(self) -> None:
        """Open the port, or keep it open."""
        if self._router is None:
            router = Router(self._interface)
            await _asked(router.find, FIND_S)
            self._router = router
        router, mapped = self._router, self._mapped
        first = mapped.port if mapped else self._port
        given = await _asked(lambda: router.open(first, self._port), CALL_S)
        self._mapped = given
        if not is_outer(given.host):
            await self._unmap()
            raise NoRouter(f"its own address is {given.host}, behind another router")
        external = str(given)
        if external != self.external:
            log.info("router opened a port: external=%s inner_port=%d", external, self._port)
            self._reason = ""
            self.external = external
            self._changed(external)

    def _lose(self, reason: str) -> None:
        """No mapping any more; the router is looked for from the beginning."""
        if reason != self._reason:
            log.info("no port of a router: reason=%s", reason)
        self._reason, self._router, self._mapped = reason, None, None
        if self.external is not None:
            self.external = None
            self._changed(None)

    async def _unmap(self) -> None:
        router, mapped, self._mapped = self._router, self._mapped, None
        if router is None or mapped is None:
            return
        try:
            await _asked(lambda: router.close(mapped.port), REMOVE_S)
        except NoRouter as error:
            log.info("port left to its lease: external=%s reason=%s", mapped, error)


class Router:
    """The library's calls, in a thread.  Every method raises NoRouter."""

    def __init__(self, interface: str | None) -> None:
        options = {"multicastif": interface} if interface else {}
        self._upnp = miniupnpc.UPnP(discoverdelay=ANSWER_MS, **options)

    def find(self) -> None:
        """Choose the router of this LAN."""
        try:
            if not self._upnp.discover():
                raise NoRouter("none answers")
            self._upnp.selectigd()
        except NoRouter:
            raise
        except Exception as error:  # the library knows no other
            raise NoRouter(_said(error, "none answers")) from error

    def open(self, outer_port: int, inner_port: int) -> Mapped:
        """Have an outer port passed on to us: this one, or one of the next."""
        reason = "it refused"
        for port in range(outer_port, min(outer_port + TRIES, 65536)):
            for lease_s in (LEASE_S, 0):
                try:
                    self._ask_for(port, inner_port, lease_s)
                    return Mapped(self._upnp.externalipaddress(), port)
                except Exception as error:  # noqa: BLE001  # the library knows no other
                    reason = _said(error, "it refused")
                    if reason != PERMANENT_ONLY:
                        break
        raise NoRouter(reason)

    def close(self, outer_port: int) -> None:
        """Give the port back."""
        try:
            self._upnp.deleteportmapping(outer_port, "TCP")
        except Exception as error:  # the library knows no other
            raise NoRouter(_said(error, "it refused")) from error

    def _ask_for(self, outer_port: int, inner_port: int, lease_s: int) -> None:
        inner = self._upnp.lanaddr
        if not self._upnp.addportmapping(
            outer_port, "TCP", inner, inner_port, "shoal", "", lease_s
        ):
            raise NoRouter("it refused")


def is_outer(host: str) -> bool:
    """Whether somebody outside can dial this IPv4 address."""
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return not any(ip in network for network in INNER)


async def _asked(work: Callable[[], T], deadline_s: float) -> T:
    """What the router says.

    Raises:
        NoRouter: it refused, or the deadline passed.
    """
    try:
        return await in_thread(work, name="upnp", deadline_s=deadline_s)
    except TimeoutError as error:
        raise NoRouter(str(error)) from error


def _said(error: Exception, otherwise: str) -> str:
    """The library's word for it; it says "Success" when nobody answered."""
    text = str(error)
    return otherwise if text in ("", "Success") else text
