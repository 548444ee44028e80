"""Who is a candidate, and the reason for everyone who is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from record_samples import ALICE, BOB, CAROL, JOINED
from samples import VALUES

from crdt.membership import Standing, candidates, standings
from crdt.schema import Content, Member, NoView, View
from protocol.envelope import Signer
from protocol.ids import Round
from protocol.messages import Presence


def presence(signer: Signer, state: str = "training") -> Presence:
    (sample,) = (value for value in VALUES.values() if isinstance(value, Presence))
    return replace(sample, peer=signer.peer, state=state)


def status(status: str) -> Content:
    return Content(member=Member(since=Round(0), status=status))


@pytest.mark.parametrize(
    ("view", "state", "reason"),
    [
        (JOINED, "training", ""),
        (None, "training", ""),
        (Content(), "training", ""),
        (JOINED, None, "no sign of life"),
        (JOINED, "starting", "starting"),
        (JOINED, "serving", "serving"),
        (None, "leaving", "leaving"),
        (status("left"), "training", "left the run"),
        (status("finished"), None, "finished the run"),
        (status("finished"), "training", ""),
        (NoView("equivocated in epoch 1"), "training", "equivocated in epoch 1"),
    ],
)
def test_a_peer_is_a_candidate_unless_there_is_a_reason(
    view: View | None, state: str | None, reason: str
) -> None:
    views = {BOB.peer: view} if view else {}
    live = [presence(BOB, state)] if state else []
    expected = Standing(BOB.peer, not reason, reason or "training")
    assert standings(views, live, me=ALICE.peer) == (expected,)


def test_candidates_are_sorted_whatever_the_order_of_what_is_known() -> None:
    views: dict[str, View] = {signer.peer: JOINED for signer in (CAROL, ALICE, BOB)}
    live = [presence(signer) for signer in (BOB, CAROL, ALICE)]
    found = candidates(standings(views, live, me=ALICE.peer))  # type: ignore[arg-type]
    assert found == tuple(sorted((BOB.peer, CAROL.peer)))
