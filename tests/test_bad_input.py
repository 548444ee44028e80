"""A real `shoal` that cannot do what it was told: one sentence, exit status 2, nothing lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samples import OTHER, RUN

from node.keys import DataDir
from node.local_swarm import LOOPBACK, ROOT
from protocol.ticket import Ticket

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(60)]

SHOAL = (sys.executable, "-m", "node.cli")


def refused(*command: str) -> str:
    """The one sentence that `command` says before it ends with status 2; logs are left out."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("shoal: ")]
    return sentence


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A node that runs until the block ends; has printed its first line."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        try:
            assert node.stdout.readline()
            yield node
        finally:
            node.terminate()


def ticket(port: int = 1) -> str:
    """Of a run that nobody is in."""
    addr = f"/ip4/127.0.0.1/tcp/{port}/p2p/{OTHER.peer}"
    return str(Ticket(run=RUN, addrs=(addr,), secret=b""))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = f"/ip4/127.0.0.1/tcp/{port}"
        said = refused(*SHOAL, "bootstrap", "--data-dir", str(tmp_path / "n"), "--listen", listen)
    assert f"found port {port} of 127.0.0.1 in use" in said
    assert "choose another port" in said


def test_a_ticket_whose_members_nobody_can_reach_is_given_up_with_a_reason(
    tmp_path: Path,
) -> None:
    (tmp_path / "node.toml").write_text("first_contact_s = 1\n")
    said = refused(
        *SHOAL, "join", ticket(), "--data-dir", str(tmp_path), "--listen", LOOPBACK
    )  # fmt: skip
    assert "no member of run" in said
    assert "answered within 1 s at /ip4/127.0.0.1/tcp/1/" in said


def test_a_second_node_on_a_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    command = (*SHOAL, "bootstrap", "--data-dir", str(tmp_path), "--listen", LOOPBACK)
    with running(*command) as first:
        assert f"in use by the node with process id {first.pid}" in refused(*command)
        status = (*SHOAL, "status", "--quiet", "--data-dir", str(tmp_path))
        assert subprocess.run(status, cwd=ROOT, check=False).returncode == 0


def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    DataDir(tmp_path).load_key()
    (tmp_path / "run").write_text("ab" * 32 + "\n")
    said = refused(*SHOAL, "join", ticket(), "--data-dir", str(tmp_path), "--listen", LOOPBACK)
    assert "found run abababab, expected run" in said
    assert (tmp_path / "run").read_text() == "ab" * 32 + "\n"


WITHOUT_ROOT = os.geteuid() != 0 and not os.environ.get("CI")
"""Such tests are skipped on a person's machine; where CI is set they fail instead."""


@pytest.mark.skipif(WITHOUT_ROOT, reason="mounting a small disk needs root")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A disk of 200 KiB in a mount namespace that ends with the node."""
    run_file = tmp_path / "run.toml"
    run_file.write_text('data = "pydoc"\n')
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=200k none "{disk}" && exec "$@"'
    said = refused(
        "unshare", "--mount", "sh", "-c", script, "sh", *SHOAL, "run", "create", str(run_file),
        "--data-dir", str(disk), "--listen", LOOPBACK,
    )  # fmt: skip
    assert "No space left on device" in said
    assert "free some space" in said


@pytest.mark.skipif(WITHOUT_ROOT, reason="mounting a small disk needs root")
def test_a_disk_without_room_for_the_lock_is_named(tmp_path: Path) -> None:
    """A disk of one page, taken."""
    script = f'mount -t tmpfs -o size=4k none "{tmp_path}" && echo x >"{tmp_path}/x" && exec "$@"'
    said = refused(
        "unshare", "--mount", "sh", "-c", script, "sh", *SHOAL, "bootstrap",
        "--data-dir", str(tmp_path), "--listen", LOOPBACK,
    )  # fmt: skip
    assert "lock file" in said
    assert "No space left on device" in said
    assert "free some space" in said
