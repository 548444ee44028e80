"""The parameters that SPSA trains: those whose names match a run's patterns.

A whole model of this size does not learn from scalars, a few thousand of its parameters do: a
head, biases and norms, adapters.  They are ranges of the flat vector of `trainers.model`, here
one after the other as a vector of their own; the rest stays as it was.

Patterns are those of the shell, case and all: "*.bias", "norm.*", "blocks.3.*", "*lora*".

Shape suffixes: P parameters, Q trainable ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from protocol.fragments import num_parameters
from protocol.model import GptConfig
from trainers.model import views

NAMES_SHOWN = 6
"""Of the parameters there are, in the sentence about a pattern that matches none."""


@dataclass(frozen=True, slots=True)
class Subspace:
    """Ranges of a flat vector, in its order, none touching the next."""

    ranges: tuple[tuple[int, int], ...]
    """First and one after the last."""

    @property
    def size(self) -> int:
        """Q."""
        return sum(end - start for start, end in self.ranges)

    def gather(self, vector_P: Tensor) -> Tensor:
        """A copy of the trainable part."""
        return torch.cat([vector_P[start:end] for start, end in self.ranges])

    def scatter(self, part_Q: Tensor, vector_P: Tensor) -> None:
        """Write the trainable part of `vector_P`."""
        taken = 0
        for start, end in self.ranges:
            vector_P[start:end] = part_Q[taken : taken + end - start]
            taken += end - start

    def replaced(self, part_Q: Tensor, vector_P: Tensor) -> Tensor:
        """`vector_P` with another trainable part; the given one is left alone."""
        vector_P = vector_P.clone()
        self.scatter(part_Q, vector_P)
        return vector_P


def model_subspace(config: GptConfig, patterns: Sequence[str]) -> Subspace:
    """The parameters of the model whose names match any of the patterns.

    Raises:
        ValueError: a pattern matches none; names it, and some that there are.
    """
    return subspace(views(config, torch.empty(num_parameters(config), device="meta")), patterns)


def subspace(parts: Mapping[str, Tensor], patterns: Sequence[str]) -> Subspace:
    """The same of any parameters that are views of one flat vector."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parts):
            shown = ", ".join(sorted(parts, key=len)[:NAMES_SHOWN])
            raise ValueError(
                f'trainer.trainable has "{pattern}", which matches no parameter; there are for '
                f"instance {shown}"
            )
    ranges: list[tuple[int, int]] = []
    for name, part in sorted(parts.items(), key=lambda item: int(item[1].storage_offset())):
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        start = int(part.storage_offset())
        end = start + part.numel()
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return Subspace(tuple(ranges))
