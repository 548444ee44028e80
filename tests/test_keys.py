"""The data directory: key, lock, run.  Every complaint is one sentence of three parts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from node.keys import DataDir
from protocol.errors import ConfigError
from protocol.ids import RunId

RUN, OTHER = RunId(b"r" * 32), RunId(b"o" * 32)


def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "node")
    made.create()
    return made


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
