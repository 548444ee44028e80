"""`shoal contributions` where no node runs: the records on disk are enough and stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from disks import data_dir
from samples import CREATOR, OTHER, spec

from crdt.author import Author
from crdt.record import Record
from crdt.schema import Content, Member, Totals
from node import cli_ledger, founding
from node.founding import HeldRun
from node.records.files import RecordFiles
from protocol.errors import ConfigError
from protocol.ids import Round, short
from protocol.spec import sign_spec
from protocol.ticket import Ticket

ADDR = f"/ip4/127.0.0.1/tcp/1/p2p/{CREATOR.peer}"


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_ledger_is_read_from_disk_if_no_node_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, directory = spec(), data_dir(tmp_path)
    ticket = Ticket(run=made.run, addrs=(ADDR,), secret=b"")
    founding.save(HeldRun(ticket, sign_spec(made, CREATOR)), directory)
    directory.records.mkdir(exist_ok=True)
    files = RecordFiles(directory.records)
    for signer, tokens in ((CREATOR, 300), (OTHER, 100)):
        author = Author(signer=signer, run=made.run, client_id=7, jump=1)
        content = Content(member=Member(since=Round(0)), totals=Totals(tokens=tokens, rounds=1))
        entry = author.next(Record(signer.peer), content, is_lost=False)
        assert entry
        files.save(Record(signer.peer).merged(entry), durable=False)
    (directory.records / f"{short(OTHER.peer)}.record").write_bytes(b"no record")
    before = files_of(directory.root)

    cli_ledger.contributions(as_json=True, data_dir=directory.root)
    told, warned = capsys.readouterr()
    shown = json.loads(told)
    assert [row["tokens"] for row in (*shown["authors"], shown["sum"])] == [300, 100, 400]
    assert warned.startswith(f"shoal: left out: record of {short(OTHER.peer)}: ")
    assert files_of(directory.root) == before


def test_where_there_is_no_run_no_node_runs_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no node runs on the data directory"):
        cli_ledger.contributions(as_json=True, data_dir=data_dir(tmp_path).root)


def test_a_run_whose_spec_has_not_come_is_one_sentence(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    ticket = Ticket(run=spec().run, addrs=(ADDR,), secret=b"")
    founding.save(HeldRun(ticket, None), directory)
    with pytest.raises(ConfigError, match=r"the spec of run .* is not there yet, expected a run"):
        cli_ledger.contributions(as_json=True, data_dir=directory.root)
