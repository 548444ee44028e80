"""Hole punching: from a connection through a relay to a direct one.

DCUtR, the library's, with what it takes to work between ordinary NATs: only the side that
received the relayed connection begins, and at once (as shipped both do, after two seconds, and
clash); the addresses told are those that a relay observed on a connection that was dialled from
our listening port, so that they are this port's mapping; all dials leave from that port; and a
dial that is refused is repeated, for the other side's may still be on its way.

Trio side.  Written against libp2p 0.8.1; what is private there is overridden here and nowhere
else.  Source: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.dcutr import MAX_OBSERVED_ADDRS, DCUtRProtocol
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.addr_text import is_global

PUNCH_S = 20.0
"""For all attempts together."""
REPEAT_S = 0.1
"""Between two dials of one address that was refused."""
PLAIN_AFTER_S = 0.3
"""When the side that accepts dials plainly, too: a punch has worked by then, if it does."""
DIAL_S = 4
"""One dial of a punch: the library's round has five seconds."""

Source = tuple[str, int]


class Punch(DCUtRProtocol):
    """One per node."""

    def __init__(
        self,
        host: IHost,
        observed: Callable[[], list[Multiaddr]],
        source: Callable[[], Source],
        begins: Callable[[ID], None],
    ) -> None:
        """
        Args:
            observed: where others see our listening port, by what they told.
            source: its own address and port, for dials to leave from.
            begins: told of a peer when both sides begin to dial.
        """
        super().__init__(host, dial_timeout=DIAL_S)
        self._observed = observed
        self._source = source
        self._begins = begins

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer punches meanwhile."""
        async with background_trio_service(self):
            await self.event_started.wait()
            yield

    async def punch(self, peer: ID) -> bool:
        """Try to be connected directly to a peer that dialled us through a relay."""
        self._hole_punch_attempts.pop(peer, None)  # whoever calls this counts them
        with trio.move_on_after(PUNCH_S):
            return bool(await self.initiate_hole_punch(peer))
        return False

    async def _auto_drive_loop(self) -> None:
        await trio.sleep_forever()  # `punch` is called when a relayed connection comes in

    async def _get_observed_addrs(self) -> list[bytes]:
        return [addr.to_bytes() for addr in self._observed()[:MAX_OBSERVED_ADDRS]]

    async def _try_unilateral_upgrade(self, peer_id: ID) -> bool:
        return False  # `_dial_plainly` does it beside the punch, which waits for nobody

    async def _perform_hole_punch(
        self, peer_id: ID, addrs: list[Multiaddr], as_responder: bool = False
    ) -> bool:
        self._begins(peer_id)
        return bool(await super()._perform_hole_punch(peer_id, addrs, as_responder))

    async def _dial_peer(
        self,
        peer_id: ID,
        addr: Multiaddr,
        source: Source | None = None,
        as_responder: bool = False,
    ) -> None:
        if not is_global(str(addr)):  # of another LAN: who is on ours is dialled without a punch
            return
        async with trio.open_nursery() as nursery:
            if as_responder:
                nursery.start_soon(self._dial_plainly, peer_id, addr)
            while not await self._verify_direct_connection(peer_id):
                await super()._dial_peer(peer_id, addr, self._source(), as_responder)
                await trio.sleep(REPEAT_S)
            nursery.cancel_scope.cancel()

    async def _dial_plainly(self, peer: ID, addr: Multiaddr) -> None:
        """A router may let everybody in: then nobody dials us, and we must be the client."""
        await trio.sleep(PLAIN_AFTER_S)
        await super()._dial_peer(peer, addr)
