"""Records on a disk that is slow, hangs or refuses: on the real loop, with real threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from record_network import Network, Node
from record_samples import ALICE, BOB, JOINED, RUN, history

from crdt.record import Record
from crdt.replica import Replica
from crdt.sync import Parcel, push_request
from node.records import files as record_files
from node.records import records
from node.records.files import RecordFiles
from node.telemetry import short_peers
from protocol.errors import ConfigError
from protocol.ids import short
from protocol.rpc import RecordCall

LONG_S = 10.0
"""Longer than any of these tests takes."""


class SlowDisk(RecordFiles):
    """Writes of Alice's record end when `go_on` is set."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.loop = asyncio.get_running_loop()
        self.writing, self.asked, self.closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go_on = threading.Event()

    def save(self, record: Record, *, durable: bool) -> None:
        if record.author == ALICE.peer:
            self.loop.call_soon_threadsafe(self.writing.set)
            assert self.go_on.wait(LONG_S)
        super().save(record, durable=durable)

    async def saved(self, records: Sequence[Record], *, durable: bool) -> bool:
        if not durable:
            self.asked.set()
        return await super().saved(records, durable=durable)

    async def close(self, last: Sequence[Record]) -> None:
        self.closing.set()
        await super().close(last)


@contextlib.asynccontextmanager
async def alice_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Alice's own record is being written; she holds one of Bob, which waits behind it."""
    monkeypatch.setattr(records, "SAVE_S", 0.001)
    monkeypatch.setattr(records, "ASK_S", 0.001)
    node = Node(Network(), tmp_path, ALICE)
    node.files = disk = SlowDisk(tmp_path / "slow")  # type: ignore[assignment]
    node.records._files = disk
    disk.load(node.replica)
    running = asyncio.create_task(node.records.run())
    node.write(JOINED)
    await disk.writing.wait()
    bob = history(1, BOB)[0]
    await node.records.handle(BOB.peer, RecordCall(RUN, push_request(Parcel(tuple(bob)))))
    await disk.asked.wait()
    running.cancel()
    await disk.closing.wait()
    yield node, disk, running
    disk.go_on.set()


async def test_records_of_others_whose_save_had_not_begun_at_the_stop_are_on_disk_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice_who_writes(tmp_path, monkeypatch) as (node, disk, running):
        disk.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    found = Replica(RUN)
    RecordFiles(tmp_path / "slow").load(found)
    assert found.record(BOB.peer) == node.replica.record(BOB.peer)
    assert len(found.record(BOB.peer).chain) == 2


async def test_a_disk_that_hangs_keeps_no_node_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record_files, "CLOSE_S", 0.001)
    async with alice_who_writes(tmp_path, monkeypatch) as (node, disk, running):
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not disk.go_on.is_set()
        assert not list((tmp_path / "slow").glob("*.record"))
        assert node.waits.current is None
    (warning,) = (one.message for one in caplog.records if one.levelno >= logging.WARNING)
    assert warning.startswith("records of others not saved: the disk has not answered within")


def is_a_file(directory: Path) -> None:
    directory.write_text("no folder")


def keeps_what_is_half_written(directory: Path) -> None:
    (directory / "bob.new").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [is_a_file, keeps_what_is_half_written])
def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, spoil: object) -> None:
    spoil(tmp_path / "records")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"^records: .* at .*/records.*, expected a folder of"):
        RecordFiles(tmp_path / "records").load(Replica(RUN))


def test_broken_files_of_an_author_are_all_kept_and_named_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"{BOB.peer}.record"
    for content in ("broken once", "broken again"):
        path.write_text(content)
        RecordFiles(tmp_path).load(Replica(RUN))
    kept = [f"{path.name}.unusable-{number}" for number in (1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == kept
    assert [(tmp_path / name).read_text() for name in kept] == ["broken once", "broken again"]
    for message, name in zip(caplog.messages, kept, strict=True):
        assert f"; the file is kept as {name}, and" in short_peers(message)
        assert f"the record of {short(BOB.peer)} on disk" in message
