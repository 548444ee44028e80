"""The bounded, expiring view of who is alive in one run.

It holds 64 peers, however large the swarm is: an active part of 8, with whom the node
gossips, and a passive part out of which lost active peers are replaced.  Now and then a
passive peer takes the place of an active one, so that the swarm stays one graph.

Promises: an entry is only ever the author's own signed word; whoever passes it on lowers
its remaining time, and it expires on the receiver's own clock, so nobody's wall clock
matters; only newer words refresh; what has gone does not come back by old words; memory is
bounded; equal inputs (with an equally seeded rng) give equal views.

Source: HyParView (Leitao, Pereira, Rodrigues 2007), section 4, for active and passive part.
Deviations: the active part is not symmetric, and what it calls a shuffle is our push.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from protocol import codec
from protocol.envelope import Domain, verify
from protocol.errors import Malformed
from protocol.ids import PeerId, RunId
from protocol.messages import MAX_MESSAGE_BYTES, Presence, PresenceEntry

VIEW_PEERS = 64
"""Peers known at once: more than any pairing looks at."""
ACTIVE_PEERS = 8
"""Peers gossiped with, over connections that stay open."""
FAN_OUT = 4
SAMPLE_ENTRIES = 8
"""Entries of others in a push."""
ADMIT_ONE_IN = 8
"""A full view takes in a stranger it hears of only so often, but always who speaks itself:
in a simulated swarm of 400 that takes the view's changes from 54 to 16 peers a second."""
AVOID_S = 10.0
"""A peer that did not take a push is not made active again for so long."""
GONE_PEERS = 256
"""Peers remembered after they left the view, so that old words do not bring them back."""
GONE_S = 120.0
"""How long: twice the longest ttl.  A peer whose wall clock went back is unseen meanwhile."""


@dataclass(slots=True)
class _Held:
    presence: Presence
    body: bytes
    signature: bytes
    expires_at: float
    avoid_until: float = 0.0


class PresenceView:
    """The view of one node.  Pure: time and randomness are passed in."""

    def __init__(self, run: RunId, me: PeerId, rng: random.Random) -> None:
        self._run = run
        self._me = me
        self._rng = rng
        self._held: dict[PeerId, _Held] = {}
        self._active: list[PeerId] = []
        self._gone: dict[PeerId, tuple[Presence, float]] = {}

    def take(self, entry: PresenceEntry, sender: PeerId, now: float) -> Presence | None:
        """Take in an entry that `sender` passed on; None if it is no news, or finds no room.

        Raises:
            Malformed: no honest peer passes such an entry on.
        """
        presence = codec.decode(Presence, entry.body, max_bytes=MAX_MESSAGE_BYTES)
        if entry.remaining_ms > presence.ttl_ms:
            raise Malformed(f"remaining {entry.remaining_ms} ms of {presence.ttl_ms} ms")
        if presence.peer == self._me or not self._is_news(presence, now):
            return None
        held = self._held.get(presence.peer)
        full = held is None and len(self._held) >= VIEW_PEERS
        if full and sender != presence.peer and self._rng.randrange(ADMIT_ONE_IN):
            return None
        verify(presence.peer, Domain.PRESENCE, self._run, entry.body, entry.signature)
        if full:
            self._drop(self._rng.choice(self._passive()), now)
        self._gone.pop(presence.peer, None)
        # 1 ms for the hop, so that an entry dies even among peers that pass it on at once.
        expires_at = now + (entry.remaining_ms - 1) / 1000
        avoid_until = held.avoid_until if held else 0.0
        self._held[presence.peer] = _Held(
            presence, entry.body, entry.signature, expires_at, avoid_until
        )
        if presence.state == "leaving" and presence.peer in self._active:
            self._active.remove(presence.peer)
        return presence

    def expire(self, now: float) -> None:
        """Forget whom nothing was heard of for its time to live."""
        for peer in [peer for peer, held in self._held.items() if held.expires_at <= now]:
            self._drop(peer, now)
        for peer in [peer for peer, (_, until) in self._gone.items() if until <= now]:
            del self._gone[peer]

    def live(self, now: float) -> tuple[Presence, ...]:
        """The peers that are there, by id."""
        return tuple(
            held.presence
            for _, held in sorted(self._held.items())
            if held.expires_at > now and held.presence.state != "leaving"
        )

    def targets(self, now: float) -> tuple[PeerId, ...]:
        """Whom to push to in this tick."""
        self._fill_active(now)
        return tuple(self._rng.sample(self._active, min(FAN_OUT, len(self._active))))

    def rotate(self, now: float) -> None:
        """A passive peer takes the place of an active one, if there is one to do so."""
        if len(self._active) == ACTIVE_PEERS and (able := self._able(now)):
            self._active[self._rng.randrange(ACTIVE_PEERS)] = self._rng.choice(able)

    def sample(
        self, to: PeerId, now: float, *, known: frozenset[bytes] = frozenset()
    ) -> tuple[PresenceEntry, ...]:
        """Random entries for `to`, without those whose bodies it is `known` to have."""
        entries = [
            PresenceEntry(held.body, held.signature, remaining_ms)
            for peer, held in self._held.items()
            if (remaining_ms := int((held.expires_at - now) * 1000)) >= 1
            and peer != to
            and held.body not in known
        ]
        return tuple(self._rng.sample(entries, min(SAMPLE_ENTRIES, len(entries))))

    def failed(self, peer: PeerId, now: float) -> None:
        """`peer` did not take a push: another one becomes active; its entry may expire."""
        if held := self._held.get(peer):
            held.avoid_until = now + AVOID_S
        if peer in self._active:
            self._active.remove(peer)

    def _is_news(self, presence: Presence, now: float) -> bool:
        held, gone = self._held.get(presence.peer), self._gone.get(presence.peer)
        if held:
            old = held.presence
            if presence.boot == old.boot:
                return presence.seq > old.seq
            return presence.started_unix_s > old.started_unix_s
        if gone and gone[1] > now:
            old = gone[0]
            if presence.boot == old.boot:
                return presence.seq > old.seq
            # Not `>`: a process that restarts within the second must get back in.
            return presence.started_unix_s >= old.started_unix_s
        return True

    def _drop(self, peer: PeerId, now: float) -> None:
        if len(self._gone) >= GONE_PEERS:
            del self._gone[next(iter(self._gone))]
        self._gone[peer] = (self._held.pop(peer).presence, now + GONE_S)
        if peer in self._active:
            self._active.remove(peer)

    def _passive(self) -> list[PeerId]:
        return [peer for peer in self._held if peer not in self._active]

    def _able(self, now: float) -> list[PeerId]:
        """Passive peers that may become active."""
        return [
            peer
            for peer in self._passive()
            if (held := self._held[peer]).avoid_until <= now
            and held.expires_at > now
            and held.presence.state != "leaving"
        ]

    def _fill_active(self, now: float) -> None:
        able = self._able(now)
        wanted = min(ACTIVE_PEERS - len(self._active), len(able))
        self._active += self._rng.sample(able, wanted)
