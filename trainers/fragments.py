"""Fragments of the flat vector: which numbers belong to which, by parameter name.

Every number belongs to exactly one fragment; a tied weight is one tensor, so it is there once.
Which layers make a fragment: `protocol.fragments`.
"""

from __future__ import annotations

from protocol.fragments import fragment_counts, layers_of, num_fragments
from protocol.model import GptConfig
from trainers.subspace import Subspace, model_subspace

OUTER_PARTS = ("tokens.*", "positions.*", "norm.*")
"""Of `trainers.model.Gpt`, what is in no layer."""


def fragments(model: GptConfig, fragment_layers: int) -> tuple[Subspace, ...]:
    """The fragments of a model, in the order of their turns."""
    total = num_fragments(model, fragment_layers)
    found = []
    for fragment in range(total):
        layers = layers_of(model, fragment_layers, fragment)
        patterns = [f"blocks.{layer}.*" for layer in layers]
        if fragment == total - 1:
            patterns += OUTER_PARTS
        found.append(model_subspace(model, patterns))
    assert tuple(part.size for part in found) == fragment_counts(model, fragment_layers)
    return tuple(found)
