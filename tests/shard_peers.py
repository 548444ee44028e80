"""Members of a protected run in one process: real shards, memory and files, calls by hand.

Time is a number; nothing here waits but for threads that cut and hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from samples import PRESENCE, spec
from small_run import MODEL

from node.protection import Protection, Surroundings
from node.rpc import CallRefused, Refused
from node.telemetry import Waits
from node.worker_files import save_snapshot
from protocol import codec
from protocol.algorithms import DilocoConfig, NolocoConfig
from protocol.envelope import Signer
from protocol.errors import Malformed, PeerUnavailable
from protocol.fragments import num_parameters
from protocol.frame import Refusal
from protocol.ids import Digest, PeerId, Round, digest_of
from protocol.messages import Checkpoint, Presence
from protocol.rpc import Method
from protocol.shards import ProtectionConfig
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
    checkpoint: bytes | None = None
    """What all members share."""
    released: list[Digest] = field(default_factory=list)
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
        return await self.protection.recover(self.checkpoint)

    async def checkpoint(self, donor: PeerId) -> Checkpoint:
        """What the swarm's group shares: everybody gives the same."""
        data = self.swarm.checkpoint
        if data is None:
            raise PeerUnavailable(donor, "gives none")
        return Checkpoint(Round(0), digest_of(data), len(data), digest_of(b"weights"))

    async def bytes_of(self, digest: Digest) -> bytes:
        """`node.protection.Checkpoints`."""
        assert self.swarm.checkpoint is not None
        assert digest == digest_of(self.swarm.checkpoint)
        return self.swarm.checkpoint

    async def release(self, digest: Digest) -> None:
        self.swarm.released.append(digest)

    async def call(
        self,
        peer: PeerId,
        method: Method[Any, Any],
        request: Any,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> Any:
        """`node.ports.Rpc`, through the codec."""
        if peer in self.swarm.down or self.id in self.swarm.down:
            raise PeerUnavailable(peer, "down")
        request = codec.decode(
            method.request, codec.encode(request), max_bytes=method.max_request_bytes
        )
        handler = getattr(self.swarm.peers[peer].protection, method.name.split("/")[0])
        try:
            answer = self.swarm.mangled(peer, await handler(self.id, request))
        except Refused as error:
            raise CallRefused(peer, method.name, Refusal(error.code, error.sentence)) from error
        except Malformed as error:
            self.swarm.peers[peer].blamed.append(self.id)
            raise CallRefused(peer, method.name, Refusal("malformed", str(error))) from error
        if into is None:
            return codec.decode(method.answer, codec.encode(answer), max_bytes=1 << 16)
        into[:] = answer
        return b""


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
