"""Finding the members of a run, from a ticket, the DHT, the LAN, and what is remembered.

The DHT names candidates, under a key made of the run id, and for each its own signed record
says where to dial it; without one the provider record's addresses are tried.  The peers of the
last start and those that the LAN shows are candidates, too, so that a node finds its run again
with every bootstrap dead.  A candidate is a member once it has proved it (node/greeting.py).
Once the view has enough peers the search goes on slowly, so that two halves of a swarm that was
cut in two find each other again.

Every wait is named in the log.  Source: provider records of Kademlia,
https://github.com/libp2p/specs/blob/master/kad-dht/README.md
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from node.addr_text import peer_in
from node.bootstrap import FIRST_AGAIN_S, LAST_AGAIN_S, Bootstraps, longer
from node.greeting import MAX_GREETINGS, Greetings, remember
from node.lan import Lan
from node.pausing import pause
from node.peer_cache import PeerCache
from node.ports import Bridge, Rpc
from node.settings import check_addr
from node.telemetry import Waits
from protocol.envelope import Signer
from protocol.errors import ConfigError, Malformed
from protocol.ids import DIGEST_BYTES, PeerId, RunId, short
from protocol.limits import MAX_ADDR_BYTES, MAX_ADDRS
from protocol.messages import Presence
from protocol.peer_record import (
    TTL_S,
    PeerRecord,
    open_peer_record,
    record_key,
    sign_peer_record,
)
from protocol.spec import SignedSpec

V = TypeVar("V")

log = logging.getLogger(__name__)

LOOKUP_S = 30.0
"""Deadline of a call into the DHT; measured 1.2 s at worst among 40 hosts."""
LOOK_S = 1.0
"""Between two looks at the presence view for peers not yet greeted."""
EAGER_S = 30.0
"""Longest pause between lookups while peers are few."""
SLOW_S = 300.0
"""Between lookups when there are enough peers: one moves 0.2 MB (docs/results/dht.md)."""
FEW = 2
"""Candidates of the DHT that are greeted after a lookup when there are enough peers: each costs
a lookup of its record, and most of a large swarm are in no one's view."""
ENOUGH_PEERS = 8
"""As many as the active part of the presence view."""
PROVIDE_S = 300.0
"""Our records are put again so often: a DHT of a few nodes forgets when they restart."""


def provider_key(run: RunId) -> bytes:
    """Under which the members of a run are found in the DHT."""
    return hashlib.blake2b(b"shoal-run" + run, digest_size=DIGEST_BYTES).digest()


class Discovery:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        *,
        run: RunId,
        signer: Signer,
        secret: bytes,
        addrs: tuple[str, ...],
        announced: Callable[[], tuple[str, ...]],
        lan: bool,
        cache: PeerCache,
        bridge: Bridge,
        rpc: Rpc,
        live: Callable[[], tuple[Presence, ...]],
        found: Callable[[PeerId], Awaitable[None]],
        blame: Callable[[PeerId, str], None],
        waits: Waits,
        clock: Callable[[], float],
        unix_s: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """
        Args:
            secret: of a private run's ticket, else empty.
            addrs: multiaddrs with /p2p/PEER, of the ticket and of the configuration.
            announced: where others can dial this node now, each with /p2p/PEER.
            lan: whether to look for members on the LAN, too.
            live: the peers of the presence view.
            found: told a proven member, each time it was greeted, from the announcement on
                (before it, this node cannot answer that member); must not raise.
            clock: monotonic seconds.
            unix_s: the wall clock, by which records expire.

        Raises:
            ConfigError: an address is none.
        """
        _check(addrs)
        self._run = run
        self._signer = signer
        self._announced_addrs = announced
        self._lan = Lan(me=signer.peer, addrs=announced, found=self.suggest) if lan else None
        self._cache = cache
        self._bridge = bridge
        self._live = live
        self._found = found
        self._waits = waits
        self._clock = clock
        self._unix_s = unix_s
        self._rng = rng
        self._key = provider_key(run)
        self._seq = 0
        self._announced = asyncio.Event()
        self._search_now = asyncio.Event()
        self._provide_now = asyncio.Event()
        self._spec: asyncio.Future[SignedSpec] = asyncio.get_running_loop().create_future()
        self._unmet: dict[PeerId, None] = {}
        """Greeted before the announcement."""
        self._suggested: dict[PeerId, tuple[str, ...]] = {}
        self._lookups = asyncio.Semaphore(MAX_GREETINGS)
        self._greetings = Greetings(
            run=run,
            me=signer.peer,
            secret=secret,
            bridge=bridge,
            rpc=rpc,
            proven=self._proven,
            blame=blame,
            clock=clock,
        )
        self._bootstraps = self._new_bootstraps(addrs)

    async def spec(self) -> SignedSpec:
        """The spec of the run, from the first member that proved to be one."""
        return await asyncio.shield(self._spec)

    def announce(self) -> None:
        """This node answers `Hello` now: let the DHT name it, and meet who was found."""
        self._announced.set()

    def is_greeted(self, peer: PeerId) -> bool:
        """`peer` proved to be a member since this node started."""
        return self._greetings.is_greeted(peer)

    def suggest(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Somebody, such as the LAN, says that `peer` may be a member."""
        if self._suggested.get(peer) != tuple(addrs):
            remember(self._suggested, peer, tuple(addrs))
            self._search_now.set()

    async def run(self) -> None:
        """Search until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bootstraps.run())
            tasks.create_task(self._meet_the_greeted())
            tasks.create_task(self._provide())
            tasks.create_task(self._search())
            tasks.create_task(self._look())
            if self._lan is not None:
                tasks.create_task(self._lan.run())

    def _new_bootstraps(self, addrs: tuple[str, ...]) -> Bootstraps:
        me = self._signer.peer
        return Bootstraps(
            addrs=tuple(addr for addr in addrs if peer_in(addr) != me),
            bridge=self._bridge,
            live=self._live_peers,
            has_enough=self._has_enough,
            came=self._bootstrap_came,
            here=self._bootstrap_here,
            waits=self._waits,
            rng=self._rng,
        )

    async def _proven(self, peer: PeerId, signed: SignedSpec, is_first: bool) -> None:
        if not self._spec.done():
            self._spec.set_result(signed)
        if is_first and not self._has_enough():
            # It may be of another half of the swarm: ask its part of the DHT, and tell it.
            self._search_now.set()
            self._provide_now.set()
        if self._announced.is_set():
            await self._found(peer)
        else:
            remember(self._unmet, peer, None)

    async def _meet_the_greeted(self) -> None:
        await self._announced.wait()
        for peer in tuple(self._unmet):
            await self._found(peer)

    async def _bootstrap_came(self, peer: PeerId) -> None:
        self._search_now.set()
        self._provide_now.set()

    async def _bootstrap_here(self, peer: PeerId) -> None:
        if not self.is_greeted(peer) or (peer not in self._live_peers() and not self._has_enough()):
            await self._greetings.greet(peer)

    # --- what we say ------------------------------------------------------------------------

    async def _provide(self) -> None:
        await self._announced.wait()
        again_s = FIRST_AGAIN_S
        while True:
            self._provide_now.clear()
            told = await self._in_dht(self._bridge.provide(self._key), "our provider record")
            record = self._bridge.put_record(*self._record())
            told = await self._in_dht(record, "our address record") and told
            if told:
                log.info("run announced in the DHT: run=%s", short(self._run))
            again_s = PROVIDE_S if told else longer(again_s, LAST_AGAIN_S, self._rng)
            await pause(again_s, self._provide_now)

    def _record(self) -> tuple[str, bytes]:
        """Our address record, and its key; each is newer than the one before."""
        now, me = self._unix_s(), self._signer.peer
        self._seq = max(self._seq + 1, int(now * 1000))
        record = PeerRecord(
            peer=me,
            run=self._run,
            addrs=tuple(a for a in self._announced_addrs() if len(a) <= MAX_ADDR_BYTES)[:MAX_ADDRS],
            seq=self._seq,
            expires_unix_s=int(now) + TTL_S,
        )
        return record_key(me, self._run), sign_peer_record(record, self._signer)

    # --- whom we find -----------------------------------------------------------------------

    async def _search(self) -> None:
        """Look up candidates, eagerly while peers are few."""
        eager_s = FIRST_AGAIN_S
        while True:
            self._search_now.clear()
            await self._greet_candidates()
            if self._has_enough():
                eager_s, pause_s = FIRST_AGAIN_S, SLOW_S
            else:
                eager_s = pause_s = longer(eager_s, EAGER_S, self._rng)
            if self._live():
                self._waits.end("members")
            else:
                self._waits.begin("members", "a member of the run", "the DHT", pause_s, aside=True)
            await pause(pause_s, self._search_now)

    async def _greet_candidates(self) -> None:
        """Those that are not in the view; a member among them may be of another half."""
        async with asyncio.TaskGroup() as greetings:
            for peer, addrs in self._known():
                if self._is_news(peer, addrs):
                    greetings.create_task(self._greetings.greet(peer, addrs))
            found = await self._in_dht(self._bridge.find_providers(self._key), "members in the DHT")
            candidates = [pair for pair in found or [] if self._is_news(*pair)]
            self._rng.shuffle(candidates)
            most = FEW if self._has_enough() else MAX_GREETINGS
            for peer, named in candidates[:most]:
                greetings.create_task(self.greet_found(peer, named))

    def _is_news(self, peer: PeerId, addrs: Sequence[str]) -> bool:
        return peer not in self._live_peers() and self._greetings.is_able(peer, addrs)

    def _known(self) -> Iterable[tuple[PeerId, tuple[str, ...]]]:
        """Candidates that the DHT need not name: of the LAN, and while peers are few the cache."""
        yield from self._suggested.items()
        if not self._has_enough():
            for entry in self._cache.peers():
                yield entry.peer, entry.addrs

    async def greet_found(self, peer: PeerId, named: Sequence[str]) -> None:
        """Greet a provider where its own record says, or without one where the DHT says."""
        async with self._lookups:
            if not self._greetings.is_able(peer, named):
                return
            key, said = record_key(peer, self._run), tuple(named)
            lookup = self._bridge.find_record(key)
            value = await self._in_dht(lookup, f"the address record of {short(peer)}")
            if value is not None:
                with contextlib.suppress(Malformed):  # it may have expired on the way
                    said = open_peer_record(key, value, self._unix_s()).addrs
            if peer not in self._live_peers():  # it may have come in the meantime
                await self._greetings.greet(peer, said, named)

    async def _look(self) -> None:
        """Greet whoever the presence view shows, and again whoever restarted."""
        announced = self._announced_addrs()
        try:
            async with asyncio.TaskGroup() as greetings:
                while True:
                    for presence in self._live():
                        is_new = self._greetings.is_new_boot(presence.peer, presence.boot)
                        if is_new and self._greetings.is_able(presence.peer):
                            greetings.create_task(self._greetings.greet(presence.peer))
                    self._remember_members()
                    await self._cache.save_sometimes(self._clock())
                    if announced != self._announced_addrs():
                        announced = self._announced_addrs()
                        self._provide_now.set()
                    await asyncio.sleep(LOOK_S)
        finally:
            self._remember_members()
            await self._cache.save()

    def _remember_members(self) -> None:
        for presence in self._live():
            if self.is_greeted(presence.peer):
                self._cache.answered(presence.peer, presence.addrs, int(self._unix_s()))

    async def _in_dht(self, call: Awaitable[V], what: str) -> V | None:
        try:
            with self._waits.on(what, "the DHT", LOOKUP_S, aside=True):
                async with asyncio.timeout(LOOKUP_S):
                    return await call
        except TimeoutError:
            log.warning("the DHT does not answer: what=%s after_s=%g", what, LOOKUP_S)
            return None

    def _live_peers(self) -> set[PeerId]:
        return {presence.peer for presence in self._live()}

    def _has_enough(self) -> bool:
        return len(self._live()) >= ENOUGH_PEERS


def _check(addrs: Sequence[str]) -> None:
    for addr in addrs:
        try:
            check_addr("address", addr, peer=True)
        except ValueError as error:
            raise ConfigError(f"{error}; ask for another ticket, or correct it") from None
