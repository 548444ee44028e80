"""Processes that hand each other a ticket or addresses in a file."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Timer

import pytest

from node.handover import read_lines, ticket_or_claim, wait_for_lines, write_lines
from node.telemetry import Waits
from protocol.errors import ConfigError

WAITS = Waits(time.time)


def test_a_reader_sees_all_lines_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "shared" / "addrs"
    assert read_lines(path) == ()
    write_lines(path, ["a", "b"])
    write_lines(path, ["c", "d"])
    assert read_lines(path) == ("c", "d")
    assert [entry.name for entry in path.parent.iterdir()] == ["addrs"]


def test_the_first_gets_the_claim_and_the_next_its_ticket(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    claim = ticket_or_claim(path, WAITS)
    assert not isinstance(claim, str)
    write_lines(path, ["shoal1abc"])
    claim.close()
    assert ticket_or_claim(path, WAITS) == "shoal1abc"


def test_who_waits_for_a_ticket_gets_it_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    claim = ticket_or_claim(path, WAITS)
    assert not isinstance(claim, str)
    writer = Timer(0.05, write_lines, (path, ["shoal1abc"]))
    writer.start()
    assert ticket_or_claim(path, WAITS, for_s=10.0) == "shoal1abc"
    claim.close()


def test_a_claim_passes_on_when_its_holder_dies_without_a_ticket(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    first = ticket_or_claim(path, WAITS)
    assert not isinstance(first, str)
    first.close()  # as the kernel does for a dead process
    second = ticket_or_claim(path, WAITS)
    assert not isinstance(second, str)
    second.close()


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    claim = ticket_or_claim(path, WAITS)
    assert not isinstance(claim, str)
    with claim, pytest.raises(ConfigError, match=r"ticket: waited 0.01 s for the ticket, but nobo"):
        ticket_or_claim(path, WAITS, for_s=0.01)
    with pytest.raises(ConfigError, match=r"addrs: waited 0.01 s for the addresses, but nobody"):
        wait_for_lines(tmp_path / "addrs", "the addresses", WAITS, for_s=0.01)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory, expected a file that this user can re"):
        read_lines(tmp_path)
    path = tmp_path / "file"
    path.write_text("")
    for use in (
        lambda: write_lines(path / "ticket", []),
        lambda: ticket_or_claim(path / "t", WAITS),
    ):
        with pytest.raises(ConfigError, match=r"(Not a directory|File exists), expected a file"):
            use()
