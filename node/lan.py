"""Finding nodes on the same LAN: multicast DNS, as every libp2p speaks it.

This node answers queries for `_p2p._udp.local` with its addresses, and asks for those of
others.  What it hears is unsigned and from anybody on the wire: candidates, no more.  It tells
only nodes that say they are shoal's, so that the file sharers in the house are left in peace.
Where there is no multicast (most containers and clouds) there is one line in the log and
nothing else.

Source: https://github.com/libp2p/specs/blob/master/discovery/mdns.md, RFC 6762, RFC 6763
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, IPVersion, ServiceInfo, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from node.addr_text import ip_of, peer_in
from protocol import check
from protocol.ids import PeerId, short
from protocol.limits import MAX_ADDRS

log = logging.getLogger(__name__)

SERVICE = "_p2p._udp.local."
DNSADDR = b"dnsaddr="
MARK = b"shoal=1"
"""Another string in the TXT record: this peer is a shoal node.  Other libp2p peers skip it."""
NAME_BYTES = 16
"""The spec wants a random name of 32 to 63 characters: "the peer-name is not related to the
peer's ID", nor to the host's name."""
MAX_STRING_BYTES = 255
"""Of one string in a TXT record, RFC 6763 section 6.1."""
PORT = 4001
"""In the SRV record, which the spec asks for and nobody reads: the addresses say the port."""
RESOLVE_MS = 3000
"""What a peer's TXT record is waited for."""
MAX_QUEUED = 64
"""Names that wait to be looked up; further ones are dropped, and come again with the next
announcement."""
MAX_RESOLVING = 4
REFRESH_S = 5.0
"""Between two looks at whether our addresses have changed."""


class Lan:
    """One per node.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        me: PeerId,
        addrs: Callable[[], tuple[str, ...]],
        found: Callable[[PeerId, tuple[str, ...]], None],
        interfaces: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            addrs: where others can dial this node now, each with /p2p/PEER.
            found: told a shoal node on the LAN and its addresses, each time it speaks.
            interfaces: addresses of this machine to use; None: all of them.
        """
        self._me = me
        self._addrs = addrs
        self._found = found
        self._interfaces = InterfaceChoice.All if interfaces is None else list(interfaces)
        self._name = f"{secrets.token_hex(NAME_BYTES)}.{SERVICE}"
        self._heard: asyncio.Queue[str] = asyncio.Queue(MAX_QUEUED)

    async def run(self) -> None:
        """Announce and listen until cancelled; returns at once where there is no multicast.

        A node that nobody on the LAN could dial, for it listens on loopback only, does neither.
        """
        if not on_lan(self._addrs()):
            log.info("LAN not searched: reason=this node listens on this machine only")
            return
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # each failed send is a warning
        try:
            multicast = AsyncZeroconf(interfaces=self._interfaces, ip_version=IPVersion.V4Only)
        except (OSError, ZeroconfError, RuntimeError) as error:
            log.info("LAN not searched: reason=no multicast here: %s", error)
            return
        try:
            await self._serve(multicast)
        except (OSError, ZeroconfError) as error:
            log.info("LAN no longer searched: reason=%s", error)
        finally:
            await multicast.async_close()

    async def _serve(self, multicast: AsyncZeroconf) -> None:
        browser = AsyncServiceBrowser(multicast.zeroconf, SERVICE, handlers=[self._hear])
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(MAX_RESOLVING):
                    tasks.create_task(self._resolve(multicast))
                tasks.create_task(self._announce(multicast))
        finally:
            await browser.async_cancel()

    async def _announce(self, multicast: AsyncZeroconf) -> None:
        """Say where we are, and again when that has changed."""
        said = on_lan(self._addrs())
        info = self._info(said)
        await multicast.async_register_service(info)
        log.info("LAN searched: addrs=%s", " ".join(said))
        while True:
            await asyncio.sleep(REFRESH_S)
            if on_lan(self._addrs()) != said:
                said = on_lan(self._addrs())
                await multicast.async_update_service(self._info(said))

    def _info(self, addrs: tuple[str, ...]) -> ServiceInfo:
        hosts = {str(ip) for ip in map(ip_of, addrs) if ip and ip.version == 4}
        return ServiceInfo(
            SERVICE,
            self._name,
            port=PORT,
            properties=txt_record(addrs),
            server=self._name.replace(SERVICE, "local."),
            parsed_addresses=sorted(hosts),
        )

    def _hear(self, **change: Any) -> None:
        """The browser's handler: somebody came, or said something new."""
        is_here = change["state_change"] is not ServiceStateChange.Removed
        if is_here and not self._heard.full():
            self._heard.put_nowait(change["name"])

    async def _resolve(self, multicast: AsyncZeroconf) -> None:
        while True:
            name = await self._heard.get()
            try:
                info = AsyncServiceInfo(SERVICE, name)
                # Whether it is complete does not matter: the TXT record alone is asked for.
                await info.async_request(multicast.zeroconf, RESOLVE_MS)
            except ZeroconfError as error:  # a name that is none
                log.debug("LAN name skipped: reason=%s", error)
                continue
            heard = peer_on_lan(info.text or b"")
            if heard is not None and heard[0] != self._me:
                log.debug("LAN peer heard: peer=%s addrs=%s", short(heard[0]), heard[1])
                self._found(*heard)


def on_lan(addrs: Sequence[str]) -> tuple[str, ...]:
    """Those that another machine can dial and that fit a TXT string: no loopback, no relay."""
    return tuple(addr for addr in addrs if _is_on_lan(addr))[:MAX_ADDRS]


def _is_on_lan(addr: str) -> bool:
    ip = ip_of(addr)
    if ip is None or addr.count("/") != 6 or len(DNSADDR) + len(addr) > MAX_STRING_BYTES:
        return False
    return not (ip.is_loopback or ip.is_unspecified or ip.is_multicast)


def txt_record(addrs: Sequence[str]) -> bytes:
    """Length-prefixed strings: `dnsaddr=ADDRESS` for each, and our mark."""
    strings = [DNSADDR + addr.encode() for addr in addrs] + [MARK]
    return b"".join(bytes([len(string)]) + string for string in strings)


def peer_on_lan(txt: bytes) -> tuple[PeerId, tuple[str, ...]] | None:
    """The shoal node that a TXT record speaks of, and its addresses; None if of none.

    Total for any bytes: they come from anybody on the wire.
    """
    strings, at = [], 0
    while at < len(txt):
        strings.append(txt[at + 1 : at + 1 + txt[at]])
        at += 1 + txt[at]
    if MARK not in strings:
        return None
    said = (string[len(DNSADDR) :] for string in strings if string.startswith(DNSADDR))
    addrs = on_lan([text.decode("ascii", "replace") for text in said])
    peers = set(map(peer_in, addrs))
    if len(peers) != 1:
        return None
    (peer,) = peers
    try:
        check.peer("peer", peer)
    except ValueError:
        return None
    return peer, addrs
