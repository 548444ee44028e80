"""Which labs there are on this machine, whose they are, and how one is removed without a trace.

Each lab has a file that names its owner, written before anything else is made.  A lab whose owner
is dead, by SIGKILL for instance, is found by it and removed by `scripts/natlab down`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from node.natlab.commands import LabFailed, run

FOLDER = Path("/run/shoal-natlab")
"""Empty after a boot, as `NAMESPACES` is."""
NAMESPACES = Path("/run/netns")
PREFIX = "shoal-natlab-"
GONE_S = 5.0
"""For processes to end after SIGKILL; one takes milliseconds."""
GONE_POLL_S = 0.005
"""The kernel tells the end of a child, not that of a child's child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lab, and the process that made it and is to remove it."""

    name: str
    """A prefix of all its namespaces."""
    pid: int
    started: int
    """The tick at which that process began: another one may get its id."""
    kinds: tuple[str, ...]

    @property
    def is_dead(self) -> bool:
        """Its owner has ended."""
        return _started(self.pid) != self.started

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"


def claim(name: str, kinds: tuple[str, ...]) -> Claim:
    """Write down that the lab `name` is of this process."""
    started = _started(os.getpid())
    assert started is not None
    made = Claim(name=name, pid=os.getpid(), started=started, kinds=kinds)
    FOLDER.mkdir(exist_ok=True)
    made.file.write_text(json.dumps(asdict(made)))
    return made


def claims() -> list[Claim]:
    """All labs of this machine, the newest last."""
    files = sorted(FOLDER.glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [_read(file) for file in files]


def namespaces(lab: str) -> list[str]:
    """The namespaces that the lab `lab` has now."""
    return sorted(path.name for path in NAMESPACES.glob(f"{lab}-*"))


async def remove(lab: Claim) -> None:
    """End every process inside the lab, then take down its namespaces and its file.

    Raises:
        LabFailed: something of it is still there.
    """
    left = namespaces(lab.name)
    try:
        async with asyncio.timeout(GONE_S):
            while pids := _inside(left):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(GONE_POLL_S)
    except TimeoutError:
        raise LabFailed(
            f"natlab: processes in {lab.name} outlive SIGKILL; run scripts/natlab down again"
        ) from None
    await run("ip", "-batch", "-", text="".join(f"netns del {name}\n" for name in left))
    lab.file.unlink(missing_ok=True)


def _inside(names: list[str]) -> list[int]:
    """The processes in these namespaces, those that are about to be reaped not among them."""
    inodes = {(NAMESPACES / name).stat().st_ino for name in names}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # gone meanwhile
                if (entry / "ns" / "net").stat().st_ino in inodes:
                    found.append(int(entry.name))
    return found


def _started(pid: int) -> int | None:
    """The tick since boot at which the process began, proc(5) field 22; None: there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _read(file: Path) -> Claim:
    fields = json.loads(file.read_text())
    return Claim(**fields | {"kinds": tuple(fields["kinds"])})
