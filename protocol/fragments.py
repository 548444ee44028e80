"""Fragments: the parts in which a model is exchanged, and whose turn it is in which round.

With `fragment_layers` = k a model of L layers has F = ceil(L / k) fragments of layers, strided
(fragment j holds the layers j, j + F, j + 2 F, ...), and one of the embeddings and the last
norm, so P = F + 1; a tied weight is in the embeddings, once.  With k = 0 the whole model is the
one fragment.

A round ends with the exchange of one fragment.  H inner steps lie between two exchanges of the
same one, so round r lasts floor((p + 1) H / P) - floor(p H / P) steps with p = r mod P, and
P rounds make H steps.

Source: Streaming DiLoCo, https://arxiv.org/abs/2501.18512, sections 3.1 and 4 (strided,
embedding of its own).
"""

from __future__ import annotations

from protocol.ids import Round
from protocol.model import GptConfig


def num_fragments(model: GptConfig, fragment_layers: int) -> int:
    """P."""
    return 1 if fragment_layers == 0 else -(-model.layers // fragment_layers) + 1


def layers_of(model: GptConfig, fragment_layers: int, fragment: int) -> range:
    """The layers in a fragment; none in the last one, which holds the embeddings."""
    strides = num_fragments(model, fragment_layers) - 1
    if strides == 0:
        return range(model.layers)
    return range(fragment, model.layers, strides) if fragment < strides else range(0)


def num_parameters(model: GptConfig) -> int:
    """P, the numbers in the model: the closed form of `trainers.model.Gpt`."""
    return model.layers * _layer(model) + _rest(model)


def fragment_counts(model: GptConfig, fragment_layers: int) -> tuple[int, ...]:
    """The numbers in each fragment; their sum is `num_parameters`."""
    fragments = num_fragments(model, fragment_layers)
    counts = [
        len(layers_of(model, fragment_layers, fragment)) * _layer(model)
        for fragment in range(fragments)
    ]
    counts[-1] += _rest(model)
    return tuple(counts)


def round_steps(inner_steps: int, fragments: int, round: Round) -> int:
    """Inner steps of this round."""
    turn = round % fragments
    return (turn + 1) * inner_steps // fragments - turn * inner_steps // fragments


def _layer(model: GptConfig) -> int:
    """Attention 4 w^2 + 4 w, perceptron 8 w^2 + 5 w, two norms of 2 w."""
    return 12 * model.width * model.width + 13 * model.width


def _rest(model: GptConfig) -> int:
    """Tied embedding and head, learned positions, the last norm."""
    return (model.vocab + model.context) * model.width + 2 * model.width
