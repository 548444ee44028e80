"""Members of a protected run in one process: real shards, memory and files, calls by hand.

Time is a number; nothing here waits but for threads that cut and hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from samples import PRESENCE, spec
from small_run import MODEL
from wire import carried

from node.protection.around import Surroundings, UseShared
from node.protection.owner import Placing
from node.protection.protection import Protection
from node.snapshots import snapshot_files
from node.telemetry import Waits
from node.worker.files import checkpoint_bytes, save_snapshot
from protocol.algorithms import DilocoConfig, NolocoConfig
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.fragments import num_parameters
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.messages import Checkpoint, Presence
from protocol.rpc import Method
from protocol.shards import ProtectionConfig, ShardsCall
from protocol.spec import RunSpec
from trainers.inner import Moments
from trainers.state import Fast, Slow

COUNT = num_parameters(MODEL)
TWO_AND_ONE = ProtectionConfig(data=2, parity=1, every_rounds=1)


def protected(
    config: ProtectionConfig = TWO_AND_ONE, trainer: NolocoConfig | DilocoConfig | None = None
) -> RunSpec:
    """The spec of a small run."""
    return spec(model=MODEL, protection=config, trainer=trainer or NolocoConfig())


def state(seed: int, round: int, inner_step: int) -> tuple[Slow, Fast]:
    """What a peer may have trained, all of it different from every other seed's."""
    rng = torch.Generator().manual_seed(seed)
    phi, delta, theta, first, second, own, shared = torch.randn(7, COUNT, generator=rng)
    slow = Slow(Round(round), phi, delta, {"kept": shared}, {"residual": own})
    return slow, Fast(theta, Moments(first, second, inner_step), inner_step, 3)


@dataclass
class Swarm:
    """All members; those in `down` are reached by nobody and heard of by nobody."""

    spec: RunSpec
    now: float = 100.0
    step_s: float = 0.0
    """How much time passes at each look at the clock."""
    peers: dict[PeerId, Peer] = field(default_factory=dict)
    down: set[PeerId] = field(default_factory=set)
    shared: Slow | None = None
    """What all members share."""
    mangled: Callable[[PeerId, Any], Any] = lambda peer, answer: answer
    """What becomes of an answer of this peer."""

    def clock(self) -> float:
        self.now += self.step_s
        return self.now

    def live(self, me: PeerId) -> list[Presence]:
        return [
            peer.presence for id, peer in self.peers.items() if id != me and id not in self.down
        ]


@dataclass
class Peer:
    """One member, from a start to the next."""

    swarm: Swarm
    signer: Signer
    directory: Path
    memory_bytes: int = 1 << 24
    host: str = "10.0.0.1"
    blamed: list[PeerId] = field(default_factory=list)
    holding: asyncio.Task[None] | None = None
    store: dict[Digest, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = self.signer.peer
        self.directory.mkdir(parents=True, exist_ok=True)
        self.presence = Presence(
            **{name: getattr(PRESENCE, name) for name in PRESENCE.__slots__ if name != "peer"}
            | {"peer": self.id, "addrs": (f"/ip4/{self.host}/tcp/1/p2p/{self.id}",)}
        )
        around = Surroundings(
            run=self.swarm.spec.run,
            signer=self.signer,
            boot=bytes(8),
            caller=self,
            directory=self.directory,
            memory_bytes=self.memory_bytes,
            store=self,
            live=lambda: self.swarm.live(self.id),
            addrs=lambda: self.presence.addrs,
            is_relayed=lambda peer: False,
            blame=lambda peer, reason: self.blamed.append(peer),
            waits=Waits(lambda: 0.0),
            clock=self.swarm.clock,
            unix_s=lambda: 1e9,
        )
        self.protection = Protection(self.swarm.spec, around)
        self.swarm.peers[self.id] = self
        if self.protection.holder:
            self.holding = asyncio.create_task(self.protection.holder.run())

    def save(self, seed: int, round: int, inner_step: int) -> bytes:
        """The worker writes a snapshot: its bytes."""
        slow, fast = state(seed, round, inner_step)
        return save_snapshot(self.directory, self.swarm.spec.run, slow, fast).read_bytes()

    async def tick(self) -> None:
        """One look of the owner, and the end of the fetches that follow from it."""
        assert self.protection.owner
        await self.protection.owner.tick()
        for peer in self.swarm.peers.values():
            assert peer.protection.holder
            for owner in peer.protection.holder._owners.values():
                if owner.coming and owner.coming.fetch:
                    await asyncio.wait([owner.coming.fetch])

    async def protect(self) -> None:
        """Until the newest snapshot is whole; fails if that takes many looks."""
        assert self.protection.owner
        await self.tick()
        for _ in range(10):
            if self.protection.owner.coming is None:
                return
            await self.tick()
        raise AssertionError("the snapshot does not become whole")

    async def recover(self) -> bool:
        return await self.protection.recover(self.use_shared)

    async def use_shared(self, use: UseShared) -> None:
        """`node.protection.around.Shared`: everybody gives the same."""
        shared = self.swarm.shared
        if shared is None:
            raise PeerUnavailable(self.id, "nobody gives any")
        data = checkpoint_bytes(self.swarm.spec.run, shared)
        self.store[digest_of(data)] = data
        await use(Checkpoint(shared.round, digest_of(data), len(data), shared.digest()))

    async def bytes_of(self, digest: Digest) -> bytes:
        """`node.protection.around.Blobs`."""
        return self.store[digest]

    async def call(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        request: Any,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> Any:
        """`node.ports.Rpc`."""
        if peer in self.swarm.down or self.id in self.swarm.down:
            raise PeerUnavailable(peer, "down")
        other = self.swarm.peers[peer]
        handler = getattr(other.protection, method.name.split("/")[0])

        async def answered(caller: PeerId, call: Any) -> Any:
            return self.swarm.mangled(peer, await handler(caller, call))

        return await carried(
            *(self.id, peer, method, request, answered),
            deadline_s=deadline_s,
            into=into,
            blame=lambda peer, reason: self.blamed.append(peer),
            blamed_there=lambda peer, reason: other.blamed.append(peer),
        )


class World:
    """Members on hosts of their own, gone at the end: `async with World(tmp_path, 4) as world`."""

    def __init__(self, root: Path, count: int, run: RunSpec | None = None) -> None:
        self.root = root
        self.swarm = Swarm(run or protected())
        self.count = count

    async def __aenter__(self) -> list[Peer]:
        return [self.start(number) for number in range(self.count)]

    def start(self, number: int, **settings: Any) -> Peer:
        """Start a member, or start it again with an empty memory."""
        signer = Signer(bytes([number + 1]) * 32)
        directory = self.root / f"node{number}"
        return Peer(self.swarm, signer, directory, host=f"10.0.0.{number}", **settings)

    async def lose(self, peer: Peer) -> None:
        """The process ends, its memory with it."""
        self.swarm.down.add(peer.id)
        await self._end(peer)

    async def _end(self, peer: Peer) -> None:
        if peer.holding:
            peer.holding.cancel()
            await asyncio.wait([peer.holding])
        peer.protection.close()

    async def comes_back(self, number: int, **settings: Any) -> Peer:
        """With its key, and nothing else."""
        peer = next(p for p in self.swarm.peers.values() if p.directory.name == f"node{number}")
        if peer.id not in self.swarm.down:
            await self.lose(peer)
        for file in peer.directory.iterdir():
            file.unlink()
        self.swarm.down.discard(peer.id)
        return self.start(number, **settings)

    async def __aexit__(self, *_: object) -> None:
        for peer in self.swarm.peers.values():
            await self._end(peer)


@asynccontextmanager
async def kept_world(
    root: Path, count: int = 4, run: RunSpec | None = None
) -> AsyncIterator[tuple[World, Peer, bytes]]:
    """A world in which the first member's snapshot of round 3 is held: the world, its owner, it."""
    world = World(root, count, run)
    async with world as (owner, *_):
        saved = owner.save(1, round=3, inner_step=60)
        await owner.protect()
        yield world, owner, saved


def others_in(world: World) -> list[Peer]:
    """All but the owner."""
    return list(world.swarm.peers.values())[1:]


def kept(peer: Peer) -> Placing:
    assert peer.protection.owner
    assert peer.protection.owner.kept
    return peer.protection.owner.kept


def holders(peer: Peer, world: World) -> list[Peer]:
    """By the index of the shard."""
    return [world.swarm.peers[id] for _, id in sorted(kept(peer).holders.items())]


def found(peer: Peer) -> bytes:
    return snapshot_files(peer.directory)[0].read_bytes()


async def rounds_held(holder: Peer, owner: Peer) -> list[int]:
    offers = await holder.protection.shards(owner.id, ShardsCall(owner.swarm.spec.run))
    return [offer.stamp.open(owner.swarm.spec.run, owner.id).round for offer in offers.offers]
