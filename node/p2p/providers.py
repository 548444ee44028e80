"""Provider records that this node keeps for others: bounded, short-lived, and nobody's for good.

The library keeps the first twenty of a key for two days and refuses all later ones, so twenty
dead or hostile peers would hide a whole run.  It also keeps what a lookup brought as if the
providers had said it just now, so that dead ones never end; and with one of those in store, a
lookup asks nobody.  Here a record ends an hour after its provider last spoke, a full key gives
up one at random, an answer is a random choice of them, and what a lookup brings is not kept.

Can go when the library does as much; tests/test_dht.py pins what is relied on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.peer.peerinfo import PeerInfo

TTL_S = 3600.0
"""A member puts its record again every five minutes (discovery.PROVIDE_S)."""
MAX_PER_KEY = 64
"""Providers kept of one key; three times what an answer names, so that answers differ."""
MAX_KEYS = 4096
"""The key that was provided longest ago is dropped.  Some 20 MB, if a flood fills them all with
the keys of one peer; a run that is in use is provided all the time."""
MAX_GIVEN = 20
"""Providers in one answer, as the library's own: 6 kB."""


class Providers(ProviderStore):
    """The library's store with these bounds."""

    def __init__(
        self,
        host: object,
        peer_routing: object,
        rng: random.Random,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(host, peer_routing)  # type: ignore[arg-type]  # an IHost
        self._rng = rng
        self._unix_s = unix_s

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """The provider itself said so, now."""
        kept = self.providers.pop(key, {})
        name = str(provider.peer_id)
        if name not in kept and len(kept) >= MAX_PER_KEY:
            del kept[self._rng.choice(sorted(kept))]
        kept[name] = ProviderRecord(provider, self._unix_s())
        self.providers[key] = kept  # at the end: the key used last
        if len(self.providers) > MAX_KEYS:
            del self.providers[next(iter(self.providers))]

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """Some of those whose record has not ended."""
        end = self._unix_s() - TTL_S
        kept = {
            name: record
            for name, record in self.providers.get(key, {}).items()
            if record.timestamp > end
        }
        if kept:
            self.providers[key] = kept
        else:
            self.providers.pop(key, None)
        found = [PeerInfo(record.peer_id, record.addresses) for record in kept.values()]
        return self._rng.sample(found, min(len(found), MAX_GIVEN))
