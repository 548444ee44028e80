"""How a group agrees on what is averaged in a round: terms, their leaders, and the roster.

Everybody says to all what it contributes, again and again while there is no roster, and payloads
are fetched as they are named.  The leader of the term closes the roster when all that may still
contribute have done so or said otherwise, or at its deadline with what it holds.  No roster: the
next term has another leader, who first waits for an answer of those that have one already.
Whoever has the roster answers with it, so a lost one costs one repeat.

Two rosters of a round can close all the same (a partition, a slow message): what is not applied
yet gives way to the one with more tokens; what is applied is a history, see `trainers.peers`.

Source: docs/algorithms.md, diloco: averaging without a coordinator.
"""

from __future__ import annotations

from protocol.algorithms import MAX_GROUP
from protocol.envelope import Signer
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.rosters import MAX_TERM, Contribution, SignedRoster, sign_roster
from trainers.effects import Blame, SetTimer
from trainers.group import FETCHES_TRIED, KEPT_ROSTERS, Group
from trainers.roster import KnownRoster, Where, fault_of_roster, leader_of, roster_of
from trainers.timers import TermEnds

REPEATS = 8
"""Of a statement in the time of a round's deadline: a message lost costs an eighth of it."""
LEADER_SHARE = 0.75
"""Of the deadline, after which a leader takes what it has: its roster must arrive within it."""
GRACE_REPEATS = 2
"""So long the leader of a later term waits for a roster that somebody may have, and any leader
for who is a round behind, or ahead by the roster that it is about to close."""
MAX_ROSTERS_SEEN = 64
"""Rosters of one round that are looked at; each costs the check of a signature."""
FULL = f"a free place: the run has {MAX_GROUP} members, the most that average together"


class Agreement:
    """One member's part in it; its machine begins rounds, and applies when `group.is_ready`."""

    def __init__(self, group: Group, *, run: RunId, signer: Signer, deadline_s: float) -> None:
        self._group = group
        self._run = run
        self._signer = signer
        self._deadline_s = deadline_s
        self._early: tuple[KnownRoster, PeerId] | None = None
        """Of the next round, and who sent it."""
        self._led: tuple[tuple[Round, int, frozenset[PeerId]], PeerId] | None = None
        """The newest answer of `_leader`, and to what: many hashes."""
        self._restarted = Round(0)
        """What this peer contributed before that round is not known."""

    # --- the machine ------------------------------------------------------------------------

    def begin(self, here: Where, now: float) -> None:
        """Open the round that begins here; the one before is over."""
        group = self._group
        group.begin(here)
        if group.is_outside:
            group.wait(FULL, None, now + self._deadline_s)
        known = [(known, group.me) for known in group.kept]  # the worker may have fallen back
        if self._early:
            known.append(self._early)
        self._early = None
        for roster, sender in known:
            if roster.place == here.place and self._is_fair(roster):
                self._consider(roster, sender, now)

    def restart(self, here: Where, now: float) -> None:
        """The worker came up: where it was, without its snapshot, or elsewhere."""
        group = self._group
        if here.place != group.here.place:
            if here.place not in group.past:
                group.kept.clear()
            self.begin(here, now)
        group.open.mine, group.open.is_applying = None, False
        self._restarted = here.round

    def contribute(self, own: Contribution, now: float) -> None:
        """Our payload of this round is held: tell all."""
        group, o = self._group, self._group.open
        o.own, o.mine, o.since = own, own.digest, now
        if o.chosen is None:
            group.say(own)
            self._begin_term(now, LEADER_SHARE * self._deadline_s)

    def repeat(self) -> None:
        """Say again what may have been lost."""
        o = self._group.open
        if o.own and not o.chosen:
            self._group.say(o.own)

    def lead(self, now: float) -> None:
        """Close the roster, if that is ours to do and it is time."""
        group, o = self._group, self._group.open
        if o.own is None or o.chosen or o.is_applying or o.until is None:
            return
        if o.mine and not group.peers.there:
            return  # alone: the machine needs no roster
        leader = self._leader(now)
        if leader != group.me:
            group.wait(f"the roster of round {group.here.round}", leader, o.until)
            return
        if now < o.close_at and (o.term or self._may_still_come(now)):
            group.wait(f"contributions to round {group.here.round}", None, o.close_at)
            return
        held = {id: said for id, said in group.line.items() if group.holding.has(said.digest)}
        roster = roster_of(held, leader=group.me, term=o.term, most_claimed=group.most_claimed)
        signed = sign_roster(roster, self._run, self._signer)
        group.say(signed)
        self._choose(KnownRoster(roster, signed), now)

    # --- what the world tells ---------------------------------------------------------------

    def on_roster(self, sender: PeerId, signed: SignedRoster, now: float) -> None:
        """A roster, from its leader or from whoever has it."""
        group, o = self._group, self._group.open
        name = digest_of(signed.body + signed.signature)  # or a forgery would hide the true one
        is_known = name in o.seen or signed.digest in [known.digest for known in group.kept]
        if is_known or len(o.seen) >= MAX_ROSTERS_SEEN or not group.peers.is_there(sender):
            return
        o.seen.add(name)
        try:
            known = KnownRoster(signed.open(self._run), signed)
        except Malformed as error:
            group.out.append(Blame(sender, str(error)))
            return
        if known.roster.round == group.here.round + 1:
            self._early = (known, sender)
        elif known.place == group.here.place and self._is_fair(known):
            self._consider(known, sender, now)

    def refuse(self, culprit: Digest, reason: str, now: float) -> None:
        """Our worker refuses a payload, as everybody's does: average the others."""
        group, o = self._group, self._group.open
        if o.chosen is None or not o.is_applying:
            return
        assert culprit in o.chosen.payloads, "refused what was not averaged"
        o.is_applying = False
        o.refused.add(culprit)
        offers = group.peers.offers
        for entry in o.chosen.roster.entries:
            if entry.digest == culprit and entry.peer != group.me:
                said = offers.get(entry.peer)
                is_its = said is None or said.digest == culprit  # else the leader put it there
                group.out.append(Blame(entry.peer if is_its else o.chosen.roster.leader, reason))
        if o.refused.issuperset(o.chosen.payloads):
            o.chosen, o.until = None, now  # no leader could know
            group.out.append(SetTimer(now, TermEnds(group.here.round, o.term)))

    def on_timer(self, timer: TermEnds, now: float) -> None:
        """A wait may be over: the next term, or another roster."""
        group, o = self._group, self._group.open
        if timer.round != group.here.round or o.until is None or now < o.until:
            return
        if group.is_ready or o.is_applying:
            return
        o.silent.add(o.chosen.roster.leader if o.chosen else self._leader(now))
        if o.chosen:
            self._blame_for(o.chosen)
        o.chosen, o.fallback, o.until = o.fallback, None, None
        if o.own or o.chosen:
            o.term = min(o.term + 1, MAX_TERM)
            self._begin_term(now, GRACE_REPEATS / REPEATS * self._deadline_s)
            self.repeat()

    def _blame_for(self, chosen: KnownRoster) -> None:
        """Nobody gave us its payloads in time, and its leader has not averaged them either.

        An honest one holds them and goes on; who comes too late finds them released.
        """
        group, leader = self._group, chosen.roster.leader
        missing = group.hopeless
        is_here = group.open.furthest.get(leader) == group.here.round
        if missing and is_here and group.peers.present_of([leader]):
            reason = f"a roster with {len(missing)} payloads that nobody has"
            group.out.append(Blame(leader, reason))

    # --- rosters ----------------------------------------------------------------------------

    def _is_fair(self, known: KnownRoster) -> bool:
        """Whether an honest leader can have signed it; else the signature convicts it."""
        group, roster, own = self._group, known.roster, self._group.open.own
        fault = fault_of_roster(
            roster,
            rounds=group.rounds,
            fragments=group.fragments,
            most_claimed=group.most_claimed,
            own=own,
            sizes=group.sizes_of(roster.fragment),
        )
        ours = own.digest if own else None
        not_ours = any(e.peer == group.me and e.digest != ours for e in roster.entries)
        if not_ours and group.here.round > self._restarted + KEPT_ROSTERS:  # we know what we made
            fault = fault or "a contribution of ours that we never made"
        if fault and roster.leader != group.me:
            group.out.append(Blame(roster.leader, fault))
        return not fault

    def _consider(self, known: KnownRoster, sender: PeerId, now: float) -> None:
        o = self._group.open
        if o.is_applying:
            return
        if o.chosen:
            if known.beats(o.chosen) and not known.is_as_good_as(o.chosen):
                self._choose(known, now)
        elif self._is_trusted(known, sender, now):
            self._choose(known, now)
        elif o.fallback is None or known.beats(o.fallback):
            o.fallback = known

    def _is_trusted(self, known: KnownRoster, sender: PeerId, now: float) -> bool:
        """From the leader, or with the word of another, or leaving nobody out that we know of.

        A member could else close a roster of itself alone before the leader does.
        """
        group, leader = self._group, known.roster.leader
        if group.open.own is None or sender != leader or leader == self._leader(now):
            return True
        return all(known.names(peer) for peer in group.line)

    def _choose(self, known: KnownRoster, now: float) -> None:
        group, o = self._group, self._group.open
        o.chosen = known
        if not group.is_ready:
            o.until = now + self._deadline_s
            group.out.append(SetTimer(o.until, TermEnds(group.here.round, o.term)))

    def _begin_term(self, now: float, close_s: float) -> None:
        group, o = self._group, self._group.open
        o.close_at, o.until = now + close_s, now + self._deadline_s
        for at in (o.close_at, o.until):
            group.out.append(SetTimer(at, TermEnds(group.here.round, o.term)))

    def _leader(self, now: float) -> PeerId:
        """Of this term, as we see it: of those that may contribute, later of those that do."""
        group, o = self._group, self._group.open
        candidates = set(group.peers.present_of(group.peers.offers)) - o.silent
        if o.term == 0:
            candidates |= set(self._awaited(now))
        if o.own or not candidates:
            candidates.add(group.me)
        key = (group.here.round, o.term, frozenset(candidates))
        if self._led is None or self._led[0] != key:
            leader = leader_of(candidates, self._run, group.here.round, group.fragment, o.term)
            self._led = (key, leader)
        return self._led[1]

    def _awaited(self, now: float) -> list[PeerId]:
        return self._group.peers.awaited(self._group.past, has_time=self._is_early(now))

    def _is_early(self, now: float) -> bool:
        """Who is a round behind may come, and who is one ahead may send us its roster."""
        return now < self._group.open.since + GRACE_REPEATS / REPEATS * self._deadline_s

    def _may_still_come(self, now: float) -> bool:
        """A payload is on its way, somebody has not said, or has gone on and may have a roster.

        Who is alone on its history while others are on theirs does not run on either: soon one
        takes over the other's weights.
        """
        group, peers = self._group, self._group.peers
        holding, line = group.holding, group.line.values()
        missing = [said.digest for said in line if not holding.has(said.digest)]
        may_lead_on = peers.may_lead_on(group.here.round, group.rounds)
        is_lone = len(line) == 1 and peers.elsewhere(group.here.place, group.past)
        return bool(
            any(holding.failures(digest) < FETCHES_TRIED for digest in missing)
            or self._awaited(now)
            or peers.leaving
            or (self._is_early(now) and (is_lone or may_lead_on))
        )
