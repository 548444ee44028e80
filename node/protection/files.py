"""What of a snapshot is protected, and the snapshot that comes of it.

In a group slow weights and outer momentum are everybody's, equal to the bit, so only the rest
of the file is cut into shards; what is missing comes from any member's checkpoint.  In noloco,
where each has slow weights of its own, and in local it is the whole file.  Files are read as
their format has it, without torch; the worker checks every number when it loads the result.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from node.snapshots import METADATA_KEY, SHARED, SnapshotPlace, sealed
from protocol.algorithms import DilocoConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.ids import digest_of
from protocol.messages import Checkpoint
from protocol.spec import RunSpec

COMMON = ("phi", "delta")
"""Slow weights and outer momentum."""
VECTORS = 13
"""A snapshot has five vectors, and `node.worker.files.MAX_KEPT` more of two kinds at most."""
NUMBER_BYTES = 4
HEADER_BYTES = 16 * 1024
"""Names, shapes and numbers of a snapshot: 1 KiB."""
LENGTH_BYTES = 8
"""Of the header's length, in front of all."""
ALIGNED_BYTES = 8
"""The vectors begin at a multiple of this."""
DTYPE = "F32"

Memory = bytes | memoryview


@dataclass(frozen=True, slots=True)
class _File:
    """Vectors by name, as they lie in the file, and the numbers beside them."""

    vectors: dict[str, memoryview]
    numbers: dict[str, Any]


def is_whole(spec: RunSpec) -> bool:
    """Whether what is protected is a whole snapshot, which needs nobody's checkpoint."""
    return not isinstance(spec.trainer, DilocoConfig)


def most_bytes(spec: RunSpec) -> int:
    """No snapshot of this run has more."""
    return VECTORS * NUMBER_BYTES * num_parameters(spec.model) + HEADER_BYTES


def private_part(spec: RunSpec, snapshot: bytes) -> bytes:
    """What of a snapshot nobody else has.

    Raises:
        Malformed: the file is none.
    """
    if is_whole(spec):
        return snapshot
    file = _read(snapshot)
    kept = {name: vector for name, vector in file.vectors.items() if not _is_common(name)}
    return _written(_File(kept, file.numbers))


def whole_again(
    private: bytes, shared: Memory, checkpoint: Checkpoint
) -> tuple[SnapshotPlace, bytes]:
    """A snapshot from what was private and a member's checkpoint, and where it stands.

    At the checkpoint's round the fast weights go on where they were; at another round they
    begin from its slow weights, and moments, counters and what else was ours is kept.

    Args:
        shared: the bytes of the checkpoint.
        checkpoint: what the member said of them.

    Raises:
        Malformed: one of them is none of this kind, or the checkpoint is another than was said.
    """
    ours, theirs = _read(private), _read(shared)
    missing = set(COMMON) - set(theirs.vectors)
    if missing:
        raise Malformed(f"a checkpoint without {', '.join(sorted(missing))}")
    numbers, vectors = dict(ours.numbers), dict(ours.vectors)
    if ours.numbers.get("run") != theirs.numbers.get("run"):
        raise Malformed("a checkpoint of another run")
    is_round = theirs.numbers.get("round") == checkpoint.round
    if not is_round or digest_of(theirs.vectors["phi"]) != checkpoint.weights:
        raise Malformed("a checkpoint of another round or with other weights than it says")
    if ours.numbers.get("round") != theirs.numbers.get("round"):
        numbers |= {"round": theirs.numbers.get("round"), "step_in_round": 0}
        vectors["theta"] = theirs.vectors["phi"]
    vectors |= {name: vector for name, vector in theirs.vectors.items() if _is_common(name)}
    return _place(numbers), _written(_File(vectors, numbers))


def place_of(snapshot: bytes) -> SnapshotPlace:
    """Where a whole snapshot stands.  Raises Malformed: it is none."""
    return _place(_read(snapshot).numbers)


def _is_common(name: str) -> bool:
    """Whether all members have this vector."""
    return name in COMMON or name.startswith(SHARED)


def _place(numbers: dict[str, Any]) -> SnapshotPlace:
    round, inner_step = numbers.get("round"), numbers.get("inner_step")
    if type(round) is not int or type(inner_step) is not int or min(round, inner_step) < 0:
        raise Malformed(f"a snapshot of round {round!r:.20} and step {inner_step!r:.20}")
    return SnapshotPlace(round, inner_step)


def _read(data: Memory) -> _File:
    try:
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        body = memoryview(data)[LENGTH_BYTES + length :]
        header = json.loads(bytes(data[LENGTH_BYTES : LENGTH_BYTES + length]))
        numbers = json.loads(header.pop("__metadata__")[METADATA_KEY])
        vectors = {name: _vector(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"no snapshot: {type(error).__name__} {error!s:.80}") from error
    if not isinstance(numbers, dict) or len(vectors) > VECTORS:
        raise Malformed(f"no snapshot: {len(vectors)} vectors")
    return _File(vectors, numbers)


def _vector(body: memoryview, entry: dict[str, Any]) -> memoryview:
    start, end = entry["data_offsets"]
    (count,) = entry["shape"]
    if entry["dtype"] != DTYPE or not 0 <= start <= end <= len(body):
        raise ValueError(f"a vector of {entry['dtype']!r:.20} at {start} to {end}")
    if count * NUMBER_BYTES != end - start:
        raise ValueError(f"{count} numbers in {end - start} bytes")
    return body[start:end]


def _written(file: _File) -> bytes:
    """The file of these vectors, sorted by name, and numbers."""
    header: dict[str, Any] = {"__metadata__": sealed(file.numbers, file.vectors)}
    parts, end = [], 0
    for name, vector in sorted(file.vectors.items()):
        start, end = end, end + len(vector)
        header[name] = {
            "dtype": DTYPE,
            "shape": [len(vector) // NUMBER_BYTES],
            "data_offsets": [start, end],
        }
        parts.append(vector)
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % ALIGNED_BYTES)
    return b"".join([len(told).to_bytes(LENGTH_BYTES, "little"), told, *parts])
