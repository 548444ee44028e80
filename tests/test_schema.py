"""What a record says is typed, bounded and has one spelling; all else is no view."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_samples import ALICE, BOB, CAROL, JOINED, after, digest, update_of

from crdt.record import MAX_SNAPSHOT_BYTES
from crdt.schema import (
    MAX_BLAMED,
    MAX_CHECKPOINTS,
    MAX_CLOSED,
    MAX_REASON_BYTES,
    BlamedPeer,
    ClosedRound,
    Content,
    Control,
    Member,
    NoView,
    Progress,
    Totals,
)
from crdt.values import keyed, parsed, view
from protocol import codec
from protocol.changes import MAX_CHANGES, Change
from protocol.envelope import Signer
from protocol.errors import Malformed
from protocol.ids import PeerId, Round
from protocol.messages import Checkpoint

rounds = st.integers(0, 10**7).map(Round)
digests = st.binary(min_size=32, max_size=32)
counts = st.integers(0, 10**7)
peers = st.sampled_from([ALICE.peer, BOB.peer, CAROL.peer])
members = st.builds(
    Member,
    name=st.none() | st.text("abcé", min_size=1, max_size=20),
    since=rounds,
    status=st.sampled_from(["joined", "finished", "left"]),
)
progresses = st.builds(
    Progress,
    round=rounds,
    tokens=st.integers(0, 1 << 48),
    loss=st.none() | st.floats(0, 1e6),
    weights=digests,
)
closed = st.builds(
    ClosedRound,
    round=rounds,
    tokens=counts,
    partner=peers,
    mine=st.none() | digests,
    theirs=digests,
    their_tokens=counts,
)
alone = st.builds(
    ClosedRound,
    round=rounds,
    tokens=counts,
    partner=st.none(),
    mine=st.none() | digests,
    theirs=st.none() | digests,
)
checkpoints = st.builds(Checkpoint, rounds, digests, st.integers(1, 1 << 32), digests)
blames = st.builds(
    BlamedPeer, peer=peers, count=st.integers(1, 99), reason=st.text("abcé", max_size=60)
)


def lists(items: st.SearchStrategy[object], key: str, most: int) -> st.SearchStrategy[object]:
    found = st.lists(items, max_size=most, unique_by=lambda item: getattr(item, key))
    return found.map(lambda some: tuple(sorted(some, key=lambda item: getattr(item, key))))


contents = st.builds(
    Content,
    member=st.none() | members,
    progress=st.none() | progresses,
    totals=st.builds(
        Totals,
        tokens=counts,
        rounds=counts,
        exchanges=counts,
        alone=counts,
        half=counts,
        counted_to=rounds,
    ),
    closed=lists(closed | alone, "round", MAX_CLOSED),
    checkpoints=lists(checkpoints, "round", MAX_CHECKPOINTS),
    blamed=lists(blames, "peer", 3),
    control=st.none()
    | st.builds(
        Control,
        paused=st.booleans(),
        stopped=st.booleans(),
        changes=lists(
            st.builds(
                Change,
                name=st.text("ab.", min_size=1, max_size=32),
                value=st.text("é1", min_size=1, max_size=16),
                round=rounds,
            ),
            "name",
            MAX_CHANGES,
        ),
    ),
)


@given(contents)
def test_a_content_comes_back_from_a_document_as_it_was(content: Content) -> None:
    assert view([update_of(keyed(content))]) == content


LARGEST = Content(
    member=Member(
        name="n" * 64,
        since=Round(10**7),
        status="finished",
    ),
    progress=Progress(round=Round(10**7), tokens=1 << 48, loss=1.5, weights=digest()),
    totals=Totals(
        tokens=1 << 48,
        rounds=10**7,
        exchanges=10**7,
        alone=10**7,
        half=10**7,
        counted_to=Round(10**7),
    ),
    closed=tuple(
        ClosedRound(
            round=Round(10**7 - 4 + n),
            tokens=1 << 48,
            partner=BOB.peer,
            mine=digest(n),
            theirs=digest(n),
            their_tokens=1 << 48,
        )
        for n in range(4)
    ),
    checkpoints=tuple(
        Checkpoint(Round(10**7 - 3 + n), digest(n), 1 << 32, digest(n)) for n in range(3)
    ),
    blamed=tuple(
        BlamedPeer(peer=peer, count=10**7, reason="r" * 128)
        for peer in sorted(Signer(bytes([9, n]) * 16).peer for n in range(16))
    ),
    control=Control(
        paused=True,
        stopped=True,
        changes=tuple(
            Change(name=f"{n}" * 32, value="v" * 32, round=Round(10**7)) for n in range(MAX_CHANGES)
        ),
    ),
)


def test_the_largest_content_fits_a_snapshot_and_every_value_its_limit() -> None:
    values = keyed(LARGEST)
    assert max(map(len, values.values())) == 596
    assert len(update_of(values, client_id=(1 << 32) - 1)) == 4986
    assert MAX_SNAPSHOT_BYTES > 3 * 4986
    assert view([update_of(values)]) == LARGEST


def test_only_the_last_4_rounds_and_3_checkpoints_are_kept() -> None:
    content = JOINED
    for round in range(41):
        content = after(content, round)
    assert [closed.round for closed in content.closed] == list(range(37, 41))
    assert [checkpoint.round for checkpoint in content.checkpoints] == [20, 30, 40]
    assert content.totals == Totals(
        tokens=41 * 102_400, rounds=41, exchanges=32, alone=9, half=0, counted_to=Round(41)
    )


def test_a_half_exchange_counts_as_alone_and_as_half() -> None:
    lone = ClosedRound(round=Round(3), tokens=5, partner=None, mine=digest(), theirs=None)
    progress = Progress(round=Round(3), tokens=5, loss=None, weights=digest())
    content = Content().with_round(lone, progress, half=True)
    assert content.totals == Totals(
        tokens=5, rounds=1, exchanges=0, alone=1, half=1, counted_to=Round(4)
    )
    assert content.progress == progress


@pytest.mark.parametrize("partner", [ALICE.peer, None], ids=["roster without us", "scalars"])
def test_a_round_that_others_had_a_part_in_is_no_round_alone(partner: PeerId | None) -> None:
    shared = ClosedRound(round=Round(3), tokens=5, partner=partner, mine=None, theirs=digest())
    progress = Progress(round=Round(3), tokens=5, loss=None, weights=digest())
    totals = Content().with_round(shared, progress, half=False).totals
    assert totals == Totals(tokens=5, rounds=1, exchanges=1, alone=0, half=0, counted_to=Round(4))


def test_blame_counts_and_forgets_the_least_blamed() -> None:
    strangers = sorted(Signer(bytes([8, n]) * 16).peer for n in range(MAX_BLAMED))
    content = Content()
    for stranger in strangers * 2:
        content = content.with_blame(stranger, "late")
    content = content.with_blame(BOB.peer, "é" * 100).with_blame(CAROL.peer, "new")
    assert len(content.blamed) == MAX_BLAMED
    assert BlamedPeer(peer=CAROL.peer, count=1, reason="new") in content.blamed
    assert BOB.peer not in {blamed.peer for blamed in content.blamed}
    assert sum(blamed.count for blamed in content.blamed) == 2 * 15 + 1


def test_a_reason_is_cut_between_two_characters() -> None:
    (blamed,) = Content().with_blame(BOB.peer, "xé" * 100).blamed
    assert blamed.reason == "xé" * 42 + "x" * (MAX_REASON_BYTES - 128 + 1)
    assert len(blamed.reason.encode()) == 127


MEMBER = codec.encode(Member(name=None, since=Round(1)))
CLOSED = keyed(LARGEST)["closed/9999996"]
BLAMED = LARGEST.blamed[0].peer
TOTALS = {"totals": codec.encode(Totals())}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (TOTALS | {"colour": b"\x90"}, "unknown key 'colour'"),
        (TOTALS | {"member/1": MEMBER}, "unknown key 'member/1'"),
        (TOTALS | {"closed": b"\x90"}, "unknown key 'closed'"),
        (TOTALS | {"member": MEMBER[:-1]}, "ValueError"),
        (TOTALS | {"member": bytes(1025)}, "1025 bytes, at most 1024"),
        (TOTALS | {"checkpoint/4": codec.encode(LARGEST.checkpoints[0])}, "key of another one"),
        (TOTALS | {"closed/04": CLOSED}, "key of another one"),
        (TOTALS | {"closed/-4": CLOSED}, "closed.round is '-4'"),
        (TOTALS | {"closed/²": CLOSED}, "closed.round is '²'"),
        (TOTALS | {"closed/10000001": CLOSED}, "closed.round is 10000001"),
        (TOTALS | {"closed/" + "9" * 5000: CLOSED}, "closed.round is '999"),
        (
            TOTALS | {"closed/4": CLOSED.replace(b"\xc4\x20", b"\xc4\x1f", 1)},
            "Malformed|ValueError",
        ),
        (TOTALS | {"blame/nobody": keyed(LARGEST)[f"blame/{BLAMED}"]}, "blame.peer: not a peer id"),
        ({}, "key of another one"),
        (
            keyed(LARGEST)
            | {"checkpoint/5": codec.encode(Checkpoint(Round(5), digest(), 1, digest()))},
            "checkpoints has too many items",
        ),
    ],
)
def test_refuses(values: dict[str, bytes], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parsed(values)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Member(since=Round(0), status="gone"), "member.status is 'gone'"),
        (lambda: replace(LARGEST.progress, loss=float("nan")), "progress.loss is nan"),  # type: ignore[type-var]
        (lambda: replace(LARGEST.closed[0], theirs=None), "closed.theirs has NoneType bytes"),
        (lambda: replace(LARGEST.closed[0], partner=None, theirs=None), "without a partner"),
        (lambda: Content(closed=LARGEST.closed[::-1]), "closed is not sorted"),
        (lambda: Content(closed=LARGEST.closed[:1] * 2), "closed is not sorted"),
    ],
)
def test_refuses_to_make(make: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()  # type: ignore[operator]


def test_a_view_of_nothing_or_of_nonsense_has_a_reason() -> None:
    assert view([]) == NoView("no snapshot yet")
    assert view([b"nonsense"]) == NoView("unreadable: found 110, at most 1")
    assert view([update_of({"x": b""})]) == NoView("unreadable: unknown key 'x'")
    assert view([update_of({})]) == NoView("unreadable: a value under the key of another one")


@given(st.dictionaries(st.sampled_from([*keyed(LARGEST), "x", "closed/0"]), st.binary(max_size=80)))
def test_a_view_never_raises(values: dict[str, bytes]) -> None:
    found = view([update_of(values)])
    assert isinstance(found, NoView) or keyed(found) == values


def test_what_an_author_added_moves_on_top_of_an_own_record_that_came_late() -> None:
    base = after(JOINED, 1)
    now = after(after(base, 2), 3)
    found = after(after(after(JOINED, 1), 6), 7)
    moved = now.moved(base, found)
    assert moved.totals == Totals(
        tokens=5 * 102_400, rounds=5, exchanges=5, alone=0, half=0, counted_to=Round(8)
    )
    assert [closed.round for closed in moved.closed] == [2, 3, 6, 7]
    assert now.moved(base, base) == now


LR, LR_NOW, STEPS, CODEC = (
    Change(name=name, value=value, round=Round(1))
    for name, value in (("lr", "1"), ("lr", "2"), ("steps", "3"), ("codec", "x"))
)


@pytest.mark.parametrize(
    ("now", "base", "found", "expected"),
    [
        (None, None, Control(paused=True), Control(paused=True)),
        (None, None, None, None),
        (Control(paused=True), Control(paused=True), None, Control(paused=True)),
        (Control(paused=True), Control(paused=True), Control(), Control()),
        (Control(), Control(paused=True), Control(paused=True), Control()),
        (Control(paused=True), None, Control(), Control(paused=True)),
        (Control(paused=True), None, Control(stopped=True), Control(paused=True, stopped=True)),
        (Control(stopped=True), Control(stopped=True), Control(), Control(stopped=True)),
        (
            Control(changes=(CODEC, LR_NOW)),
            Control(changes=(CODEC, LR)),
            Control(paused=True, changes=(LR, STEPS)),
            Control(paused=True, changes=(LR_NOW, STEPS)),
        ),
    ],
)
def test_the_creators_word_that_came_late_holds_but_for_what_was_changed_since_and_a_stop_stays(
    now: Control | None, base: Control | None, found: Control | None, expected: Control | None
) -> None:
    moved = Content(control=now).moved(Content(control=base), Content(control=found))
    assert moved == Content(control=expected)


def test_more_changes_than_there_are_settings_push_out_none_of_ours() -> None:
    """They are signed with our key, but perhaps not by this program."""
    found = Control(changes=LARGEST.control.changes) if LARGEST.control else Control()
    moved = Control(changes=(LR,)).moved(Control(), found)
    assert moved.changes == (*found.changes[: MAX_CHANGES - 1], LR)


def test_blames_and_what_a_lost_disk_forgot_move_on_top_of_an_own_record_that_came_late() -> None:
    base = Content().with_blame(BOB.peer, "late").with_blame(ALICE.peer, "late")
    now = base.with_blame(BOB.peer, "false").with_blame(BOB.peer, "worse")
    found = base.with_blame(ALICE.peer, "junk").with_blame(CAROL.peer, "rude")
    found = replace(found, member=JOINED.member, progress=LARGEST.progress)
    counts = ((ALICE, 2, "junk"), (BOB, 3, "worse"), (CAROL, 1, "rude"))
    blamed = tuple(
        sorted(
            (BlamedPeer(peer=one.peer, count=n, reason=why) for one, n, why in counts),
            key=lambda one: one.peer,
        )
    )
    assert now.moved(base, found) == replace(found, blamed=blamed)
