"""What the DHT is told about blobs and asked about them, under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from blob_world import ALICE, BOB, CAROL, RUN
from virtual_time import in_virtual_time

from node.blobs.providers import (
    AGAIN_S,
    LOOK_S,
    MAX_CANDIDATES,
    UNHEARD_AGAIN_S,
    BlobProviders,
    blob_key,
)
from node.discovery import LOOKUP_S
from node.ports import Bridge
from node.telemetry import Waits
from protocol.ids import Digest, PeerId, RunId, digest_of

ONE, TWO = digest_of(b"one"), digest_of(b"two")


class World:
    """A DHT that names `providers` for every key, and a discovery that greets the honest ones."""

    def __init__(self) -> None:
        self.here: list[Digest] = []
        self.told: list[tuple[float, bytes]] = []
        self.is_heard = True
        self.hangs = False
        self.providers: list[PeerId] = []
        self.honest: set[PeerId] = set()
        self.greeted: set[PeerId] = set()
        self.greetings: list[PeerId] = []
        self.waits = Waits(lambda: 0.0)
        self.clock = asyncio.get_running_loop().time
        self.blobs = BlobProviders(
            RUN,
            cast(Bridge, self),
            self,
            whole=lambda: tuple(self.here),
            waits=self.waits,
            clock=self.clock,
        )

    async def provide(self, key: bytes) -> bool:
        if self.hangs:
            await asyncio.Event().wait()
        self.told.append((self.clock(), key))
        return self.is_heard

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        if self.hangs:
            await asyncio.Event().wait()
        assert key == blob_key(RUN, ONE)
        return [(peer, []) for peer in self.providers]

    async def greet_found(self, peer: PeerId, named: Sequence[str]) -> None:
        self.greetings.append(peer)
        if peer in self.honest:
            self.greeted.add(peer)

    def is_greeted(self, peer: PeerId) -> bool:
        return peer in self.greeted


def test_the_dht_is_told_of_each_blob_once_and_again_before_it_forgets() -> None:
    async def run() -> None:
        world = World()
        world.here = [ONE]
        async with asyncio.timeout(AGAIN_S + 60), asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(world.blobs.run())
            await asyncio.sleep(2 * LOOK_S)
            world.here = [ONE, TWO]
            await asyncio.sleep(AGAIN_S)
            telling.cancel()
        keys = [key for _, key in world.told]
        assert keys == [blob_key(RUN, ONE), blob_key(RUN, TWO), blob_key(RUN, ONE)]

    in_virtual_time(run())


def test_what_nobody_heard_is_told_again_soon_and_what_is_gone_is_not() -> None:
    async def run() -> None:
        world = World()
        world.here, world.is_heard = [ONE, TWO], False
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(world.blobs.run())
            await asyncio.sleep(LOOK_S)
            world.here = [ONE]
            await asyncio.sleep(120)
            telling.cancel()
        assert [key for _, key in world.told].count(blob_key(RUN, TWO)) == 1
        assert [key for _, key in world.told].count(blob_key(RUN, ONE)) in (2, 3)

    in_virtual_time(run())


def test_a_dht_that_does_not_answer_is_a_wait_with_a_name_and_an_end() -> None:
    async def run() -> None:
        world = World()
        world.here, world.hangs = [ONE], True
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(world.blobs.run())
            await asyncio.sleep(1)
            waiting = world.waits.current
            assert waiting is not None
            assert (waiting.what, waiting.source, waiting.until_unix_s) == (
                f"word of blob {ONE.hex()[:8]} to arrive",
                "the DHT",
                LOOKUP_S,
            )
            await asyncio.sleep(LOOKUP_S)
            assert world.waits.current is None
            world.hangs = False
            await asyncio.sleep(UNHEARD_AGAIN_S + LOOK_S)
            assert len(world.told) == 1
            telling.cancel()

    in_virtual_time(run())


def test_only_who_proved_to_be_a_member_is_named_as_a_holder() -> None:
    async def run() -> None:
        world = World()
        world.providers, world.honest, world.greeted = [ALICE, BOB, CAROL], {ALICE}, {CAROL}
        assert await world.blobs.holders(ONE) == [ALICE, CAROL]
        assert world.greetings == [ALICE, BOB]

    in_virtual_time(run())


def test_a_flood_of_providers_costs_a_few_greetings_and_a_silent_dht_a_while() -> None:
    async def run() -> None:
        world = World()
        world.providers = [PeerId(f"peer {number}") for number in range(100)]
        assert await world.blobs.holders(ONE) == []
        assert len(world.greetings) == MAX_CANDIDATES
        world.hangs = True
        began = world.clock()
        assert await world.blobs.holders(ONE) == []
        assert (world.clock() - began, world.waits.current) == (LOOKUP_S, None)

    in_virtual_time(run())


def test_each_run_has_keys_of_its_own() -> None:
    assert len({blob_key(RUN, ONE), blob_key(RUN, TWO), blob_key(RunId(b"o" * 32), ONE)}) == 3
