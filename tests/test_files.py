"""Small files on a real disk: written whole, and nothing is left beside them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.files import write_atomically
from protocol.errors import ConfigError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_file_is_replaced_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    for data in (b"before", b"after"):
        write_atomically(tmp_path / "peers", data)
    assert contents(tmp_path) == {"peers": b"after"}
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o600


KILLED = """
import os, signal, sys
from pathlib import Path
from node.files import write_atomically
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"half" * 1000)
"""


def test_what_killed_processes_leave_is_one_file_at_most_and_goes_with_the_next_write(
    tmp_path: Path,
) -> None:
    path = tmp_path / "peers"
    write_atomically(path, b"before")
    root = Path(__file__).parents[1]
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False, cwd=root)
        assert killed.returncode == -9
    assert path.read_bytes() == b"before"
    assert len(contents(tmp_path)) == 2
    write_atomically(path, b"after")
    assert contents(tmp_path) == {"peers": b"after"}


def test_a_link_that_lies_where_a_file_is_to_be_made_is_not_followed(tmp_path: Path) -> None:
    """In a folder that others may write to it could lead anywhere."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "peers.partial").symlink_to("precious")
    write_atomically(tmp_path / "peers", b"after")
    assert contents(tmp_path) == {"precious": b"mine", "peers": b"after"}


def test_a_place_that_takes_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^disk: No such file .* expected to write 4 bytes; "):
        write_atomically(tmp_path / "none" / "peers", b"here")
    (tmp_path / "peers.partial").mkdir()
    with pytest.raises(ConfigError, match=f"^disk: .* at {os.fspath(tmp_path)}/peers, expected"):
        write_atomically(tmp_path / "peers", b"here")
    assert contents(tmp_path) == {}
