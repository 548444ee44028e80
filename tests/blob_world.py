"""Members that hold blobs, joined by dictionaries: real stores, no network."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wire import carried

from node.blobs.store import BlobStore
from node.blobs.transfers import Transfers
from node.rpc import Refused
from protocol import codec, rpc
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId, RunId
from protocol.limits import MIB
from protocol.manifest import Manifest, bitfield_of, manifest_of
from protocol.spec import BlobRef

RUN = RunId(b"r" * 32)
ALICE, BOB, CAROL, ME = (Signer(bytes([n]) * 32).peer for n in (1, 2, 3, 4))


def ref_of(data: bytes) -> BlobRef:
    manifest = manifest_of(data)
    return BlobRef(digest=manifest.name, size_bytes=manifest.size_bytes)


@dataclass
class Donor:
    """A peer that gives `data`, if it is asked for it by `name` of that or of another blob."""

    data: bytes
    manifest: Manifest | None = None
    """None: that of `data`."""
    held: frozenset[int] | None = None
    """Chunks; None: all."""
    dies_after: float = float("inf")
    """So many pieces; then it is gone."""
    is_frozen: bool = False
    asked: list[int] = field(default_factory=list)
    """Offsets."""

    def __post_init__(self) -> None:
        self.manifest = self.manifest or manifest_of(self.data)

    async def answer(self, _: PeerId, call: rpc.BlobInfoCall | rpc.BlobCall) -> Any:
        """Serve either call about blobs."""
        assert self.manifest
        if call.digest != self.manifest.name:
            raise Refused("not-here", "that blob is not here")
        if isinstance(call, rpc.BlobInfoCall):
            return self.info(call.is_manifest_wanted)
        self.asked.append(call.offset)
        return self.data[call.offset : call.offset + call.length]

    def info(self, wanted: bool) -> rpc.BlobInfo:
        assert self.manifest
        held = b"" if self.held is None else bitfield_of(self.held, self.manifest.num_chunks)
        return rpc.BlobInfo(codec.encode(self.manifest) if wanted else b"", held)


class Network:
    """As `node.rpc.Rpc` for who asks donors."""

    def __init__(self, donors: dict[PeerId, Donor], run: RunId = RUN) -> None:
        self.donors = donors
        self._run = run
        self.called = asyncio.Event()

    async def call(
        self,
        peer: PeerId,
        method: Any,
        request: Any,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> Any:
        assert request.run == self._run
        self.called.set()
        await asyncio.sleep(0)
        donor = self.donors.get(peer)
        if donor is None:
            raise PeerUnavailable(peer, "cannot be reached")
        if donor.is_frozen:
            await asyncio.Event().wait()
        if method is rpc.BLOB and len(donor.asked) >= donor.dies_after:
            raise PeerUnavailable(peer, "gone")
        return await carried(
            ME, peer, method, request, donor.answer, deadline_s=deadline_s, into=into
        )


@dataclass
class Operator:
    """What the operator is told to see to."""

    trouble: str | None = None


@dataclass
class Node:
    """A store with its fetches, and whom it blamed."""

    store: BlobStore
    transfers: Transfers
    blamed: list[PeerId]


async def node(folder: Path, donors: dict[PeerId, Donor], quota_bytes: int = 64 * MIB) -> Node:
    blamed: list[PeerId] = []
    store = BlobStore(folder, quota_bytes)
    await store.open()
    transfers = Transfers(
        run=RUN,
        caller=Network(donors),
        store=store,
        blame=lambda peer, _: blamed.append(peer),
        is_relayed=lambda peer: False,
        rng=random.Random(7),
    )
    return Node(store, transfers, blamed)
