"""Fetching a checkpoint from a donor that is slow, lies, or is honest."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from memory_network import in_virtual_time
from samples import OTHER, spec

from node.arena import Arena
from node.joining import HEADER_BYTES, SHARED_BYTES, fetch_checkpoint
from node.telemetry import Waits
from protocol import codec, rpc
from protocol.envelope import Domain
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.fragments import num_parameters
from protocol.ids import PeerId, Round, digest_of
from protocol.messages import Checkpoint
from protocol.model import GptConfig

SPEC = spec(model=GptConfig(layers=1, heads=1, width=8, context=8, vocab=300))
PARAMETERS = num_parameters(SPEC.model)
NUMBERS = 8 * PARAMETERS
MOST = NUMBERS + SHARED_BYTES * PARAMETERS + HEADER_BYTES
DATA = bytes(NUMBERS + 200)


class Donor:
    """Offers `size_bytes` and sends `data`, each chunk after `chunk_s`."""

    def __init__(self, data: bytes = DATA, size_bytes: int = len(DATA), chunk_s: float = 0) -> None:
        self.offer = Checkpoint(Round(3), digest_of(DATA), size_bytes, digest_of(b"weights"))
        self._data = data
        self._chunk_s = chunk_s

    async def call(
        self,
        peer: PeerId,
        method: rpc.Method[rpc.Q, rpc.A],
        request: rpc.Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> rpc.A:
        if isinstance(request, rpc.BlobCall):
            assert into is not None
            await asyncio.sleep(self._chunk_s)
            into[:] = self._data[request.offset : request.offset + request.length]
            return cast(rpc.A, b"")
        body = codec.encode(self.offer)
        signature = OTHER.sign(Domain.CHECKPOINT, SPEC.run, body)
        return cast(rpc.A, rpc.SignedCheckpoint(body, signature))


async def fetched(donor: Donor, arena: Arena, waits: Waits) -> Checkpoint:
    return await fetch_checkpoint(
        OTHER.peer, run=SPEC.run, spec=SPEC, caller=donor, arena=arena, waits=waits
    )


def refused(donor: Donor, error: type[Exception], match: str) -> None:
    """Nothing is held and nothing waited for afterwards."""
    arena, waits = Arena(), Waits(lambda: 0.0)
    with pytest.raises(error, match=match):
        in_virtual_time(fetched(donor, arena, waits))  # type: ignore[arg-type]
    assert (len(arena), waits.current) == (0, None)


def test_an_honest_checkpoint_is_held_under_its_name() -> None:
    async def take() -> bytes:
        arena = Arena()
        checkpoint = await fetched(Donor(), arena, Waits(lambda: 0.0))
        with arena.view(checkpoint.digest) as view:
            data = bytes(view)
        arena.close()
        return data

    assert asyncio.run(take()) == DATA


@pytest.mark.parametrize("size_bytes", [1, NUMBERS, MOST + 1, 1 << 33])
def test_a_checkpoint_that_this_model_cannot_have_is_refused_unseen(size_bytes: int) -> None:
    refused(Donor(size_bytes=size_bytes), RemoteProtocolError, "offered a checkpoint of")


def test_other_bytes_than_the_signed_ones_are_refused() -> None:
    refused(Donor(data=b"x" * len(DATA)), RemoteProtocolError, "sent another checkpoint")


def test_a_donor_that_drips_is_given_up() -> None:
    refused(Donor(chunk_s=3000.0), PeerUnavailable, "no whole checkpoint within 60")
