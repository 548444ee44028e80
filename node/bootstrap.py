"""Connections to the peers that a ticket and the configuration name.

Each is dialled with a deadline, and again with back-off for ever: a node may be started before
its bootstrap, which may come back after a day.  Once enough members are live the node needs
none of them any more; it then keeps up connections to at most two, or thousands of nodes would
each hold one to every address of one ticket.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from node.addr_text import peer_in
from node.ports import Bridge
from node.telemetry import Waits
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId, short

log = logging.getLogger(__name__)

DIAL_S = 10.0
"""Deadline of one dial: the library's own for a dead address."""
FIRST_AGAIN_S = 1.0
"""After the first failed dial; doubles up to:"""
LAST_AGAIN_S = 30.0
CHECK_S = 5.0
"""Between two looks at whether a bootstrap peer is still connected, and still needed."""
KEPT = 2
"""Bootstrap peers that a node with enough members stays connected to: two doors back into the
swarm, should every member vanish at once."""


class Bootstraps:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        addrs: tuple[str, ...],
        bridge: Bridge,
        live: Callable[[], set[PeerId]],
        has_enough: Callable[[], bool],
        came: Callable[[PeerId], Awaitable[None]],
        here: Callable[[PeerId], Awaitable[None]],
        waits: Waits,
        rng: random.Random,
    ) -> None:
        """
        Args:
            addrs: multiaddrs with /p2p/PEER.
            live: the members that are live now.
            has_enough: whether they are enough to do without bootstrap peers.
            came: told a bootstrap peer that was just connected.
            here: told one that is connected, every few seconds.
        """
        self._addrs = list(addrs)
        rng.shuffle(self._addrs)  # or every node would keep the first two of the ticket
        self._bridge = bridge
        self._live = live
        self._has_enough = has_enough
        self._came = came
        self._here = here
        self._waits = waits
        self._rng = rng

    async def run(self) -> None:
        """Keep connected until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for addr in self._addrs:
                tasks.create_task(self._keep_connected(addr))

    async def _keep_connected(self, addr: str) -> None:
        """Be connected to a bootstrap peer, whether it is a member or not, while it is needed."""
        peer, again_s, reason, is_left = peer_in(addr), FIRST_AGAIN_S, "", False
        while True:
            if not self._is_needed(peer):
                if not is_left and peer in self._bridge.connected() and peer not in self._live():
                    log.info("bootstrap left: addr=%s members=%d", addr, len(self._live()))
                    await self._bridge.disconnect(peer)
                is_left = True  # the DHT may connect again, for as long as it needs
                await asyncio.sleep(CHECK_S)
                continue
            is_left = False
            if peer in self._bridge.connected():
                again_s, reason = FIRST_AGAIN_S, ""
                await self._here(peer)
                await asyncio.sleep(CHECK_S)
                continue
            try:
                with self._waits.on(f"a connection to {short(peer)}", addr, DIAL_S):
                    await self._bridge.connect(addr, DIAL_S)
                log.info("bootstrap connected: addr=%s", addr)
                await self._came(peer)
            except PeerUnavailable as error:
                if error.reason != reason:
                    log.warning("bootstrap not reached: addr=%s reason=%s", addr, error.reason)
                    reason = error.reason
                with self._waits.on(f"the next dial of {short(peer)}", addr, again_s):
                    await asyncio.sleep(again_s)
                again_s = longer(again_s, LAST_AGAIN_S, self._rng)

    def _is_needed(self, peer: PeerId) -> bool:
        """Members are few, or `peer` is one of those that are kept."""
        if not self._has_enough():
            return True
        connected = self._bridge.connected()
        peers = dict.fromkeys(map(peer_in, self._addrs))
        return peer in sorted(peers, key=lambda other: other not in connected)[:KEPT]


def longer(pause_s: float, most_s: float, rng: random.Random) -> float:
    """Twice as long, less up to a quarter, so that peers do not knock in step."""
    return min(2 * pause_s, most_s) * rng.uniform(0.75, 1.0)
