"""Finding out whether this node can be reached, and having itself reached through others.

The shell of `node.reachability`: it tells the machine who is connected and how we are seen,
carries out what the machine asks for, and does the same service for others: it lets others
dial who asks, and dials whom others ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, assert_never

from node import ports
from node.addr_text import host_of, is_global, with_peer, without_peer
from node.p2p.links import Kind, Link
from node.reachability import (
    Announce,
    AskDialBack,
    Claims,
    Direct,
    Effect,
    Event,
    NotReserved,
    Reachability,
    Reserve,
    Reserved,
    Seen,
    Tick,
    Unseen,
)
from node.rpc import CallRefused, Refused
from protocol import rpc
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.ids import PeerId, short
from protocol.limits import NONCE_BYTES
from protocol.reach import DialCall, ReachCall, Reached, SeenCall

Q = TypeVar("Q")
A = TypeVar("A")

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Between two looks at the links; each costs some microseconds."""
DIALLERS = 3
"""Peers that dial whoever asks us: two make a verdict, one may be gone."""
DIALS_A_MINUTE = 30
"""Dials that we make for others, and let others make: nobody shall aim peers at a stranger."""
MAX_NONCES = 64
"""Of dials that we wait for; the oldest is forgotten."""

CONNECTED = "connected"
UNREACHED = "unreached"
NOT_YOURS = "not-yours"
TOO_MANY = "too-many"


class Bridge(Protocol):
    """What is needed of the network."""

    async def connect(self, target: str, deadline_s: float) -> PeerId: ...

    def addrs(self) -> tuple[str, ...]: ...

    def links(self) -> tuple[Link, ...]: ...

    def observed(self) -> tuple[str, ...]: ...

    async def reserve(self, relay: PeerId) -> tuple[float, Sequence[str]]: ...

    async def dial_back(self, peer: PeerId, addr: str) -> None: ...

    async def hang_up(self, peer: PeerId) -> None: ...

    def be_public(self, is_public: bool, relay_mbit: float) -> None: ...


class Rpc(ports.Rpc, Protocol):
    """Calls to peers, and those of peers."""

    def serve(
        self, method: rpc.Method[Q, A], handler: Callable[[PeerId, Q], Awaitable[A]]
    ) -> None: ...


class Reach:
    """One per node, inside the context of its bridge and rpc."""

    def __init__(
        self,
        *,
        me: PeerId,
        bridge: Bridge,
        rpc: Rpc,
        announce: tuple[str, ...] = (),
        reachable: str = "auto",
        relay_mbit: float = 32.0,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            announce: addresses without /p2p that the operator vouches for.
            reachable: "auto"; "yes": take the operator's word, be a relay; "no": never claim it.
            relay_mbit: what is carried for others, each way, where this node can; 0: nothing.
        """
        self._me = me
        self._bridge = bridge
        self._rpc = rpc
        self._announce = announce
        self._relay_mbit = relay_mbit
        self._fixed = "yes" if announce and reachable == "auto" else reachable
        self._clock = clock or asyncio.get_running_loop().time
        self._rng = rng or random.Random(secrets.randbits(64))
        self._machine = Reachability(me)
        self._known = Announce("unknown", ())
        self._nonces: dict[bytes, str] = {}
        self._dials: deque[float] = deque()
        self._tasks: asyncio.TaskGroup
        self._mapped: tuple[str, ...] = ()

    async def run(self) -> None:
        """Find out, and serve others, until cancelled."""
        self._rpc.serve(rpc.REACH, self._reach)
        self._rpc.serve(rpc.DIAL, self._dial)
        self._rpc.serve(rpc.SEEN, self._seen)
        if self._fixed == "yes":
            self._bridge.be_public(True, self._relay_mbit)
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                links = self._bridge.links()
                self._tell(Direct(tuple(link.peer for link in links if _is_open(link))))
                self._tell(Claims(self._claims()))
                self._tell(Tick())
                await asyncio.sleep(TICK_S)

    @property
    def verdict(self) -> str:
        """public, private or unknown."""
        return {"yes": "public", "no": "private"}.get(self._fixed, self._known.verdict)

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """Through whom others reach us."""
        return self._machine.relays

    def addrs(self) -> tuple[str, ...]:
        """Where others may dial us, the best first, each with /p2p/ID."""
        if self._announce:
            return tuple(with_peer(addr, self._me) for addr in self._announce)
        known = tuple(with_peer(addr, self._me) for addr in self._known.addrs)
        bound = self._bridge.addrs()
        if self._known.verdict == "private":  # what is global there lets nobody in
            bound = tuple(addr for addr in bound if not is_global(addr))
        return tuple(dict.fromkeys((*known, *bound)))

    def mapped(self, addr: str | None) -> None:
        """A router passes connections to this address (without /p2p) on to us, or no more.

        It is a claim like others: another router may stand before that one.
        """
        self._mapped = (addr,) if addr else ()

    async def settle(self, bootstrap: Sequence[str], deadline_s: float) -> None:
        """Have addresses that are worth telling, if a bootstrap peer answers in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                for addr in bootstrap:
                    with contextlib.suppress(PeerUnavailable):
                        await self._bridge.connect(addr, deadline_s)
                        break
                while not self._is_settled():  # noqa: ASYNC110  the network has no event for it
                    await asyncio.sleep(TICK_S)

    def _is_settled(self) -> bool:
        if self.verdict != "unknown" or self.relays:
            return True
        return not any(is_global(link.addr) for link in self._bridge.links())  # on a LAN all know

    # --- the machine ------------------------------------------------------------------------

    def _claims(self) -> tuple[str, ...]:
        if self._fixed == "yes":
            return ()
        bound = map(without_peer, self._bridge.addrs())
        every = (*self._mapped, *self._bridge.observed(), *bound)
        return tuple(dict.fromkeys(addr for addr in every if is_global(addr)))

    def _tell(self, event: Event) -> None:
        for effect in self._machine.handle(event, self._clock()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case AskDialBack(helper, addr):
                if self._fixed == "auto":
                    self._tasks.create_task(self._ask(helper, addr), name="dial back")
            case Reserve(relay):
                self._tasks.create_task(self._reserve(relay), name="reserve")
            case Announce(verdict, addrs):
                if verdict != self._known.verdict:
                    log.info("reachability: verdict=%s addrs=%s", verdict, " ".join(addrs))
                self._known = effect
                self._bridge.be_public(self.verdict == "public", self._relay_mbit)
            case _:
                assert_never(effect)

    async def _ask(self, helper: PeerId, addr: str) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._nonces[nonce] = addr
        while len(self._nonces) > MAX_NONCES:
            del self._nonces[next(iter(self._nonces))]
        failed = 0
        try:
            answer = await self._rpc.call(helper, rpc.REACH, ReachCall(addr, nonce))
            failed = answer.tried - answer.reached
            log.debug("dial back: helper=%s addr=%s answer=%s", short(helper), addr, answer)
        except (PeerUnavailable, RemoteProtocolError) as error:
            log.debug("no dial back: helper=%s reason=%s", short(helper), error)
        finally:
            self._nonces.pop(nonce, None)
        self._tell(Unseen(helper, addr, failed))

    async def _reserve(self, relay: PeerId) -> None:
        try:
            for_s, addrs = await self._bridge.reserve(relay)
        except PeerUnavailable as error:
            log.debug("no relay: peer=%s reason=%s", short(relay), error.reason)
            self._tell(NotReserved(relay))
            return
        if relay not in self.relays:
            log.info("relay found: peer=%s for_s=%.0f", short(relay), for_s)
        self._tell(Reserved(relay, for_s, tuple(addr for addr in addrs if _through(addr))))

    # --- for others -------------------------------------------------------------------------

    async def _reach(self, peer: PeerId, call: ReachCall) -> Reached:
        """Let others dial the caller, at the address that we see it at."""
        links = {link.peer: link for link in self._bridge.links()}
        mine = links.get(peer)
        if mine is None or mine.kind is Kind.RELAYED or host_of(mine.addr) != host_of(call.addr):
            raise Refused(NOT_YOURS, f"you are not seen here at {call.addr:.80}")
        self._spend()
        others = [p for p, link in links.items() if p != peer and link.kind is not Kind.RELAYED]
        chosen = self._rng.sample(others, min(DIALLERS, len(others)))
        ask = DialCall(peer, call.addr, call.nonce)
        async with asyncio.TaskGroup() as dials:
            tasks = [dials.create_task(self._let_dial(other, ask)) for other in chosen]
        said = [task.result() for task in tasks]
        return Reached(len(said) - said.count(None), said.count(True))

    async def _let_dial(self, other: PeerId, ask: DialCall) -> bool | None:
        """Whether it got through; None: it did not try."""
        try:
            await self._rpc.call(other, rpc.DIAL, ask)
        except CallRefused as refused:
            return False if refused.code == UNREACHED else None
        except (PeerUnavailable, RemoteProtocolError):
            return None
        return True

    async def _dial(self, peer: PeerId, call: DialCall) -> rpc.Done:
        """Dial another for `peer`, over a connection that is closed again."""
        if any(link.peer == call.peer for link in self._bridge.links()) or call.peer == self._me:
            raise Refused(CONNECTED, "connected already, so a dial would prove nothing")
        if not is_global(call.addr):
            raise Refused(UNREACHED, f"{call.addr:.80} is no address of the open internet")
        self._spend()
        try:
            await self._bridge.dial_back(call.peer, call.addr)
            await self._rpc.call(call.peer, rpc.SEEN, SeenCall(call.nonce))
        except (PeerUnavailable, RemoteProtocolError) as error:
            raise Refused(UNREACHED, error.reason[:200]) from error
        finally:
            await self._bridge.hang_up(call.peer)
        return rpc.Done()

    async def _seen(self, peer: PeerId, call: SeenCall) -> rpc.Done:
        """Somebody has dialled us, as we asked."""
        addr = self._nonces.get(call.nonce)
        if addr is not None:
            self._tell(Seen(peer, addr))
        return rpc.Done()

    def _spend(self) -> None:
        """Count a dial."""
        now = self._clock()
        while self._dials and now - self._dials[0] > 60:
            self._dials.popleft()
        if len(self._dials) >= DIALS_A_MINUTE:
            raise Refused(TOO_MANY, f"{DIALS_A_MINUTE} dials a minute are made here; ask later")
        self._dials.append(now)


def _is_open(link: Link) -> bool:
    """Whether the peer may help or relay: it is seen at an address of the open internet."""
    return link.kind is Kind.DIRECT and is_global(link.addr)


def _through(addr: str) -> bool:
    """Whether an address through a relay leads to one that everybody can dial."""
    return is_global(without_peer(addr))
