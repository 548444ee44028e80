"""Making and finding a run in a data directory, whenever the node is killed or told to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from disks import data_dir
from samples import CREATOR, OTHER, spec

from node import founding
from node.founding import HeldRun, with_addrs
from protocol.errors import ConfigError
from protocol.ids import short
from protocol.spec import sign_spec
from protocol.ticket import Ticket

OWN = f"/ip4/127.0.0.1/tcp/1/p2p/{CREATOR.peer}"
MOVED = f"/ip4/127.0.0.1/tcp/2/p2p/{CREATOR.peer}"
OTHERS = f"/ip4/127.0.0.1/tcp/3/p2p/{OTHER.peer}"


def held(*addrs: str) -> HeldRun:
    made = spec()
    return HeldRun(Ticket(run=made.run, addrs=addrs, secret=b""), sign_spec(made, CREATOR))


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


def test_a_ticket_on_disk_that_is_broken_is_named_with_its_file(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    founding.save(held(OWN), directory)
    text = directory.ticket.read_text()
    directory.ticket.write_text(text[:20] + ("x" if text[20] != "x" else "y") + text[21:])
    with pytest.raises(ConfigError) as error:
        founding.resumed(directory)
    assert str(error.value) == (
        f"{directory.ticket}: the checksum does not match, so a character is wrong or missing; the "
        f"ticket of run {short(held(OWN).run)} is expected in it, so join again with "
        "`shoal join TICKET`"
    )


def test_a_flipped_bit_in_the_run_file_is_told_by_the_ticket_beside_it(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    founding.save(held(OWN), directory)
    run = held(OWN).run
    flipped = run[:-1] + bytes([run[-1] ^ 1])
    directory.run.write_text(flipped.hex() + "\n")
    with pytest.raises(ConfigError) as error:
        founding.resumed(directory)
    assert str(error.value) == (
        f"{directory.run}: found run {flipped.hex()}, expected run {run.hex()}, whose ticket is "
        "beside it; restore the file from a backup, or choose another data directory and join with "
        "the ticket in it"
    )
    assert directory.run.read_text() == flipped.hex() + "\n"


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
