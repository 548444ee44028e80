"""What passes between simulated peers: messages, payloads, saved states.

Transfers share lines: one of n that pass a link at the same time gets a n-th of its capacity,
and goes at the slower of its two ends; what a slow end leaves unused nobody else gets (so a
link may look slower than with TCP, never faster).  A transfer with a relayed peer goes through
a relay, which carries each at a bounded rate.  A frozen end lets it stand; if an end dies or
is cut off it breaks, and the other end is told once it has noticed.

Messages are counted and delayed, but wait for no transfer: they are a few hundred bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from node.sim.clock import Clock
from node.sim.peer import Conditions, Peer, Transfer
from node.sim.state import Saved
from protocol import codec
from protocol.envelope import SIGNATURE_BYTES
from protocol.ids import Digest, PeerId
from protocol.messages import Message
from protocol.rosters import SignedRoster
from protocol.spsa import Frames, SignedBase, Want
from trainers.effects import CatchUp, Fetch, Send
from trainers.events import CatchUpFailed, Event, Fetched, FetchFailed, Received, SendFailed

OVERHEAD_BYTES = 180
"""Of a message, besides its body: signature (64) and frame of ours, the empty answer, and the
headers of noise, yamux and TCP/IP both ways.  A guess from their formats."""
SIGNED_FRAME_BYTES = SIGNATURE_BYTES + 5
"""Of a frame of spsa, besides its body."""
LEFT_BYTES = 0.5
"""A transfer with less than this to go is over: sums of floats end beside the mark."""


def latency_s(world: Conditions, rng: random.Random, one: Peer, other: Peer) -> float:
    """How long a message takes between these two, this time."""
    least, most = world.latency_s
    drawn_s = least + (most - least) * rng.random()
    if one.relayed or other.relayed:
        drawn_s += world.relay_latency_s
    return drawn_s + one.latency_s + other.latency_s


class Links:
    """All lines of a world, and what is under way on them."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        peers: dict[PeerId, Peer],
        conditions: Conditions,
        tell: Callable[[Peer, Event], None],
    ) -> None:
        self.conditions = conditions
        self._clock = clock
        self._rng = rng
        self._peers = peers
        self._tell = tell
        self._sizes: dict[type, int] = {}
        """Of kinds that have one length, but for the digits of their numbers."""

    # --- messages ---------------------------------------------------------------------------

    def send(self, me: Peer, effect: Send) -> None:
        """A message sets out; it may be lost, late or doubled."""
        message = effect.message
        world, target = self.conditions, self._peers.get(effect.to)
        size_bytes = self._sizes.get(type(message)) or self._size(message)
        me.stats.messages += 1
        me.up.add(self._clock.now, size_bytes)
        if target is None or not me.reaches(target):
            self._fail(me, effect)
            return
        if world.loss and self._rng.random() < world.loss:
            if self._happens(world.told):
                self._fail(me, effect)
            return
        delay_s = self._latency(me, target)
        self._clock.after(delay_s, self._arrive, me, target, effect, size_bytes)
        if world.doubled and self._rng.random() < world.doubled:
            delay_s = self._latency(me, target)
            self._clock.after(delay_s, self._arrive, me, target, effect, size_bytes)
        if world.unsure and self._rng.random() < world.unsure:
            self._fail(me, effect)

    def _arrive(self, sender: Peer, target: Peer, effect: Send, size_bytes: int) -> None:
        if not sender.reaches(target):
            self._fail(sender, effect)
            return
        now = self._clock.now
        target.down.add(now, size_bytes)
        if isinstance(effect.message, Frames):  # counted as payload, as `node.exchange` does
            target.stats.payload_bytes += size_bytes
        if target.backlog is not None:
            late_s, silent_since = self.conditions.send_deadline_s, target.silent_since
            self._clock.after(late_s, self._unanswered, sender, target, silent_since, effect)
        self._tell(target, Received(sender.id, effect.message))

    def _fail(self, sender: Peer, effect: Send) -> None:
        """Tell it once it has noticed."""
        failed = SendFailed(effect.to, effect.message)
        self._clock.after(self._draw(self.conditions.gone_s), self._tell, sender, failed)

    def _unanswered(self, sender: Peer, target: Peer, silent_since: float, effect: Send) -> None:
        if target.silent_since == silent_since:  # since the message came
            self._tell(sender, SendFailed(effect.to, effect.message))

    def _size(self, message: Message) -> int:
        """Bytes on the wire."""
        match message:
            case SignedRoster() | SignedBase():
                return len(message.body) + SIGNATURE_BYTES + OVERHEAD_BYTES
            case Want():
                return len(message.horizon) + OVERHEAD_BYTES
            case Frames():
                bodies = sum(len(frame.body) + SIGNED_FRAME_BYTES for frame in message.frames)
                return bodies + OVERHEAD_BYTES
        size = self._sizes[type(message)] = len(codec.encode(message)) + OVERHEAD_BYTES
        return size

    # --- payloads and states ----------------------------------------------------------------

    def fetch(self, me: Peer, effect: Fetch) -> None:
        """A payload is asked for."""
        self.release(me, effect.digest)
        content: list[object] = []

        def grant(source: Peer) -> str:
            if effect.digest not in source.worker.held:
                return "its source does not hold it"
            content.append(source.worker.held[effect.digest])  # kept, even if released there
            return ""

        def ended(why: str) -> None:
            del me.fetching[effect.digest]
            if why:
                self._tell(me, FetchFailed(effect.digest, why))
                return
            me.worker.held[effect.digest] = content[0]
            me.stats.payload_bytes += effect.size_bytes
            self._tell(me, Fetched(effect.digest))

        size_bytes = effect.size_bytes
        me.fetching[effect.digest] = self._ask(me, effect.source, size_bytes, grant, ended)

    def release(self, me: Peer, digest: Digest) -> None:
        """A payload is not wanted any more, whether it is here or on its way."""
        me.worker.held.pop(digest, None)
        transfer = me.fetching.pop(digest, None)
        if transfer:
            self._end(transfer)

    def catch_up(self, me: Peer, effect: CatchUp) -> None:
        """The saved state of a member is asked for."""
        assert not me.catching, "asked for two states at once"

        states: list[Saved] = []

        def grant(source: Peer) -> str:
            states.append(source.worker.saved)
            return "" if me.worker.differs(states[0]) else "its source has the same weights"

        def ended(why: str) -> None:
            me.catching = None
            if not why and me.worker.is_down:
                why = "the worker is down"
            if not why and not me.worker.differs(states[0]):
                why = "overtaken meanwhile"
            if why:
                self._tell(me, CatchUpFailed(why))
                return
            me.stats.state_bytes += me.worker.state_bytes
            me.worker.take_over(states[0])

        size_bytes = me.worker.state_bytes
        me.catching = self._ask(me, effect.source, size_bytes, grant, ended)

    def join(self, me: Peer, source: PeerId, ended: Callable[[Saved | None], None]) -> None:
        """A new peer asks for a state to start from; None: it could not be had."""
        states: list[Saved] = []

        def grant(source: Peer) -> str:
            states.append(source.worker.saved)
            return ""

        def arrived(why: str) -> None:
            me.catching = None
            me.stats.state_bytes += 0 if why else me.worker.state_bytes
            ended(None if why else states[0])

        size_bytes = me.worker.state_bytes
        me.catching = self._ask(me, source, size_bytes, grant, arrived)

    def forget_state(self, me: Peer) -> None:
        """The worker died: it does not wait for a state any more."""
        transfer, me.catching = me.catching, None
        if transfer:
            self._end(transfer)

    def _ask(
        self,
        me: Peer,
        source_id: PeerId,
        size_bytes: int,
        grant: Callable[[Peer], str],
        ended: Callable[[str], None],
    ) -> Transfer:
        """Open a transfer; `grant` says what the source has against it."""
        now, source = self._clock.now, self._peers.get(source_id)
        reachable = source is not None and me.reaches(source)
        transfer = Transfer(
            source if source is not None else me,
            me,
            float(size_bytes),
            now + self.conditions.fetch_deadline_s,
            ended,
        )
        if reachable and source:
            there_s = self._latency(me, source)
            self._clock.after(there_s, self._asked, transfer, grant)
        else:
            self._fail_later(transfer)
        return transfer

    def _asked(self, transfer: Transfer, grant: Callable[[Peer], str]) -> None:
        source, me = transfer.source, transfer.target
        if transfer.over:
            return
        if not me.reaches(source):
            self._fail_later(transfer)
        elif refusal := grant(source):
            self._clock.after(self._latency(me, source), self._finish, transfer, refusal)
        else:
            if self._happens(self.conditions.broken):
                transfer.breaks = True
                transfer.left *= self._rng.random()
            self._clock.after(self._latency(me, source), self._begin, transfer)

    def _begin(self, transfer: Transfer) -> None:
        source, me = transfer.source, transfer.target
        if transfer.over or not me.alive:
            return
        if not me.reaches(source):
            self._fail_later(transfer)
            return
        transfer.since = self._clock.now
        for link in (source.up, me.down):
            link.transfers[transfer] = None
        self._share(source, me, transfer)

    def _fail_later(self, transfer: Transfer) -> None:
        left_s = transfer.deadline - self._clock.now
        why_s = min(self._draw(self.conditions.gone_s), max(0.0, left_s))
        self._clock.after(why_s, self._finish, transfer, "its source is gone")

    def _finish(self, transfer: Transfer, why: str) -> None:
        if not transfer.over:
            self._end(transfer)
            transfer.ended(why)

    def _end(self, transfer: Transfer) -> None:
        """It is off the lines, whatever became of it."""
        transfer.over = True
        self._take_off(transfer)

    def _take_off(self, transfer: Transfer) -> None:
        source, me = transfer.source, transfer.target
        if transfer not in source.up.transfers:
            return
        self._set_rate(transfer, 0.0)
        for link in (source.up, me.down):
            del link.transfers[transfer]
            if not link.transfers:
                link.rate = 0.0  # sums of floats end beside the mark
        self._share(source, me)

    # --- sharing ----------------------------------------------------------------------------

    def break_off(self, peer: Peer) -> None:
        """The peer died or was cut off: transfers with whom it cannot reach break."""
        for transfer in (*peer.up.transfers, *peer.down.transfers):
            source, target = transfer.source, transfer.target
            if not (source.reaches(target) and target.reaches(source)):
                self._take_off(transfer)
                self._fail_later(transfer)

    def pause(self, peer: Peer) -> None:
        """The peer was frozen or thawed: look at its transfers again."""
        self._share(peer, peer)

    def _share(self, source: Peer, target: Peer, newest: Transfer | None = None) -> None:
        """Somebody came to, or left, the line up of `source` and the line down of `target`."""
        if newest and len(source.up.transfers) == len(target.down.transfers) == 1:
            self._set_rate(newest, self._fair_rate(newest))  # what most exchanges are
            return
        for transfer in {**source.up.transfers, **target.down.transfers}:
            self._set_rate(transfer, self._fair_rate(transfer))

    def _fair_rate(self, transfer: Transfer) -> float:
        source, me, world = transfer.source, transfer.target, self.conditions
        if source.backlog is not None or me.backlog is not None:
            return 0.0
        rate = min(
            source.up.capacity / len(source.up.transfers),
            me.down.capacity / len(me.down.transfers),
        )
        return min(rate, world.relay_bytes_per_s) if source.relayed or me.relayed else rate

    def _set_rate(self, transfer: Transfer, rate: float) -> None:
        now, by = self._clock.now, rate - transfer.rate
        if by == 0.0 and transfer.due:
            return
        transfer.left -= transfer.rate * (now - transfer.since)
        transfer.since, transfer.rate = now, rate
        transfer.source.up.change(now, by)
        transfer.target.down.change(now, by)
        transfer.due += 1
        left_s = transfer.left / rate if rate else math.inf
        at = min(now + left_s, transfer.deadline)
        self._clock.after(at - now, self._due, transfer, transfer.due)

    def _due(self, transfer: Transfer, due: int) -> None:
        if transfer.over or transfer.due != due:
            return
        left = transfer.left - transfer.rate * (self._clock.now - transfer.since)
        if left > LEFT_BYTES:
            self._finish(transfer, "not here by the deadline")
        else:
            self._finish(transfer, "the connection broke" if transfer.breaks else "")

    # --- chance -----------------------------------------------------------------------------

    def _latency(self, one: Peer, other: Peer) -> float:
        return latency_s(self.conditions, self._rng, one, other)

    def _draw(self, bounds: tuple[float, float]) -> float:
        return self._rng.uniform(*bounds)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability
