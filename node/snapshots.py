"""A worker's snapshots on disk: their names, what they say of themselves, and which are kept.

A name that ends in `.safetensors` is always a whole file: it is written in a folder beside,
flushed, and renamed.  What is found broken or of another run gets another name and stays, so
that nothing somebody may miss is overwritten.  What was trained beyond weights that were then
taken over from a member goes, once those are on disk.  For whoever looks at the directory without
torch; `node.worker.files` and `node.worker.sums` know what is inside.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors

from node.files import set_aside, settle
from protocol.check import integer
from protocol.errors import Malformed
from protocol.ids import RunId, digest_of, short

T = TypeVar("T")

SNAPSHOTS = "snapshot-*.safetensors"
KEPT = 3
"""Files of a run: the newest, one more should its disk block be bad, and one from before both.
Each holds the model some five times; a fourth has never been of use."""
UNFINISHED = "unfinished-"
"""Folders, one for each process that writes: what is in them is not whole."""
SPARE_BYTES = 16 << 20
"""Left free on the disk beside a snapshot: for the node's key, records and log."""
METADATA_KEY = "shoal"
"""Of the one line of JSON in a file's metadata."""
MAX_METADATA_CHARS = 1 << 20
"""A horizon of 2,048 logs has 200,000; the rest is some thousand."""
SHARED = "shared."
OWN = "own."
DIGEST, DIGESTS = "digest", "digests"
"""Of the whole line but itself, and of each tensor's bytes: BLAKE2b-256 in hex."""

Buffer = bytes | bytearray | memoryview


class NoSnapshot(Exception):
    """There is nothing on disk to go on from; the sentence says why."""


@dataclass(frozen=True, slots=True)
class SnapshotPlace:
    """Where a snapshot was taken, as its name says."""

    round: int
    inner_step: int


# --- names --------------------------------------------------------------------------------------


def snapshot_files(directory: Path) -> list[Path]:
    """The snapshots in a directory, newest first: their names sort by round and step.

    Raises:
        OSError: it is there and cannot be read, which is not the same as none.
    """
    try:
        with os.scandir(directory) as entries:  # `Path.glob` says nothing of what is refused
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(fnmatch.filter(names, SNAPSHOTS), reverse=True)]


def snapshots_seen(directory: Path) -> list[Path]:
    """The same, but none in a directory that cannot be read: for who looks again soon."""
    with contextlib.suppress(OSError):
        return snapshot_files(directory)
    return []


def snapshot_name(place: SnapshotPlace) -> str:
    """The name of its file."""
    return f"snapshot-{place.round:08d}-{place.inner_step:013d}.safetensors"


def snapshot_place(path: Path) -> SnapshotPlace | None:
    """What the name says; None: it is no snapshot's."""
    parts = path.stem.split("-")
    if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return None
    return SnapshotPlace(int(parts[1]), int(parts[2]))


# --- what a file says of itself -----------------------------------------------------------------


def sealed(numbers: Mapping[str, object], tensors: Mapping[str, Buffer]) -> dict[str, str]:
    """The metadata of a file: one line of JSON with digests of the tensors and of itself.

    One key only: several would come in random order, and equal states would differ.

    Args:
        numbers: `run`, hex, and what else is to be known; what a seal says is made anew.
        tensors: the bytes of each, by name.
    """
    content = {name: value for name, value in numbers.items() if name != DIGEST}
    content[DIGESTS] = {name: digest_of(tensor).hex() for name, tensor in tensors.items()}
    return {METADATA_KEY: _line({**content, DIGEST: digest_of(_line(content).encode()).hex()})}


def unsealed(metadata: Mapping[str, str] | None, run: RunId) -> dict[str, object]:
    """The numbers that were sealed, and the `digests` of the tensors.

    Raises:
        Malformed: not shoal's, damaged, or of another run.
    """
    line = (metadata or {}).get(METADATA_KEY, "")
    try:
        content = json.loads(line) if len(line) <= MAX_METADATA_CHARS else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("run"), str):
        raise Malformed("no file of shoal: its metadata do not say of which run it is")
    expected = content.pop(DIGEST, None)
    if digest_of(_line(content).encode()).hex() != expected:
        raise Malformed("broken: its metadata are not those that were written")
    if content["run"] != run.hex():
        raise Malformed(f"belongs to run {content['run']:.8}, expected {short(run)}")
    return content


def check_readable(path: Path) -> None:
    """Raises OSError: it cannot be opened, and why; safetensors would say that it is gone."""
    with path.open("rb"):
        pass


def numbers_of(path: Path, run: RunId) -> dict[str, object]:
    """What a file says of itself, without its tensors.

    Raises:
        Malformed: not whole, not shoal's, or of another run.
        OSError: it cannot be read.
    """
    check_readable(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return unsealed(file.metadata(), run)
    except (safetensors.SafetensorError, ValueError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"broken: {error}") from error


def digests(numbers: Mapping[str, object]) -> dict[str, str]:
    """The digests of a file's tensors, hex by name."""
    found = numbers.get(DIGESTS)
    if not isinstance(found, dict) or not all(isinstance(hex, str) for hex in found.values()):
        raise Malformed("no file of shoal: it has no digests of its tensors")
    return found


def number(numbers: Mapping[str, object], name: str, most: int) -> int:
    value = numbers.get(name)
    try:
        integer(name, value, 0, most)
    except ValueError as error:
        raise Malformed(str(error)) from None
    assert isinstance(value, int)
    return value


def _line(content: Mapping[str, object]) -> str:
    return json.dumps(content, sort_keys=True)


# --- writing, keeping, passing over -------------------------------------------------------------


@contextlib.contextmanager
def being_written(path: Path, size_bytes: int) -> Iterator[Path]:
    """A path to write a snapshot at; at the end it is flushed and named `path`, or gone.

    Older snapshots than the newest `KEPT` go; what is named as newer is none of our business.

    Raises:
        OSError: no room, or the disk is away; the older files are as they were.
    """
    folder = path.parent / f"{UNFINISHED}{os.getpid()}"
    free = shutil.disk_usage(path.parent).free
    if free < size_bytes + SPARE_BYTES:
        raise OSError(
            f"{free >> 20} MiB are free in {path.parent}, expected "
            f"{(size_bytes + SPARE_BYTES) >> 20} MiB; free some space, older snapshots are kept"
        )
    try:
        folder.mkdir(exist_ok=True)
        partial = folder / path.name
        yield partial
        settle(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for old in [file for file in snapshot_files(path.parent) if file.name <= path.name][KEPT:]:
        old.unlink(missing_ok=True)


def remove_given_up(path: Path, run: RunId) -> str:
    """Remove the snapshots that are named as newer than this one, with which training went back.

    Whoever is killed meanwhile goes on from the newest that is left, as if it had been earlier.
    What cannot be read, or is of another run, is set aside, and the note says so.

    Raises:
        OSError: the disk is away, and the newest by name is still another one.
    """
    notes: list[str] = []
    for newer in reversed(snapshot_files(path.parent)):
        if newer.name <= path.name:
            continue
        try:
            numbers_of(newer, run)
        except (Malformed, OSError) as error:
            notes.append(f"{newer.name}: {error}; {set_aside(newer)}")
        else:
            newer.unlink(missing_ok=True)
    return "; ".join(notes)


def remove_unfinished(directory: Path) -> None:
    """Remove what a process that was killed left half written."""
    for folder in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def newest_usable(directory: Path, run: RunId, read: Callable[[Path], T]) -> tuple[T, str]:
    """The newest snapshot that can be read, and a note about those that cannot.

    Broken ones, and those of another run, are set aside; what the disk does not give stays.

    Args:
        read: raises Malformed, OSError.

    Raises:
        NoSnapshot: none can be read.
    """
    found: list[T] = []
    notes: list[str] = []
    files = snapshot_files(directory)
    for path in files:
        try:
            if found:
                numbers_of(path, run)  # of another run it must not go as an old one of ours
            else:
                found.append(read(path))
        except Malformed as error:
            notes.append(f"{path.name}: {error}; {set_aside(path)}")
        except OSError as error:
            notes.append(f"{path.name}: {error.strerror or error}; left as it is")
    if found:
        return found[0], "; ".join(notes)
    if not files:
        raise NoSnapshot(f"no snapshot in {directory}")
    raise NoSnapshot(f"no usable snapshot in {directory}: {'; '.join(notes)}")
