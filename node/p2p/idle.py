"""Hanging up on peers that a lookup has dialled and nobody needs any more.

The library dials whoever a lookup in the DHT names and never hangs up: fifty nodes become a full
mesh, and each connection costs a ping every half minute and some memory.  Only who dialled hangs
up, so that nobody's door is shut in its face.  Trio side.
Can go when the library closes the connections of its lookups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import trio
from libp2p.abc import INetConn
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction

LOOK_S = 30.0
"""Between two looks; a connection without a stream at two of them is idle.  A lookup takes seconds,
and the next one, two minutes later, dials anew what it needs."""
CLOSE_S = 1.0
"""What closing a connection may take, or a stream though it is cancelled: one small frame."""


async def hang_up_on_idle(network: Swarm, is_wanted: Callable[[ID], bool]) -> None:
    """Close idle connections that this node has dialled, until cancelled.

    Args:
        is_wanted: whether a peer is one that this node means to be connected to.
    """
    idle: set[INetConn] = set()
    while True:
        found = {
            connection
            for connection in network.get_connections()
            if cast(SwarmConn, connection).direction == Direction.OUTBOUND
            and not connection.get_streams()
            and not is_wanted(connection.muxed_conn.peer_id)
        }
        for connection in found & idle:
            with trio.move_on_after(CLOSE_S):
                await connection.close()
        idle = found - idle
        await trio.sleep(LOOK_S)


async def _close(stream: NetStream) -> None:
    """As the library, also when it is cancelled."""
    with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
        await _close_as_library(stream)


_close_as_library = NetStream.close
NetStream.close = _close  # type: ignore[method-assign, assignment]
