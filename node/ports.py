"""What the parts of a member need of the network, and no more.

`node.rpc` and `node.bridge` fit these shapes; so do the dictionaries of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from protocol.ids import PeerId
from protocol.rpc import A, Method, Q


class Rpc(Protocol):
    """Calls to other peers."""

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, A],
        request: Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> A:
        """The answer of `peer`, within the deadline (None: the method's).

        Args:
            into: where the answer is bytes, memory of exactly its length that gets them.

        Raises:
            PeerUnavailable: it is gone, slow, or refuses.
            RemoteProtocolError: it broke the protocol.
        """


class Bridge(Protocol):
    """Connections and the DHT."""

    def add_addrs(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Remember where `peer` may be dialled."""

    async def connect(self, target: str, deadline_s: float) -> PeerId:
        """Be connected to the peer of a multiaddr, or to a peer whose addresses are known.

        Raises:
            PeerUnavailable: it cannot be reached.
        """

    def connected(self) -> tuple[PeerId, ...]:
        """The peers with an open connection."""

    async def provide(self, key: bytes) -> bool:
        """Put a provider record of this node into the DHT; whether another peer has it now."""

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        """Who claims to provide `key`, with addresses: unproven, possibly stale."""

    async def put_record(self, key: str, value: bytes) -> bool:
        """Store a signed address record in the DHT; whether another peer has it now."""

    async def find_record(self, key: str) -> bytes | None:
        """The newest valid address record under `key`."""

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`."""
