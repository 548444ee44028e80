"""Logs, waits and counters."""

from __future__ import annotations

import io
import json
import logging

import pytest

from node.telemetry import Rounds, Waiting, Waits, harmless, set_up_logs
from protocol.ids import Digest, PeerId, Round, peer_id
from protocol.messages import Exchange
from trainers.effects import Closed

ALICE, BOB = peer_id(bytes(32)), peer_id(bytes([1]) * 32)
REPLACED = "\N{REPLACEMENT CHARACTER}"


def logged(*, as_json: bool) -> io.StringIO:
    stream = io.StringIO()
    set_up_logs("info", as_json=as_json, stream=stream)
    return stream


def closed(*, exchange: bool, half: bool = False) -> Closed:
    facts = Exchange(
        fragment=0,
        proposer=ALICE,
        partner=BOB,
        proposer_round=Round(0),
        partner_round=Round(0),
        proposer_digest=Digest(bytes(32)),
        partner_digest=Digest(bytes(32)),
        proposer_tokens=1,
        partner_tokens=1,
    )
    return Closed(Round(0), 1, facts if exchange else None, half, "")


def test_a_peer_id_is_short_in_a_log_line_but_whole_in_an_address() -> None:
    stream = logged(as_json=False)
    logging.getLogger("node.x").info("joined: peer=%s at=/ip4/1.2.3.4/tcp/1/p2p/%s", ALICE, BOB)
    line = stream.getvalue()
    assert line.endswith(
        f"INFO node.x: joined: peer={ALICE[-8:]} at=/ip4/1.2.3.4/tcp/1/p2p/{BOB}\n"
    )


def test_json_logs_are_one_object_a_line_with_the_traceback_inside() -> None:
    stream = logged(as_json=True)
    log = logging.getLogger("node.x")
    try:
        raise KeyError("a\nb")
    except KeyError:
        log.exception("broken: peer=%s", ALICE)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("unix_s") > 0
    assert "KeyError" in found.pop("traceback")
    assert found == {"level": "error", "source": "node.x", "text": f"broken: peer={ALICE[-8:]}"}


def test_what_libraries_warn_of_stays_out_of_the_log() -> None:
    stream = logged(as_json=False)
    logging.getLogger("libp2p.host").warning("noise")
    logging.getLogger("node.x").debug("detail")
    assert stream.getvalue() == ""


def test_a_wait_prints_one_machine_readable_line() -> None:
    stream = logged(as_json=False)
    Waits(lambda: 100.0).begin("trainer", 'the "payload"', ALICE, 2.5)
    line = stream.getvalue().split("telemetry: ", 1)[1]
    assert line == (f'waiting: what="the \\"payload\\"" from={ALICE[-8:]} until_unix_s=102.500\n')


def test_control_characters_do_not_reach_a_terminal() -> None:
    """Colours, cursor, title, and text that runs backwards."""
    assert harmless("a\tb\n\x1b[31m\x07\x9b\u202e\r\u00e9", but="\n\t") == (
        f"a\tb\n{REPLACED}[31m{REPLACED}{REPLACED}{REPLACED}{REPLACED}\u00e9"
    )


def test_a_log_line_of_a_strangers_words_is_one_line() -> None:
    stream = logged(as_json=False)
    logging.getLogger("node.x").info("a member: name=%s", "x\x1b[31m\nforged")
    assert stream.getvalue().splitlines()[0].endswith(f"name=x{REPLACED}[31m{REPLACED}forged")


def test_the_current_wait_is_the_newest_that_is_not_over() -> None:
    waits = Waits(lambda: 0.0)
    assert waits.current is None
    waits.begin("trainer", "members", "anyone", 1.0)
    with waits.on("the spec", BOB, 2.0):
        assert waits.current == Waiting("the spec", BOB, 2.0)
    assert waits.current == Waiting("members", "anyone", 1.0)
    waits.begin("trainer", "an answer", PeerId("x"), 3.0)
    assert waits.current == Waiting("an answer", "x", 3.0)
    with waits.on("members in the DHT", "the DHT", 4.0, aside=True):
        assert waits.current == Waiting("an answer", "x", 3.0)
        waits.end("trainer")
        assert waits.current == Waiting("members in the DHT", "the DHT", 4.0)
    assert waits.current is None


def test_a_wait_is_over_when_its_block_fails() -> None:
    waits = Waits(lambda: 0.0)
    with pytest.raises(KeyError), waits.on("the spec", BOB, 2.0):
        raise KeyError
    assert waits.current is None


def test_two_that_wait_for_the_same_end_their_own_wait_alone() -> None:
    waits = Waits(lambda: 0.0)
    with waits.on("a checkpoint", ALICE, 2.0):
        with waits.on("a checkpoint", BOB, 2.0):
            pass
        assert waits.current == Waiting("a checkpoint", ALICE, 2.0)


def test_the_open_waits_are_bounded() -> None:
    waits = Waits(lambda: 0.0)
    for number in range(1000):
        waits.begin(f"slot {number}", f"what {number}", "x", 1.0)
    assert waits.current == Waiting("what 63", "x", 1.0)


def test_a_round_counts_as_exactly_one_of_made_missed_and_half() -> None:
    rounds = Rounds()
    for effect in (closed(exchange=True), closed(exchange=False), closed(exchange=True)):
        rounds.count(effect)
    rounds.count(closed(exchange=False, half=True))
    assert rounds == Rounds(closed=4, made=2, missed=1, half=1)
