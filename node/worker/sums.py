"""Files of an spsa run: the sum with its horizon, on disk and for joiners.

A snapshot also has the weights, for whoever wants to look at them; a checkpoint has not, for
they follow from the sum and the run's seed.  As in `node.worker.files`, files are whole or not
there, and a reader takes nothing on trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from node.snapshots import (
    SnapshotPlace,
    check_readable,
    newest_usable,
    number,
    snapshot_name,
    unsealed,
)
from node.worker.files import check_digest, check_names, serialized_tensors, write_tensors
from protocol.errors import Malformed
from protocol.ids import Round, RunId
from protocol.limits import MAX_ROUND, MAX_STEP
from protocol.spsa import LogId, packed, unpacked


@dataclass(frozen=True, slots=True)
class SavedSum:
    """The sum, int64 (Q,), at a horizon, and how far its owner had come."""

    round: Round
    step: int
    sum_Q: Tensor
    horizon: dict[LogId, int]


def save_sum(directory: Path, run: RunId, saved: SavedSum, weights_P: Tensor) -> None:
    """Write a snapshot; all but the newest few go.  Raises OSError, NotFinite: no file is made."""
    path = directory / snapshot_name(SnapshotPlace(saved.round, saved.step))
    write_tensors(path, run, {"sum": _sum(saved), "phi": weights_P}, _numbers(saved))


def sum_checkpoint(run: RunId, saved: SavedSum) -> bytes:
    """The blob that a joiner starts from; equal states give equal bytes."""
    return serialized_tensors(run, {"sum": _sum(saved)}, _numbers(saved))


def load_newest_sum(directory: Path, run: RunId) -> tuple[SavedSum, str]:
    """The newest snapshot that can be read, and a note about newer ones that cannot.

    Raises:
        NoSnapshot: none can.
    """
    return newest_usable(directory, run, lambda path: read_sum(path, run))


def read_sum(path: Path, run: RunId) -> SavedSum:
    """The sum in a file.

    Raises:
        Malformed: broken, or of another run.
        OSError: it cannot be read.
    """
    check_readable(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            numbers = unsealed(file.metadata(), run)
            check_names(file.keys(), numbers)
            part = file.get_slice("sum")
            if part.get_dtype() != "I64" or len(part.get_shape()) != 1:
                raise Malformed(f"the sum is {part.get_dtype()} {part.get_shape()}")
            sum_Q: Tensor = file.get_tensor("sum").clone()
        check_digest(sum_Q, "sum", numbers)
        horizon = unpacked(bytes.fromhex(str(numbers.get("horizon"))))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Malformed) else Malformed(f"broken: {error}") from error
    return SavedSum(
        Round(number(numbers, "round", MAX_ROUND)),
        number(numbers, "inner_step", MAX_STEP),
        sum_Q,
        horizon,
    )


def _sum(saved: SavedSum) -> Tensor:
    return saved.sum_Q.to(torch.int64)


def _numbers(saved: SavedSum) -> dict[str, object]:
    horizon = packed(saved.horizon).hex()
    return {"round": saved.round, "inner_step": saved.step, "horizon": horizon}
