from __future__ import annotations

import queue
import threading

import torch

from node.worker import saver as worker_saver
from node.worker.saver import Rooms, Saver

WAIT_S = 15.0


class Disk:
    """Writes when it is told to."""

    def __init__(self) -> None:
        self.begun: queue.Queue[int] = queue.Queue()
        self.may_end = threading.Semaphore(0)
        self.written: list[int] = []

    def write(self, state: int) -> None:
        self.begun.put(state)
        assert self.may_end.acquire(timeout=WAIT_S)
        self.written.append(state)


def test_a_slow_disk_gets_the_newest_of_what_waited_and_nothing_piles_up() -> None:
    disk = Disk()
    saver = Saver(disk.write)
    saver.save(1)
    assert disk.begun.get(timeout=WAIT_S) == 1
    for state in range(2, 100):
        saver.save(state)  # returns at once: the disk is busy with the first
    disk.may_end.release(2)
    saver.finish()
    assert disk.written == [1, 99]


def test_who_wants_to_know_is_told_when_its_state_or_a_newer_one_is_written() -> None:
    disk = Disk()
    saver = Saver(disk.write)
    told: queue.Queue[list[int]] = queue.Queue()
    saver.save(1)
    disk.begun.get(timeout=WAIT_S)
    saver.save(2)
    saver.once_saved(lambda: told.put(list(disk.written)))
    saver.save(3)
    disk.may_end.release()
    assert disk.begun.get(timeout=WAIT_S) == 3
    assert told.empty()  # the first was written, and we asked for a later one
    disk.may_end.release()
    assert told.get(timeout=WAIT_S) == [1, 3]
    saver.once_saved(lambda: told.put(list(disk.written)))  # there is nothing to write
    assert told.get(timeout=WAIT_S) == [1, 3]
    saver.finish()


def test_what_waits_can_be_recalled_and_what_is_being_written_is_named() -> None:
    disk = Disk()
    saver = Saver(disk.write)
    saver.save(1)
    disk.begun.get(timeout=WAIT_S)
    saver.save(2)
    assert saver.recall() == 1
    disk.may_end.release()
    saver.finish()
    assert disk.written == [1]
    assert saver.recall() is None


def test_a_copy_is_never_made_where_another_is_being_written_from() -> None:
    rooms = Rooms(3)
    first = rooms.other_than(None)
    assert rooms.other_than(None) is first
    second = rooms.other_than(first)
    assert second.theta_P.data_ptr() != first.theta_P.data_ptr()
    assert second.moments.first_P.data_ptr() != first.moments.first_P.data_ptr()
    assert rooms.other_than(second) is first
    assert rooms.other_than(first) is second  # and there are no more than two
    assert torch.equal(first.theta_P, torch.zeros(3))


def test_copies_take_a_hundredth_of_the_time_at_most() -> None:
    rooms = Rooms(3)
    assert rooms.is_due
    rooms.copied(3600.0 * worker_saver.MOST_PAUSE)
    assert not rooms.is_due  # for an hour
    rooms.copied(worker_saver.SHORT_S / 2)
    assert rooms.is_due
