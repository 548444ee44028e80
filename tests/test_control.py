"""The creator's word in one node: what it obeys, refuses, logs, and may say."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from samples import CREATOR, OTHER, PRESENCE, spec
from test_driver import PEERS, Swarm
from virtual_time import in_virtual_time

from crdt import schema
from crdt.membership import states_of
from crdt.schema import Content, Member, NoView, View
from node.control import HEARD_S, WRITTEN_S, Control, Order, order_of
from node.journal import PAUSE_S, Journal
from node.records.records import ASK_S, Records
from node.records.tally import Tally
from node.telemetry import Waits
from node.training import Training
from protocol import codec
from protocol.algorithms import (
    TRAINERS,
    DilocoConfig,
    NolocoConfig,
    SpsaConfig,
    StreamingConfig,
)
from protocol.changes import MAX_CHANGES, Change, InForce, checked, spec_in, value_of
from protocol.errors import ConfigError
from protocol.ids import PeerId, Round
from protocol.labels import found_in, labels, possible_sizes
from protocol.messages import Presence
from protocol.payload import HEADER_BYTES, payload_bytes
from trainers.effects import Paused, Unpaused
from trainers.events import ControlChanged

NOLOCO = spec(rounds=100, changeable=("inner.lr", "trainer.codec", "trainer.inner_steps"))
R0 = Round(0)


def change(name: str = "inner.lr", value: str = "0.0005", round: int = 40) -> Change:
    return Change(name=name, value=value, round=Round(round))


# --- changes --------------------------------------------------------------------------------


def test_a_change_is_one_setting_of_the_spec_and_nothing_else() -> None:
    assert checked(NOLOCO, change()) == replace(NOLOCO, inner=replace(NOLOCO.inner, lr=0.0005))
    assert checked(NOLOCO, change("trainer.inner_steps", "7")).trainer.inner_steps == 7
    int8 = checked(NOLOCO, change("trainer.codec", "int8"))
    assert int8 == replace(NOLOCO, trainer=NolocoConfig(codec="int8"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (change("trainer.alpha", "0"), "trainer.alpha is not changeable in this run, expected one"),
        (change("__class__", "0"), "__class__ is not changeable"),
        (change(value="nan"), "inner.lr is 'nan', expected a number such as 0.001 or 1e-3"),
        (change(value="-1"), "inner.lr is '-1', expected a number"),
        (change(value="1e99"), "inner.lr is 1e+99, expected a number from 1e-08 to 10"),
        (change(value="1e999"), "inner.lr is inf, expected a number from 1e-08 to 10"),
        (change("trainer.inner_steps", "1.5"), "is '1.5', expected a whole number"),
        (change("trainer.inner_steps", "0"), "trainer.inner_steps is 0, expected"),
        (change("trainer.inner_steps", "\u0663"), "expected a whole number"),
        (change("trainer.codec", "sign"), "trainer.codec is 'sign', expected one of fp32, bf16"),
    ],
)
def test_a_change_that_cannot_be_obeyed_is_refused_with_what_could(
    wrong: Change, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        checked(NOLOCO, wrong)


def test_what_follows_from_a_change_is_checked_like_a_spec() -> None:
    """tau < H / P."""
    run = spec(
        trainer=StreamingConfig(inner_steps=100, overlap_steps=8),
        changeable=("trainer.inner_steps",),
    )
    with pytest.raises(ValueError, match=r"trainer\.overlap_steps is 8, expected less than the"):
        checked(run, change("trainer.inner_steps", "15"))


def test_a_round_has_the_newest_value_that_is_in_force_by_then() -> None:
    changes = (
        InForce(change(value="0.3", round=2), Round(9)),
        InForce(change(value="0.1"), Round(3)),
        InForce(change("trainer.codec", "int8"), Round(5)),
    )
    found = [spec_in(NOLOCO, changes, Round(round)) for round in (2, 3, 8, 9)]
    assert [one.inner.lr for one in found] == [NOLOCO.inner.lr, 0.1, 0.1, 0.3]
    assert [value_of(one, "trainer.codec") for one in found] == ["bf16", "bf16", "int8", "int8"]


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_spec_marks_only_what_its_trainer_can_stand(kind: str) -> None:
    trainer = TRAINERS[kind]()
    names = {
        *("inner.lr", "inner.batch", "trainer.inner_steps", "trainer.codec", "trainer.lr"),
        *("trainer.gradient_codec", "trainer.alpha", "trainer.outer_lr", "model.width", "rounds"),
    }
    spec(trainer=trainer, changeable=tuple(sorted(trainer.changeable)))
    for name in sorted(names - set(trainer.changeable)):
        with pytest.raises(ValueError, match=f"changeable names '{name}', which no {kind} run"):
            spec(trainer=trainer, changeable=(name,))


def test_the_settings_that_everybody_must_share_are_changeable_nowhere() -> None:
    assert {kind: TRAINERS[kind]().changeable for kind in TRAINERS} == {
        "noloco": ("inner.lr", "trainer.inner_steps", "trainer.codec"),
        "diloco": ("inner.lr", "trainer.inner_steps", "trainer.codec"),
        "streaming": ("inner.lr", "trainer.inner_steps", "trainer.codec"),
        "spsa": (),
        "sync": ("trainer.codec",),
        "local": ("inner.lr", "trainer.inner_steps"),
    }
    assert "trainer.gradient_codec" in NolocoConfig(vectors=2).changeable


# --- payloads of another codec --------------------------------------------------------------


def test_payloads_may_have_the_size_of_every_codec_that_the_creator_may_choose() -> None:
    [count] = NOLOCO.fragment_counts()
    assert possible_sizes(NOLOCO) == (
        frozenset(payload_bytes(codec, count) for codec in ("fp32", "bf16", "int8")),
    )
    assert possible_sizes(spec()) == (frozenset({payload_bytes("bf16", count)}),)
    both = spec(
        trainer=NolocoConfig(vectors=2), changeable=("trainer.codec", "trainer.gradient_codec")
    )
    assert len(possible_sizes(both)[0]) == 15  # of 3 x 6 some are equal
    assert possible_sizes(spec(trainer=SpsaConfig())) == (frozenset({0}),)


def test_a_payload_is_read_in_the_codec_that_its_header_names_if_that_is_allowed() -> None:
    config = DilocoConfig(codec="bf16")
    expected = labels(config, round=Round(3), fragment=0, count=10)
    sent = labels(replace(config, codec="sign"), round=Round(3), fragment=0, count=10)
    data = sent[0].header() + bytes(30)
    assert found_in(data, expected, (("bf16", "sign"),)) == sent
    assert found_in(data, expected, (("bf16",),)) == expected
    for nonsense in (b"", data[: HEADER_BYTES - 1], b"SHP1\xff" + data[5:], b"XXXX" + data[4:]):
        assert found_in(nonsense, expected, (("bf16", "sign"),)) == expected


# --- the record -----------------------------------------------------------------------------


def test_a_record_says_the_newest_change_of_each_setting_sorted_and_no_more_than_there_are() -> (
    None
):
    word = schema.Control().with_change(change("b")).with_change(change("a"))
    word = word.with_change(change("b", "2"))
    assert word == schema.Control(changes=(change("a"), change("b", "2")))
    assert len(codec.encode(word)) < 80
    many = tuple(change(f"{n}") for n in range(MAX_CHANGES + 1))
    for wrong in (many, (change("b"), change("a")), (change(), change())):
        with pytest.raises(ValueError, match=r"control\.changes"):
            schema.Control(changes=wrong)


# --- obeying --------------------------------------------------------------------------------


def journal_of(me: PeerId, speak: Callable[[], None]) -> Journal:
    return Journal(
        me, Waits(lambda: 0.0), lambda change: None, speak=speak, tally=cast(Tally, None)
    )


class Node:
    """`Control` among parts that only remember.  Build it inside of a loop."""

    def __init__(self, me: PeerId = OTHER.peer, **settings: object) -> None:
        self.spec = replace(NOLOCO, **settings)  # type: ignore[arg-type]
        self.held: dict[PeerId, View] = {}
        self.live: list[Presence] = []
        self.told: list[ControlChanged] = []
        self.saves = 0
        self.writes_s: float | None = 0.0
        """Until our own record is written; None: never."""
        self.found: Content | None = None
        """Our own record, as peers give it while it is waited for."""
        self.me = me
        self.journal = journal_of(me, lambda: None)
        self.journal.round = Round(12)
        self.has_snapshot = False
        self.control = Control(
            self.spec,
            me,
            cast(Records, self),
            lambda: self.live,
            self.journal,
            asyncio.get_running_loop().time,
        )

    def views(self) -> dict[PeerId, View]:
        return self.held

    async def until_known(self) -> None:
        await asyncio.sleep(ASK_S)
        if self.found:
            self.held[self.me] = self.found

    def save_soon(self) -> None:
        self.saves += 1

    def write(self, change: Callable[[Content], Content]) -> None:
        if self.writes_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.writes_s, self.publish, change)

    def publish(self, change: Callable[[Content], Content]) -> None:
        before = self.held.get(self.me, Content())
        assert isinstance(before, Content)
        self.held[self.me] = change(before)
        self.control.look()

    def hear(self, word: schema.Control | None, author: PeerId = CREATOR.peer) -> None:
        self.held[author] = Content(control=word)
        self.control.look()

    def begin(self) -> None:
        self.control.begin(cast(Training, SimpleNamespace(control_changed=self.told.append)))
        self.told.clear()


async def began(me: PeerId = OTHER.peer, **settings: object) -> Node:
    node = Node(me, **settings)
    node.begin()
    return node


async def test_the_creators_word_is_told_once_and_that_of_others_never() -> None:
    node = await began()
    node.hear(schema.Control(paused=True, stopped=True, changes=(change(),)), OTHER.peer)
    assert node.told == []
    node.hear(schema.Control(paused=True, changes=(change(),)))
    node.control.look()
    assert node.told == [ControlChanged(is_paused=True, changes=(change(),))]
    assert node.saves == 1  # so that it holds after a kill, though the creator may be gone by then
    node.hear(schema.Control(changes=(change(),)))
    assert node.told[1:] == [ControlChanged(changes=(change(),))]


async def test_a_record_that_cannot_be_read_or_is_frozen_leaves_things_as_they_are() -> None:
    node = await began()
    node.hear(schema.Control(paused=True))
    node.held[CREATOR.peer] = NoView("equivocated")
    node.control.look()
    assert (len(node.told), node.control.said.is_paused) == (1, True)


async def test_a_stop_is_for_good_whatever_the_creator_writes_later() -> None:
    node = await began()
    node.hear(schema.Control(stopped=True))
    node.hear(schema.Control())
    assert [word.is_stopped for word in node.told] == [True, True]


async def test_nonsense_of_a_creator_is_refused_with_one_sentence_and_the_rest_is_obeyed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = await began()
    bad = change("trainer.alpha", "5")
    node.hear(schema.Control(changes=(change(), bad)))
    node.hear(schema.Control(paused=True, changes=(change(), bad)))
    assert [word.changes for word in node.told] == [(change(),), (change(),)]
    refused = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert refused == [
        "change of the creator refused: trainer.alpha is not changeable in this run, expected one "
        "of inner.lr, trainer.codec, trainer.inner_steps"
    ]


async def test_a_node_that_starts_again_is_told_at_once_what_its_disk_remembers() -> None:
    node = Node()
    node.hear(schema.Control(paused=True, changes=(change(),)))
    told: list[ControlChanged] = []
    node.control.begin(cast(Training, SimpleNamespace(control_changed=told.append)))
    assert told == [ControlChanged(is_paused=True, changes=(change(),))]


def test_a_pause_ends_by_itself_for_the_creator_may_be_gone_and_the_next_one_counts_again() -> None:
    async def story() -> None:
        node = await began()
        watch = asyncio.create_task(node.control.run())
        await asyncio.sleep(1)
        node.hear(schema.Control(paused=True))
        await asyncio.sleep(PAUSE_S - 1)
        assert [word.is_paused for word in node.told] == [True]
        await asyncio.sleep(2)
        assert [word.is_paused for word in node.told] == [True, False]
        node.hear(schema.Control())
        node.hear(schema.Control(paused=True))
        await asyncio.sleep(PAUSE_S / 2)
        assert [word.is_paused for word in node.told][2:] == [False, True]
        watch.cancel()

    in_virtual_time(story())


def test_each_change_is_one_line_of_the_log_with_the_value_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    journal = journal_of(OTHER.peer, lambda: None)
    journal.spec = NOLOCO
    first = InForce(change(), Round(41))
    second = InForce(change(value="0.0001", round=60), Round(60))
    journal.changed((first,))
    journal.changed((first, second))
    assert [record.getMessage() for record in caplog.records] == [
        "setting inner.lr 0.002 -> 0.0005 from round 40, in force since round 41",
        "setting inner.lr 0.0005 -> 0.0001 from round 60, in force since round 60",
    ]


def test_a_pause_is_seen_as_a_state_and_as_a_wait_with_a_name_and_an_end() -> None:
    spoken: list[str] = []
    journal = journal_of(OTHER.peer, lambda: spoken.append(journal.state))
    journal.held(Paused(Round(3)))
    wait = journal.waits.current
    assert wait
    assert (wait.what, wait.until_unix_s) == ("the creator to resume the run", PAUSE_S)
    journal.held(Unpaused(Round(3)))
    assert (spoken, journal.waits.current) == (["paused", "training"], None)


def test_who_has_paused_is_averaged_with_in_groups_only() -> None:
    assert {kind: "paused" in states_of(TRAINERS[kind]()) for kind in TRAINERS} == {
        **dict.fromkeys(("diloco", "streaming", "sync", "spsa"), True),
        **dict.fromkeys(("noloco", "local"), False),
    }


# --- joining --------------------------------------------------------------------------------


def present(state: str, round: int) -> Presence:
    return replace(PRESENCE, state=state, round=Round(round))


def refused_joiner(node: Callable[[], Node], heard: schema.Control | None) -> str:
    """Why it does not join; empty: it does."""
    found: list[str] = []

    async def story() -> None:
        joiner = node()
        if heard:
            asyncio.get_running_loop().call_later(HEARD_S / 2, joiner.hear, heard)
        try:
            await joiner.control.admit(has_snapshot=joiner.has_snapshot)
        except ConfigError as error:
            found.append(str(error))

    in_virtual_time(story())
    return found[0] if found else ""


def seeing(*live: Presence, **changes: object) -> Callable[[], Node]:
    def made() -> Node:
        node = Node()
        node.live = list(live)
        for name, value in changes.items():
            setattr(node, name, value)
        return node

    return made


STOPPED = schema.Control(stopped=True)
BEGUN = "ticket: run {} (sample) has ended, "


def test_a_joiner_of_a_stopped_run_is_told_so_once_the_creators_record_has_come() -> None:
    run = NOLOCO.run.hex()[:8]
    assert refused_joiner(seeing(present("finished", 3)), STOPPED) == (
        f"ticket: run {run} (sample) has ended, its creator has stopped it; expected one that is "
        "under way, so ask for the ticket of another run"
    )


def test_a_joiner_of_a_run_whose_rounds_are_all_closed_is_told_so() -> None:
    reason = refused_joiner(seeing(present("finished", NOLOCO.rounds)), None)
    assert f"has ended, all its {NOLOCO.rounds} rounds are closed; expected" in reason


def test_a_run_in_which_somebody_still_trains_or_waits_has_not_ended() -> None:
    for state in ("starting", "training", "paused"):
        live = (present("finished", NOLOCO.rounds), present(state, 3))
        assert refused_joiner(seeing(*live), None) == ""
    assert refused_joiner(seeing(), None) == ""


def test_a_joiner_that_has_heard_of_nobody_yet_waits_for_a_sign_of_life() -> None:
    """As one that has all files of the run from before does."""
    over = present("finished", NOLOCO.rounds)

    def made() -> Node:
        node = Node()
        asyncio.get_running_loop().call_later(HEARD_S / 2, node.live.append, over)
        return node

    assert "rounds are closed; expected" in refused_joiner(made, None)


def test_two_that_want_to_join_an_ended_run_do_not_let_each_other_in() -> None:
    live = (present("finished", NOLOCO.rounds), present("serving", 0))
    assert "rounds are closed; expected" in refused_joiner(seeing(*live), None)


def test_a_member_that_comes_back_is_let_in_whatever_became_of_the_run() -> None:
    own = {OTHER.peer: Content(member=Member(since=R0))}
    over = present("finished", NOLOCO.rounds)
    assert refused_joiner(seeing(over, held=own), STOPPED) == ""
    assert refused_joiner(seeing(over, has_snapshot=True), STOPPED) == ""


def test_a_member_that_lost_its_disk_is_let_in_once_peers_say_that_it_is_one() -> None:
    own = Content(member=Member(since=R0, status="finished"))
    over = present("finished", NOLOCO.rounds)
    assert refused_joiner(seeing(over, found=own), None) == ""
    assert refused_joiner(seeing(over, found=own), STOPPED) == ""
    assert refused_joiner(seeing(present("training", 3), found=own), STOPPED) == ""
    assert "has ended" in refused_joiner(seeing(over, found=Content()), None)


# --- ordering -------------------------------------------------------------------------------


async def test_what_the_creator_says_is_in_its_record_and_obeyed_by_its_own_node() -> None:
    node = await began(CREATOR.peer)
    await node.control.order(Order(action="pause"))
    await node.control.order(Order(action="set", name="inner.lr", value="0.1"))
    said = await node.control.order(
        Order(action="set", name="trainer.codec", value="int8", from_round=50)
    )
    assert said == ("trainer.codec is int8 from round 50 on, or from when a member hears of it")
    word = schema.Control(
        paused=True, changes=(change(value="0.1", round=13), change("trainer.codec", "int8", 50))
    )
    assert node.held[CREATOR.peer] == Content(control=word)
    assert node.told[-1] == ControlChanged(is_paused=True, changes=word.changes)
    await node.control.order(Order(action="resume"))
    await node.control.order(Order(action="stop"))
    assert node.held[CREATOR.peer] == Content(control=replace(word, paused=False, stopped=True))


@pytest.mark.parametrize(
    ("me", "before", "order", "reason"),
    [
        (OTHER.peer, None, Order(action="pause"), "nobody else can pause, resume, stop or change"),
        (CREATOR.peer, STOPPED, Order(action="resume"), "it is stopped for good, expected one"),
        (CREATOR.peer, None, Order(action="set", name="x", value="1"), "x is not changeable"),
        (CREATOR.peer, None, Order(action="set"), "change.name is '', expected text of 1 to 32"),
        (
            CREATOR.peer,
            None,
            Order(action="set", name="inner.lr", value="fast"),
            "inner.lr is 'fast', expected a number such as 0.001 or 1e-3; nothing was changed",
        ),
        (
            CREATOR.peer,
            None,
            Order(action="set", name="inner.lr", value="0.1", from_round=10**9),
            "--from-round: found 1000000000, expected a round of this run, 0 to ",
        ),
    ],
)
async def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(
    me: PeerId, before: schema.Control | None, order: Order, reason: str
) -> None:
    node = await began(me)
    node.hear(before)
    held = dict(node.held)
    with pytest.raises(ConfigError) as refused:
        await node.control.order(order)
    assert reason in str(refused.value)
    assert node.held == held


def test_a_record_that_cannot_be_written_yet_is_told_within_the_clients_patience() -> None:
    async def story() -> None:
        node = await began(CREATOR.peer)
        node.writes_s = None
        loop = asyncio.get_running_loop()
        since = loop.time()
        said = await node.control.order(Order(action="pause"))
        assert loop.time() - since == WRITTEN_S
        assert said.endswith("as soon as our record can be written; the log says what hinders it")

    in_virtual_time(story())


@pytest.mark.parametrize(
    "fields", [{}, {"action": "dance"}, {"action": 1}, {"action": "set", "round": 3}]
)
def test_an_order_through_the_api_that_is_none_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"found .*, expected "):
        order_of(fields)


# --- the shell ------------------------------------------------------------------------------


def test_four_peers_behind_drivers_pause_one_after_the_other_and_go_on_to_the_end() -> None:
    swarm = Swarm(rounds=20)
    still: list[int] = []

    async def trouble() -> None:
        for id in PEERS:
            await asyncio.sleep(2.3)
            await swarm.network.drivers[id].post(ControlChanged(is_paused=True))
        await asyncio.sleep(60)
        assert [notes.holds[-1:] != [] for notes in swarm.notes.values()] == [True] * 4
        before = [learner.round for learner in swarm.learners.values()]
        await asyncio.sleep(60)
        still.extend(
            now.round - then for now, then in zip(swarm.learners.values(), before, strict=True)
        )
        changes = (change("trainer.codec", "int8", 0),)
        for id in PEERS:
            await swarm.network.drivers[id].post(ControlChanged(changes=changes))

    swarm.train(trouble(), ends=PEERS)
    assert still == [0] * 4
    assert [type(held) for notes in swarm.notes.values() for held in notes.holds] == [
        Paused,
        Unpaused,
    ] * 4
    assert [len(learner.changes) for learner in swarm.learners.values()] == [1] * 4
    assert min(swarm.made(id) for id in PEERS) >= 8
    assert not any(closed.half for notes in swarm.notes.values() for closed in notes.rounds)
