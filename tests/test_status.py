"""The closed form of bytes that a node shows beside what it counted."""

from __future__ import annotations

from samples import spec

from node.exchange import ScalarTraffic
from node.pieces import DIRECT, cuts
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
    for size in (sizes[0], sizes[-1]):
        pieces = [*cuts(size, DIRECT.piece_bytes)]
        assert sum(pieces) == size
        expected = 3 * sum(answer_bytes(piece) for piece in pieces)
        assert formula(trainer, {size: 3 * size}, {}) == expected
        assert 0 < formula(trainer, {}, {size: 1}) < 200 * len(pieces)
    both = {sizes[0]: 2, sizes[-1]: 1}
    alone = [formula(trainer, {}, {size: count}) for size, count in both.items()]
    assert formula(trainer, {}, both) == sum(alone)


def test_what_is_no_payload_of_the_run_counts_nothing() -> None:
    sizes = payload_sizes(spec())
    assert formula(NolocoConfig(), {sizes[0] + 1: 7}, {12: 7}) == 0
    assert formula(LocalConfig(), {0: 7}, {0: 7}) == 0


def test_without_a_run_nothing_is_counted() -> None:
    assert closed_form(None, sent={}, asked={}, scalars=NONE, heard=0) == {PAYLOAD: 0}
