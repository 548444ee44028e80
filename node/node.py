"""The composition root: one node from its lock to its last goodbye.

    data directory (locked) > key > network > API > run > training

Ends by SIGINT, SIGTERM, SIGHUP, `shoal leave`, or an error; then every task, process, socket
and memory file of it is gone within three seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import assert_never

from node import api, founding
from node.addr_text import is_global, is_loopback, port_of
from node.blobs.store import BlobStore
from node.bridge import Bridge
from node.config import BootstrapOnly, CreateRun, JoinRun, Mode, NodeConfig, Resume
from node.control import order_of
from node.founding import HeldRun
from node.keys import DataDir
from node.member import Member
from node.reach import Reach
from node.rpc import Rpc
from node.run_file import read_run_file
from node.signals import on_stop
from node.status import contributions_of, peers_of, status_of
from node.telemetry import Waits
from node.uncancelled import is_done_within
from node.upnp import PortMapping
from node.world import World
from protocol.errors import ConfigError, PeerUnavailable
from protocol.ids import PeerId, short

log = logging.getLogger(__name__)

AGAIN_S = 10.0
"""Between two looks of a bootstrap node at the others; also the deadline of a dial."""
SETTLE_S = 10.0
"""Until a new run's ticket is made, whose addresses shall be such as others can dial: a round of
calls with a relay, some seconds over a slow link."""
LEAVE_S = 0.8
"""For goodbyes.  The node has three seconds in all, and these follow each other: goodbyes 0.8,
the worker's snapshot 0.9 (worker_life.TERM_S), the API 0.2 (api.SHUTDOWN_S), the network 1.0
(bridge.STOP_S)."""


async def run_node(config: NodeConfig, mode: Mode) -> int:
    """Run a node until it is told to stop; its exit status.

    Raises:
        ConfigError: the operator must act.
    """
    directory = DataDir(config.data_dir)
    directory.create()
    with directory.locked():
        node = Node(config, directory)
        on_stop(node.stop)
        await node.run(mode)
    return 0


class Node:
    """One node; what the API shows of it."""

    def __init__(self, config: NodeConfig, directory: DataDir) -> None:
        self._config = config
        self._directory = directory
        self._is_key_new = not directory.key.exists()
        self._signer = directory.load_key()
        self._waits = Waits(time.time)
        self._stopping = asyncio.Event()
        self._leaving = False
        self._bridge: Bridge
        self._reach: Reach
        self.member: Member | None = None

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()

    async def run(self, mode: Mode) -> None:
        """From the network to the end of the training."""
        config = self._config
        async with AsyncExitStack() as stack:
            self._bridge = await stack.enter_async_context(
                Bridge(
                    self._signer,
                    listen=config.listen,
                    up_mbit=config.up_mbit,
                    down_mbit=config.down_mbit,
                )
            )
            rpc = await stack.enter_async_context(Rpc(self._bridge, on_blame=self._on_blame))
            self._reach = self._new_reach(mode, rpc)
            await stack.enter_async_context(api.serving(config.api_socket, self))
            log.info("node up: peer=%s addrs=%s", self._signer.peer, " ".join(self._addrs()))
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._bridge.wait_ended(), name="network")
                reach = tasks.create_task(self._reach.run(), name="reach")
                router = tasks.create_task(self._ask_router(mode), name="router")
                work = tasks.create_task(self._work(mode, rpc), name="work")
                await self._stopping.wait()
                log.info("node stops: leaving=%s", self._leaving)
                await self._say_goodbye()
                for task in (work, router, reach, watch):
                    task.cancel()

    async def _work(self, mode: Mode, rpc: Rpc) -> None:
        if isinstance(mode, BootstrapOnly):
            mode.on_addrs(self._addrs())
            async with asyncio.TaskGroup() as tasks:
                for addr in self._config.bootstrap:
                    tasks.create_task(self._keep_connected(addr))
            return
        store = BlobStore(self._directory.blobs, self._config.disk_bytes)
        await store.open()
        held = await self._held(mode, store)
        world = World(
            config=self._config,
            directory=self._directory,
            signer=self._signer,
            is_key_new=self._is_key_new,
            bridge=self._bridge,
            rpc=rpc,
            addrs=self._addrs,
            store=store,
            waits=self._waits,
            clock=asyncio.get_running_loop().time,
        )
        self.member = Member(world, held)
        if isinstance(mode, CreateRun):
            mode.on_ticket(held.ticket)
        await self.member.run()

    async def _keep_connected(self, addr: str) -> None:
        """A bootstrap node knows the others that it is told of, whoever starts first."""
        while True:
            try:
                with self._waits.on("a bootstrap peer", addr, AGAIN_S):
                    await self._bridge.connect(addr, AGAIN_S)
            except PeerUnavailable as error:
                log.warning("bootstrap not reached: addr=%s reason=%s", addr, error.reason)
            await asyncio.sleep(AGAIN_S)

    async def _held(self, mode: CreateRun | JoinRun | Resume, store: BlobStore) -> HeldRun:
        match mode:
            case CreateRun(spec_file):
                with self._waits.on("who can reach this node", "the bootstrap peers", SETTLE_S):
                    await self._reach.settle(self._config.bootstrap, SETTLE_S)
                return await founding.found(
                    read_run_file(spec_file),
                    config=self._config,
                    directory=self._directory,
                    signer=self._signer,
                    store=store,
                    addrs=self._addrs(),
                    waits=self._waits,
                )
            case JoinRun(ticket):
                return founding.joined(ticket, self._directory)
            case Resume():
                return founding.resumed(self._directory)
            case _:
                assert_never(mode)

    async def _say_goodbye(self) -> None:
        if self.member is None:
            return
        leave = self.member.leave if self._leaving else self.member.presence.leave
        if not await is_done_within(leave(), LEAVE_S):
            log.warning("goodbye cut short: after_s=%g", LEAVE_S)

    def _new_reach(self, mode: Mode, rpc: Rpc) -> Reach:
        """Who is only there for others to find says that it can be reached."""
        config = self._config
        vouched = config.reachable == "auto" and isinstance(mode, BootstrapOnly)
        return Reach(
            me=self._signer.peer,
            bridge=self._bridge,
            rpc=rpc,
            announce=config.announce,
            reachable="yes" if vouched else config.reachable,
            relay_mbit=config.relay_mbit if config.relay else 0.0,
        )

    async def _ask_router(self, mode: Mode) -> None:
        """Have a port opened, where there may be a router that others come through."""
        config, bound = self._config, self._bridge.addrs()
        inner = [addr for addr in bound if addr.startswith("/ip4/") and not is_global(addr)]
        on_lan = [addr for addr in inner if not is_loopback(addr)]
        is_asked = config.upnp and config.reachable == "auto" and not config.announce
        if is_asked and on_lan and not isinstance(mode, BootstrapOnly):
            await PortMapping(port_of(on_lan[0]), changed=self._reach.mapped).run()

    def _addrs(self) -> tuple[str, ...]:
        return self._reach.addrs()

    def _on_blame(self, peer: PeerId, reason: str) -> None:
        if self.member:
            self.member.blame(peer, reason)
        else:
            log.warning("peer blamed: peer=%s reason=%s", short(peer), reason)

    # --- for the API ------------------------------------------------------------------------

    def status(self) -> Mapping[str, object]:
        """See `node.api.Status`."""
        return status_of(
            peer=self._signer.peer,
            name=self._config.name,
            addrs=self._addrs(),
            reachable=self._reachable(),
            traffic=self._bridge.counters(),
            waits=self._waits,
            directory=self._directory,
            member=self.member,
        )

    def _reachable(self) -> api.Reachable:
        circuits, carried = self._bridge.carried()
        return api.Reachable(
            verdict=self._reach.verdict,
            relays=list(self._reach.relays),
            circuits=circuits,
            carried_bytes=carried,
        )

    def peers(self) -> Sequence[Mapping[str, object]]:
        """See `node.api.PeerStatus`."""
        return peers_of(self.member, self._bridge.links(), self._bridge.traffic_of)

    def contributions(self) -> Mapping[str, object]:
        """See `node.api.Contributions`."""
        return contributions_of(self.member)

    async def order(self, order: Mapping[str, object]) -> str:
        """See `node.control.Control.order`."""
        control = self.member.control if self.member else None
        if control is None:
            raise ConfigError("this node knows no run yet, expected the creator's; try again later")
        return await control.order(order_of(order))

    async def leave(self) -> None:
        """Say goodbye to the run and stop."""
        self._leaving = True
        self.stop()
