"""Snapshots on disk and checkpoints in flight: safetensors, written whole or not at all.

A snapshot is all that a worker needs to go on bit by bit as if it had not been stopped: slow
weights phi, outer momentum delta, fast weights theta, AdamW's moments, and what else the trainer
keeps ("shared.NAME", "own.NAME").  Beside them the digest of the run's spec (`run`) and counters:
`inner_step` is the position in the data, for a batch is drawn by (seed, peer, step); `round` says
which fragment's turn it is and, with `step_in_round`, the learning rate; every generator is made
anew from the run's seed, peer and round, so none has a state to keep.

A checkpoint is the part that a joiner starts from: phi, delta and what is shared.  Both have a
BLAKE2b-256 of each tensor and one of all the numbers, for safetensors would read a flipped bit as
just another weight.  Readers take nothing on trust: a checkpoint is a stranger's.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialized
from safetensors.torch import save_file
from torch import Tensor

from node.snapshots import (
    OWN,
    SHARED,
    SnapshotPlace,
    being_written,
    check_readable,
    digests,
    newest_usable,
    number,
    sealed,
    snapshot_name,
    unsealed,
)
from protocol.errors import Malformed
from protocol.ids import Round, RunId, digest_of
from protocol.limits import MAX_ROUND, MAX_STEP
from trainers.inner import Moments
from trainers.state import Fast, Slow

MAX_KEPT = 4
"""Of each kind: a trainer keeps two at most."""


class NotFinite(ValueError):
    """A state that is not worth a file; the sentence says what is wrong with it."""


def save_snapshot(directory: Path, run: RunId, slow: Slow, fast: Fast) -> Path:
    """Write a snapshot; all but the newest few go.

    Raises:
        OSError: the disk is full or away; the older files are as they were.
        NotFinite: training diverged; nobody could start from this.
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
    path = directory / snapshot_name(SnapshotPlace(slow.round, fast.inner_step))
    write_tensors(path, run, tensors, numbers)
    return path


def load_newest(directory: Path, run: RunId, count: int) -> tuple[Slow, Fast, str]:
    """The newest snapshot that can be read, and a note about newer ones that cannot.

    Raises:
        NoSnapshot: none can.
    """
    (slow, fast), note = newest_usable(directory, run, lambda path: _load(path, run, count))
    return slow, fast, note


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
    return serialized_tensors(run, _slow_tensors(slow), {"round": slow.round})


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
        tensors["first"], tensors["second"], number(numbers, "moment_steps", MAX_STEP)
    )
    fast = Fast(
        tensors["theta"],
        moments,
        number(numbers, "inner_step", MAX_STEP),
        number(numbers, "step_in_round", MAX_STEP),
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


def write_tensors(
    path: Path, run: RunId, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]
) -> None:
    """Write a file of named vectors, whole or not at all.

    Raises:
        OSError: the disk is full or away; the older files are as they were.
        NotFinite: training diverged.
    """
    here = _here(tensors)
    for name, vector in here.items():
        if vector.is_floating_point() and not torch.isfinite(vector).all():
            raise NotFinite(f"{name} has values that are not finite; training diverged")
    metadata = _sealed(run, here, numbers)
    with being_written(path, sum(vector.nbytes for vector in here.values())) as partial:
        try:
            save_file(here, partial, metadata)
        except safetensors.SafetensorError as error:  # of the disk: it has nothing else to say
            raise OSError(str(error)) from error


def serialized_tensors(
    run: RunId, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]
) -> bytes:
    """The same file as bytes; equal vectors give equal ones."""
    here = _here(tensors)
    return serialized(here, _sealed(run, here, numbers))


def check_names(names: Iterable[str], numbers: Mapping[str, object]) -> None:
    """Raises Malformed: there are other tensors than were written; one that is gone is missed."""
    found, written = set(names), set(digests(numbers))
    if found != written:
        odd = ", ".join(f"{name:.40}" for name in sorted(found ^ written)[:3])
        raise Malformed(f"broken: its tensors are not those that were written: {odd}")


def check_digest(vector: Tensor, name: str, numbers: Mapping[str, object]) -> None:
    """Raises Malformed: these are not the bytes that were written."""
    if digest_of(_bytes(vector)).hex() != digests(numbers).get(name):
        raise Malformed(f"broken: {name} is not what was written, by its digest")


def _here(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _sealed(
    run: RunId, here: Mapping[str, Tensor], numbers: Mapping[str, object]
) -> dict[str, str]:
    contents = {name: _bytes(tensor) for name, tensor in here.items()}
    return sealed({"run": run.hex(), **numbers}, contents)


def _bytes(vector: Tensor) -> memoryview:
    """Little endian, and no copy."""
    return vector.numpy().data.cast("B")


def _read(
    path: Path, run: RunId, count: int, names: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The named vectors, each finite float32 (count,), and the numbers beside them."""
    check_readable(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            numbers = unsealed(file.metadata(), run)
            check_names(file.keys(), numbers)
            missing = set(names) - set(file.keys())
            if missing:
                raise Malformed(f"without {', '.join(sorted(missing))}")
            tensors = {name: _vector(file, name, count) for name in names}
            kept = [name for name in file.keys() if name.startswith((SHARED, OWN))]  # noqa: SIM118
            if len(kept) > 2 * MAX_KEPT:
                raise Malformed(f"{len(kept)} vectors beside the weights, at most {2 * MAX_KEPT}")
            tensors |= {name: _vector(file, name, count, least=1) for name in sorted(kept)}
            for name, vector in tensors.items():
                check_digest(vector, name, numbers)
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
