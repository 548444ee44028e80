"""Fetching a checkpoint from a donor that is slow, lies, or is honest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from blob_world import ME, Donor, Network, Operator, ref_of
from samples import OTHER, spec
from wire import carried

from node import donors, materials
from node.blobs.files import NoSpace
from node.blobs.store import BlobStore
from node.blobs.transfers import Transfers
from node.donors import HEADER_BYTES, SHARED_BYTES, Members
from node.materials import fetch_blob
from node.telemetry import Waits
from protocol import codec, rpc
from protocol.envelope import Domain
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.fragments import num_parameters
from protocol.ids import PeerId, Round, digest_of
from protocol.manifest import manifest_of
from protocol.messages import Checkpoint
from protocol.model import GptConfig

SPEC = spec(model=GptConfig(layers=1, heads=1, width=8, context=8, vocab=300))
PARAMETERS = num_parameters(SPEC.model)
NUMBERS = 8 * PARAMETERS
MOST = NUMBERS + SHARED_BYTES * PARAMETERS + HEADER_BYTES
DATA = bytes(NUMBERS + 200)
THEM = OTHER.peer


class Offering(Network):
    """`THEM` offers `DATA` as a checkpoint of `size_bytes`, and gives what its donor has."""

    def __init__(self, donor: Donor, size_bytes: int = len(DATA)) -> None:
        super().__init__({THEM: donor}, SPEC.run)
        name = manifest_of(DATA).name
        self.offer = Checkpoint(Round(3), name, size_bytes, digest_of(b"weights"))

    async def call(self, peer: PeerId, method: Any, request: Any, **terms: Any) -> Any:
        if method is not rpc.CHECKPOINT:
            return await super().call(peer, method, request, **terms)
        return await carried(ME, peer, method, request, self._checkpoint, **terms)

    async def _checkpoint(self, _: PeerId, call: rpc.CheckpointCall) -> rpc.SignedCheckpoint:
        body = codec.encode(self.offer)
        return rpc.SignedCheckpoint(body, OTHER.sign(Domain.CHECKPOINT, SPEC.run, body))


class Joiner:
    """A store, and what was waited for."""

    def __init__(self, folder: Path, network: Network, quota_bytes: int = 1 << 30) -> None:
        self.waits = Waits(lambda: 0.0)
        self.blamed: list[PeerId] = []
        self.store = BlobStore(folder, quota_bytes)
        self.transfers = Transfers(
            run=SPEC.run,
            caller=network,
            store=self.store,
            blame=lambda peer, _: self.blamed.append(peer),
            is_relayed=lambda peer: False,
            rng=random.Random(7),
        )

    async def fetch(self) -> Checkpoint:
        await self.store.open()
        members = Members(SPEC, self.transfers, self.waits)
        offer = await members.checkpoint(THEM)
        await members.fetch(offer, [THEM])
        return offer

    async def refused(self, error: type[Exception], match: str) -> None:
        """Nothing is whole and nothing waited for afterwards."""
        with pytest.raises(error, match=match):
            await self.fetch()
        assert (self.store.whole(), self.waits.current) == ((), None)


async def test_an_honest_checkpoint_is_held_under_its_name_until_it_is_given_back(
    tmp_path: Path,
) -> None:
    joiner = Joiner(tmp_path, Offering(Donor(DATA)))
    checkpoint = await joiner.fetch()
    assert await joiner.store.bytes_of(checkpoint.digest) == DATA
    await joiner.store.release(checkpoint.digest)
    assert joiner.store.whole() == ()


@pytest.mark.parametrize("size_bytes", [1, NUMBERS, MOST + 1, 1 << 32])
async def test_a_checkpoint_that_this_model_cannot_have_is_refused_unseen(
    tmp_path: Path, size_bytes: int
) -> None:
    donor = Donor(DATA)
    joiner = Joiner(tmp_path, Offering(donor, size_bytes))
    await joiner.refused(RemoteProtocolError, "offered a checkpoint of")
    assert donor.asked == []


async def test_other_bytes_than_the_signed_ones_are_blamed(tmp_path: Path) -> None:
    joiner = Joiner(tmp_path, Offering(Donor(b"x" * len(DATA), manifest_of(DATA))))
    await joiner.refused(PeerUnavailable, "no whole checkpoint: .* sent bytes that are not chunk 0")
    assert joiner.blamed == [THEM]


async def test_a_donor_that_drips_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(donors, "CHECKPOINT_S", 0.01)
    monkeypatch.setattr(donors, "SLOWEST_BYTES_PER_S", 1e9)
    joiner = Joiner(tmp_path, Offering(Donor(DATA, is_frozen=True)))
    await joiner.refused(PeerUnavailable, "no whole checkpoint: .* not all of it came within 0.01")


async def test_without_room_the_operator_is_told(tmp_path: Path) -> None:
    joiner = Joiner(tmp_path, Offering(Donor(DATA)), quota_bytes=1000)
    await joiner.refused(NoSpace, "disk quota: .* raise disk_mib")


async def test_a_blob_is_asked_for_until_a_member_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materials, "AGAIN_S", 0.0)
    network = Network({}, SPEC.run)
    joiner = Joiner(tmp_path, network)
    await joiner.store.open()
    looks = []

    def peers() -> list[PeerId]:
        looks.append(1)
        if len(looks) == 3:
            network.donors[ME] = Donor(DATA)
        return [ME, THEM]

    path = await fetch_blob(
        "the corpus",
        ref_of(DATA),
        transfers=joiner.transfers,
        peers=peers,
        waits=joiner.waits,
        journal=Operator(),
    )
    assert (await joiner.store.bytes_of(ref_of(DATA).digest), len(looks)) == (DATA, 3)
    assert path.name == ref_of(DATA).digest.hex()
