"""Snapshots on disk and checkpoints in flight: safetensors, written whole or not at all.

A snapshot is all that a worker needs to go on: slow weights phi, outer momentum delta, fast
weights theta, AdamW's moments, counters, the digest of the run's spec, and what else the trainer
keeps ("shared.NAME", "own.NAME").  A checkpoint is the part that a joiner starts from: phi,
delta and what is shared.  Both carry their numbers as one line of
JSON in the file's metadata (one key only: several would come in random order, and equal
states would have different bytes).

Files are written beside, flushed and renamed, so a name in the directory is always a whole
file; the newest two are kept.  Readers take nothing on trust: a checkpoint is a stranger's.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialized
from torch import Tensor

from node.snapshots import snapshot_files
from protocol.check import integer
from protocol.errors import Malformed
from protocol.ids import Round, RunId, short
from protocol.limits import MAX_ROUND
from trainers.inner import Moments
from trainers.state import Fast, Slow

FILES_KEPT = 2
"""The newest, and one more should its disk block be bad."""
METADATA_KEY = "shoal"
MAX_STEPS = 1 << 40
SHARED = "shared."
OWN = "own."
MAX_KEPT = 4
"""Of each kind: a trainer keeps two at most."""


class NoSnapshot(Exception):
    """There is nothing on disk to go on from; the sentence says why."""


def save_snapshot(directory: Path, run: RunId, slow: Slow, fast: Fast) -> Path:
    """Write a snapshot and remove all but the newest two.

    Raises:
        OSError: the disk is full or away; the older files are as they were.
    """
    tensors = _slow_tensors(slow) | {
        **{f"{OWN}{name}": kept for name, kept in slow.own.items()},
        "theta": fast.theta_P,
        "first": fast.moments.first_P,
        "second": fast.moments.second_P,
    }
    numbers = {
        "round": slow.round,
        "inner_step": fast.inner_step,
        "step_in_round": fast.step_in_round,
        "moment_steps": fast.moments.steps,
    }
    path = directory / f"snapshot-{slow.round:08d}-{fast.inner_step:013d}.safetensors"
    write_whole(path, _serialized(run, tensors, numbers))
    keep_newest(directory)
    return path


def keep_newest(directory: Path) -> None:
    """Remove the snapshots that nobody needs any more."""
    for old in snapshot_files(directory)[FILES_KEPT:]:
        old.unlink(missing_ok=True)


def load_newest(directory: Path, run: RunId, count: int) -> tuple[Slow, Fast, str]:
    """The newest snapshot that can be read, and a note about newer ones that cannot.

    Raises:
        NoSnapshot: none can.
    """
    files = snapshot_files(directory)
    notes: list[str] = []
    for path in files:
        try:
            slow, fast = _load(path, run, count)
        except (Malformed, OSError) as error:
            notes.append(f"{path.name}: {error}")
            continue
        return slow, fast, "; ".join(notes)
    if not files:
        raise NoSnapshot(f"no snapshot in {directory}")
    raise NoSnapshot(f"no usable snapshot in {directory}: {'; '.join(notes)}")


def read_weights(path: Path, run: RunId, count: int) -> tuple[Round, Tensor]:
    """The slow weights in a snapshot of any trainer, and their round.

    Raises:
        Malformed: broken, of another run or another model.
        OSError: it cannot be read.
    """
    tensors, numbers = _read(path, run, count, ("phi",))
    return Round(number(numbers, "round", MAX_ROUND)), tensors["phi"]


def checkpoint_bytes(run: RunId, slow: Slow) -> bytes:
    """The blob that a joiner starts from; equal states give equal bytes."""
    return _serialized(run, _slow_tensors(slow), {"round": slow.round})


def read_slow(path: Path, run: RunId, count: int) -> Slow:
    """Slow weights and outer momentum of a snapshot or a checkpoint.

    Raises:
        Malformed: broken, of another run or another model.
        OSError: it cannot be read.
    """
    tensors, numbers = _read(path, run, count, ("phi", "delta"))
    return replace(_slow(tensors, numbers), own={})  # whoever made it, it is not us


def _load(path: Path, run: RunId, count: int) -> tuple[Slow, Fast]:
    tensors, numbers = _read(path, run, count, ("phi", "delta", "theta", "first", "second"))
    moments = Moments(
        tensors["first"], tensors["second"], number(numbers, "moment_steps", MAX_STEPS)
    )
    fast = Fast(
        tensors["theta"],
        moments,
        number(numbers, "inner_step", MAX_STEPS),
        number(numbers, "step_in_round", MAX_STEPS),
    )
    return _slow(tensors, numbers), fast


def _slow(tensors: dict[str, Tensor], numbers: dict[str, object]) -> Slow:
    round = Round(number(numbers, "round", MAX_ROUND))
    shared, own = (
        {name.removeprefix(kind): kept for name, kept in tensors.items() if name.startswith(kind)}
        for kind in (SHARED, OWN)
    )
    return Slow(round, tensors["phi"], tensors["delta"], shared, own)


def _slow_tensors(slow: Slow) -> dict[str, Tensor]:
    shared = {f"{SHARED}{name}": kept for name, kept in slow.shared.items()}
    return {"phi": slow.phi_P, "delta": slow.delta_P, **shared}


def number(numbers: dict[str, object], name: str, most: int) -> int:
    value = numbers.get(name)
    try:
        integer(name, value, 0, most)
    except ValueError as error:
        raise Malformed(str(error)) from None
    assert isinstance(value, int)
    return value


def _serialized(run: RunId, tensors: dict[str, Tensor], numbers: dict[str, int]) -> bytes:
    metadata = {METADATA_KEY: json.dumps({"run": run.hex(), **numbers})}
    return serialized({name: tensor.cpu() for name, tensor in tensors.items()}, metadata)


def _read(
    path: Path, run: RunId, count: int, names: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The named vectors, each finite float32 (count,), and the numbers beside them."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if not isinstance(numbers, dict) or "run" not in numbers:
                raise Malformed("not a snapshot of shoal")
            if numbers["run"] != run.hex():
                raise Malformed(f"belongs to run {numbers['run']!s:.8}, expected {short(run)}")
            missing = set(names) - set(file.keys())
            if missing:
                raise Malformed(f"without {', '.join(sorted(missing))}")
            tensors = {name: _vector(file, name, count) for name in names}
            kept = [name for name in file.keys() if name.startswith((SHARED, OWN))]  # noqa: SIM118
            if len(kept) > 2 * MAX_KEPT:
                raise Malformed(f"{len(kept)} vectors beside the weights, at most {2 * MAX_KEPT}")
            tensors |= {name: _vector(file, name, count, least=1) for name in sorted(kept)}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"broken: {error}") from error
    return tensors, numbers


def _vector(
    file: safetensors.safe_open, name: str, count: int, *, least: int | None = None
) -> Tensor:
    """A vector of `count` finite numbers; with `least` it may have fewer."""
    # A stranger chose the sizes: look before reading.
    part = file.get_slice(name)  # type: ignore[no-untyped-call]
    dtype, shape = part.get_dtype(), part.get_shape()
    if dtype != "F32" or len(shape) != 1 or not (least or count) <= shape[0] <= count:
        raise Malformed(f"{name} is {dtype} {shape}, expected F32 [{count}]")
    mapped_P: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
    vector_P = mapped_P.clone()
    if not torch.isfinite(vector_P).all():
        raise Malformed(f"{name} has values that are not finite")
    return vector_P


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file: all of it or nothing, and on disk when this returns."""
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name, too
    finally:
        os.close(directory)
