"""The yardstick of a run: what its snapshots are worth, one by one and averaged.

    python -m node.yardstick --spec FILE --tokenizer FILE --validation FILE SNAPSHOT...

Prints one JSON object: the validation loss of the run's initial weights, of each snapshot's
slow weights and of their mean, in nats per byte, the round of each, and the consensus
distance: the squared distance of the slow weights from their mean, summed over parameters,
averaged over snapshots.  A process of its own, for it needs torch and whoever asks has none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from node.worker.files import read_weights
from node.worker.materials import initial_slow, read_validation
from protocol import codec
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.spec import MAX_SPEC_BYTES, RunSpec
from trainers.model import model_on

EXIT_UNUSABLE = 2


def measure(
    spec: RunSpec, tokenizer: str, validation: str, snapshots: list[Path]
) -> dict[str, object]:
    """What is printed.  Raises Malformed, OSError: a file cannot be used."""
    yardstick = read_validation(spec, tokenizer, validation)

    def loss(weights_P: Tensor) -> float:
        return yardstick.loss(model_on(spec.model, weights_P))

    count = num_parameters(spec.model)
    rounds, phis = zip(*(read_weights(path, spec.run, count) for path in snapshots), strict=True)
    mean_P = torch.stack(phis).mean(dim=0)
    distances = [(phi_P - mean_P).square().sum().item() for phi_P in phis]
    weights = [initial_slow(spec).phi_P, *phis, mean_P]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start, *nodes, mean = pool.map(loss, weights)
    return {
        "start": start,
        "nodes": nodes,
        "mean": mean,
        "consensus": sum(distances) / len(distances),
        "rounds": list(rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m node.yardstick")
    parser.add_argument("--spec", type=Path, required=True, help="canonical bytes of the spec")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("snapshots", type=Path, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one evaluation a core is faster than one on all cores
    try:
        spec = codec.decode(RunSpec, args.spec.read_bytes(), max_bytes=MAX_SPEC_BYTES)
        found = measure(spec, args.tokenizer, args.validation, args.snapshots)
    except (Malformed, ValueError, OSError) as error:
        print(f"yardstick: {error}", file=sys.stderr)  # noqa: T201  this is a command
        return EXIT_UNUSABLE
    print(json.dumps(found))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
