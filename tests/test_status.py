"""The closed form of bytes that a node shows beside what it counted."""

from __future__ import annotations

from samples import spec

from node.exchange import ScalarTraffic
from node.status import PAYLOAD, closed_form
from protocol.algorithms import LocalConfig, NolocoConfig, TrainerConfig
from protocol.frame import answer_bytes
from protocol.labels import payload_sizes

NONE = ScalarTraffic()


def formula(trainer: TrainerConfig, sent: dict[int, int], asked: dict[int, int]) -> int:
    run = spec(trainer=trainer)
    return closed_form(run, sent=sent, asked=asked, scalars=NONE, heard=0)[PAYLOAD]


def test_payloads_of_each_fragment_count_by_their_own_length() -> None:
    trainer = NolocoConfig(fragment_layers=1)
    sizes = payload_sizes(spec(trainer=trainer))
    assert len(set(sizes)) == 2  # four layers, and the embeddings
    one = formula(trainer, {}, {sizes[0]: 1})
    sent = {sizes[0]: 3, sizes[-1]: 2}
    expected = 3 * answer_bytes(sizes[0]) + 2 * answer_bytes(sizes[-1]) + 5 * one
    assert formula(trainer, sent, sent) == expected
    assert 0 < one < 200


def test_what_is_no_payload_of_the_run_counts_nothing() -> None:
    sizes = payload_sizes(spec())
    assert formula(NolocoConfig(), {sizes[0] + 1: 7}, {12: 7}) == 0
    assert formula(LocalConfig(), {0: 7}, {0: 7}) == 0


def test_without_a_run_nothing_is_counted() -> None:
    assert closed_form(None, sent={}, asked={}, scalars=NONE, heard=0) == {PAYLOAD: 0}
