"""Asking candidates for proof that they are members, and leaving alone those that are none.

Whoever the DHT, a ticket, the cache, the LAN or the presence view names is a candidate until it
answers a fresh `Hello` with a signature and the spec of the run.  One that cannot be reached is
left alone for a while, whoever names it again, unless that names an address that has not
failed; one that answers what no member answers is left alone for long.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from node.ports import Bridge, Rpc
from protocol import hello, rpc
from protocol.errors import Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import PeerId, RunId, short
from protocol.limits import NONCE_BYTES
from protocol.spec import SignedSpec

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)

AVOID_S = 5.0
"""A candidate that cannot be reached, or refuses; doubles with each failure up to:"""
AVOID_MOST_S = 300.0
"""A provider record outlives its peer by two days, and a peer that comes back calls us."""
AVOID_BAD_S = 600.0
"""A candidate that answered what no member answers."""
MAX_REMEMBERED = 256
"""Greeted peers, and avoided ones; the oldest is forgotten."""
MAX_FAILED_ADDRS = 32
"""Of one candidate; beyond them no address counts as new."""
MAX_GREETINGS = 8
"""Under way at once; further candidates come with the next look."""


@dataclass(frozen=True, slots=True)
class Avoided:
    """A candidate that is left alone."""

    failures: int
    until: float
    failed_addrs: frozenset[str] | None
    """Where it could not be reached.  None: it was reached, so no address makes it better."""


class Greetings:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        run: RunId,
        me: PeerId,
        secret: bytes,
        bridge: Bridge,
        rpc: Rpc,
        proven: Callable[[PeerId, SignedSpec, bool], Awaitable[None]],
        blame: Callable[[PeerId, str], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            secret: of a private run's ticket, else empty.
            proven: told a member each time that it was greeted, with the spec, and whether it
                is the first time since this node started.
        """
        self._run = run
        self._me = me
        self._secret = secret
        self._bridge = bridge
        self._rpc = rpc
        self._proven = proven
        self._blame = blame
        self._clock = clock
        self._greeting: set[PeerId] = set()
        self._greeted: dict[PeerId, bytes] = {}
        """Proven members, with the boot nonce of their presence once that is known."""
        self._avoided: dict[PeerId, Avoided] = {}

    def is_greeted(self, peer: PeerId) -> bool:
        """`peer` proved to be a member since this node started."""
        return peer in self._greeted

    def is_new_boot(self, peer: PeerId, boot: bytes) -> bool:
        """`peer` has not proved itself since it started with this nonce."""
        known = self._greeted.get(peer)
        if known == b"":
            self._greeted[peer] = boot
        return known not in (b"", boot)

    def is_able(self, peer: PeerId, addrs: Sequence[str] = ()) -> bool:
        """`peer` may be greeted now; with `addrs`, at these addresses, too."""
        if peer == self._me or peer in self._greeting or len(self._greeting) >= MAX_GREETINGS:
            return False
        avoided = self._avoided.get(peer)
        if avoided is None or avoided.until <= self._clock():
            return True
        failed = avoided.failed_addrs
        if failed is None:
            return False
        is_new = len(failed) < MAX_FAILED_ADDRS and not failed.issuperset(addrs)
        return is_new or peer in self._bridge.connected()

    async def greet(
        self, peer: PeerId, addrs: Sequence[str] = (), named: Sequence[str] = ()
    ) -> bool:
        """Ask `peer` for proof that it is a member; whether it is.

        Args:
            addrs: where to dial it, besides the addresses that are known already.
            named: what others say its addresses are; after a failure these are no news, either.
        """
        if not self.is_able(peer, addrs):
            return False
        self._greeting.add(peer)
        try:
            if addrs:
                self._bridge.add_addrs(peer, addrs)
            signed = await self._ask(peer, (*addrs, *named))
        finally:
            self._greeting.discard(peer)
        if signed is None:
            return False
        self._avoided.pop(peer, None)
        is_first = peer not in self._greeted
        if is_first:
            log.info("member found: peer=%s", short(peer))
        remember(self._greeted, peer, b"")
        await self._proven(peer, signed, is_first)
        return True

    async def _ask(self, peer: PeerId, named: Sequence[str]) -> SignedSpec | None:
        """The spec that `peer` proves itself with, or None and it is avoided."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        asked = hello.hello(self._run, self._secret, self._me, peer, nonce)
        try:
            answer = await self._rpc.call(peer, rpc.HELLO, asked)
            signed, _ = hello.open_welcome(answer, asked, self._secret, self._me, peer)
            return signed
        except PeerUnavailable as error:
            failures = self._avoided[peer].failures if peer in self._avoided else 0
            for_s = min(AVOID_S * 2 ** min(failures, 16), AVOID_MOST_S)
            is_reached = peer in self._bridge.connected()
            self._avoid(peer, for_s, error.reason, None if is_reached else named)
        except RemoteProtocolError as error:
            self._avoid(peer, AVOID_BAD_S, error.reason, None)
        except Malformed as error:
            self._avoid(peer, AVOID_BAD_S, str(error), None)
            self._blame(peer, f"answered hello wrongly: {error}")
        return None

    def _avoid(
        self, peer: PeerId, for_s: float, reason: str, failed_addrs: Sequence[str] | None
    ) -> None:
        before = self._avoided.pop(peer, Avoided(0, 0.0, frozenset()))
        level = logging.DEBUG if before.failures else logging.INFO
        log.log(level, "no member: peer=%s reason=%s avoided_s=%g", short(peer), reason, for_s)
        failed = None
        if failed_addrs is not None:
            failed = (before.failed_addrs or frozenset()).union(failed_addrs)
        until = self._clock() + for_s
        remember(self._avoided, peer, Avoided(before.failures + 1, until, failed))


def remember(kept: dict[K, V], key: K, value: V) -> None:
    """Keep it; the oldest of too many is forgotten."""
    if key not in kept and len(kept) >= MAX_REMEMBERED:
        del kept[next(iter(kept))]
    kept[key] = value
