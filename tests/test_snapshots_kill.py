"""kill -9 at any moment while snapshots are written: what is on disk can always be used.

One process imports torch and forks those that save, again and again, until they are killed.
"""

from __future__ import annotations

import os
import queue
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import torch
from torch import Tensor

from node.snapshots import UNFINISHED, remove_unfinished, snapshot_files, snapshot_place
from node.worker.files import load_newest, save_snapshot
from node.worker.saver import Saver
from protocol.ids import Round, RunId
from trainers.inner import Moments
from trainers.state import Fast, Slow

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(300)]  # with real processes

RUN = RunId(b"\x01" * 32)
COUNT = 250_000
"""Numbers in each of six vectors: 6 MB a file."""
KILLS = 10
LONGEST_S = 0.3
"""From the first save of a process to its end; a save takes a tenth of it on an idle machine."""
PATIENCE_S = 120.0


def begun(directory: Path) -> list[Path]:
    """Files that are being written."""
    return list(directory.glob(f"{UNFINISHED}*/*"))


def vector(value: float) -> Tensor:
    return torch.full((COUNT,), float(value))


def state(step: int) -> tuple[Slow, Fast]:
    """Every number of it says which step it is of."""
    slow = Slow(Round(step), vector(step), vector(step), own={"residual": vector(step)})
    return slow, Fast(vector(step), Moments(vector(step), vector(step), step), step, 0)


def save_for_ever(directory: Path) -> None:
    """Go on from what is on disk, and tell each step that is saved; in the saver's thread."""
    torch.set_num_threads(1)
    written: queue.Queue[int] = queue.Queue()

    def write(step: int) -> None:
        save_snapshot(directory, RUN, *state(step))
        os.write(1, f"{step}\n".encode())
        written.put(step)

    remove_unfinished(directory)
    places = [snapshot_place(path) for path in snapshot_files(directory)]
    step = places[0].inner_step if places and places[0] else 0
    saver: Saver[int] = Saver(write)
    while True:
        step += 1
        saver.save(step)
        written.get()


def main(directory: Path) -> None:
    """For each line on standard input, fork a process that saves, and tell its pid."""
    for _ in sys.stdin:
        if (pid := os.fork()) == 0:
            save_for_ever(directory)
        os.write(1, f"pid {pid}\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"ended\n")


def told(lines: IO[bytes], until: float) -> str | None:
    """The next line; None: none came in time."""
    ready, _, _ = select.select([lines], [], [], max(until - time.monotonic(), 0.0))
    return lines.readline().decode().strip() if ready else None


def step_on_disk(directory: Path) -> int:
    """Of the newest snapshot, every number of which has to be of that step."""
    slow, fast, note = load_newest(directory, RUN, COUNT)
    assert note == ""
    vectors = [slow.phi_P, slow.delta_P, slow.own["residual"], fast.theta_P]
    vectors += [fast.moments.first_P, fast.moments.second_P]
    assert all(bool((vector == fast.inner_step).all()) for vector in vectors)
    assert (slow.round, fast.moments.steps) == (fast.inner_step, fast.inner_step)
    return fast.inner_step


@pytest.mark.parametrize("seed", [20260])
def test_a_process_killed_ten_times_while_it_saves_leaves_a_whole_and_recent_snapshot(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    half_written = 0
    command = [sys.executable, __file__, str(tmp_path)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as forker:  # fmt: skip
        assert forker.stdin is not None
        assert forker.stdout is not None
        for kill in range(KILLS):
            forker.stdin.write(b"go\n")
            first = told(forker.stdout, time.monotonic() + PATIENCE_S)
            lines = [first, told(forker.stdout, time.monotonic() + PATIENCE_S)]
            pid = next(int(line.split()[1]) for line in lines if line and line.startswith("pid"))
            moment_s = rng.uniform(0.0, LONGEST_S)
            until = time.monotonic() + moment_s
            while (line := told(forker.stdout, until)) is not None:
                lines.append(line)
            while kill % 2 and time.monotonic() < until + PATIENCE_S and not begun(tmp_path):
                pass  # every other kill comes while a file is written; a fast disk is idle often
            os.kill(pid, signal.SIGKILL)
            while lines[-1] != "ended":
                lines.append(told(forker.stdout, time.monotonic() + PATIENCE_S))
            saved = max(int(line) for line in lines if line and line.isdecimal())
            half_written += bool(begun(tmp_path))
            found = step_on_disk(tmp_path)
            what = f"kill {kill} after {moment_s:.3f} s: told {saved}, found {found}"
            assert found in (saved, saved + 1), what  # the next may be whole, and nobody told
        forker.stdin.close()
    assert half_written > 0, "no kill came while a file was written: this tests nothing"
    remove_unfinished(tmp_path)
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
