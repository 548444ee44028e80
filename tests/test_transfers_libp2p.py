"""A blob from several donors over real sockets, one of which goes away in the middle."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from blob_world import RUN, ref_of

from node.blobs.store import BlobStore
from node.blobs.transfers import Transfers
from node.bridge import Bridge
from node.rpc import Refused, Rpc
from protocol import rpc
from protocol.envelope import Signer
from protocol.ids import PeerId
from protocol.limits import MIB

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(120)]

DATA = random.Random(7).randbytes(24 * MIB + 17)
REF = ref_of(DATA)
CONNECT_S = 20.0


@dataclass
class Peer:
    """A node with its network and its store."""

    bridge: Bridge
    store: BlobStore
    transfers: Transfers
    blamed: list[PeerId]
    served: int = 0
    gone_after: int | None = None
    """So many pieces, then it hangs up on everybody instead of answering."""

    async def info(self, peer: PeerId, call: rpc.BlobInfoCall) -> rpc.BlobInfo:
        held = self.store.held(call.digest)
        if held is None:
            raise Refused("not-here", "that blob is not here")
        return rpc.BlobInfo(held.manifest if call.is_manifest_wanted else b"", held.chunks)

    async def blob(self, peer: PeerId, call: rpc.BlobCall) -> bytes:
        if self.gone_after is not None and self.served >= self.gone_after:
            await self.bridge.disconnect(peer)
            raise Refused("not-here", "gone")
        self.served += 1
        part = await self.store.read(call.digest, call.offset, call.length)
        if part is None:
            raise Refused("not-here", "that chunk is not here")
        return part


@asynccontextmanager
async def peer(folder: Path, number: int) -> AsyncIterator[Peer]:
    blamed: list[PeerId] = []
    signer = Signer(bytes([number]) * 32)
    async with (
        Bridge(signer, listen=["/ip4/127.0.0.1/tcp/0"]) as bridge,
        Rpc(bridge, on_blame=lambda peer, _: blamed.append(peer)) as calls,
    ):
        store = BlobStore(folder / f"{number}", 256 * MIB)
        await store.open()
        transfers = Transfers(
            run=RUN,
            caller=calls,
            store=store,
            blame=lambda peer, _: blamed.append(peer),
            is_relayed=bridge.is_relayed,
            rng=random.Random(7),
        )
        made = Peer(bridge, store, transfers, blamed)
        calls.serve(rpc.BLOB_INFO, made.info)
        calls.serve(rpc.BLOB, made.blob)
        yield made


async def test_three_donors_give_a_blob_and_one_that_leaves_is_missed_by_nobody(
    tmp_path: Path,
) -> None:
    async with (
        peer(tmp_path, 1) as alice,
        peer(tmp_path, 2) as bob,
        peer(tmp_path, 3) as carol,
        peer(tmp_path, 4) as joiner,
    ):
        donors = []
        for donor in (alice, bob, carol):
            await donor.store.put(DATA)
            donors.append(await joiner.bridge.connect(donor.bridge.addrs()[0], CONNECT_S))
        bob.gone_after = 10
        path = await joiner.transfers.fetch(REF, lambda: donors)
        assert await joiner.store.bytes_of(REF.digest) == DATA
        assert path.name == REF.digest.hex()
        assert alice.served > 0
        assert carol.served > 0
        for one in (alice, bob, carol, joiner):  # cancelled calls are nobody's fault
            assert one.blamed == []
