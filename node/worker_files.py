"""Snapshots on disk and checkpoints in flight: safetensors, written whole or not at all.

A snapshot is all that a worker needs to go on: slow weights phi, outer momentum delta, fast
weights theta, AdamW's moments, counters, and the digest of the run's spec.  A checkpoint is
the part that a joiner starts from: phi and delta.  Both carry their numbers as one line of
JSON in the file's metadata (one key only: several would come in random order, and equal
states would have different bytes).

Files are written beside, flushed and renamed, so a name in the directory is always a whole
file; the newest two are kept.  Readers take nothing on trust: a checkpoint is a stranger's.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialized
from torch import Tensor

from node.worker_wire import snapshot_files
from protocol.check import integer
from protocol.errors import Malformed
from protocol.ids import Digest, Round, RunId, digest_of, short
from protocol.messages import MAX_ROUND
from trainers.inner import Moments

FILES_KEPT = 2
"""The newest, and one more should its disk block be bad."""
METADATA_KEY = "shoal"
MAX_STEPS = 1 << 40


@dataclass(frozen=True, slots=True)
class Slow:
    """Slow weights and outer momentum at the start of `round`, float32 (P,)."""

    round: Round
    phi_P: Tensor
    delta_P: Tensor

    def digest(self) -> Digest:
        """The name of the slow weights alone, float32 little endian."""
        return digest_of(self.phi_P.cpu().numpy().data.cast("B"))


@dataclass(frozen=True, slots=True)
class Fast:
    """Fast weights, float32 (P,), AdamW's state, and how far this peer has come."""

    theta_P: Tensor
    moments: Moments
    inner_step: int
    """Inner steps made in the run: the next one draws the batch of this number."""
    step_in_round: int
    """Of these, since the snapshot of the round before."""


class NoSnapshot(Exception):
    """There is nothing on disk to go on from; the sentence says why."""


def save_snapshot(directory: Path, run: RunId, slow: Slow, fast: Fast) -> Path:
    """Write a snapshot and remove all but the newest two.

    Raises:
        OSError: the disk is full or away; the older files are as they were.
    """
    tensors = {
        "phi": slow.phi_P,
        "delta": slow.delta_P,
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
    _write(path, _serialized(run, tensors, numbers))
    for old in snapshot_files(directory)[FILES_KEPT:]:
        old.unlink(missing_ok=True)
    return path


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


def checkpoint_bytes(run: RunId, slow: Slow) -> bytes:
    """The blob that a joiner starts from; equal states give equal bytes."""
    tensors = {"phi": slow.phi_P, "delta": slow.delta_P}
    return _serialized(run, tensors, {"round": slow.round})


def read_slow(path: Path, run: RunId, count: int) -> Slow:
    """Slow weights and outer momentum of a snapshot or a checkpoint.

    Raises:
        Malformed: broken, of another run or another model.
        OSError: it cannot be read.
    """
    tensors, numbers = _read(path, run, count, ("phi", "delta"))
    return _slow(tensors, numbers)


def _load(path: Path, run: RunId, count: int) -> tuple[Slow, Fast]:
    tensors, numbers = _read(path, run, count, ("phi", "delta", "theta", "first", "second"))
    moments = Moments(
        tensors["first"], tensors["second"], _number(numbers, "moment_steps", MAX_STEPS)
    )
    fast = Fast(
        tensors["theta"],
        moments,
        _number(numbers, "inner_step", MAX_STEPS),
        _number(numbers, "step_in_round", MAX_STEPS),
    )
    return _slow(tensors, numbers), fast


def _slow(tensors: dict[str, Tensor], numbers: dict[str, object]) -> Slow:
    round = Round(_number(numbers, "round", MAX_ROUND))
    return Slow(round, tensors["phi"], tensors["delta"])


def _number(numbers: dict[str, object], name: str, most: int) -> int:
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
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"broken: {error}") from error
    return tensors, numbers


def _vector(file: safetensors.safe_open, name: str, count: int) -> Tensor:
    # A stranger chose the sizes: look before reading.
    part = file.get_slice(name)  # type: ignore[no-untyped-call]
    if part.get_dtype() != "F32" or part.get_shape() != [count]:
        raise Malformed(f"{name} is {part.get_dtype()} {part.get_shape()}, expected F32 [{count}]")
    mapped_P: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
    vector_P = mapped_P.clone()
    if not torch.isfinite(vector_P).all():
        raise Malformed(f"{name} has values that are not finite")
    return vector_P


def _write(path: Path, data: bytes) -> None:
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
