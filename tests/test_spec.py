"""The run spec: what is equal on all peers, and what is refused before it can do harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from samples import CREATOR, OTHER, REF, spec

from protocol.algorithms import (
    INNER_STEPS,
    TRAINERS,
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    StreamingConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.envelope import Domain, Signer, verify
from protocol.errors import ConfigError, Malformed
from protocol.fragments import num_parameters
from protocol.ids import Round, RunId, digest_of, peer_id, public_key, seed_of
from protocol.labels import payload_sizes
from protocol.model import GptConfig, InnerConfig
from protocol.payload import payload_bytes
from protocol.spec import DataConfig, SignedSpec, sign_spec
from protocol.ticket import Ticket, parse

ADDR = f"/ip4/127.0.0.1/tcp/4001/p2p/{CREATOR.peer}"


def test_any_other_setting_is_another_run() -> None:
    others = [
        spec(seed=2),
        spec(rounds=10),
        spec(trainer=NolocoConfig(gamma=0.6)),
        spec(inner=InnerConfig(lr=1e-3)),
        spec(data=DataConfig(tokenizer=REF, validation=REF, corpus=None)),
    ]
    assert len({spec().run, *(other.run for other in others)}) == 6


def test_the_creators_signature_opens_the_spec() -> None:
    signed = sign_spec(spec(), CREATOR)
    assert signed.open(spec().run) == spec()


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (sign_spec(spec(), OTHER), "not signed by"),
        (sign_spec(spec(seed=2), CREATOR), "another run"),
        (SignedSpec(sign_spec(spec(), CREATOR).body, b""), "not signed by"),
    ],
)
def test_a_spec_of_another_run_or_signer_is_refused(signed: SignedSpec, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        signed.open(spec().run)


def test_settings_under_which_peers_diverge_are_refused() -> None:
    """N8: momentum .9 with gamma .7 makes 16 peers drift apart (test_noloco_math shows it)."""
    with pytest.raises(ValueError, match=r"gamma below 2 \(1 - alpha\^2\) = 0.38"):
        NolocoConfig(alpha=0.9, gamma=0.7)


LAYERS = GptConfig(layers=6)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: spec(model=LAYERS, trainer=NolocoConfig(inner_steps=6, fragment_layers=1)),
            "trainer.inner_steps is 6 with 7 fragments, expected a step or more for each of them",
        ),
        (
            lambda: spec(
                model=LAYERS,
                trainer=StreamingConfig(inner_steps=13, fragment_layers=3, overlap_steps=4),
            ),
            "trainer.overlap_steps is 4, expected less than the 4 inner steps of a round",
        ),
        (
            lambda: DilocoConfig(stale=True, overlap_steps=1),
            "trainer.stale is true with trainer.overlap_steps 1, expected 0",
        ),
        (
            lambda: NolocoConfig(feedback=True),
            "trainer.feedback is true with trainer.vectors = 1, expected vectors = 2",
        ),
        (
            lambda: NolocoConfig(stale=True),
            "trainer.stale is true with trainer.vectors = 1: averaging would be stale, too, and "
            "peers would drift apart; expected vectors = 2",
        ),
        (
            lambda: NolocoConfig(gap_penalty=True),
            "trainer.gap_penalty is true with trainer.vectors = 1: averaging would be stale, too",
        ),
        (lambda: SpsaConfig(trainable=()), "trainer.trainable is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_would(
    make: Callable[[], object], reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        make()


def test_settings_at_the_border_of_what_works_are_taken() -> None:
    spec(model=LAYERS, trainer=NolocoConfig(inner_steps=7, fragment_layers=1))
    spec(model=LAYERS, trainer=StreamingConfig(inner_steps=13, fragment_layers=3, overlap_steps=3))
    NolocoConfig(stale=True, gap_penalty=True, feedback=True, vectors=2)


def test_each_trainer_is_another_run_and_comes_back_as_what_it_was() -> None:
    specs = [spec(trainer=config()) for config in TRAINERS.values()]
    assert len({each.run for each in specs}) == len(TRAINERS)
    for each in specs:
        found = sign_spec(each, CREATOR).open(each.run)
        assert (type(found.trainer), found) == (type(each.trainer), each)


def test_what_a_round_of_fragments_is() -> None:
    """Six layers by two: three strided fragments and one of the embeddings."""
    trainer = StreamingConfig(inner_steps=10, fragment_layers=2)
    found = spec(model=LAYERS, trainer=trainer)
    assert found.num_fragments == 4
    assert [found.round_steps(Round(r)) for r in range(8)] == [2, 3, 2, 3] * 2
    assert sum(found.fragment_counts()) == num_parameters(LAYERS)
    step_tokens = found.inner.batch * LAYERS.context
    assert (found.max_tokens, found.most_claimed) == (3 * step_tokens, 12 * step_tokens)
    longer = replace(found, changeable=(INNER_STEPS,))
    assert (longer.max_tokens, longer.most_claimed) == (3 * step_tokens, 100_000 * step_tokens)
    sizes = [payload_bytes("e3m0", count) for count in found.fragment_counts()]
    assert payload_sizes(found) == tuple(sizes)


def test_two_vectors_travel_as_two_payloads_one_after_the_other() -> None:
    found = spec(trainer=NolocoConfig(vectors=2, codec="int8", gradient_codec="sign"))
    count = num_parameters(found.model)
    assert payload_sizes(found) == (payload_bytes("int8", count) + payload_bytes("sign", count),)


@pytest.mark.parametrize("trainer", [LocalConfig(), SpsaConfig()])
def test_some_trainers_send_no_payload(trainer: TrainerConfig) -> None:
    assert payload_sizes(spec(trainer=trainer)) == (0,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NolocoConfig(inner_steps=0),
        lambda: NolocoConfig(codec="zip"),
        lambda: NolocoConfig(codec="sign"),
        lambda: NolocoConfig(vectors=3),
        lambda: DilocoConfig(codec="zip"),
        lambda: DilocoConfig(momentum_clip=-1.0),
        lambda: StreamingConfig(mix=1.5),
        lambda: SyncConfig(round_deadline_s=0.0),
        lambda: LocalConfig(inner_steps=0),
        lambda: SpsaConfig(samples=0),
        lambda: InnerConfig(batch=6, accumulate=4),
        lambda: InnerConfig(lr=float("nan")),
        lambda: InnerConfig(batch=True),
        lambda: GptConfig(width=130, heads=4),
        lambda: spec(name=""),
        lambda: spec(creator="nobody"),
    ],
)
def test_constructors_check_ranges(make: object) -> None:
    with pytest.raises(ValueError, match=r"expected|not a peer id"):
        make()  # type: ignore[operator]


def test_a_signature_is_good_for_one_domain_one_run_and_one_signer() -> None:
    run, other_run = RunId(digest_of(b"1")), RunId(digest_of(b"2"))
    signature = CREATOR.sign(Domain.ROUND, run, b"body")
    verify(CREATOR.peer, Domain.ROUND, run, b"body", signature)
    for peer, domain, where, body in [
        (OTHER.peer, Domain.ROUND, run, b"body"),
        (CREATOR.peer, Domain.RECORD, run, b"body"),
        (CREATOR.peer, Domain.ROUND, other_run, b"body"),
        (CREATOR.peer, Domain.ROUND, run, b"bodY"),
    ]:
        with pytest.raises(Malformed, match="not signed"):
            verify(peer, domain, where, body, signature)


def test_a_peer_id_holds_the_key_in_one_spelling() -> None:
    key = public_key(CREATOR.peer)
    assert peer_id(key) == CREATOR.peer
    assert CREATOR.peer.startswith("12D3KooW")  # as libp2p prints Ed25519 keys
    for wrong in ("", "Qm" + "a" * 44, CREATOR.peer + " ", "1" + CREATOR.peer):
        with pytest.raises(ValueError, match="not"):
            public_key(wrong)  # type: ignore[arg-type]


def test_seeds_depend_on_every_part_and_its_borders() -> None:
    assert len({seed_of("ab", "c"), seed_of("a", "bc"), seed_of("abc"), seed_of("ab", "d")}) == 4


def test_a_ticket_survives_spaces_and_line_breaks() -> None:
    ticket = Ticket(run=spec().run, addrs=(ADDR,), secret=b"")
    line = str(ticket)
    assert parse(f"  {line[:40]}\n {line[40:]} ") == ticket


@pytest.mark.parametrize("at", range(6, 120, 9))
def test_one_wrong_character_in_a_ticket_is_noticed(at: int) -> None:
    line = str(Ticket(run=spec().run, addrs=(ADDR,), secret=bytes(16)))
    wrong = line[:at] + ("x" if line[at] != "x" else "y") + line[at + 1 :]
    with pytest.raises(ConfigError, match="checksum does not match"):
        parse(wrong)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "begins with shoal1"),
        ("http://example.org", "begins with shoal1"),
        ("shoal1", "checksum"),
        ("shoal10OIl", "base58"),
        ("shoal1" + "a" * 5000, "at most 4096"),
    ],
)
def test_what_is_no_ticket_gets_one_sentence(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(line)


def test_a_signer_is_the_same_peer_after_a_restart() -> None:
    assert Signer(b"\x07" * 32).peer == Signer(b"\x07" * 32).peer != CREATOR.peer
