"""The data directory: key, lock, run.  Every complaint is one sentence of three parts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from disks import data_dir, unlistable

from node.keys import DataDir
from protocol.errors import ConfigError
from protocol.ids import RunId

RUN, OTHER = RunId(b"r" * 32), RunId(b"o" * 32)


def complaint(error: pytest.ExceptionInfo[ConfigError]) -> str:
    """The sentence; it says what was found, what was expected and what to do."""
    text = str(error.value)
    assert "expected" in text
    assert re.search(r"; |, so ", text)
    assert "\n" not in text
    return text


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    first, second = directory.load_key(), directory.load_key()
    assert first.peer == second.peer
    assert directory.key.stat().st_mode & 0o777 == 0o600
    assert directory.root.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in directory.root.iterdir()) == [
        "blobs",
        "key",
        "records",
        "worker",
    ]


def test_two_directories_have_two_keys(tmp_path: Path) -> None:
    assert data_dir(tmp_path / "a").load_key().peer != data_dir(tmp_path / "b").load_key().peer


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31, "ab" * 33, "\u00e9" * 32])
def test_a_broken_key_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    directory = data_dir(tmp_path)
    directory.load_key()
    directory.key.write_text(content)
    with pytest.raises(ConfigError) as error:
        directory.load_key()
    assert "64 hex digits" in complaint(error)
    assert directory.key.read_text() == content


@pytest.mark.parametrize("line", [0, 1])
def test_a_flipped_bit_in_the_key_file_makes_no_new_peer(tmp_path: Path, line: int) -> None:
    directory = data_dir(tmp_path)
    peer = directory.load_key().peer
    lines = directory.key.read_text().splitlines()
    assert lines[1] == peer
    lines[line] = lines[line][:-1] + ("1" if lines[line][-1] != "1" else "3")
    directory.key.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as error:
        directory.load_key()
    assert f"expected that of the peer in its second line, '{lines[1]}'" in complaint(error)
    assert (f"found the key of {peer}" in str(error.value)) == (line == 1)
    assert directory.key.read_text().splitlines() == lines


def test_a_key_file_without_the_id_of_its_peer_is_refused(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    peer = directory.load_key().peer
    directory.key.write_text(directory.key.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError) as error:
        directory.load_key()
    assert f"found the key of {peer}, expected that of the peer in its second" in complaint(error)


def test_a_key_that_is_gone_from_a_run_is_not_made_anew(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    directory.load_key()
    directory.claim_run(RUN)
    directory.key.unlink()
    with pytest.raises(ConfigError) as error:
        directory.load_key()
    assert str(directory.key) in complaint(error)
    assert not directory.key.exists()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    directory.load_key()
    directory.key.chmod(0o640)
    with pytest.raises(ConfigError) as error:
        directory.load_key()
    assert "found mode 0640, expected 0600" in complaint(error)


def test_a_second_node_on_the_directory_is_told_the_process_id_of_the_first(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    with directory.locked(), pytest.raises(ConfigError) as error, directory.locked():
        pass
    assert f"process id {os.getpid()}, expected no other node" in complaint(error)
    with directory.locked():
        pass


def test_the_lock_of_a_killed_node_does_not_stay(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    killed = (
        "import os, pathlib, node.keys\n"
        f"with node.keys.DataDir(pathlib.Path({str(directory.root)!r})).locked():\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", killed], check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert ended.returncode == -9
    assert directory.lock.read_text().strip().isdigit()
    with directory.locked():
        assert directory.lock.read_text() == f"{os.getpid()}\n"


def test_a_directory_holds_one_run(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    assert directory.claimed_run() is None
    directory.claim_run(RUN)
    directory.claim_run(RUN)
    with pytest.raises(ConfigError) as error:
        directory.claim_run(OTHER)
    assert "found run 72727272, expected run 6f6f6f6f" in complaint(error)
    assert directory.claimed_run() == RUN


def test_runs_that_look_alike_in_short_are_named_whole(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    directory.claim_run(RUN)
    flipped = RunId(RUN[:-1] + b"s")
    with pytest.raises(ConfigError) as error:
        directory.check_run(flipped)
    assert f"found run {RUN.hex()}, expected run {flipped.hex()};" in complaint(error)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = data_dir(tmp_path)
    unlistable(monkeypatch, directory.worker)
    with pytest.raises(ConfigError) as error:
        directory.create()
    assert f"Permission denied at {directory.worker}, expected a directory to" in complaint(error)


def test_a_broken_run_file_is_named(tmp_path: Path) -> None:
    directory = data_dir(tmp_path)
    directory.run.write_text("not a run\n")
    with pytest.raises(ConfigError) as error:
        directory.claim_run(RUN)
    assert "the id of a run" in complaint(error)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as error:
        DataDir(tmp_path / "file" / "node").create()
    assert "Not a directory" in complaint(error)
