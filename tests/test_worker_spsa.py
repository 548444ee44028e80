"""The learner of an spsa run with a real worker process; the model is small, torch is not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from small_run import SmallRun, small_run

from node.arena import Arena
from node.blobs.store import BlobStore
from node.learner import Learner, StartRefused
from node.snapshots import NoSnapshot, SnapshotPlace, snapshot_files, snapshot_name
from node.telemetry import Waits
from node.worker import wire
from node.worker import wire_spsa as worker_wire_spsa
from node.worker.materials import Materials, initial_slow
from node.worker.sums import SavedSum, load_newest_sum, read_sum, save_sum, sum_checkpoint
from node.worker.wire_save import Saved
from protocol.algorithms import SpsaConfig
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round
from protocol.messages import Checkpoint
from protocol.spsa import Frame, LogId, log_id, packed, unpacked
from trainers.events import Sampled
from trainers.scalars import sum_digest
from trainers.summed import Sampler, Summed

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(120)]

CONFIG = SpsaConfig(inner_steps=20, base_scalars=100, samples=2)
BOOT = b"boot----"
TOKENS = 2 * 4 * 8
"""Of a step: two batches."""


@dataclass(frozen=True, slots=True)
class Peer:
    learner: Learner
    arena: Arena
    store: BlobStore
    directory: Path
    resumed: asyncio.Queue[wire.Ready]
    saved: asyncio.Queue[Saved]


@asynccontextmanager
async def peer(run: SmallRun, name: bytes = b"\x01") -> AsyncIterator[Peer]:
    """A learner that is supervised meanwhile."""
    setup = run.setup(name)
    directory = Path(setup.directory)
    arena = Arena()
    store = BlobStore(directory / "blobs", 1 << 30)
    await store.open()
    resumed: asyncio.Queue[wire.Ready] = asyncio.Queue()
    saved: asyncio.Queue[Saved] = asyncio.Queue()
    learner = Learner(
        setup,
        arena,
        store=store,
        socket_path=directory / "worker.sock",
        on_resumed=resumed.put_nowait,
        on_save_failed=lambda reason: pytest.fail(reason),
        on_saved=saved.put_nowait,
        waits=Waits(time.time),
    )
    async with asyncio.TaskGroup() as tasks:
        supervisor = tasks.create_task(learner.run())
        try:
            yield Peer(learner, arena, store, directory, resumed, saved)
        finally:
            supervisor.cancel()
            arena.close()


def frame(author: PeerId, first: int, scalars: bytes) -> Frame:
    return Frame(
        author=author,
        boot=BOOT,
        first=first,
        step=first // 2,
        base=Digest(bytes(32)),
        authors=4,
        scalars=scalars,
    )


class Here:
    """The same arithmetic in this process."""

    def __init__(self, run: SmallRun, name: bytes = b"\x01") -> None:
        setup = run.setup(name)
        self.me = setup.peer
        self.log = log_id(run.spec.run, setup.peer, BOOT)
        self.summed = Summed(run.spec, initial_slow(run.spec).phi_P)
        tokens_N = Materials.read(setup).tokens_N
        self.sampler = Sampler(run.spec, self.summed, tokens_N, setup.peer, self.log)

    def scalars(self, first: int, end: int) -> bytes:
        """Of these steps."""
        theta_Q = self.summed.theta_Q
        return b"".join(self.sampler.measure(theta_Q, step)[0] for step in range(first, end))

    def name(self) -> Digest:
        return sum_digest(self.summed.sum_Q)


THEM = PeerId("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5")


async def test_a_worker_samples_adds_and_names_what_this_process_does(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    async with peer(run) as one:
        learner = one.learner
        ready = await learner.start(wire.StartFresh())
        assert (ready.round, ready.weights, ready.horizon) == (0, here.name(), b"")
        before = await learner.evaluate()
        sampled = await learner.sample(BOOT, 0, 3)
        assert sampled == Sampled(0, here.scalars(0, 3), 3 * TOKENS)
        frames = (frame(here.me, 0, sampled.scalars), frame(THEM, 0, b"\x50\xd0"))
        await learner.add_scalars(frames)
        here.summed.add(frames)
        assert await learner.name_sum(()) == here.name()
        less = here.summed.without(frames[1:], here.summed.sum_Q)
        assert await learner.name_sum(frames[1:]) == sum_digest(less)
        assert await learner.name_sum(()) == here.name()
        assert (await learner.sample(BOOT, 3, 1)).scalars == here.scalars(3, 4)
        await learner.add_scalars(frames)  # once more: they are in it
        assert await learner.name_sum(()) == here.name()
        assert await learner.evaluate() != before
        saved, _ = load_newest_sum(one.directory, run.spec.run)
        assert saved.horizon == here.summed.horizon  # what is measured is on disk


async def test_a_long_list_of_frames_is_taken_from_the_sum_of_when_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_wire_spsa, "FRAMES_A_PACKET", 2)
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    frames = tuple(frame(THEM, 2 * n, bytes([40 + n, 170])) for n in range(7))
    more = frame(here.me, 0, b"\x50\xd0")
    async with peer(run) as one:
        await one.learner.start(wire.StartFresh())
        await one.learner.add_scalars(frames)
        async with asyncio.TaskGroup() as tasks:
            named = tasks.create_task(one.learner.name_sum(frames[2:]))
            await asyncio.sleep(0)  # the first part goes out
            await one.learner.add_scalars((more,))
        here.summed.add(frames[:2])
        assert named.result() == here.name()
        here.summed.add((*frames[2:], more))
        assert await one.learner.name_sum(()) == here.name()


async def test_sampling_ends_early_when_it_is_closed(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    async with peer(run) as one:
        await one.learner.start(wire.StartFresh())
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(one.learner.sample(BOOT, 5, 1_000_000))
            await asyncio.sleep(0)
            one.learner.close_inner()
        steps = len(work.result().scalars) // 2
        assert 1 <= steps < 1_000_000
        assert work.result() == Sampled(5, here.scalars(5, 5 + steps), steps * TOKENS)
        assert len((await one.learner.sample(BOOT, 9, 2)).scalars) == 4  # not closed by that


async def test_a_worker_that_is_killed_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    last = frame(here.me, 0, bytes([9, 200]) * 20)
    far = replace(last, step=run.spec.rounds * CONFIG.inner_steps - 20)
    async with peer(run) as one:
        await one.learner.start(wire.StartFresh())
        await one.learner.add_scalars((far,))
        await one.learner.save()
        assert one.learner.pid is not None
        os.kill(one.learner.pid, signal.SIGKILL)
        ready = await one.resumed.get()
        here.summed.add((far,))
        assert (ready.round, ready.weights) == (10, here.name())
        assert unpacked(ready.horizon) == {here.log: 40}


async def test_what_came_last_is_on_disk_though_nothing_comes_after_it(tmp_path: Path) -> None:
    """A node that has finished still adds what others measure, and its snapshot is exported."""
    run = small_run(tmp_path, CONFIG)
    here = Here(run, b"\x02")
    async with peer(run, b"\x02") as one:
        await one.learner.start(wire.StartFresh())
        await one.saved.get()
        await one.learner.add_scalars((frame(here.me, 0, b"\x50\xd0"),))
        await one.learner.save()
        assert await one.saved.get() == Saved(Round(0), 1)
        frames = tuple(frame(THEM, 2 * n, bytes([40 + n, 170])) for n in range(3))
        for later in frames:
            await one.learner.add_scalars((later,))
        assert await one.saved.get() == Saved(Round(0), 1)
        here.summed.add((frame(here.me, 0, b"\x50\xd0"), *frames))
        found, _ = load_newest_sum(one.directory, run.spec.run)
        assert sum_digest(found.sum_Q) == here.name()


async def test_what_a_worker_had_at_its_end_is_on_disk(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    some = frame(here.me, 0, b"\x50\xd0")
    async with peer(run) as one:
        await one.learner.start(wire.StartFresh())
        await one.learner.add_scalars((some,))
    here.summed.add((some,))
    async with peer(run) as again:
        ready = await again.learner.start(wire.StartFromDisk())
        assert (ready.weights, ready.inner_step) == (here.name(), 1)
        assert unpacked(ready.horizon) == {here.log: 2}


async def test_a_joiner_and_one_that_is_behind_go_on_from_a_members_sum(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    frames = tuple(frame(THEM, 2 * n, bytes([40 + n, 170])) for n in range(30))
    here.summed.add(frames)
    async with peer(run, b"\x01") as member, peer(run, b"\x02") as other:
        for one in (member, other):
            await one.learner.start(wire.StartFresh())
        await member.learner.sample(BOOT, 100, 1)
        await member.learner.add_scalars(frames)
        await other.learner.add_scalars(frames[:3])
        checkpoint = await member.learner.export()
        assert (checkpoint.round, checkpoint.weights) == (5, here.name())
        blob = await member.store.bytes_of(checkpoint.digest)
        await other.store.put(blob)
        descriptors = count_descriptors(other)
        for _ in range(8):
            ready = await other.learner.take_over(wire.StartFromCheckpoint(checkpoint))
        assert (ready.round, ready.weights) == (0, here.name())  # its own steps are its own
        assert unpacked(ready.horizon) == {log_id(run.spec.run, THEM, BOOT): 60}
        assert count_descriptors(other) < descriptors + 8  # a snapshot may be on its way
        await other.learner.add_scalars(frames[3:])  # asked for before the sum came
        assert await other.learner.name_sum(()) == here.name()

        broken = (await other.store.put(blob[:-1])).digest
        promised = Checkpoint(Round(5), broken, checkpoint.size_bytes, checkpoint.weights)
        with pytest.raises(StartRefused, match="broken"):
            await other.learner.take_over(wire.StartFromCheckpoint(promised))
        lie = Checkpoint(Round(5), checkpoint.digest, len(blob), Digest(bytes(32)))
        with pytest.raises(StartRefused, match="another sum than it says"):
            await other.learner.take_over(wire.StartFromCheckpoint(lie))
        assert await other.learner.name_sum(()) == here.name()
    async with peer(run, b"\x03") as joiner:
        await joiner.store.put(blob)
        ready = await joiner.learner.start(wire.StartFromCheckpoint(checkpoint))
        assert (ready.round, ready.inner_step, ready.weights) == (5, 100, here.name())


async def test_members_offer_the_very_same_bytes_at_a_base_whatever_they_have_since(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, CONFIG)
    here = Here(run)
    frames = tuple(frame(THEM, 2 * n, bytes([40 + n, 170])) for n in range(30))
    blobs, rounds = set(), []
    async with peer(run, b"\x01") as ahead, peer(run, b"\x02") as behind:
        for one, step in ((ahead, 100), (behind, 40)):
            await one.learner.start(wire.StartFresh())
            began = await one.learner.export(at_base=True)
            assert began.weights == here.name()  # before the first base: nothing added yet
            blobs.add(await one.store.bytes_of(began.digest))
            await one.learner.sample(BOOT, step, 1)
        assert len(blobs) == 1
        here.summed.add(frames[:20])
        blobs.clear()
        for one, told in ((ahead, 30), (behind, 20)):
            await one.learner.add_scalars(frames[:told])
            assert await one.learner.name_sum(frames[20:told]) == here.name()
            await one.learner.add_scalars(frames[told : told + 5])
            offer = await one.learner.export(at_base=True)
            assert offer.weights == here.name()
            blobs.add(await one.store.bytes_of(offer.digest))
            rounds.append(offer.round)
        assert (len(blobs), rounds) == (1, [5, 2])
        assert (await ahead.learner.export()).weights != here.name()
    async with peer(run, b"\x03") as joiner:
        await joiner.store.put(blobs.pop())
        ready = await joiner.learner.start(wire.StartFromCheckpoint(offer))
        assert (ready.round, ready.inner_step, ready.weights) == (2, 40, here.name())
        assert unpacked(ready.horizon) == {log_id(run.spec.run, THEM, BOOT): 40}
        again = await joiner.learner.export(at_base=True)
        assert (again.digest, again.weights) == (offer.digest, offer.weights)


def count_descriptors(one: Peer) -> int:
    return len(os.listdir(f"/proc/{one.learner.pid}/fd"))


# --- files, without a process -----------------------------------------------------------------


def saved(run: SmallRun, *, step: int = 25) -> SavedSum:
    here = Here(run)
    here.summed.add((frame(THEM, 0, b"\x50\xd0"),))
    return SavedSum(Round(step // 20), step, here.summed.sum_Q, dict(here.summed.horizon))


def test_a_sum_on_disk_is_read_as_it_was_and_the_newest_three_are_kept(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    weights_P = initial_slow(run.spec).phi_P
    for step in (4, 5, 25, 45):
        save_sum(tmp_path, run.spec.run, saved(run, step=step), weights_P)
    assert [path.name for path in snapshot_files(tmp_path)] == [
        "snapshot-00000002-0000000000045.safetensors",
        "snapshot-00000001-0000000000025.safetensors",
        "snapshot-00000000-0000000000005.safetensors",
    ]
    found, note = load_newest_sum(tmp_path, run.spec.run)
    expected = saved(run, step=45)
    assert (found.round, found.step, found.horizon, note) == (2, 45, expected.horizon, "")
    assert found.sum_Q.equal(expected.sum_Q)
    snapshot_files(tmp_path)[0].write_bytes(b"broken")
    found, note = load_newest_sum(tmp_path, run.spec.run)
    assert found.step == 25
    assert "00000002" in note
    with pytest.raises(NoSnapshot, match="no snapshot in"):
        load_newest_sum(tmp_path / "away", run.spec.run)


def test_a_sum_that_the_disk_does_not_give_is_left_out_for_its_own_reason(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    save_sum(tmp_path, run.spec.run, saved(run, step=5), initial_slow(run.spec).phi_P)
    refused = tmp_path / snapshot_name(SnapshotPlace(4, 80))
    refused.symlink_to(refused)
    found, note = load_newest_sum(tmp_path, run.spec.run)
    assert (found.step, note) == (
        5,
        f"{refused.name}: Too many levels of symbolic links; left as it is",
    )


def test_a_sum_of_another_run_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path, CONFIG)
    data = sum_checkpoint(run.spec.run, saved(run))
    assert data == sum_checkpoint(run.spec.run, saved(run))
    path = tmp_path / "sum"
    horizon = packed(saved(run).horizon).hex().encode()
    for bad in (data[:-1], data.replace(horizon, horizon[:-2] + b"00"), b"", data[:40]):
        path.write_bytes(bad)
        with pytest.raises(Malformed):
            read_sum(path, run.spec.run)
    path.write_bytes(data)
    other = small_run(tmp_path, CONFIG, seed=2)
    with pytest.raises(Malformed, match="belongs to run"):
        read_sum(path, other.spec.run)
    assert read_sum(path, run.spec.run).horizon == {LogId(log_id(run.spec.run, THEM, BOOT)): 2}
