"""The run spec: what is equal on all peers, and what is refused before it can do harm."""

from __future__ import annotations

import pytest
from samples import CREATOR, OTHER, REF, spec

from protocol.envelope import Domain, Signer, verify
from protocol.errors import ConfigError, Malformed
from protocol.ids import RunId, digest_of, peer_id, public_key, seed_of
from protocol.spec import (
    DataConfig,
    GptConfig,
    InnerConfig,
    NolocoConfig,
    SignedSpec,
    sign_spec,
)
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: NolocoConfig(inner_steps=0),
        lambda: NolocoConfig(codec="zip"),
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
