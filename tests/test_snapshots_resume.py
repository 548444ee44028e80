"""A worker that was killed goes on, bit by bit, as one that never was.

The real worker, from its socket inwards, in a thread: what is on disk at a step boundary is
copied, as a SIGKILL leaves it, and another worker goes on from the copy.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from small_run import SmallRun, small_run

from node.snapshots import UNFINISHED, snapshot_files, snapshot_place
from node.worker import process as worker
from node.worker import saver as worker_saver
from node.worker import wire, wire_spsa
from node.worker.files import checkpoint_bytes
from node.worker.link import Link
from node.worker.materials import initial_slow
from node.worker.sums import load_newest_sum
from node.worker.wire_save import Save, Saved, SaveDone, SaveFailed
from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    StreamingConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.ids import Digest, Round, digest_of
from protocol.messages import Checkpoint
from protocol.spsa import Frame, LogId, log_id, unpacked
from trainers.bases import NO_BASE
from trainers.effects import Share

E = TypeVar("E", bound=wire.Event)

WAIT_S = 60.0
KILLED, ROUNDS = 3, 6
"""Stopped at the start of round 3, of 6."""
OVERLAP = 2
"""Steps of the next round that are made while a round is averaged."""


class Script:
    """A node of a few lines: asks a worker, and is told what it has saved."""

    def __init__(self, link: socket.socket, directory: Path) -> None:
        self._link = link
        self._heard: list[wire.Event] = []
        self.directory = directory
        self.saved: list[tuple[int, int]] = []
        self.losses: dict[int, float] = {}
        """The mean of each inner phase, by its last step."""

    def ask(self, command: wire.Command, kind: type[E], fds: Sequence[int] = ()) -> E:
        wire.send(self._link, wire.ToWorker(1, command), fds)
        while True:
            event = self._hear()
            if isinstance(event, kind):
                return event

    def is_saved(self, round: int) -> None:
        while not any(saved == round for saved, _ in self.saved):
            self._hear()

    def stop(self) -> None:
        """No more commands; what the worker says is still heard."""
        self._link.shutdown(socket.SHUT_WR)

    def _hear(self) -> wire.Event:
        received = wire.receive(self._link, wire.FromWorker)
        assert received is not None, "the worker is gone"
        packet, fds = received
        for fd in fds:
            os.close(fd)
        event = packet.body
        assert not isinstance(event, wire.Failed | SaveFailed | wire.OuterRefused), event
        if isinstance(event, Saved):
            self.saved.append((event.round, event.inner_step))
        if isinstance(event, wire.Progress):
            self.losses[event.inner_step] = event.loss
        return event


def live(link: Link) -> None:
    try:
        worker.serve(link)
    finally:
        link._socket.close()  # as the process would


@contextmanager
def started(run: SmallRun, directory: Path, how: wire.Start) -> Iterator[tuple[Script, wire.Ready]]:
    """A worker with this directory; at the end it has saved what it had and is gone."""
    directory.mkdir(exist_ok=True)
    path = directory / "worker.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen(1)
        link = Link(os.fspath(path))
        thread = threading.Thread(target=lambda: live(link), daemon=True)
        thread.start()
        ours, _ = listener.accept()
    ours.settimeout(WAIT_S)
    with ours:
        script = Script(ours, directory)
        setup = replace(run.setup(), directory=str(directory), nice=0, threads=1)
        script.ask(setup, wire.Prepared)
        yield script, script.ask(how, wire.Ready)
        script.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@dataclass(frozen=True, slots=True)
class Way:
    """How a round of a trainer goes, alone."""

    trainer: TrainerConfig
    steps: int = 4
    fragments: int = 1
    overlap: int = 0


WAYS = {
    "noloco": Way(NolocoConfig(inner_steps=4), overlap=OVERLAP),
    "noloco-two-vectors": Way(
        NolocoConfig(inner_steps=4, vectors=2, codec="int8", feedback=True, stale=True,
                     gap_penalty=True),
        overlap=OVERLAP,
    ),
    "diloco": Way(DilocoConfig(inner_steps=4, codec="int8", feedback=True)),
    "streaming": Way(
        StreamingConfig(inner_steps=8, fragment_layers=1, overlap_steps=OVERLAP),
        fragments=2,
        overlap=OVERLAP,
    ),
    "local": Way(LocalConfig(inner_steps=4)),
    "sync": Way(SyncConfig(), steps=1),
}  # fmt: skip


def train(script: Script, way: Way, rounds: range) -> list[tuple[int, Digest]]:
    """Round after round alone; the names of the slow weights after each."""
    names: list[tuple[int, Digest]] = []
    for round in map(Round, rounds):
        script.ask(wire.RunInner(round, way.steps), wire.InnerDone)
        fragment = round % way.fragments
        mine: Digest | None = None
        shares: tuple[Share, ...] = ()
        if not isinstance(way.trainer, LocalConfig):
            mine = script.ask(wire.Snapshot(round, fragment), wire.SnapshotDone).digest
            shares = (Share(mine, round, 1.0),)
        if way.overlap:
            script.ask(wire.RunInner(Round(round + 1), way.overlap), wire.InnerDone)
        command = wire.ApplyOuter(Round(round + 1), fragment, mine, shares)
        done = script.ask(command, wire.OuterDone)
        names.append((done.round, done.weights))
    return names


@pytest.fixture(autouse=True)
def every_round_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is."""
    monkeypatch.setattr(worker_saver.Rooms, "is_due", True)


@pytest.mark.parametrize("name", WAYS)
def test_a_worker_that_was_killed_trains_the_same_weights_as_one_that_was_not(
    tmp_path: Path, name: str
) -> None:
    """In a round of its own, with steps of the next made; then the final files are equal."""
    way = WAYS[name]
    run = small_run(tmp_path, way.trainer)
    killed = tmp_path / "killed"
    with started(run, tmp_path / "unbroken", wire.StartFresh()) as (unbroken, _):
        before = train(unbroken, way, range(KILLED))
        unbroken.is_saved(KILLED)
        shutil.copytree(unbroken.directory, killed, ignore=shutil.ignore_patterns("*.sock"))
        steps_before = max(unbroken.losses)
        expected = train(unbroken, way, range(KILLED, ROUNDS))
    with started(run, killed, wire.StartFromDisk()) as (resumed, ready):
        assert (ready.round, ready.weights, ready.note) == (*before[-1], "")
        assert ready.inner_step == steps_before
        assert train(resumed, way, range(KILLED, ROUNDS)) == expected
    later = {step: loss for step, loss in unbroken.losses.items() if step > steps_before}
    assert resumed.losses == later
    ends = [snapshot_files(script.directory)[0] for script in (unbroken, resumed)]
    assert ends[0].name == ends[1].name
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert len(set(expected)) == ROUNDS - KILLED


def members_weights(run: SmallRun, round: int) -> tuple[Checkpoint, int]:
    """Of a member with a history of its own, in memory, and what it says of them."""
    start = initial_slow(run.spec)
    slow = replace(start, round=Round(round), phi_P=start.phi_P + 1.0)
    data = checkpoint_bytes(run.spec.run, slow)
    fd = os.memfd_create("checkpoint")
    os.write(fd, data)
    return Checkpoint(slow.round, digest_of(data), len(data), slow.digest()), fd


def rounds_on_disk(directory: Path) -> list[int]:
    """The newest first."""
    places = [snapshot_place(path) for path in snapshot_files(directory)]
    return [place.round for place in places if place]


def test_a_worker_that_went_back_and_was_killed_goes_on_from_the_weights_it_took_over(
    tmp_path: Path,
) -> None:
    """A file of its own that is named as newer is of a history that it gave up."""
    way = WAYS["diloco"]
    run = small_run(tmp_path, way.trainer)
    checkpoint, fd = members_weights(run, 1)
    killed = tmp_path / "killed"
    with started(run, tmp_path / "unbroken", wire.StartFresh()) as (worker, _):
        for round in range(KILLED):
            train(worker, way, range(round, round + 1))
            worker.is_saved(round + 1)
        assert rounds_on_disk(worker.directory) == [3, 2, 1]
        worker.saved.clear()
        worker.ask(wire.StartFromCheckpoint(checkpoint), wire.Ready, (fd,))
        worker.is_saved(1)
        shutil.copytree(worker.directory, killed, ignore=shutil.ignore_patterns("*.sock"))
        expected = train(worker, way, range(1, 3))
    with started(run, killed, wire.StartFromDisk()) as (resumed, ready):
        assert (ready.round, ready.weights, ready.note) == (1, checkpoint.weights, "")
        assert rounds_on_disk(killed) == [1, 1]
        assert train(resumed, way, range(1, 3)) == expected
    assert rounds_on_disk(worker.directory)[0] == 3
    os.close(fd)


def test_until_the_weights_it_took_over_are_on_disk_a_worker_keeps_its_own(tmp_path: Path) -> None:
    way = WAYS["diloco"]
    run = small_run(tmp_path, way.trainer)
    checkpoint, fd = members_weights(run, 1)
    with started(run, tmp_path / "worker", wire.StartFresh()) as (worker, _):
        for round in range(KILLED):
            train(worker, way, range(round, round + 1))
            worker.is_saved(round + 1)
        files = {path: path.read_bytes() for path in snapshot_files(worker.directory)}
        (worker.directory / f"{UNFINISHED}{os.getpid()}").write_bytes(b"")  # where it would write

        def go_over() -> None:
            worker.ask(wire.StartFromCheckpoint(checkpoint), wire.Ready, (fd,))
            worker.ask(Save(), SaveDone)

        with pytest.raises(AssertionError, match=r"round 1 could not be written: .*File exists"):
            go_over()  # the saver says so before or after the first answer
    assert {path: path.read_bytes() for path in snapshot_files(worker.directory)} == files
    assert rounds_on_disk(worker.directory) == [3, 2, 1]
    os.close(fd)


def measured_and_added(worker: Script, run: SmallRun, boot: bytes, steps: range) -> list[bytes]:
    """The scalars of these steps, each of which is in the sum before the next is measured."""
    made = []
    for step in steps:
        sampled = worker.ask(wire_spsa.Sample(boot, step, 1), wire_spsa.Sampled)
        mine = Frame(
            author=run.setup().peer, boot=boot, first=step, step=step, base=NO_BASE,
            authors=1, scalars=sampled.scalars,
        )  # fmt: skip
        worker.ask(wire_spsa.AddScalars((mine,)), wire_spsa.Added)
        made.append(sampled.scalars)
    return made


def test_a_restarted_worker_of_an_spsa_run_that_repeats_its_round_has_it_in_the_newest_file(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, SpsaConfig(inner_steps=10, samples=1))
    logs: dict[LogId, int] = {}
    steps = {b"\x07" * 8: 5, b"\x08" * 8: 2}  # the second start begins with the round, too
    how: wire.Start = wire.StartFresh()
    for boot, count in steps.items():
        with started(run, tmp_path / "worker", how) as (worker, _):
            measured_and_added(worker, run, boot, range(count))
        logs[LogId(log_id(run.spec.run, run.setup().peer, boot))] = count
        how = wire.StartFromDisk()
    saved, _ = load_newest_sum(tmp_path / "worker", run.spec.run)
    assert (saved.step, saved.horizon) == (5, logs)
    assert [path.name for path in snapshot_files(tmp_path / "worker")] == [
        "snapshot-00000000-0000000000005.safetensors",
        "snapshot-00000000-0000000000000.safetensors",
    ]


def test_a_worker_of_an_spsa_run_goes_on_with_the_same_sum_and_scalars(tmp_path: Path) -> None:
    """The log is the node's, which lives on; a node that starts anew opens another."""
    run = small_run(tmp_path, SpsaConfig(inner_steps=10, samples=1))
    boot, killed = b"\x07" * 8, tmp_path / "killed"

    with started(run, tmp_path / "unbroken", wire.StartFresh()) as (unbroken, _):
        before = measured_and_added(unbroken, run, boot, range(5))
    shutil.copytree(unbroken.directory, killed, ignore=shutil.ignore_patterns("*.sock"))
    log = LogId(log_id(run.spec.run, run.setup().peer, boot))
    with started(run, tmp_path / "unbroken", wire.StartFromDisk()) as (unbroken, _):
        expected = measured_and_added(unbroken, run, boot, range(5, 10))
        sum_expected = unbroken.ask(wire_spsa.NameSum((), False), wire_spsa.SumNamed).sum
    with started(run, killed, wire.StartFromDisk()) as (resumed, ready):
        assert (ready.inner_step, unpacked(ready.horizon)) == (5, {log: 5})
        assert measured_and_added(resumed, run, boot, range(5, 10)) == expected
        assert resumed.ask(wire_spsa.NameSum((), False), wire_spsa.SumNamed).sum == sum_expected
    assert len({*before, *expected}) > 1
