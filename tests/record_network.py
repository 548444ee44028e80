"""Nodes whose records are real, on a network of dictionaries, with real files and virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record_samples import JOINED, RUN, author
from wire import carried

from crdt.record import Record
from crdt.replica import Replica
from crdt.schema import Content
from node.records.files import RecordFiles
from node.records.records import ASK_S, Records
from node.telemetry import Waits
from protocol.envelope import Signer
from protocol.errors import PeerUnavailable
from protocol.ids import PeerId
from protocol.rpc import A, Method, Q, RecordCall

SETTLED_S = 2 * ASK_S
"""Virtual seconds after which a node has written what it had to."""


class FullDisk(RecordFiles):
    """A directory that can be told to be full."""

    is_full = False

    def save(self, record: Record, *, durable: bool) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().save(record, durable=durable)


@dataclass
class Network:
    """Calls between nodes; `cut` pairs do not reach each other."""

    nodes: dict[PeerId, Node] = field(default_factory=dict)
    cut: set[frozenset[PeerId]] = field(default_factory=set)
    before_call: Callable[[PeerId, bytes], None] = lambda peer, body: None

    def peers_of(self, me: PeerId) -> list[PeerId]:
        return [
            peer
            for peer in sorted(self.nodes)
            if peer != me and frozenset((me, peer)) not in self.cut
        ]


@dataclass
class Port:
    """`node.ports.Rpc` as one node has it."""

    network: Network
    me: PeerId

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, A],
        request: Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> A:
        assert isinstance(request, RecordCall)
        self.network.before_call(self.me, request.body)
        await asyncio.sleep(0.01)
        if peer not in self.network.peers_of(self.me):
            raise PeerUnavailable(peer, "cut off")
        handler: Callable[[PeerId, Any], Awaitable[Any]] = self.network.nodes[peer].records.handle
        return await carried(self.me, peer, method, request, handler, deadline_s=deadline_s)


class Node:
    """One node: its own directory, its own replica; a restart is a new one over the same."""

    def __init__(
        self,
        network: Network,
        directory: Path,
        signer: Signer,
        *,
        boot: int = 1,
        jump: int | None = None,
        is_new: bool = False,
    ) -> None:
        self.peer = signer.peer
        self.files = FullDisk(directory / signer.peer)
        self.replica = Replica(RUN, reserved=[signer.peer])
        self.blamed: list[tuple[PeerId, str]] = []
        self.changes: list[PeerId] = []
        self.waits = Waits(lambda: 0.0)
        self.records = Records(
            author=author(signer, client_id=boot, jump=jump or 1000 * boot),
            replica=self.replica,
            files=self.files,
            rpc=Port(network, signer.peer),
            peers=lambda: network.peers_of(signer.peer),
            changed=self.changes.extend,
            blame=lambda peer, reason: self.blamed.append((peer, reason)),
            waits=self.waits,
            rng=random.Random(boot),
            is_new=is_new,
        )
        network.nodes[signer.peer] = self

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.records.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def write(self, content: Content) -> None:
        self.records.write(lambda old: content)


@contextlib.asynccontextmanager
async def swarm(directory: Path, *signers: Signer) -> AsyncIterator[tuple[Network, list[Node]]]:
    """Running nodes whose first records are written."""
    network = Network()
    nodes = [Node(network, directory, signer) for signer in signers]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
            node.write(JOINED)
        await asyncio.sleep(SETTLED_S)
        yield network, nodes
