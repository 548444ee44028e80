"""Files of an spsa run: the sum with its horizon, on disk and for joiners.

A snapshot also has the weights, for whoever wants to look at them; a checkpoint has not, for
they follow from the sum and the run's seed.  As in `node.worker_files`, files are whole or not
there, and a reader takes nothing on trust.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialized
from torch import Tensor

from node.snapshots import snapshot_files
from node.worker_files import METADATA_KEY, NoSnapshot, keep_newest, number, write_whole
from protocol.errors import Malformed
from protocol.ids import Round, RunId, short
from protocol.limits import MAX_ROUND
from protocol.scalar import MAX_STEP
from protocol.spsa import LogId, packed, unpacked


@dataclass(frozen=True, slots=True)
class SavedSum:
    """The sum, int64 (Q,), at a horizon, and how far its owner had come."""

    round: Round
    step: int
    sum_Q: Tensor
    horizon: dict[LogId, int]


def save_sum(directory: Path, run: RunId, saved: SavedSum, weights_P: Tensor) -> None:
    """Write a snapshot and remove all but the newest two.  Raises OSError: the disk refuses."""
    path = directory / f"snapshot-{saved.round:08d}-{saved.step:013d}.safetensors"
    write_whole(path, _serialized(run, saved, {"phi": weights_P.cpu()}))
    keep_newest(directory)


def sum_checkpoint(run: RunId, saved: SavedSum) -> bytes:
    """The blob that a joiner starts from; equal states give equal bytes."""
    return _serialized(run, saved, {})


def load_newest_sum(directory: Path, run: RunId) -> tuple[SavedSum, str]:
    """The newest snapshot that can be read, and a note about newer ones that cannot.

    Raises:
        NoSnapshot: none can.
    """
    notes: list[str] = []
    for path in snapshot_files(directory):
        try:
            return read_sum(path, run), "; ".join(notes)
        except (Malformed, OSError) as error:
            notes.append(f"{path.name}: {error}")
    raise NoSnapshot(f"no usable snapshot in {directory}: {'; '.join(notes) or 'none at all'}")


def read_sum(path: Path, run: RunId) -> SavedSum:
    """The sum in a file.

    Raises:
        Malformed: broken, or of another run.
        OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if not isinstance(numbers, dict) or numbers.get("run") != run.hex():
                raise Malformed(f"no sum of run {short(run)}")
            part = file.get_slice("sum")
            if part.get_dtype() != "I64" or len(part.get_shape()) != 1:
                raise Malformed(f"the sum is {part.get_dtype()} {part.get_shape()}")
            sum_Q: Tensor = file.get_tensor("sum").clone()
        horizon = unpacked(bytes.fromhex(str(numbers.get("horizon"))))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"broken: {error}") from error
    return SavedSum(
        Round(number(numbers, "round", MAX_ROUND)),
        number(numbers, "step", MAX_STEP),
        sum_Q,
        horizon,
    )


def _serialized(run: RunId, saved: SavedSum, more: dict[str, Tensor]) -> bytes:
    numbers = {
        "run": run.hex(),
        "round": saved.round,
        "step": saved.step,
        "horizon": packed(saved.horizon).hex(),
    }
    sum_Q = saved.sum_Q.to(torch.int64).cpu()
    return serialized({"sum": sum_Q, **more}, {METADATA_KEY: json.dumps(numbers)})
