"""The real demo: what is left of it when it is interrupted, and when one of its nodes is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local_swarm import ROOT

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

NODE_AND_WORKER = 2


def demo(*options: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", "node.cli", "demo", *options)


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory with a short name, for the paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="shoal-t-") as name:
        yield Path(name)


def processes_of(place: Path) -> list[int]:
    """All processes that were told to have their temporary files in `place`."""
    told = f"TMPDIR={place}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it has just ended, or is another user's
                continue
            if told in variables:
                found.append(int(entry.name))
    return found


def sockets_in(place: Path) -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if f" {place}/" in line]


def files_in(place: Path) -> list[str]:
    """But for torch's own cache, one for each user of a machine."""
    return [name for name in os.listdir(place) if not name.startswith("torchinductor_")]


async def test_an_interrupted_demo_leaves_no_process_file_or_socket(place: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        "env", f"TMPDIR={place}", *demo("--nodes", "2"), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    trains = re.compile(rb"node1: round.*node2: round")
    while not trains.search(line := await process.stdout.readline()):
        assert line, "it ended"
    assert len(processes_of(place)) == 1 + 2 * NODE_AND_WORKER
    assert len(sockets_in(place)) >= 2
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    assert (processes_of(place), sockets_in(place), files_in(place)) == ([], [], [])


@pytest.mark.parametrize(
    ("trainer", "steps", "rounds", "off"),
    [
        ("streaming", 36, 9, 0.03),
        ("spsa", 120, 6, 0.1),  # 13 kB in all; those that ended ask on until their sums are equal
    ],
)
async def test_the_demo_goes_on_to_its_end_when_one_of_its_nodes_is_killed(
    place: Path, trainer: str, steps: int, rounds: int, off: float
) -> None:
    result = place / "result.json"
    options = ("--trainer", trainer, "--nodes", "3", "--kill-one", "--steps", str(steps))
    process = await asyncio.create_subprocess_exec(
        *demo(*options, "--json", str(result)), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert b"node2 (killed)" in printed
    found = json.loads(result.read_text())
    assert (found["ok"], found["rounds"]) == (True, rounds)
    assert len(found["val_end_nodes"]) == 2
    assert max(found["val_end_nodes"]) < found["val_start"]
    assert found["bytes_sent"] == pytest.approx(found["bytes_closed_form"], rel=off)
    assert found["consensus"] < 1e-9  # all who are left have the same weights
