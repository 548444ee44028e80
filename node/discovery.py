"""Finding the members of a run, from a ticket and the DHT.

The ticket's addresses are dialled first, each with a deadline, and again with back-off for
ever: a node may be started before its bootstrap.  Then the DHT names candidates, under a key
made of the run id.  Whoever is named there, or seen in the presence view, is only a candidate
until it answers a fresh `Hello` with a signature and the spec of the run; who does not is
left alone for a while.  Once the view has enough peers the search goes on slowly, so that
two halves of a swarm that was cut in two find each other again.

Every wait is named in the log.  Source: provider records of Kademlia,
https://github.com/libp2p/specs/blob/master/kad-dht/README.md
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from node.ports import Bridge, Rpc
from node.settings import check_addr
from node.telemetry import Waits
from protocol import hello, rpc
from protocol.errors import ConfigError, Malformed, PeerUnavailable, RemoteProtocolError
from protocol.ids import DIGEST_BYTES, PeerId, RunId, short
from protocol.messages import Presence
from protocol.spec import SignedSpec

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)

DIAL_S = 10.0
"""Deadline of one dial: the library's own for a dead address."""
FIRST_AGAIN_S = 1.0
"""After the first failed dial or fruitless lookup; doubles up to:"""
LAST_AGAIN_S = 30.0
CHECK_S = 5.0
"""Between two looks at whether a bootstrap peer is still connected."""
LOOKUP_S = 30.0
"""Deadline of a call into the DHT; measured 1.2 s at worst among 40 hosts."""
LOOK_S = 1.0
"""Between two looks at the presence view for peers not yet greeted."""
EAGER_S = 30.0
"""Longest pause between lookups while peers are few."""
SLOW_S = 120.0
"""Between lookups when there are enough peers."""
ENOUGH_PEERS = 8
"""As many as the active part of the presence view."""
PROVIDE_S = 300.0
"""Our record is put again so often: a DHT of a few nodes forgets when they restart."""
AVOID_S = 5.0
"""A candidate that cannot be reached, or refuses; doubles with each failure up to:"""
AVOID_MOST_S = 60.0
AVOID_BAD_S = 600.0
"""A candidate that answered what no member answers."""
MAX_REMEMBERED = 256
"""Greeted peers, and avoided ones; the oldest is forgotten."""
MAX_GREETINGS = 8
"""Under way at once; further candidates come with the next look."""
NONCE_BYTES = 16


def provider_key(run: RunId) -> bytes:
    """Under which the members of a run are found in the DHT."""
    return hashlib.blake2b(b"shoal-run" + run, digest_size=DIGEST_BYTES).digest()


class Discovery:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        run: RunId,
        me: PeerId,
        secret: bytes,
        addrs: tuple[str, ...],
        bridge: Bridge,
        rpc: Rpc,
        live: Callable[[], tuple[Presence, ...]],
        found: Callable[[PeerId], Awaitable[None]],
        blame: Callable[[PeerId, str], None],
        waits: Waits,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """
        Args:
            secret: of a private run's ticket, else empty.
            addrs: multiaddrs with /p2p/PEER, of the ticket and of the configuration.
            live: the peers of the presence view.
            found: told a proven member, each time it was greeted, from the announcement on
                (before it, this node cannot answer that member); must not raise.

        Raises:
            ConfigError: an address is none.
        """
        for addr in addrs:
            try:
                check_addr("address", addr, peer=True)
            except ValueError as error:
                raise ConfigError(f"{error}; ask for another ticket, or correct it") from None
        self._run = run
        self._me = me
        self._secret = secret
        self._addrs = tuple(addr for addr in addrs if _peer_in(addr) != me)
        self._bridge = bridge
        self._rpc = rpc
        self._live = live
        self._found = found
        self._blame = blame
        self._waits = waits
        self._clock = clock
        self._rng = rng
        self._key = provider_key(run)
        self._announced = asyncio.Event()
        self._search_now = asyncio.Event()
        self._provide_now = asyncio.Event()
        self._spec: asyncio.Future[SignedSpec] = asyncio.get_running_loop().create_future()
        self._greeting: set[PeerId] = set()
        self._greeted: dict[PeerId, bytes] = {}
        """Proven members, with the boot nonce of their presence once that is known."""
        self._unmet: dict[PeerId, None] = {}
        """Greeted before the announcement."""
        self._avoided: dict[PeerId, tuple[int, float]] = {}
        """Failures, and until when."""

    async def spec(self) -> SignedSpec:
        """The spec of the run, from the first member that proved to be one."""
        return await asyncio.shield(self._spec)

    def announce(self) -> None:
        """This node answers `Hello` now: let the DHT name it, and meet who was found."""
        self._announced.set()

    def is_greeted(self, peer: PeerId) -> bool:
        """`peer` proved to be a member since this node started."""
        return peer in self._greeted

    async def run(self) -> None:
        """Search until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for addr in self._addrs:
                tasks.create_task(self._keep_connected(addr))
            tasks.create_task(self._meet_the_greeted())
            tasks.create_task(self._provide())
            tasks.create_task(self._search())
            tasks.create_task(self._look())

    async def greet(self, peer: PeerId) -> bool:
        """Ask `peer` for proof that it is a member; whether it is."""
        if not self._is_able(peer):
            return False
        self._greeting.add(peer)
        nonce = secrets.token_bytes(NONCE_BYTES)
        asked = hello.hello(self._run, self._secret, self._me, peer, nonce)
        try:
            answer = await self._rpc.call(peer, rpc.HELLO, asked)
            signed, _ = hello.open_welcome(answer, asked, self._secret, self._me, peer)
        except PeerUnavailable as error:
            failures, _ = self._avoided.get(peer, (0, 0.0))
            self._avoid(peer, min(AVOID_S * 2 ** min(failures, 4), AVOID_MOST_S), error.reason)
            return False
        except RemoteProtocolError as error:
            self._avoid(peer, AVOID_BAD_S, error.reason)
            return False
        except Malformed as error:
            self._avoid(peer, AVOID_BAD_S, str(error))
            self._blame(peer, f"answered hello wrongly: {error}")
            return False
        finally:
            self._greeting.discard(peer)
        self._avoided.pop(peer, None)
        if peer not in self._greeted:
            log.info("member found: peer=%s", short(peer))
        _remember(self._greeted, peer, b"")
        if not self._spec.done():
            self._spec.set_result(signed)
        if self._announced.is_set():
            await self._found(peer)
        else:
            _remember(self._unmet, peer, None)
        return True

    async def _keep_connected(self, addr: str) -> None:
        """Be connected to a bootstrap peer, whether it is a member or not."""
        peer, again_s, reason = _peer_in(addr), FIRST_AGAIN_S, ""
        while True:
            if peer in self._bridge.connected():
                again_s, reason = FIRST_AGAIN_S, ""
                live = self._live_peers()
                if not self.is_greeted(peer) or (peer not in live and len(live) < ENOUGH_PEERS):
                    await self.greet(peer)
                await asyncio.sleep(CHECK_S)
                continue
            try:
                with self._waits.on(f"a connection to {short(peer)}", addr, DIAL_S):
                    await self._bridge.connect(addr, DIAL_S)
                log.info("bootstrap connected: addr=%s", addr)
                self._search_now.set()
                self._provide_now.set()
            except PeerUnavailable as error:
                if error.reason != reason:
                    log.warning("bootstrap not reached: addr=%s reason=%s", addr, error.reason)
                    reason = error.reason
                with self._waits.on(f"the next dial of {short(peer)}", addr, again_s):
                    await asyncio.sleep(again_s)
                again_s = self._longer(again_s, LAST_AGAIN_S)

    async def _meet_the_greeted(self) -> None:
        await self._announced.wait()
        for peer in tuple(self._unmet):
            await self._found(peer)

    async def _provide(self) -> None:
        await self._announced.wait()
        again_s = FIRST_AGAIN_S
        while True:
            self._provide_now.clear()
            told = await self._in_dht(self._bridge.provide(self._key), "our provider record")
            if told:
                log.info("run announced in the DHT: run=%s", short(self._run))
            again_s = PROVIDE_S if told else self._longer(again_s, LAST_AGAIN_S)
            await _pause(again_s, self._provide_now)

    async def _search(self) -> None:
        """Look up candidates, eagerly while peers are few."""
        eager_s = FIRST_AGAIN_S
        while True:
            self._search_now.clear()
            await self._greet_candidates()
            live = len(self._live())
            if live >= ENOUGH_PEERS:
                eager_s, pause_s = FIRST_AGAIN_S, SLOW_S
            else:
                eager_s = pause_s = self._longer(eager_s, EAGER_S)
            if live:
                self._waits.end("members")
            else:
                self._waits.begin("members", "a member of the run", "the DHT", pause_s)
            await _pause(pause_s, self._search_now)

    async def _greet_candidates(self) -> None:
        found = await self._in_dht(self._bridge.find_providers(self._key), "members in the DHT")
        candidates = [] if found is None else found
        self._rng.shuffle(candidates)
        live = self._live_peers()
        async with asyncio.TaskGroup() as greetings:
            for peer, addrs in candidates:
                # A member that is not in the view is greeted again: it may be of another half.
                if peer not in live and self._is_able(peer):
                    self._bridge.add_addrs(peer, addrs)
                    greetings.create_task(self.greet(peer))

    async def _look(self) -> None:
        """Greet whoever the presence view shows, and again whoever restarted."""
        async with asyncio.TaskGroup() as greetings:
            while True:
                for presence in self._live():
                    boot = self._greeted.get(presence.peer)
                    if boot == b"":
                        self._greeted[presence.peer] = presence.boot
                    elif boot != presence.boot and self._is_able(presence.peer):
                        greetings.create_task(self.greet(presence.peer))
                await asyncio.sleep(LOOK_S)

    async def _in_dht(self, call: Awaitable[V], what: str) -> V | None:
        try:
            with self._waits.on(what, "the DHT", LOOKUP_S):
                async with asyncio.timeout(LOOKUP_S):
                    return await call
        except TimeoutError:
            log.warning("the DHT does not answer: what=%s after_s=%g", what, LOOKUP_S)
            return None

    def _live_peers(self) -> set[PeerId]:
        return {presence.peer for presence in self._live()}

    def _longer(self, pause_s: float, most_s: float) -> float:
        """Twice as long, less up to a quarter, so that peers do not knock in step."""
        return min(2 * pause_s, most_s) * self._rng.uniform(0.75, 1.0)

    def _is_able(self, peer: PeerId) -> bool:
        """`peer` may be greeted now."""
        _, until = self._avoided.get(peer, (0, 0.0))
        return (
            peer != self._me
            and until <= self._clock()
            and peer not in self._greeting
            and len(self._greeting) < MAX_GREETINGS
        )

    def _avoid(self, peer: PeerId, for_s: float, reason: str) -> None:
        failures, _ = self._avoided.pop(peer, (0, 0.0))
        level = logging.DEBUG if failures else logging.INFO
        log.log(level, "no member: peer=%s reason=%s avoided_s=%g", short(peer), reason, for_s)
        _remember(self._avoided, peer, (failures + 1, self._clock() + for_s))


async def _pause(pause_s: float, wake: asyncio.Event) -> None:
    """Until `wake` is set, and so long at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await wake.wait()


def _peer_in(addr: str) -> PeerId:
    return PeerId(addr.rpartition("/p2p/")[2])


def _remember(kept: dict[K, V], key: K, value: V) -> None:
    if key not in kept and len(kept) >= MAX_REMEMBERED:
        del kept[next(iter(kept))]
    kept[key] = value
