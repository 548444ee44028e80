"""The learner with a real worker process; the model is small, importing torch is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from small_run import MODEL, SmallRun, small_run

from node import learner as learner_module
from node.arena import Arena
from node.blobs.store import BlobStore
from node.learner import InnerResult, Learner, StartRefused
from node.snapshots import snapshot_files
from node.telemetry import Waits
from node.worker import life as worker_life
from node.worker import wire
from node.worker.wire_save import Saved
from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    StreamingConfig,
    SyncConfig,
)
from protocol.errors import ConfigError, PayloadRefused, WorkerLost
from protocol.fragments import num_parameters
from protocol.ids import Digest, Round
from protocol.messages import Checkpoint
from protocol.payload import payload_bytes
from trainers.effects import ApplyOuter, Share

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(120)]

TOKENS = 4 * 8
"""Of an inner step."""
ENDLESS = 1_000_000
R0, R1, R2 = Round(0), Round(1), Round(2)
PAYLOAD_BYTES = payload_bytes("bf16", num_parameters(MODEL))


@dataclass(frozen=True, slots=True)
class Peer:
    learner: Learner
    arena: Arena
    store: BlobStore
    directory: Path
    resumed: asyncio.Queue[wire.Ready]
    save_failed: asyncio.Queue[str]
    saved: asyncio.Queue[Saved]
    waits: Waits

    async def is_saved(self, round: int) -> None:
        """Wait until a snapshot of this round is on disk."""
        while (await self.saved.get()).round != round:
            pass


@asynccontextmanager
async def peer(run: SmallRun, name: bytes = b"\x01", **changes: str | int) -> AsyncIterator[Peer]:
    """A learner that is supervised meanwhile; afterwards nothing may be left of it."""
    setup = replace(run.setup(name), **changes)  # type: ignore[arg-type]
    directory = Path(setup.directory)
    arena = Arena()
    store = BlobStore(directory / "blobs", 1 << 30)
    await store.open()
    resumed: asyncio.Queue[wire.Ready] = asyncio.Queue()
    save_failed: asyncio.Queue[str] = asyncio.Queue()
    saved: asyncio.Queue[Saved] = asyncio.Queue()
    waits = Waits(time.time)
    learner = Learner(
        setup,
        arena,
        store=store,
        socket_path=directory / "worker.sock",
        on_resumed=resumed.put_nowait,
        on_save_failed=save_failed.put_nowait,
        on_saved=saved.put_nowait,
        waits=waits,
    )
    async with asyncio.TaskGroup() as tasks:
        supervisor = tasks.create_task(learner.run())
        try:
            yield Peer(learner, arena, store, directory, resumed, save_failed, saved, waits)
        finally:
            supervisor.cancel()
            arena.close()
    assert learner.pid is None
    assert not (directory / "worker.sock").exists()


def alone(round: int, mine: Digest) -> ApplyOuter:
    """The outer step of a round with nobody."""
    return ApplyOuter(Round(round + 1), 0, mine, ())


def pair(mine: Digest, *both: Digest) -> ApplyOuter:
    """The outer step of round 0 with the mean of two payloads."""
    return ApplyOuter(R1, 0, mine, tuple(Share(digest, R0, 0.5) for digest in both))


def snapshots(directory: Path) -> list[str]:
    return [path.name for path in snapshot_files(directory)]


async def test_a_worker_trains_goes_a_round_alone_and_is_gone_at_the_end(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    async with peer(small_run(tmp_path)) as me:
        learner = me.learner
        assert (await learner.start(wire.StartFresh())).round == 0
        before = await learner.evaluate()
        for round in range(5):
            assert await learner.inner(Round(round), 4) == InnerResult(4, 4 * TOKENS)
            digest, size = await learner.snapshot(Round(round), 0)
            assert (size, digest in me.arena) == (PAYLOAD_BYTES, True)
            done = await learner.outer(alone(round, digest))
            assert (done.round, done.spread) == (round + 1, 0.0)
            assert done.gradient_norm > 0
            me.arena.release(digest)
        assert await learner.evaluate() < before - 0.2
        assert learner.progress is not None
        assert learner.progress.inner_step == 20
        checkpoint = await learner.export()
        assert (checkpoint.round, checkpoint.weights) == (5, done.weights)
        pid = learner.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert snapshots(me.directory)[0] == "snapshot-00000005-0000000000020.safetensors"


async def test_two_workers_are_equal_after_an_exchange_at_gamma_one(tmp_path: Path) -> None:
    """N3 through real processes, both payloads rounded; bad payloads before change nothing."""
    run = small_run(tmp_path, NolocoConfig(inner_steps=4, alpha=0.0, beta=1.0, gamma=1.0))
    async with peer(run, b"\x01") as alice, peer(run, b"\x02") as bob:
        both = (alice, bob)
        for one in both:
            await one.learner.start(wire.StartFresh())
            await one.learner.inner(R0, 4)
        a, b = [(await one.learner.snapshot(R0, 0))[0] for one in both]
        assert a != b
        good = bytes(bob.arena.view(b))
        for bad in (good[:-2], good + b"\0\0", good[:-2] + b"\x80\x7f", b"SHP2" + good[4:]):
            culprit = alice.arena.put(bad)
            with pytest.raises(PayloadRefused) as refused:
                await alice.learner.outer(pair(a, a, culprit))
            assert refused.value.culprit == culprit
        alice.arena.put(good)
        bob.arena.put(bytes(alice.arena.view(a)))
        at_alice = await alice.learner.outer(pair(a, a, b))
        at_bob = await bob.learner.outer(pair(b, a, b))
        assert at_alice.weights == at_bob.weights
        assert at_alice.spread == at_bob.spread > 0


def hand_over(alice: Peer, bob: Peer, digests: tuple[Digest, Digest]) -> None:
    """Each gets what the other has made, as if it had been fetched."""
    mine, theirs = digests
    alice.arena.put(bytes(bob.arena.view(theirs)))
    bob.arena.put(bytes(alice.arena.view(mine)))


async def test_a_group_averages_fragment_by_fragment_and_stays_equal_to_the_bit(
    tmp_path: Path,
) -> None:
    """One learner has made a step more than the other, and one is left out once."""
    run = small_run(tmp_path, StreamingConfig(inner_steps=6, fragment_layers=1, overlap_steps=1))
    counts = run.spec.fragment_counts()
    async with peer(run, b"\x01") as alice, peer(run, b"\x02") as bob:
        both = (alice, bob)
        for one in both:
            await one.learner.start(wire.StartFresh())
        for round in range(4):
            fragment = round % 2
            made = []
            for extra, one in enumerate(both):
                assert (await one.learner.inner(Round(round), 3 + extra)).steps == 3 + extra
                made.append(await one.learner.snapshot(Round(round), fragment))
            a, b = (digest for digest, _ in made)
            assert [size for _, size in made] == [payload_bytes("e3m0", counts[fragment])] * 2
            hand_over(alice, bob, (a, b))
            named = (a,) if round == 2 else (a, b)
            shares = tuple(Share(digest, Round(round), 1 / len(named)) for digest in named)
            dones = [
                await one.learner.outer(ApplyOuter(Round(round + 1), fragment, mine, shares))
                for one, mine in zip(both, (a, b), strict=True)
            ]
            assert dones[0].weights == dones[1].weights
            assert dones[0].gradient_norm > 0


async def test_a_learner_without_a_snapshot_takes_over_what_the_others_averaged(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, DilocoConfig(inner_steps=4))
    async with peer(run, b"\x01") as alice, peer(run, b"\x02") as bob:
        for one in (alice, bob):
            await one.learner.start(wire.StartFresh())
            await one.learner.inner(R0, 4)
        a, _ = await alice.learner.snapshot(R0, 0)
        bob.arena.put(bytes(alice.arena.view(a)))
        shares = (Share(a, R0, 1.0),)
        at_alice = await alice.learner.outer(ApplyOuter(R1, 0, a, shares))
        at_bob = await bob.learner.outer(ApplyOuter(R1, 0, None, shares))
        assert at_alice.weights == at_bob.weights
        assert await bob.learner.inner(R1, 5) == InnerResult(5, 5 * TOKENS)  # its four still count


async def test_with_sync_the_mean_gradient_moves_all_and_a_joiner_gets_the_optimizer(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, SyncConfig())
    async with peer(run, b"\x01") as alice, peer(run, b"\x02") as bob:
        both = (alice, bob)
        for one in both:
            await one.learner.start(wire.StartFresh())
        for round in range(3):
            a, b = [await gradient(one, round) for one in both]
            hand_over(alice, bob, (a, b))
            shares = (Share(a, Round(round), 0.5), Share(b, Round(round), 0.5))
            dones = [
                await one.learner.outer(ApplyOuter(Round(round + 1), 0, mine, shares))
                for one, mine in zip(both, (a, b), strict=True)
            ]
            assert dones[0].weights == dones[1].weights
        exports = [await one.learner.export() for one in both]
        assert exports[0] == exports[1]  # weights, moments and counters
        async with peer(run, b"\x03") as joiner:
            await joiner.store.put(await alice.store.bytes_of(exports[0].digest))
            await joiner.learner.start(wire.StartFromCheckpoint(exports[0]))
            a = await gradient(alice, 3)
            joiner.arena.put(bytes(alice.arena.view(a)))
            effects = [
                ApplyOuter(Round(4), 0, mine, (Share(a, Round(3), 1.0),)) for mine in (a, None)
            ]
            dones = [
                await one.learner.outer(effect)
                for one, effect in zip((alice, joiner), effects, strict=True)
            ]
            assert dones[0].weights == dones[1].weights


async def gradient(one: Peer, round: int) -> Digest:
    """Of one step, held in the arena."""
    assert await one.learner.inner(Round(round), 1) == InnerResult(1, TOKENS)
    return (await one.learner.snapshot(Round(round), 0))[0]


async def test_a_local_learner_goes_from_round_to_round_and_on_from_disk(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path, LocalConfig(inner_steps=3))) as me:
        await me.learner.start(wire.StartFresh())
        names = []
        for round in range(3):
            assert await me.learner.inner(Round(round), 3) == InnerResult(3, 3 * TOKENS)
            done = await me.learner.outer(ApplyOuter(Round(round + 1), 0, None, ()))
            names.append((done.round, done.weights))
        assert len(set(names)) == 3
        await me.is_saved(3)
        assert me.learner.pid is not None
        os.kill(me.learner.pid, signal.SIGKILL)
        ready = await me.resumed.get()
        assert (ready.round, ready.weights, ready.inner_step) == (3, names[-1][1], 9)


async def test_a_started_learner_goes_over_to_a_members_weights(tmp_path: Path) -> None:
    """What it was training for and its open snapshot are given up; its own optimizer goes on."""
    run = small_run(tmp_path, DilocoConfig(inner_steps=4))
    async with peer(run, b"\x01") as member, peer(run, b"\x02") as strayed:
        for one in (member, strayed):
            await one.learner.start(wire.StartFresh())
            await one.learner.inner(R0, 4)
        digest, _ = await member.learner.snapshot(R0, 0)
        done = await member.learner.outer(alone(0, digest))
        checkpoint = await member.learner.export()
        blob = await member.store.bytes_of(checkpoint.digest)
        await strayed.learner.snapshot(R0, 0)

        damaged = (await strayed.store.put(blob[:-1])).digest
        with pytest.raises(StartRefused, match="broken"):
            await strayed.learner.take_over(start_from(checkpoint, damaged))

        await strayed.store.put(blob)
        async with asyncio.TaskGroup() as tasks:
            inner = tasks.create_task(strayed.learner.inner(R1, ENDLESS))
            await asyncio.sleep(0)  # the order goes out
            ready = await strayed.learner.take_over(wire.StartFromCheckpoint(checkpoint))
        assert (ready.round, ready.weights) == (1, done.weights)
        assert inner.result().steps < ENDLESS
        assert ready.inner_step >= 4
        assert await strayed.learner.inner(R1, 4) == InnerResult(4, 4 * TOKENS)


async def test_it_shows_what_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with peer(small_run(tmp_path)) as me:
        await me.learner.start(wire.StartFresh())
        checkpoint = await me.learner.export()
        await me.learner.take_over(wire.StartFromCheckpoint(checkpoint))
        assert me.waits.current is None
    said = [record.args[0] for record in caplog.records if record.msg.startswith("waiting: ")]  # type: ignore[index]
    assert [waiting.what for waiting in said] == [  # type: ignore[union-attr]
        "a worker that can be started",
        "a new process",
        "the run's files to be read",
        "the weights to start from",
        "a checkpoint for a joiner",
        "the weights to go over to",
    ]


async def test_training_goes_on_while_an_exchange_is_under_way(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path)) as me:
        await me.learner.start(wire.StartFresh())
        await me.learner.inner(R0, 4)
        digest, _ = await me.learner.snapshot(R0, 0)
        async with asyncio.TaskGroup() as tasks:
            inner = tasks.create_task(me.learner.inner(R1, ENDLESS))
            await asyncio.sleep(0)  # the order goes out
            await me.learner.outer(alone(0, digest))
            assert not inner.done()
            me.learner.close_inner()
        assert 0 < inner.result().steps < ENDLESS


async def test_a_killed_worker_is_replaced_and_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path)) as me:
        await me.learner.start(wire.StartFresh())
        await me.learner.inner(R0, 4)
        digest, _ = await me.learner.snapshot(R0, 0)
        await me.learner.outer(alone(0, digest))
        await me.is_saved(1)
        async with asyncio.TaskGroup() as tasks:
            inner = tasks.create_task(lost(me.learner, R1))
            await asyncio.sleep(0)
            assert me.learner.pid is not None
            os.kill(me.learner.pid, signal.SIGKILL)
        assert inner.result() == "the process ended"
        with pytest.raises(WorkerLost, match="being replaced"):
            await me.learner.snapshot(R1, 0)
        assert (await me.resumed.get()).round == 1
        assert await me.learner.inner(R1, 4) == InnerResult(4, 4 * TOKENS)
        assert me.learner.progress is not None
        assert me.learner.progress.inner_step == 8


async def lost(learner: Learner, round: Round) -> str:
    """What training that cannot end is lost to."""
    try:
        await learner.inner(round, ENDLESS)
    except WorkerLost as error:
        return str(error)
    return "not lost"


async def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer(small_run(tmp_path)) as me:
        await me.learner.start(wire.StartFresh())
        pid = me.learner.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setitem(worker_life.DEADLINE_S, wire.Snapshot, 0.4)
        with pytest.raises(WorkerLost, match=r"no answer to Snapshot within 0\.4 s"):
            await me.learner.snapshot(R0, 0)
        assert (await me.resumed.get()).round == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_workers_that_keep_dying_are_given_up_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(learner_module, "BACKOFF_S", 0.001)
    with pytest.raises(ExceptionGroup) as caught:
        async with peer(small_run(tmp_path)) as me:
            await me.learner.start(wire.StartFresh())
    expected = r"the worker died 5 times within 300 s.*ended early \(exit status 1\)"
    assert caught.group_contains(ConfigError, match=expected)


async def test_a_full_disk_is_told_and_training_goes_on(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path)) as me:
        await me.learner.start(wire.StartFresh())
        kept = snapshots(me.directory)
        assert me.learner.pid is not None
        limit = 2 * PAYLOAD_BYTES  # room for a payload, not for a snapshot
        resource.prlimit(me.learner.pid, resource.RLIMIT_FSIZE, (limit, limit))
        await me.learner.inner(R0, 4)
        digest, _ = await me.learner.snapshot(R0, 0)
        await me.learner.outer(alone(0, digest))
        assert "the snapshot of round 1 could not be written" in await me.save_failed.get()
        assert await me.learner.inner(R1, 2) == InnerResult(2, 2 * TOKENS)
        assert [path.name for path in me.directory.glob("snap*")] == kept


async def test_a_joiner_starts_from_a_members_weights_and_refuses_damaged_ones(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path)
    async with peer(run, b"\x01") as member, peer(run, b"\x02") as joiner:
        await member.learner.start(wire.StartFresh())
        await member.learner.inner(R0, 4)
        digest, _ = await member.learner.snapshot(R0, 0)
        done = await member.learner.outer(alone(0, digest))
        checkpoint = await member.learner.export()
        blob = await member.store.bytes_of(checkpoint.digest)

        damaged = (await joiner.store.put(blob[:-1])).digest
        with pytest.raises(StartRefused, match="broken"):
            await joiner.learner.start(start_from(checkpoint, damaged))
        flipped = (await joiner.store.put(blob[:-4] + b"\x01\0\0\0")).digest
        with pytest.raises(StartRefused, match="is not what was written, by its digest"):
            await joiner.learner.start(start_from(checkpoint, flipped))

        gone = start_from(checkpoint, checkpoint.digest)
        with pytest.raises(StartRefused, match="no checkpoint came"):
            await joiner.learner.start(gone)
        await joiner.store.put(blob)
        wrong = Checkpoint(R1, checkpoint.digest, len(blob), digest)
        with pytest.raises(StartRefused, match="other weights than it says"):
            await joiner.learner.start(wire.StartFromCheckpoint(wrong))
        assert (await joiner.learner.start(wire.StartFromCheckpoint(checkpoint))).round == 1
        assert (await joiner.learner.export()).weights == done.weights
        assert snapshots(joiner.directory) == ["snapshot-00000001-0000000000000.safetensors"]


def start_from(checkpoint: Checkpoint, digest: Digest) -> wire.StartFromCheckpoint:
    """The same promise about another blob."""
    promised = Checkpoint(checkpoint.round, digest, checkpoint.size_bytes, checkpoint.weights)
    return wire.StartFromCheckpoint(promised)


async def test_a_worker_keeps_no_checkpoint_open_that_it_was_shown_before_its_start(
    tmp_path: Path,
) -> None:
    """The node removes it from the disk, where a descriptor would keep its room taken."""
    run = small_run(tmp_path)
    async with peer(run, b"\x01") as member, peer(run, b"\x02") as joiner:
        await member.learner.start(wire.StartFresh())
        checkpoint = await member.learner.export()
        blob = await member.store.bytes_of(checkpoint.digest)
        await joiner.store.put(blob)
        damaged = start_from(checkpoint, (await joiner.store.put(blob[:-1])).digest)
        for _ in range(2):
            assert (await joiner.learner.sketch(1, checkpoint)).weights == checkpoint.weights
            with pytest.raises(StartRefused, match="broken"):
                await joiner.learner.start(damaged)
            with pytest.raises(StartRefused, match="no checkpoint to sketch"):
                await joiner.learner.sketch(1)
        assert open_blobs(joiner) == []
        await joiner.learner.start(wire.StartFromCheckpoint(checkpoint))
        await joiner.learner.take_over(wire.StartFromCheckpoint(checkpoint))
        await joiner.learner.evaluate()  # the command before is over
        assert open_blobs(joiner) == []


def open_blobs(one: Peer) -> list[str]:
    """Files of the store that the worker has open."""
    targets = []
    for fd in Path(f"/proc/{one.learner.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: its thread saves
            targets.append(os.readlink(fd))
    return [target for target in targets if target.startswith(f"{one.directory / 'blobs'}")]


async def test_a_directory_without_snapshots_can_be_started_otherwise(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path)) as me:
        assert not me.learner.has_snapshot
        with pytest.raises(StartRefused, match="no snapshot in"):
            await me.learner.start(wire.StartFromDisk())
        assert (await me.learner.start(wire.StartFresh())).round == 0
        assert me.learner.has_snapshot


async def test_files_that_cannot_be_used_are_the_operators_fault(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    (tmp_path / "corpus").write_text("short")
    with pytest.raises(ExceptionGroup) as caught:
        async with peer(run) as me:
            await me.learner.start(wire.StartFresh())
    assert caught.group_contains(ConfigError, match="tokens of training text, expected more")


async def test_a_worker_is_as_nice_as_its_owner_wants(tmp_path: Path) -> None:
    async with peer(small_run(tmp_path), nice=13) as me:
        await me.learner.start(wire.StartFresh())
        assert me.learner.pid is not None
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, me.learner.pid) == min(ours + 13, 19)


async def test_a_gpu_that_is_asked_for_and_not_there_is_the_operators_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ExceptionGroup) as caught:
        async with peer(small_run(tmp_path), device="cuda") as me:
            await me.learner.start(wire.StartFresh())
    assert caught.group_contains(ConfigError, match="torch finds no GPU here")


def test_a_socket_path_that_is_too_long_is_refused_with_advice(tmp_path: Path) -> None:
    async def spawn() -> None:
        await worker_life.WorkerLife(tmp_path / ("long" * 40), lambda _event: None).spawn()

    with pytest.raises(ConfigError, match="choose a shorter data directory"):
        asyncio.run(spawn())


class Script:
    """A node of a few lines: starts a worker and talks to it over the socket."""

    def __init__(self, run: SmallRun) -> None:
        setup = run.setup()
        self.directory = Path(setup.directory)
        path = self.directory / "worker.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(path))
            listener.listen(1)
            listener.settimeout(60)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node.worker.process", "--socket", path],
                cwd=Path(__file__).parent.parent,
            )
            self.link, _ = listener.accept()
        self.link.settimeout(60)
        self.ask(setup, wire.Prepared)
        self.ask(wire.StartFresh(), wire.Ready)
        wire.send(self.link, wire.ToWorker(1, wire.RunInner(R0, ENDLESS)))
        self.hear(wire.Progress)

    def ask(self, command: wire.Command, answer: type[wire.Event]) -> None:
        wire.send(self.link, wire.ToWorker(1, command))
        self.hear(answer)

    def hear(self, kind: type[wire.Event]) -> None:
        while True:
            received = wire.receive(self.link, wire.FromWorker)
            assert received is not None
            if isinstance(received[0].body, kind):
                return
            assert isinstance(received[0].body, wire.Progress | Saved), received


@pytest.mark.parametrize("end", ["node gone", "SIGTERM"])
def test_at_the_end_a_worker_saves_what_it_has(tmp_path: Path, end: str) -> None:
    script = Script(small_run(tmp_path))
    if end == "SIGTERM":
        script.process.terminate()
    else:
        script.link.close()
    assert script.process.wait(60) == 0
    newest = snapshots(script.directory)[0]
    assert newest.startswith("snapshot-00000000-")
    assert newest > "snapshot-00000000-0000000000000.safetensors"
    script.link.close()


def test_ctrl_c_is_the_nodes_business(tmp_path: Path) -> None:
    script = Script(small_run(tmp_path))
    script.process.send_signal(signal.SIGINT)
    script.hear(wire.Progress)
    script.hear(wire.Progress)
    script.link.close()
    assert script.process.wait(60) == 0
