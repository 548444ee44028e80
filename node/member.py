"""This node as a member of one run: who else is there, what they say, and the training.

Each part owns its state; this file builds them, introduces them to each other, and tells
what there is to see.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable

from crdt.author import MAX_JUMP, Author
from crdt.membership import Standing, candidates, standings, states_of
from crdt.replica import Replica
from crdt.schema import Content
from node import founding
from node.arena import Arena
from node.blobs.providers import BlobProviders
from node.blobs.transfers import Transfers
from node.control import Control
from node.discovery import Discovery
from node.donors import Members
from node.exchange import Exchange
from node.founding import HeldRun
from node.journal import Journal
from node.materials import first_contact, worker_setup
from node.peer_cache import PeerCache
from node.presence import Boot, Facts, PresenceService
from node.presence_view import PresenceView
from node.protection.around import Surroundings
from node.protection.protection import Protection
from node.records.files import RecordFiles
from node.records.records import Records
from node.records.tally import Tally
from node.rpc import Refused
from node.services import Services
from node.snapshots import snapshot_files
from node.training import Training
from node.worker import wire
from node.world import World
from protocol.ids import PeerId, short
from protocol.messages import BEGUN, Checkpoint
from protocol.spec import RunSpec
from protocol.witness import Sketch
from trainers.events import Received

log = logging.getLogger(__name__)

GOODBYE_S = 0.7
"""For the last record, on disk and with a few peers; the last presence goes out meanwhile.  Within
`node.node.LEAVE_S`."""
BOOT_BYTES = 8


class Member:
    """One per node and run.  Everything happens in the one event loop."""

    def __init__(self, world: World, held: HeldRun) -> None:
        self.held = held
        self.training: Training | None = None
        self.records: Records | None = None
        self.control: Control | None = None
        self.protection: Protection | None = None
        self._world = world
        self._me = world.signer.peer
        self._boot = secrets.token_bytes(BOOT_BYTES)
        self._rng = random.Random(secrets.randbits(64))
        self._arena = Arena(world.config.memory_bytes)
        self.services: Services | None = None
        tally = Tally(world.directory.tally)
        self.journal = Journal(self._me, world.waits, self._write, self._entered, tally)
        self.presence = PresenceService(
            run=held.run,
            signer=world.signer,
            boot=Boot(nonce=self._boot, started_unix_s=int(time.time())),
            view=PresenceView(held.run, self._me, self._rng),
            rpc=world.rpc,
            facts=self._facts,
            add_addrs=world.bridge.add_addrs,
            changed=lambda live: self._candidates_changed(),
            blame=self.blame,
            clock=world.clock,
            unix_s=time.time,
        )
        self._discovery = Discovery(
            run=held.run,
            signer=world.signer,
            secret=held.ticket.secret,
            addrs=(*held.ticket.addrs, *world.config.bootstrap),
            announced=lambda: self._facts().addrs,
            lan=world.config.lan,
            cache=PeerCache(world.directory.peers),
            bridge=world.bridge,
            rpc=world.rpc,
            live=self.presence.live,
            found=self._found,
            blame=self.blame,
            waits=world.waits,
            clock=world.clock,
            unix_s=time.time,
            rng=self._rng,
        )

        self._providers = BlobProviders(
            held.run,
            world.bridge,
            self._discovery,
            whole=world.store.whole,
            waits=world.waits,
            clock=world.clock,
        )
        self._transfers = Transfers(
            run=held.run,
            caller=world.rpc,
            store=world.store,
            blame=self.blame,
            is_relayed=world.bridge.is_relayed,
            rng=self._rng,
            holders=self._providers.holders,
        )

    async def run(self) -> None:
        """Be a member until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._discovery.run(), name="discovery")
                spec = await self._spec()
                log.info("1 of 4, ticket: run=%s name=%s", short(self.held.run), spec.name)
                self.records = self._new_records(spec)
                clock = self._world.clock
                self.control = Control(
                    spec, self._me, self.records, self.presence.live, self.journal, clock
                )
                self.protection = self._new_protection(spec)
                self._serve(self.records, self.protection)
                tasks.create_task(self.records.run(), name="records")
                tasks.create_task(self.presence.run(), name="presence")
                tasks.create_task(self._providers.run(), name="providers")
                tasks.create_task(self.protection.run(), name="protection")
                tasks.create_task(self.control.run(), name="control")
                if not self.held.is_new:
                    has_snapshot = bool(snapshot_files(self._world.directory.worker))
                    await self.control.admit(has_snapshot=has_snapshot)
                setup = await self._setup()
                self.training = self._new_training(spec, setup, self.protection)
                self._candidates_changed()
                self.control.begin(self.training)
                until_known = self.records.until_known
                await self.training.run(is_new=self.held.is_new, until_known=until_known)
        finally:
            if self.protection:
                self.protection.close()
            self._arena.close()

    def blame(self, peer: PeerId, reason: str) -> None:
        """`peer` broke the protocol: say so, and sign it.  Never raises."""
        log.warning("peer blamed: peer=%s reason=%s", short(peer), reason)
        if self.records:
            self.records.write_blame(peer, reason)

    async def leave(self) -> None:
        """Say goodbye for good: in our record, and to who is alive."""
        self.journal.enter("leaving")
        async with asyncio.TaskGroup() as goodbyes:
            if self.records:
                self._write(Content.left)
                goodbyes.create_task(self.records.flush(GOODBYE_S), name="last record")
            goodbyes.create_task(self.presence.leave(), name="last presence")

    # --- parts ------------------------------------------------------------------------------

    async def _spec(self) -> RunSpec:
        """From disk, or from the first member that proves to be one."""
        if self.held.signed is None:
            world = self._world
            signed = await first_contact(self.held, world.config, self._discovery, world.waits)
            self.held = HeldRun(self.held.ticket, signed)
            founding.save(self.held, world.directory)
        return self.held.spec()

    def _new_records(self, spec: RunSpec) -> Records:
        world = self._world
        author = Author(
            signer=world.signer,
            run=self.held.run,
            client_id=secrets.randbits(32),
            jump=1 + secrets.randbelow(MAX_JUMP),
        )
        return Records(
            author=author,
            replica=Replica(self.held.run, reserved=(self._me, spec.creator)),
            files=RecordFiles(world.directory.records),
            rpc=world.rpc,
            peers=self._live_peers,
            changed=lambda authors: self._candidates_changed(),
            blame=self.blame,
            waits=world.waits,
            rng=self._rng,
            is_new=world.is_key_new,
        )

    def _new_protection(self, spec: RunSpec) -> Protection:
        world = self._world
        around = Surroundings(
            run=self.held.run,
            signer=world.signer,
            boot=self._boot,
            caller=world.rpc,
            directory=world.directory.worker,
            memory_bytes=world.config.protection_bytes,
            store=world.store,
            live=self.presence.live,
            addrs=world.addrs,
            is_relayed=world.bridge.is_relayed,
            blame=self.blame,
            waits=world.waits,
            clock=world.clock,
            unix_s=time.time,
        )
        return Protection(spec, around)

    def _serve(self, records: Records, protection: Protection) -> None:
        """From now on this node answers as a member."""
        signed = self.held.signed
        assert signed is not None
        self.services = Services(
            run=self.held.run,
            spec=signed,
            secret=self.held.ticket.secret,
            signer=self._world.signer,
            received=self._received,
            presence=self.presence.handle,
            records=records.handle,
            checkpoint=self._checkpoint,
            sketch=self._sketch,
            weights=self.journal.past.get,
            arena=self._arena,
            blobs=self._world.store,
            protection=protection,
        )
        self.services.serve_on(self._world.rpc)
        self._discovery.announce()

    async def _setup(self) -> wire.Setup:
        """What the worker starts from, fetched if it is not here."""
        world = self._world
        return await worker_setup(
            self.held,
            self._me,
            config=world.config,
            directory=world.directory,
            transfers=self._transfers,
            peers=self._live_peers,
            waits=world.waits,
            journal=self.journal,
        )

    def _new_training(self, spec: RunSpec, setup: wire.Setup, protection: Protection) -> Training:
        world = self._world
        return Training(
            spec=spec,
            signer=world.signer,
            boot=self._boot,
            setup=setup,
            socket_path=world.directory.root / "worker.sock",
            arena=self._arena,
            store=world.store,
            members=Members(spec, self._transfers, world.waits),
            exchange=Exchange(
                run=self.held.run,
                signer=world.signer,
                caller=world.rpc,
                arena=self._arena,
                fetch_deadline_s=spec.exchange_deadline_s,
                blame=self.blame,
                is_relayed=world.bridge.is_relayed,
            ),
            journal=self.journal,
            live=self.presence.live,
            recover=protection.recover,
            clock=world.clock,
            rng=self._rng,
        )

    def _entered(self) -> None:
        """The training is in a new state; from "starting" on it knows its round."""
        if self.journal.state == "starting":
            name, round = self._world.config.name or None, self.journal.round
            self._write(lambda content: content.joined(name, round))
        self.presence.speak()

    # --- what the parts tell each other -----------------------------------------------------

    def _write(self, change: Callable[[Content], Content]) -> None:
        if self.records:
            self.records.write(change)

    def _facts(self) -> Facts:
        """What this node says of itself now."""
        journal = self.journal
        progress = self.training.learner.progress if self.training else None
        return Facts(
            addrs=self._world.addrs(),
            state=journal.state,
            round=journal.round,
            inner_step=progress.inner_step if progress else 0,
            tokens_per_s=progress.tokens_per_s if progress else 0.0,
            loss=progress.loss if progress else 0.0,
            decisions=journal.decisions,
        )

    def _live_peers(self) -> list[PeerId]:
        return [presence.peer for presence in self.presence.live()]

    def standings(self) -> tuple[tuple[PeerId, str], ...]:
        """Every other peer that is known of, and why it is or is not trained with."""
        return tuple((one.peer, one.reason) for one in self._standings())

    def _standings(self) -> tuple[Standing, ...]:
        views = self.records.views() if self.records else {}
        spec = self.training.spec if self.training else None
        states = states_of(spec.trainer if spec else None)
        return standings(views, self.presence.live(), me=self._me, states=states)

    def _candidates_changed(self) -> None:
        if self.control:
            self.control.look()
        if self.training and self.records:
            self.training.members_changed(candidates(self._standings()))

    async def _found(self, peer: PeerId) -> None:
        """A peer proved to be a member: let it call, and hear from each other."""
        if self.services:
            self.services.admit(peer)
            await self.presence.meet(peer)

    async def _received(self, event: Received) -> None:
        if not self.training or self.journal.state not in BEGUN:
            raise Refused("not-ready", f"this node is {self.journal.state}")
        await self.training.received(event)

    async def _checkpoint(self, at_base: bool) -> Checkpoint | None:
        return await self.training.offers.checkpoint(at_base=at_base) if self.training else None

    async def _sketch(self, nonce: int) -> Sketch | None:
        return await self.training.offers.sketch(nonce) if self.training else None
