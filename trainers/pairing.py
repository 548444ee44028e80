"""The search for a partner, and the exchange with it: proposals, receipts, deadlines.

A free peer proposes to the candidate with the lowest edge key; if the choice is mutual they
are a pair, refused it moves on to the next.  A proposal that arrives while another one is open
is accepted if its key is lower (so no circle waits for itself), else kept until that one is
refused.  Who trains refuses at once and later tries those first who asked: where speeds differ
1 : 4 : 16 waiting for peers in training left the fastest 18 % of their exchanges, now 85 %.

No exchange of acknowledgements can make both sides decide alike, so *the proposer decides*:
the partner promises with `Have`, repeats it until it hears or reads in presence what the
proposer decided, and goes alone at twice the deadline (`half`).  Both are signed receipts.
`Pairing` handles one payload at a time; the trainer opens it and looks at `result`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from protocol.algorithms import NolocoConfig
from protocol.ids import Digest, PeerId, RunId
from protocol.messages import Abort, Accept, Commit, Exchange, Have, Message, Propose, Refuse
from trainers.effects import Blame, Effect, Fetch, Publish, Release, Send, SetTimer, Wait
from trainers.pairs import Alone, Candidates, Decisions, Pair, Payload, exchange_between
from trainers.reanchor import is_far
from trainers.timers import (
    AskAgain,
    DoubtDeadline,
    ExchangeDeadline,
    ProposalDeadline,
    SearchDeadline,
    Timer,
)


class Pairing:
    """The search for a partner for one payload at a time, and the exchange with it."""

    def __init__(
        self,
        me: PeerId,
        run: RunId,
        config: NolocoConfig,
        out: list[Effect],
        *,
        rounds: int,
        most_claimed: int,
    ) -> None:
        self._me = me
        self._config = config
        self._out = out
        self._rounds = rounds
        self._most_claimed = most_claimed
        self.candidates = Candidates(me, run)
        self.mine: Payload | None = None
        self.result: Alone | Pair | None = None
        """Alone, or a pair that agreed; None while open."""
        self._until = 0.0  # no partner is sought after this
        self._proposed_to: PeerId | None = None
        self._pair: Pair | None = None
        self._decisions = Decisions()

    def open(self, mine: Payload, now: float) -> None:
        """Look for a partner for this payload."""
        self.mine = mine
        self.candidates.start_anew(mine.fragment)
        self.refuse_held("fragment", lambda propose: propose.fragment != mine.fragment)
        if (decisions := self._decisions.forget(mine.digest)) is not None:
            self._out.append(Publish(decisions))
        self._until = now + self._config.exchange_deadline_s
        self._out.append(SetTimer(self._until, SearchDeadline(mine.digest)))
        self._out.append(Wait("a partner", None, self._until))
        self.advance(now)

    def is_forlorn(self) -> bool:
        """Nobody is there who could be a partner."""
        return not (self.result or self._pair or self._proposed_to or self.candidates.anyone)

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
        pair = self.result if isinstance(self.result, Pair) else None
        decided = pair.exchange if pair and pair.i_decide else None
        if pair and decided:
            self._send(pair.peer, Commit(decided))
        if pair:
            self._out.append(Release(pair.theirs))
        self._end(decided)

    def refused(self, reason: str) -> None:
        """The partner's payload was refused by the worker: its fault; go on alone."""
        assert isinstance(self.result, Pair)
        pair, self.result = self.result, Alone(reason, half=not self.result.i_decide)
        self._out.append(Blame(pair.peer, reason))
        self._give_up(pair)

    def drop(self) -> None:
        """The worker died, and our payload with it."""
        if self._pair:
            self._give_up(self._pair)
        if self.mine:
            self._end(None)

    def _end(self, decided: Exchange | None) -> None:
        assert self.mine is not None
        self._out.append(Publish(self._decisions.add(self.mine.digest, decided)))
        self._out.append(Release(self.mine.digest))
        self.mine = self.result = self._pair = self._proposed_to = None
        self.candidates.forget_asked()

    def refuse_held(self, reason: str, unwanted: Callable[[Propose], bool]) -> None:
        """Answer the kept proposals that nothing will come of."""
        for peer, propose in self.candidates.take_held(unwanted):
            self._send(peer, Refuse(propose.digest, reason, 0.0))

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
                self._on_have(sender, exchange, now)
            case Commit(exchange):
                self.on_decision(sender, exchange.proposer_digest, exchange.partner_digest, now)
            case Abort(proposed):
                self.on_decision(sender, proposed, None, now)

    def on_decision(self, peer: PeerId, name: Digest, accepted: Digest | None, now: float) -> None:
        """What the proposer `peer` told in a message or in its presence: a doubt is over."""
        pair = self._open_pair(name)
        if pair is None or pair.i_decide or pair.peer != peer:
            return
        if accepted != pair.exchange.partner_digest:
            self._out.append(Release(pair.theirs))
            self._pair = None
            self._next(peer, now)
        elif pair.have:
            self.result = pair

    def on_send_failed(self, to: PeerId, message: Message, now: float) -> None:
        """What was not sent may have arrived all the same, so who has promised keeps to it."""
        match message:
            case Propose(digest=digest):
                self._on_refuse(to, digest, now)
            case Accept(proposed=proposed):
                pair = self._open_pair(proposed)
                if pair and pair.peer == to and not pair.i_decide and not pair.have:
                    self._fail(pair, now)

    def on_fetched(self, digest: Digest, ok: bool, now: float) -> None:
        """The partner's payload is here, or cannot be had."""
        pair = self._pair
        if pair is None or pair.theirs != digest:
            self._out.append(Release(digest))
        elif not ok:
            self._fail(pair, now)
        elif not pair.fetched:
            self._pair = replace(pair, fetched=True, have=pair.have or not pair.i_decide)
            if not pair.i_decide:
                self._out.append(Wait("the proposer's decision", pair.peer, pair.until))
                self._ask(pair.exchange.proposer_digest, now)
            self._agree()

    def on_timer(self, timer: Timer, now: float) -> None:
        """A deadline passed; one of an older payload is ignored."""
        match timer:
            case ProposalDeadline(proposed, to):
                if self.mine and self.mine.digest == proposed and self._proposed_to == to:
                    self._next(to, now)
            case SearchDeadline(proposed):
                if self.mine and self.mine.digest == proposed and self._pair is None:
                    self.shut("no partner by the deadline")
            case ExchangeDeadline(proposed):
                self._on_exchange_deadline(proposed, now)
            case AskAgain(proposed):
                self._ask(proposed, now)
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
        if now >= self._until:
            self.shut("no partner by the deadline")
            return
        best, kept = self.candidates.best(mine.round, now)
        if best and kept:
            self._accept(best, kept, now)
        elif best:
            wait_s = self._config.proposal_deadline_s
            self._proposed_to = best
            self._send(best, mine.propose(wait_s))
            self._out.append(SetTimer(now + wait_s, ProposalDeadline(mine.digest, best)))
            self._out.append(Wait("an answer to a proposal", best, now + wait_s))

    def _on_propose(self, sender: PeerId, propose: Propose, now: float) -> None:
        mine = self.mine
        busy = self._pair or self.result
        if mine and busy and propose.round <= mine.round:
            self._send(sender, Refuse(propose.digest, "taken", 0.0))
        elif mine and not busy and propose.fragment != mine.fragment:
            self._send(sender, Refuse(propose.digest, "fragment", 0.0))
        elif self._proposed_to == sender and not busy:
            if self._me > sender:  # crossing proposals are an acceptance: the lower id proposes
                self._proposed_to = None
                self._accept(sender, propose, now)
        else:
            self.candidates.hold(sender, propose, now)
            open = None if busy else self._proposed_to
            if mine and open and self.candidates.prefers(sender, open, mine.round):
                self._next(open, now)  # or three could wait for each other in a circle
            self.advance(now)

    def _accept(self, proposer: PeerId, propose: Propose, now: float) -> None:
        mine = self.mine
        assert mine is not None
        if fault := mine.fault(propose, self._rounds):
            self._out.append(Blame(proposer, fault))
            self._send(proposer, Refuse(propose.digest, "failed", 0.0))
            self._next(proposer, now)
        else:
            self._send(proposer, mine.accept(propose.digest))
            exchange = exchange_between(proposer, propose, self._me, mine, self._most_claimed)
            self._begin(exchange, propose.size_bytes, now)

    def _on_accept(self, sender: PeerId, accept: Accept, now: float) -> None:
        mine = self.mine
        if mine is None or self._proposed_to != sender or accept.proposed != mine.digest:
            if self._open_pair(accept.proposed) is None:  # withdrawn; a doubled one is ignored
                self._send(sender, Abort(accept.proposed))
        elif fault := mine.fault(accept, self._rounds):
            self._out.append(Blame(sender, fault))
            self._send(sender, Abort(mine.digest))
            self._next(sender, now)
        elif is_far(mine.round, accept.round, self._config.reanchor_rounds):
            self._send(sender, Abort(mine.digest))
            self._next(sender, now)
        else:
            exchange = exchange_between(self._me, mine, sender, accept, self._most_claimed)
            self._begin(exchange, accept.size_bytes, now)

    def _on_refuse(self, sender: PeerId, proposed: Digest, now: float) -> None:
        pair = self._open_pair(proposed)
        if self.mine and self.mine.digest == proposed and self._proposed_to == sender:
            self._next(sender, now)
        elif pair and pair.i_decide and pair.peer == sender:
            self._fail(pair, now)

    def _next(self, tried: PeerId, now: float) -> None:
        self.candidates.tried.add(tried)
        self._proposed_to = None
        self.advance(now)
        if not (self._proposed_to or self._pair or self.result):
            self._out.append(Wait("a partner", None, self._until))

    def _begin(self, exchange: Exchange, size_bytes: int, now: float) -> None:
        assert self.mine is not None
        until = now + self._config.exchange_deadline_s
        pair = self._pair = Pair.of(exchange, self._me, until)
        self._proposed_to = None
        self.candidates.held.pop(pair.peer, None)
        round = self.mine.round
        self.refuse_held("taken", lambda propose: propose.round <= round)
        self._out.append(Fetch(pair.theirs, size_bytes, pair.peer))
        self._out.append(SetTimer(until, ExchangeDeadline(exchange.proposer_digest)))
        what = "payload and receipt" if pair.i_decide else "payload"
        self._out.append(Wait(what, pair.peer, until))

    def _on_have(self, sender: PeerId, exchange: Exchange, now: float) -> None:
        proposed, mine = exchange.proposer_digest, self.mine
        if mine and mine.digest == proposed and self._proposed_to == sender:  # its Accept was lost
            self._on_accept(sender, mine.counterpart(exchange).accept(proposed), now)
        pair = self._pair
        if pair and pair.i_decide and pair.exchange == exchange:
            self._pair = replace(pair, have=True)
            self._agree()
        elif pair and pair.i_decide and pair.peer == sender and not self.result:
            self._fail(pair, now)  # it gave up the payload that it had accepted with
        elif mine and mine.digest == proposed:
            self._send(sender, Abort(proposed))
        elif answer := self._decisions.answer(exchange):
            self._send(sender, answer)

    def _agree(self) -> None:
        pair = self._pair
        if pair and pair.i_decide and pair.fetched and pair.have:
            self.result = pair

    def _ask(self, proposed: Digest, now: float) -> None:
        """Send our receipt, again and again while there is no decision."""
        pair = self._open_pair(proposed)
        if pair and pair.have and not pair.i_decide:
            self._send(pair.peer, Have(pair.exchange))
            self._out.append(SetTimer(now + self._config.proposal_deadline_s, AskAgain(proposed)))

    def _on_exchange_deadline(self, proposed: Digest, now: float) -> None:
        pair = self._open_pair(proposed)
        if pair and (pair.i_decide or not pair.have):
            self._fail(pair, now)
        elif pair:
            until = now + self._config.exchange_deadline_s
            self._out.append(SetTimer(until, DoubtDeadline(proposed)))
            self._out.append(Wait("the proposer's decision (in doubt)", pair.peer, until))

    def _fail(self, pair: Pair, now: float) -> None:
        self._give_up(pair)
        self._next(pair.peer, now)

    def _give_up(self, pair: Pair) -> None:
        """Tell the other side: our decision if we decide, else that we withdraw."""
        self._pair = None
        self._out.append(Release(pair.theirs))
        proposed = pair.exchange.proposer_digest
        self._send(pair.peer, Abort(proposed) if pair.i_decide else Refuse(proposed, "failed", 0.0))

    def _open_pair(self, proposed: Digest) -> Pair | None:
        """The exchange that the proposer named so, if it is ours and undecided."""
        pair = self._pair
        same = pair and pair.exchange.proposer_digest == proposed and self.result is None
        return pair if same else None

    def _send(self, to: PeerId, message: Message) -> None:
        self._out.append(Send(to, message))
