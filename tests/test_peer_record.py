"""Address records in the DHT: nobody can forge one, keep one alive, or bring an old one back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.envelope import Domain, Signer
from protocol.errors import Malformed
from protocol.ids import PeerId, RunId
from protocol.limits import MAX_ADDR_BYTES, MAX_ADDRS
from protocol.peer_record import (
    CLOCK_S,
    MAX_RECORD_BYTES,
    MAX_TTL_S,
    NO_RUN,
    PeerRecord,
    SignedPeerRecord,
    best,
    open_peer_record,
    record_key,
    sign_peer_record,
)

ALICE, MALLORY = Signer(b"a" * 32), Signer(b"m" * 32)
RUN = RunId(b"r" * 32)
NOW = 1_800_000_000
KEY = record_key(ALICE.peer, RUN)
RELAY = f"/ip4/203.0.113.7/tcp/4001/p2p/{MALLORY.peer}/p2p-circuit/p2p/{ALICE.peer}"


def record(
    *, seq: int = 7, left_s: int = 3600, run: RunId | None = RUN, peer: PeerId = ALICE.peer
) -> PeerRecord:
    addrs = (f"/ip4/192.0.2.1/tcp/4001/p2p/{peer}",)
    return PeerRecord(peer=peer, run=run, addrs=addrs, seq=seq, expires_unix_s=NOW + left_s)


def signed(seq: int = 7, *, left_s: int = 3600) -> bytes:
    return sign_peer_record(record(seq=seq, left_s=left_s), ALICE)


def forged(original: PeerRecord, signer: Signer, domain: Domain = Domain.PEER) -> bytes:
    """`original` with a signature that is not its peer's for this purpose."""
    body = codec.encode(original)
    return codec.encode(SignedPeerRecord(body, signer.sign(domain, original.run or NO_RUN, body)))


def test_golden_bytes() -> None:
    assert KEY == "/shoal/yKbc0PjTjU1BKDM3MCgQ-x_LvUHsoklYhxxpmi4Qcww"
    assert codec.encode(record()).hex() == (
        "95d934313244334b6f6f574d6262505647735a5968334368516a75653731324e4848474e7962525258776e75"
        "5370657a596a4762434453c420727272727272727272727272727272727272727272727272727272727272727"
        "291d9502f6970342f3139322e302e322e312f7463702f343030312f7032702f313244334b6f6f574d62625056"
        "47735a5968334368516a75653731324e4848474e7962525258776e755370657a596a476243445307ce6b49e010"
    )


@pytest.mark.parametrize("run", [RUN, None])
def test_what_a_peer_says_of_itself_arrives(run: RunId | None) -> None:
    said = replace(record(run=run), addrs=(*record().addrs, RELAY))
    found = open_peer_record(record_key(ALICE.peer, run), sign_peer_record(said, ALICE), NOW)
    assert found == said


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (forged(record(), MALLORY), "not signed by"),
        (forged(record(), ALICE, Domain.PRESENCE), "not signed by"),
        (sign_peer_record(record(peer=MALLORY.peer), MALLORY), "under the key .* of another"),
        (sign_peer_record(record(run=None), ALICE), "under the key .* of another"),
        (sign_peer_record(record(run=RunId(b"s" * 32)), ALICE), "under the key .* of another"),
        (signed(left_s=0), "0 s left"),
        (signed(left_s=MAX_TTL_S + CLOCK_S + 1), "s left, expected"),
        (signed()[:-1], "ValueError"),
        (signed() + b"\0", "ExtraData"),
        (bytes(MAX_RECORD_BYTES + 1), "at most"),
        (b"", "ValueError"),
    ],
)
def test_refuses(value: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        open_peer_record(KEY, value, NOW)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(Malformed):
        open_peer_record(KEY, noise, NOW)


@given(st.integers(0, 250), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, by: int) -> None:
    value = bytearray(signed())
    value[at % len(value)] ^= by
    with pytest.raises(Malformed):
        open_peer_record(KEY, bytes(value), NOW)


@pytest.mark.parametrize(
    "addrs",
    [
        ("",),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{MALLORY.peer}",),
        ("/ip4/192.0.2.1/tcp/4001",),
        (f"/p2p/{ALICE.peer}" * 5,),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{ALICE.peer}",) * (MAX_ADDRS + 1),
    ],
)
def test_a_record_names_only_few_addresses_and_only_its_own(addrs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="addr"):
        replace(record(), addrs=addrs)


def test_the_longest_record_fits_and_its_key_passes_through_the_library() -> None:
    tail = f"/p2p/{ALICE.peer}"
    longest = ("/" + "a" * (MAX_ADDR_BYTES - len(tail) - 1) + tail,) * MAX_ADDRS
    assert len(sign_peer_record(replace(record(), addrs=longest), ALICE)) <= MAX_RECORD_BYTES
    assert len(KEY) <= 50  # what `FIND_NODE` of py-libp2p 0.8.1 takes


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([signed(1), signed(3), signed(2)], 1),
        ([signed(3), signed(1)], 0),
        ([signed(2), signed(2)], 0),
        ([signed(9, left_s=-1), signed(1)], 1),
        ([forged(record(seq=9), MALLORY), signed(1)], 1),
        ([b"noise", signed(1)], 1),
        ([b"noise", signed(9, left_s=0)], None),
        ([], None),
    ],
)
def test_the_highest_number_of_what_is_valid_counts(
    values: list[bytes], chosen: int | None
) -> None:
    assert best(KEY, values, NOW) == chosen
