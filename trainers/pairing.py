"""The search for a partner, and the exchange with it: proposals, receipts, deadlines.

A free peer proposes to the candidate with the lowest edge key; if the choice is mutual they
are a pair, refused it moves on to the next.  Keys fall along any chain of open proposals, so
no circle can wait for itself.  A proposal that arrives while another one is open is kept,
accepted if that one is refused, and refused once there is a pair.  Who trains answers at once
and tries those first, when it is ready, who asked meanwhile: where speeds differ 1 : 4 : 16, a
proposer that waits for a peer in training misses its round (the fastest had 18 % of their
exchanges, so they have 86 %).

No exchange of acknowledgements can make both sides decide alike, so *the proposer decides*:
the partner promises with `Have`, and does what the proposer tells it.  A partner in doubt
repeats its `Have`, reads the proposer's presence, and goes on alone at twice the deadline
(`half`).  `Have` and `Commit` are signed receipts.

`Pairing` handles one payload at a time; the trainer opens it with a payload and looks at
`result`.  Effects go into the trainer's own list.

Source: docs/decisions.md (pairing without a coordinator; partial failure).
"""

from __future__ import annotations

from dataclasses import replace

from protocol.ids import Digest, PeerId, Round, RunId
from protocol.messages import (
    Abort,
    Accept,
    Commit,
    Decision,
    Exchange,
    Have,
    Message,
    Propose,
    Refuse,
)
from protocol.spec import NolocoConfig
from trainers.machine import (
    Blame,
    DoubtDeadline,
    Effect,
    ExchangeDeadline,
    Fetch,
    ProposalDeadline,
    Publish,
    Release,
    SearchDeadline,
    Send,
    SetTimer,
    Timer,
    Wait,
)
from trainers.pairs import Alone, Decisions, Held, Pair, Payload, edge_key, exchange_between

MAX_HELD = 64
"""Proposals kept while this peer is not free: as many as peers in the presence view."""


class Pairing:
    """The search for a partner for one payload at a time, and the exchange with it."""

    def __init__(
        self, me: PeerId, run: RunId, config: NolocoConfig, max_tokens: int, out: list[Effect]
    ) -> None:
        self._me = me
        self._run = run
        self._config = config
        self._max_tokens = max_tokens
        self._out = out
        self.members: tuple[PeerId, ...] = ()
        self.mine: Payload | None = None
        self.result: Alone | Pair | None = None
        """Alone, or a pair that agreed; None while open."""
        self.held: dict[PeerId, Held] = {}
        self._asked: set[PeerId] = set()
        """Who proposed while we trained: open then, so asked first once we are."""
        self._tried: set[PeerId] = set()
        self._proposed_to: PeerId | None = None
        self._pair: Pair | None = None
        self._decisions = Decisions()

    # --- what the trainer does ------------------------------------------------------------

    def open(self, mine: Payload, now: float) -> None:
        """Look for a partner for this payload."""
        self.mine, self.result = mine, None
        self._tried, self._proposed_to, self._pair = set(), None, None
        until = now + self._config.exchange_deadline_s
        self._out.append(SetTimer(until, SearchDeadline(mine.digest)))
        self._out.append(Wait("a partner", None, until))
        self.advance(now)

    def shut(self, reason: str) -> bool:
        """End the search or exchange if that is ours to say; False: the proposer must decide."""
        if self.mine is None or self.result is not None:
            return True
        pair = self._pair
        if pair and pair.have and not pair.i_decide:
            return False
        if pair:
            self._give_up(pair)
        self._proposed_to = None
        self.result = Alone(reason)
        return True

    def applied(self) -> None:
        """The outer step of `result` is taken: tell the partner, free the payloads."""
        assert self.mine is not None
        if isinstance(self.result, Pair):
            if self.result.i_decide:
                self._decide(self.mine.digest, self.result.exchange)
                self._send(self.result.peer, Commit(self.result.exchange))
            self._out.append(Release(self.result.theirs))
        self._out.append(Release(self.mine.digest))
        self.mine = self.result = self._pair = self._proposed_to = None
        self._asked.clear()

    def refused(self, reason: str) -> None:
        """The partner's payload was refused by the worker: its fault; go on alone."""
        assert isinstance(self.result, Pair)
        pair, self.result = self.result, Alone(reason, half=not self.result.i_decide)
        self._out.append(Blame(pair.peer, reason))
        self._give_up(pair)

    def drop(self) -> None:
        """The worker died, and our payload with it."""
        if self.mine and not self.shut("the worker died"):
            assert self._pair is not None
            self._out.append(Release(self._pair.theirs))
        elif isinstance(self.result, Pair):
            self._give_up(self.result)
        if self.mine:
            self._out.append(Release(self.mine.digest))
        self.mine = self.result = self._pair = self._proposed_to = None

    def refuse_held(self, reason: str, up_to: Round) -> None:
        """Answer the kept proposals of rounds until `up_to`: nothing will come of them."""
        for peer, held in sorted(self.held.items()):
            if held.propose.round <= up_to:
                self._send(peer, Refuse(held.propose.digest, reason, 0.0))
                del self.held[peer]

    def remember(self, peer: PeerId) -> None:
        """It looks for a partner now: try it first when we do."""
        if len(self._asked) < MAX_HELD:
            self._asked.add(peer)

    def hold(self, peer: PeerId, propose: Propose, now: float) -> None:
        """Keep a proposal until we can answer it."""
        if peer in self.held or len(self.held) < MAX_HELD:
            self.held[peer] = Held(propose, now + propose.wait_s)

    # --- what the world tells -------------------------------------------------------------

    def on_message(self, sender: PeerId, message: Message, now: float) -> None:
        """Take in one authenticated message; never raises on what a peer sent."""
        match message:
            case Propose():
                self._on_propose(sender, message, now)
            case Accept():
                self._on_accept(sender, message, now)
            case Refuse(proposed):
                self._on_refuse(sender, proposed, now)
            case Have(exchange):
                self._on_have(sender, exchange)
            case Commit(exchange):
                self._on_commit(sender, exchange, now)
            case Abort(proposed):
                self._on_decision(sender, proposed, False, now)

    def on_decisions(self, proposer: PeerId, decisions: tuple[Decision, ...], now: float) -> None:
        """Read a proposer's presence, which answers a doubt as well as a message does."""
        for decision in decisions:
            self._on_decision(proposer, decision.proposed, decision.committed, now)

    def on_send_failed(self, to: PeerId, message: Message, now: float) -> None:
        """An unsent proposal counts as refused; an unsent acceptance ends the exchange."""
        match message:
            case Propose(digest=digest):
                self._on_refuse(to, digest, now)
            case Accept(proposed=proposed):
                self._on_decision(to, proposed, False, now)
            case _:
                pass  # doubt and deadlines cover the rest

    def on_fetched(self, digest: Digest, ok: bool, now: float) -> None:
        """The partner's payload is here, or cannot be had."""
        pair = self._pair
        if pair is None or pair.theirs != digest or pair.fetched:
            self._out.extend([Release(digest)] if ok and not self._in_use(digest) else [])
        elif not ok:
            self._fail(pair, now)
        else:
            self._pair = replace(pair, fetched=True, have=pair.have or not pair.i_decide)
            if not pair.i_decide:
                self._send(pair.peer, Have(pair.exchange))
                self._out.append(Wait("the proposer's decision", pair.peer, pair.until))
            self._agree()

    def on_timer(self, timer: Timer, now: float) -> None:
        """A deadline passed; one of an older payload is ignored."""
        match timer:
            case ProposalDeadline(proposed, to):
                if self.mine and self.mine.digest == proposed and self._proposed_to == to:
                    self._next(to, now)
            case SearchDeadline(proposed):
                if self._searching(proposed):
                    self.shut("no partner by the deadline")
            case ExchangeDeadline(proposed):
                self._on_exchange_deadline(proposed, now)
            case DoubtDeadline(proposed):
                pair = self._open_pair(proposed)
                if pair and not pair.i_decide:
                    self._out.append(Release(pair.theirs))
                    self._pair = None
                    self.result = Alone("the proposer's decision never came", half=True)

    # --- proposals ------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """If free: accept the kept proposal, or propose to the candidate, with the lowest key."""
        mine = self.mine
        if mine is None or self.result or self._pair or self._proposed_to:
            return
        self.held = {peer: held for peer, held in self.held.items() if held.until > now}
        members = set(self.members) - self._tried
        candidates = set(self.held) or (members & self._asked) or members
        if not candidates:
            return
        best = min(candidates, key=lambda p: edge_key(self._run, mine.round, 0, self._me, p))
        if best in self.held:
            self._accept(best, self.held.pop(best).propose, now)
            return
        self._proposed_to = best
        wait_s = self._config.proposal_deadline_s
        self._send(best, Propose(mine.round, 0, mine.digest, mine.size_bytes, mine.tokens, wait_s))
        self._out.append(SetTimer(now + wait_s, ProposalDeadline(mine.digest, best)))
        self._out.append(Wait("an answer to a proposal", best, now + wait_s))

    def _on_propose(self, sender: PeerId, propose: Propose, now: float) -> None:
        mine = self.mine
        busy = self._pair or self.result
        if mine and busy and propose.round <= mine.round:
            self._send(sender, Refuse(propose.digest, "taken", 0.0))
        elif self._proposed_to == sender and not busy:
            if self._me > sender:  # crossing proposals are an acceptance: the lower id proposes
                self._proposed_to = None
                self._accept(sender, propose, now)
        else:
            self.hold(sender, propose, now)
            self.advance(now)

    def _accept(self, proposer: PeerId, propose: Propose, now: float) -> None:
        mine = self.mine
        assert mine is not None
        if propose.size_bytes != mine.size_bytes or propose.fragment != 0:
            self._out.append(Blame(proposer, f"a payload of {propose.size_bytes} bytes, not ours"))
            self._send(proposer, Refuse(propose.digest, "failed", 0.0))
            self._next(proposer, now)
            return
        self._send(
            proposer,
            Accept(propose.digest, mine.round, mine.digest, mine.size_bytes, mine.tokens),
        )
        theirs = Payload(propose.round, propose.digest, propose.size_bytes, propose.tokens)
        exchange = exchange_between(proposer, theirs, self._me, mine, self._max_tokens)
        self._begin(proposer, exchange, propose.digest, now)

    def _on_accept(self, sender: PeerId, accept: Accept, now: float) -> None:
        mine = self.mine
        if mine is None or self._proposed_to != sender or accept.proposed != mine.digest:
            if self._open_pair(accept.proposed) is None:  # withdrawn; a doubled one is ignored
                self._send(sender, Abort(accept.proposed))
            return
        if accept.size_bytes != mine.size_bytes:
            self._out.append(Blame(sender, f"a payload of {accept.size_bytes} bytes, not ours"))
            self._send(sender, Abort(mine.digest))
            self._next(sender, now)
            return
        theirs = Payload(accept.round, accept.digest, accept.size_bytes, accept.tokens)
        exchange = exchange_between(self._me, mine, sender, theirs, self._max_tokens)
        self._begin(sender, exchange, accept.digest, now)

    def _on_refuse(self, sender: PeerId, proposed: Digest, now: float) -> None:
        pair = self._open_pair(proposed)
        if self.mine and self.mine.digest == proposed and self._proposed_to == sender:
            self._next(sender, now)
        elif pair and pair.i_decide and pair.peer == sender and not pair.have:
            self._fail(pair, now)

    def _next(self, tried: PeerId, now: float) -> None:
        self._tried.add(tried)
        self._proposed_to = None
        self.advance(now)

    # --- the exchange ---------------------------------------------------------------------

    def _begin(self, peer: PeerId, exchange: Exchange, theirs: Digest, now: float) -> None:
        until = now + self._config.exchange_deadline_s
        mine = exchange.proposer == self._me
        self._proposed_to = None
        self._pair = Pair(peer, exchange, mine, theirs, until)
        self.held.pop(peer, None)
        assert self.mine is not None
        self.refuse_held("taken", self.mine.round)
        self._out.append(Fetch(theirs, self.mine.size_bytes, peer))
        self._out.append(SetTimer(until, ExchangeDeadline(exchange.proposer_digest)))
        self._out.append(Wait("payload and receipt" if mine else "payload", peer, until))

    def _on_have(self, sender: PeerId, exchange: Exchange) -> None:
        pair = self._open_pair(exchange.proposer_digest)
        if pair and pair.i_decide and pair.peer == sender:
            if pair.exchange != exchange:
                self._out.append(Blame(sender, "a receipt of another exchange"))
                return
            self._pair = replace(pair, have=True)
            self._agree()
        elif answer := self._decisions.answer(exchange):
            self._send(sender, answer)

    def _agree(self) -> None:
        pair = self._pair
        if pair and pair.i_decide and pair.fetched and pair.have:
            self.result = self._pair = replace(pair, agreed=True)

    def _on_commit(self, sender: PeerId, exchange: Exchange, now: float) -> None:
        pair = self._open_pair(exchange.proposer_digest)
        if pair and pair.peer == sender and pair.exchange != exchange:
            self._out.append(Blame(sender, "a receipt of another exchange"))
            return
        self._on_decision(sender, exchange.proposer_digest, True, now)

    def _on_decision(self, sender: PeerId, proposed: Digest, committed: bool, now: float) -> None:
        pair = self._open_pair(proposed)
        if pair is None or pair.i_decide or pair.peer != sender:
            return
        if committed and pair.have:
            self.result = self._pair = replace(pair, agreed=True)
        elif not committed:
            self._out.append(Release(pair.theirs))
            self._pair = None
            self._next(sender, now)

    def _on_exchange_deadline(self, proposed: Digest, now: float) -> None:
        pair = self._open_pair(proposed)
        if pair is None:
            return
        if pair.i_decide or not pair.have:
            self._fail(pair, now)
            return
        until = now + self._config.exchange_deadline_s
        self._send(pair.peer, Have(pair.exchange))  # in doubt: ask
        self._out.append(SetTimer(until, DoubtDeadline(proposed)))
        self._out.append(Wait("the proposer's decision (in doubt)", pair.peer, until))

    def _fail(self, pair: Pair, now: float) -> None:
        """This exchange came to nothing; look for another partner while there is time."""
        self._give_up(pair)
        self._next(pair.peer, now)

    def _give_up(self, pair: Pair) -> None:
        """Tell the other side: our decision if we decide, else that we withdraw."""
        self._pair = None
        self._out.append(Release(pair.theirs))
        if pair.i_decide:
            self._decide(pair.exchange.proposer_digest, None)
            self._send(pair.peer, Abort(pair.exchange.proposer_digest))
        elif not pair.have:
            self._send(pair.peer, Refuse(pair.exchange.proposer_digest, "failed", 0.0))

    def _decide(self, proposed: Digest, exchange: Exchange | None) -> None:
        self._out.append(Publish(self._decisions.add(proposed, exchange)))

    # --- small questions ------------------------------------------------------------------

    def _open_pair(self, proposed: Digest) -> Pair | None:
        """The exchange that the proposer named so, if it is ours and undecided."""
        pair = self._pair
        same = pair and pair.exchange.proposer_digest == proposed and self.result is None
        return pair if same else None

    def _searching(self, proposed: Digest) -> bool:
        open = self.mine and self.mine.digest == proposed and self.result is None
        return bool(open) and self._pair is None

    def _in_use(self, digest: Digest) -> bool:
        return self._pair is not None and self._pair.theirs == digest

    def _send(self, to: PeerId, message: Message) -> None:
        self._out.append(Send(to, message))
