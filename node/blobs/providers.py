"""The DHT about blobs: we say there which ones are all here, and ask it who else has one.

A provider is only a candidate: it is asked for a blob once it has proved to be a member.  The DHT
knows a blob of a run by a key of its own, so one run's members are not sent to another's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from node.discovery import LOOKUP_S
from node.ports import Bridge
from node.telemetry import Waits
from protocol.ids import DIGEST_BYTES, Digest, PeerId, RunId, short

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at what is here that the DHT was not told of."""
AGAIN_S = 1800.0
"""Half the life of a provider record (node/p2p/providers.py).  A lookup moves 0.2 MB, and live
members are asked before the DHT is."""
UNHEARD_AGAIN_S = 60.0
"""Until a blob is told again that no other peer has heard of."""
MAX_TOLD = 16
"""Blobs that the DHT is told of: three of the spec, and some checkpoints."""
MAX_CANDIDATES = 8
"""Providers that are greeted for one blob: each costs a lookup of its address record."""


def blob_key(run: RunId, digest: Digest) -> bytes:
    """Under which the holders of a blob are found in the DHT."""
    return hashlib.blake2b(b"shoal-blob" + run + digest, digest_size=DIGEST_BYTES).digest()


class Finder(Protocol):
    """What is needed of `node.discovery.Discovery`."""

    async def greet_found(self, peer: PeerId, named: Sequence[str]) -> None: ...

    def is_greeted(self, peer: PeerId) -> bool: ...


class BlobProviders:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(
        self,
        run: RunId,
        bridge: Bridge,
        finder: Finder,
        *,
        whole: Callable[[], Sequence[Digest]],
        waits: Waits,
        clock: Callable[[], float],
    ) -> None:
        """Args: whole: the blobs that are all here."""
        self._run = run
        self._bridge = bridge
        self._finder = finder
        self._whole = whole
        self._waits = waits
        self._clock = clock
        self._tell_at: dict[Digest, float] = {}

    async def run(self) -> None:
        """Tell the DHT, until cancelled."""
        while True:
            here = self._whole()[:MAX_TOLD]
            self._tell_at = {name: at for name, at in self._tell_at.items() if name in here}
            for digest in here:
                if self._clock() >= self._tell_at.get(digest, 0.0):
                    await self._tell(digest)
            await asyncio.sleep(LOOK_S)

    async def holders(self, digest: Digest) -> list[PeerId]:
        """Members that the DHT names for a blob; they may have lost it since."""
        key = blob_key(self._run, digest)
        try:
            with self._waits.on(f"who has blob {short(digest)}", "the DHT", LOOKUP_S, aside=True):
                async with asyncio.timeout(LOOKUP_S):
                    found = (await self._bridge.find_providers(key))[:MAX_CANDIDATES]
                    async with asyncio.TaskGroup() as greetings:
                        for peer, named in found:
                            if not self._finder.is_greeted(peer):
                                greetings.create_task(self._finder.greet_found(peer, named))
        except TimeoutError:
            log.warning("the DHT does not say who has a blob: digest=%s", short(digest))
            return []
        return [peer for peer, _ in found if self._finder.is_greeted(peer)]

    async def _tell(self, digest: Digest) -> None:
        """Once, whether another peer heard it or not: a DHT of one is told again by and by."""
        what = f"word of blob {short(digest)} to arrive"
        try:
            with self._waits.on(what, "the DHT", LOOKUP_S, aside=True):
                async with asyncio.timeout(LOOKUP_S):
                    is_told = await self._bridge.provide(blob_key(self._run, digest))
        except TimeoutError:
            is_told = False
        self._tell_at[digest] = self._clock() + (AGAIN_S if is_told else UNHEARD_AGAIN_S)
