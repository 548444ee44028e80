"""What peers ask each other to find out whether they can be reached.

Nobody can see that by itself, and a peer that is connected already proves nothing by dialling
back: a router lets its answers in.  So A asks B, whom it is connected to, to let a third peer C,
which A is not connected to, dial A at an address, freshly.  C proves that it did with the nonce.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import check
from protocol.ids import PeerId
from protocol.limits import NONCE_BYTES


@dataclass(frozen=True, slots=True)
class ReachCall:
    """A to B: "let others, who are not connected to me, dial me here"."""

    addr: str
    """A multiaddr without /p2p: of the address by which B sees A, and of no other."""
    nonce: bytes

    def __post_init__(self) -> None:
        check.addr("addr", self.addr)
        check.raw("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class Reached:
    """B to A: so many peers tried, and so many say that they got through."""

    tried: int
    reached: int

    def __post_init__(self) -> None:
        check.integer("tried", self.tried, 0, 64)
        check.integer("reached", self.reached, 0, self.tried)


@dataclass(frozen=True, slots=True)
class DialCall:
    """B to C: "dial this peer here, and tell it the nonce"."""

    peer: PeerId
    addr: str
    nonce: bytes

    def __post_init__(self) -> None:
        check.peer("peer", self.peer)
        check.addr("addr", self.addr)
        check.raw("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class SeenCall:
    """C to A, on the connection that it made: "here I am"."""

    nonce: bytes

    def __post_init__(self) -> None:
        check.raw("nonce", self.nonce, NONCE_BYTES, NONCE_BYTES)
