"""Circuit relay v2: reserving at a relay, dialling through one, and being one for others.

The relay's side is the library's, with three differences: every circuit has a bound of bytes
and time and all together a bound of bytes a second, so that a node's own training comes first;
a reservation ends with the connection that it was made on; and a circuit that stands still is
closed.  The client's side is two messages.  Trio side.
Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as WirePeerId
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.p2p.budget import Budget
from node.p2p.streams import RESET_S, STREAM_ERRORS

RESERVATIONS = 128
"""Peers that may reserve here at once; the library's default is 4.  Each costs one idle
connection of some 50 KB."""
RESERVATION_S = 600
"""A reservation is renewed in half of it; a relay that restarted is noticed by then at last."""
LEAST_S = 60.0
"""What a reservation is taken to last at least, lest a wrong clock makes us ask all the time."""
CIRCUITS_A_PEER = 16
"""Circuits to one reserved peer at once: those that it trains with in a round, and joiners."""
CIRCUIT_BYTES = 1 << 30
"""Through one circuit, both ways together; the ends then open another.  As the library."""
CIRCUIT_S = 3600.0
"""As long as a circuit may last; the ends then open another."""
IDLE_S = 300.0
"""A circuit on which nothing passes is closed.  Presence passes every few seconds."""
PIECE_BYTES = 1 << 16
"""One read of a circuit: a frame of bulk."""
ANSWER_S = 5.0
"""For a relay to answer a request; several round trips."""
CONNECT_S = 10.0
"""For the other end of a circuit to be there; it has to shake hands, too."""


class Refused(Exception):
    """The relay said no, and why."""


class Relay(CircuitV2Protocol):
    """One per node: what it does for others while `serving`, and takes from others always."""

    def __init__(self, host: IHost, relayed: Callable[[ID], None]) -> None:
        """Args: relayed: told of a peer whose connection came in through a relay."""
        limits = RelayLimits(
            duration=int(CIRCUIT_S),
            data=CIRCUIT_BYTES,
            max_circuit_conns=CIRCUITS_A_PEER,
            max_reservations=RESERVATIONS,
            reservation_ttl=RESERVATION_S,
        )
        super().__init__(host, limits=limits, allow_hop=False)
        self._relayed = relayed
        self._budgets: tuple[Budget, Budget]
        """Of all circuits together: from who has reserved, and towards it."""
        self.bytes = 0
        """Carried for others."""
        self.circuits = 0
        """Open now."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take connections through relays meanwhile."""
        async with background_trio_service(self):
            await self.event_started.wait()
            try:
                yield
            finally:
                self.serve(0.0)

    def serve(self, mbit_per_s: float) -> None:
        """Be a relay for others from now on, at so many megabits a second each way; 0: no more."""
        self.allow_hop = mbit_per_s > 0
        if self.allow_hop:
            self._budgets = (Budget(mbit_per_s), Budget(mbit_per_s))
            self.host.set_stream_handler(HOP, self._handle_hop_stream)
        else:
            with suppress(KeyError):
                self.host.remove_stream_handler(HOP)

    def forget(self, peer: ID) -> None:
        """The peer has gone, and its reservation with it (the library keeps it for an hour)."""
        self.resource_manager._reservations.pop(peer, None)

    # --- as a client ------------------------------------------------------------------------

    async def reserve(self, relay: ID) -> float:
        """Let the connected `relay` take connections for us; for how many seconds.

        Raises:
            Refused: it does not, and why.
            BaseLibp2pError, trio.TooSlowError, OSError: it is gone.
        """
        answer = await self._ask(relay, HopMessage(type=HopMessage.RESERVE), ANSWER_S)
        left_s = answer.reservation.expire - time.time()
        return min(max(left_s, LEAST_S), RESERVATION_S)  # the relay's clock may be another

    async def dial(self, relay: ID, target: ID) -> INetConn:
        """A connection to `target` through the connected `relay`.

        Raises:
            Refused: `target` has not reserved there, or there is no room.
            BaseLibp2pError, trio.TooSlowError, OSError: the relay or the target is gone.
        """
        ask = HopMessage(type=HopMessage.CONNECT, peer=WirePeerId(id=target.to_bytes()))
        stream = await self.host.new_stream(relay, [HOP])
        try:
            await _answer(stream, ask, CONNECT_S)
            circuit = Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{target}")
            raw = RawConnection(stream, True, ConnectionType.RELAYED, [circuit])
            with trio.fail_after(CONNECT_S):
                return await self.host.upgrade_outbound_connection(raw, target)
        except BaseException:
            await _reset(stream)
            raise

    async def _ask(self, relay: ID, message: HopMessage, deadline_s: float) -> HopMessage:
        stream = await self.host.new_stream(relay, [HOP])
        try:
            return await _answer(stream, message, deadline_s)
        finally:
            await _reset(stream)

    async def handle_incoming_connection(self, stream: INetStream, remote_peer_id: bytes) -> None:
        """As the library; then tell."""
        await super().handle_incoming_connection(stream, remote_peer_id)
        self._relayed(ID(remote_peer_id))

    # --- as a relay -------------------------------------------------------------------------

    async def _handle_reserve(self, stream: INetStream, msg: HopMessage) -> None:
        """As the library, but only for who asks: else one peer could take all places."""
        msg.ClearField("peer")
        await super()._handle_reserve(stream, msg)

    async def _relay_data(
        self,
        src_stream: INetStream,
        dst_stream: INetStream,
        peer_id: ID,
        deadline: float | None = None,
        circuit_data_limit: list[int] | None = None,
    ) -> None:
        """One direction of a circuit, until its end; then both are closed."""
        self.circuits += 1
        budget = self._budgets[self.resource_manager.get_reservation(peer_id) is None]
        left = circuit_data_limit if circuit_data_limit is not None else [CIRCUIT_BYTES]
        try:
            with trio.move_on_after(CIRCUIT_S):
                while left[0] > 0:
                    with trio.fail_after(IDLE_S):
                        data = await src_stream.read(PIECE_BYTES)
                    if not data:
                        break
                    left[0] -= len(data)
                    self.bytes += len(data)
                    await budget.spend(len(data))
                    with trio.fail_after(IDLE_S):
                        await dst_stream.write(data)
        except (BaseLibp2pError, trio.TooSlowError, OSError, EOFError):
            pass
        finally:
            self.circuits -= 1
            self._active_relays.pop(peer_id, None)
            with trio.CancelScope(shield=True):
                await _reset(src_stream)
                await _reset(dst_stream)


async def _answer(stream: INetStream, message: HopMessage, deadline_s: float) -> HopMessage:
    with trio.fail_after(deadline_s):
        await write_delimited_msg(stream, message)
        answer: HopMessage = await read_delimited_msg(stream, HopMessage)
    if answer.type != HopMessage.STATUS or answer.status != Status.OK:
        raise Refused(f"the relay refused: {_name(answer.status)}")
    return answer


def _name(status: int) -> str:
    names = [name for name, value in Status.items() if value == status]
    return str(names[0]).lower().replace("_", " ") if names else f"status {status}"


async def _reset(stream: Any) -> None:
    """End a stream, which may have ended with its connection."""
    with trio.move_on_after(RESET_S), suppress(*STREAM_ERRORS):
        await stream.reset()
