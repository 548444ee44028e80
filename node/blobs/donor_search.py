"""Who has a blob, or some of it: live members are asked first, then those that the DHT names.

The first who has it gives its manifest, which is checked by its name.  Goes on while the blob is
fetched, so that who comes later, or holds more by now, helps too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from node.p2p.answering import TRANSIENT
from node.ports import Rpc
from node.rpc import FAILED, CallRefused
from protocol import rpc
from protocol.errors import Malformed, PeerError, PeerUnavailable, RemoteProtocolError
from protocol.ids import Digest, PeerId, RunId
from protocol.manifest import Manifest, chunks_in, open_manifest
from protocol.spec import BlobRef
from protocol.transfer import MAX_DONORS
from protocol.transfer_steps import DonorFound, DonorLost, Event, SearchOver

SEARCH_S = 5.0
"""Between two looks for further donors."""
AGAIN_S = 30.0
"""Until a peer that had nothing is asked again."""
FEW_DONORS = 4
"""Fewer than this a while after the beginning, or none at the beginning: the DHT is asked, too."""
DHT_AGAIN_S = 60.0
"""A lookup moves 0.2 MB."""
NO_WORD = (FAILED, *TRANSIENT)
"""Refusals that say nothing about whether the peer holds the blob."""

Peers = Callable[[], Sequence[PeerId]]
Holders = Callable[[Digest], Awaitable[Sequence[PeerId]]]
"""Proven members that the DHT names for a blob."""


class DonorSearch:
    """The search for donors of one blob."""

    def __init__(
        self,
        ref: BlobRef,
        *,
        run: RunId,
        caller: Rpc,
        peers: Peers,
        holders: Holders | None,
        is_relayed: Callable[[PeerId], bool],
        is_banned: Callable[[PeerId], bool],
        blame: Callable[[PeerId, str], None],
        tell: Callable[[Event], None],
        rng: random.Random,
    ) -> None:
        """
        Args:
            holders: None: there is no DHT.
            tell: the machine of the transfer.
        """
        self.manifest: Manifest | None = None
        self.reasons: dict[PeerId, str] = {}
        """Why a peer is no donor."""
        self._ref = ref
        self._run = run
        self._caller = caller
        self._peers = peers
        self._holders = holders
        self._is_relayed = is_relayed
        self._is_banned = is_banned
        self._blame = blame
        self._tell = tell
        self._rng = rng
        self._dht_not_before = 0.0
        self._donors: set[PeerId] = set()
        self._not_before: dict[PeerId, float] = {}
        """When a peer may be asked again; never, if it broke the protocol."""

    async def run(self) -> None:
        """Search until cancelled."""
        is_first = True
        while True:
            await self._ask_all(self._peers())
            if len(self._donors) < (1 if is_first else FEW_DONORS):
                await self._ask_dht()
            if is_first:
                self._tell(SearchOver())
                is_first = False
            await asyncio.sleep(SEARCH_S)

    async def _ask_dht(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._holders is not None and now >= self._dht_not_before:
            self._dht_not_before = now + DHT_AGAIN_S
            await self._ask_all(await self._holders(self._ref.digest))

    async def poll(self, peer: PeerId) -> None:
        """Ask a donor what it holds by now."""
        try:
            await self._ask(peer)
        except PeerError as error:
            is_passing = isinstance(error, CallRefused) and error.code in NO_WORD
            is_gone = isinstance(error, PeerUnavailable) and not isinstance(error, CallRefused)
            if not is_passing and not is_gone:  # who is gone shows when it is asked for a piece
                self._tell(DonorLost(peer, str(error)))

    async def _ask_all(self, peers: Sequence[PeerId]) -> None:
        """In an order of our own, so that joiners do not all ask the same; until enough have it."""
        now = asyncio.get_running_loop().time()
        left = [
            peer
            for peer in self._rng.sample(list(peers), len(peers))
            if peer not in self._donors
            and not self._is_banned(peer)
            and self._not_before.get(peer, now) <= now
        ]
        while left and len(self._donors) < MAX_DONORS:
            several, left = left[:MAX_DONORS], left[MAX_DONORS:]
            async with asyncio.TaskGroup() as questions:
                for peer in several:
                    questions.create_task(self._look_at(peer))

    async def _look_at(self, peer: PeerId) -> None:
        try:
            await self._ask(peer)
        except PeerError as error:
            self.reasons[peer] = str(error)
            is_honest = isinstance(error, PeerUnavailable)
            again_s = AGAIN_S if is_honest else float("inf")
            self._not_before[peer] = asyncio.get_running_loop().time() + again_s
        else:
            self._donors.add(peer)

    async def _ask(self, peer: PeerId) -> None:
        """Raises PeerError: it has nothing, does not say, or says what makes no sense."""
        loop = asyncio.get_running_loop()
        began, is_first = loop.time(), self.manifest is None
        call = rpc.BlobInfoCall(self._run, self._ref.digest, is_manifest_wanted=is_first)
        info = await self._caller.call(peer, rpc.BLOB_INFO, call)
        took_s = loop.time() - began
        if self.manifest is None:
            self.manifest = self._opened(peer, info.manifest)
        held = frozenset(chunks_in(info.held, self.manifest.num_chunks)) if info.held else None
        self._tell(DonorFound(peer, held, self._is_relayed(peer), took_s))

    def _opened(self, peer: PeerId, body: bytes) -> Manifest:
        try:
            manifest = open_manifest(self._ref.digest, body)
        except Malformed as error:
            self._blame(peer, f"sent a bad manifest: {error}")
            raise RemoteProtocolError(peer, f"sent a bad manifest: {error}") from error
        if manifest.size_bytes != self._ref.size_bytes:
            raise PeerUnavailable(
                peer,
                f"holds {manifest.size_bytes} bytes under this name, expected "
                f"{self._ref.size_bytes}: whoever named the blob so is wrong",
            )
        return manifest
