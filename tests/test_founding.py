"""Making and finding a run in a data directory, whenever the node is killed or told to stop."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from samples import CREATOR, OTHER, spec

from node import founding
from node.founding import HeldRun, with_addrs
from node.keys import DataDir
from protocol.errors import ConfigError
from protocol.spec import sign_spec
from protocol.ticket import Ticket

OWN = f"/ip4/127.0.0.1/tcp/1/p2p/{CREATOR.peer}"
MOVED = f"/ip4/127.0.0.1/tcp/2/p2p/{CREATOR.peer}"
OTHERS = f"/ip4/127.0.0.1/tcp/3/p2p/{OTHER.peer}"


def held(*addrs: str) -> HeldRun:
    made = spec()
    return HeldRun(Ticket(run=made.run, addrs=addrs, secret=b""), sign_spec(made, CREATOR))


def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "node")
    made.create()
    return made


def test_a_run_that_was_saved_is_found_again(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    founding.save(held(OWN), directory)
    assert founding.resumed(directory) == held(OWN)


@pytest.mark.parametrize("refused", ["ticket", "spec.sig", "spec", "run"])
def test_a_node_killed_while_it_saves_its_run_has_none_and_may_make_one(
    tmp_path: Path, refused: str
) -> None:
    """A directory in the place of a file stops the saving there."""
    directory = data_dir(tmp_path)
    stop = directory.root / refused
    stop.mkdir()
    with pytest.raises(ConfigError):
        founding.save(held(OWN), directory)
    stop.rmdir()
    assert directory.claimed_run() is None
    founding.save(held(OWN), directory)
    assert founding.resumed(directory) == held(OWN)


@pytest.mark.parametrize("name", ["ticket", "spec"])
def test_a_file_of_the_run_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    directory = data_dir(tmp_path)
    founding.save(held(OWN), directory)
    (directory.root / name).unlink()
    (directory.root / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name}: Is a directory, expected the {name} of run"):
        founding.resumed(directory)


def test_a_run_without_its_ticket_says_how_to_go_on(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    founding.save(held(OWN), directory)
    directory.ticket.unlink()
    with pytest.raises(ConfigError, match="or join again with `shoal join TICKET`"):
        founding.resumed(directory)


def test_a_ticket_is_handed_on_with_our_addresses_of_now_first_and_none_of_before() -> None:
    assert with_addrs(held(OWN, OTHERS), (MOVED,)).ticket.addrs == (MOVED, OTHERS)
    assert with_addrs(held(OTHERS), (OWN, MOVED)).ticket.addrs == (OWN, MOVED, OTHERS)
    assert with_addrs(held(OTHERS), ()).ticket.addrs == (OTHERS,)


async def test_work_of_which_nobody_wants_the_value_any_more_is_not_waited_for() -> None:
    begun, let_go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        let_go.wait()

    task = asyncio.ensure_future(founding._in_daemon(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        let_go.set()


async def test_what_goes_wrong_in_the_thread_is_raised_here() -> None:
    def work() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await founding._in_daemon(work)
