"""Members of a protected run for its bench: network and shards are real, training there is none."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from node.bridge import Bridge
from node.protection.around import Surroundings, UseShared
from node.protection.protection import Protection
from node.rpc import Rpc
from node.telemetry import Waits
from node.worker.files import save_snapshot
from protocol import rpc
from protocol.algorithms import LocalConfig
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.fragments import num_parameters
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.limits import MIB
from protocol.messages import Presence
from protocol.model import GptConfig, InnerConfig
from protocol.rpc import Kind
from protocol.shards import ProtectionConfig
from protocol.spec import BlobRef, DataConfig, RunSpec
from trainers.inner import Moments
from trainers.state import Fast, Slow

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
MEMORY_BYTES = 1024 * MIB
VECTORS = 5
"""Of a snapshot: slow weights, momentum, fast weights and two moments."""


@dataclass
class Swarm:
    """The members of a run in this process."""

    spec: RunSpec
    root: Path
    peers: dict[PeerId, Peer] = field(default_factory=dict)

    @asynccontextmanager
    async def member(self, number: int) -> AsyncIterator[Peer]:
        """A member while the block runs, known to all others."""
        signer = Signer(bytes([number + 1]) * 32)
        directory = self.root / f"{number}"
        directory.mkdir(exist_ok=True)
        async with Bridge(signer, listen=LOOPBACK) as bridge, Rpc(bridge) as caller:
            peer = Peer(self, signer, directory, bridge, caller)
            for other in self.peers.values():
                other.bridge.add_addrs(peer.id, bridge.addrs())
                bridge.add_addrs(other.id, other.bridge.addrs())
            self.peers[peer.id] = peer
            try:
                yield peer
            finally:
                del self.peers[peer.id]
                peer.protection.close()


class Peer:
    """One member: network and protection, and no training."""

    def __init__(
        self, swarm: Swarm, signer: Signer, directory: Path, bridge: Bridge, caller: Rpc
    ) -> None:
        self.id = signer.peer
        self.directory = directory
        self.bridge = bridge
        around = Surroundings(
            run=swarm.spec.run,
            signer=signer,
            boot=bytes(8),
            caller=caller,
            directory=directory,
            memory_bytes=MEMORY_BYTES,
            store=self,
            live=lambda: [presence_of(peer) for peer in swarm.peers.values() if peer is not self],
            addrs=bridge.addrs,
            is_relayed=bridge.is_relayed,
            blame=lambda peer, reason: None,
            waits=Waits(time.time),
            clock=time.monotonic,
            unix_s=time.time,
        )
        self.protection = Protection(swarm.spec, around)
        caller.serve(rpc.PROTECT, self.protection.protect)
        caller.serve(rpc.SHARDS, self.protection.shards)
        caller.serve(rpc.SHARD, self.protection.shard)  # type: ignore[arg-type]  # as in services

    @property
    def sent(self) -> int:
        """Bytes of protection so far, with their frames."""
        return self.bridge.counters().up.get(Kind.PROTECTION.value, 0)

    async def nothing_shared(self, use: UseShared) -> None:
        raise PeerUnavailable(self.id, "nobody gives any, for what is protected is whole")

    async def bytes_of(self, digest: Digest) -> bytes:
        raise AssertionError("nothing is fetched")


def presence_of(peer: Peer) -> Presence:
    """What a member would say of itself."""
    return Presence(
        peer=peer.id,
        boot=bytes(8),
        seq=1,
        started_unix_s=1,
        unix_s=1,
        ttl_ms=10_000,
        addrs=peer.bridge.addrs(),
        state="training",
        round=Round(1),
        inner_step=1,
        tokens_per_s=1.0,
        loss=1.0,
        decisions=(),
    )


def snapshot_in(directory: Path, spec: RunSpec) -> bytes:
    """A snapshot as a worker writes it; all its numbers are different."""
    rng = torch.Generator().manual_seed(1)
    count = num_parameters(spec.model)
    phi, delta, theta, first, second = torch.randn(VECTORS, count, generator=rng)
    fast = Fast(theta, Moments(first, second, 1), 1, 0)
    return save_snapshot(directory, spec.run, Slow(Round(1), phi, delta), fast).read_bytes()


def spec_of(layout: ProtectionConfig, mib: int) -> RunSpec:
    """A run whose snapshots have about so many MiB: its embedding is as large as that needs."""
    width = 256
    least = num_parameters(GptConfig(layers=2, heads=4, width=width, context=64, vocab=300))
    more = max(0, mib * MIB // 4 // VECTORS - least) // width
    blob = BlobRef(digest=digest_of(b"none"), size_bytes=1)
    return RunSpec(
        name="bench",
        creator=Signer(bytes([1]) * 32).peer,
        seed=1,
        rounds=10,
        min_members=1,
        start_deadline_s=1.0,
        join_secret=None,
        model=GptConfig(layers=2, heads=4, width=width, context=64, vocab=300 + more),
        inner=InnerConfig(),
        trainer=LocalConfig(),
        data=DataConfig(tokenizer=blob, validation=blob, corpus=None),
        protection=layout,
    )
